//! What of a QEMU a take touches, asked of QEMU itself: after a take, and after a
//! revert, all of it has to be as it was. Does not know what tintype wants it to be.

use serde_json::{Value, json};
use tintype_testkit::Guest;

/// The state of a QEMU as far as a take changes it on its way.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Traces {
    /// Whether the guest runs.
    state: Value,
    /// The name and the driver of every block node. QEMU numbers those that
    /// nobody has named, so they are all called `#`.
    nodes: Vec<String>,
    /// Every device with its node and its last I/O error.
    drives: Vec<String>,
    /// The ids of the exports; the NBD server has none when it is stopped.
    exports: Vec<Value>,
    /// The jobs, those of the block layer and all others.
    jobs: Value,
    /// The migration capabilities that are on.
    capabilities: Vec<String>,
    /// The migration parameters.
    parameters: Value,
}

impl Traces {
    /// Asks the QEMU behind a guest's monitor, which must be free.
    pub(crate) fn of(guest: &Guest) -> Self {
        let mut qmp = guest.qmp().unwrap();
        let mut ask = |command| qmp.execute(command, json!({})).unwrap();
        let traces = Self {
            state: ask("query-status")["status"].take(),
            nodes: sorted(&ask("query-named-block-nodes"), |node| {
                Some(format!("{} {}", name(&node["node-name"]), node["drv"]))
            }),
            drives: sorted(&ask("query-block"), |drive| {
                let node = name(&drive["inserted"]["node-name"]);
                Some(format!("{} {node} {}", drive["qdev"], drive["io-status"]))
            }),
            exports: list(&ask("query-block-exports")).to_vec(),
            jobs: ask("query-jobs"),
            capabilities: sorted(&ask("query-migrate-capabilities"), |capability| {
                let is_on = capability["state"] == true;
                is_on.then(|| capability["capability"].to_string())
            }),
            parameters: ask("query-migrate-parameters"),
        };
        let ours: Vec<_> =
            traces.nodes.iter().chain(&traces.drives).filter(|n| n.contains("tintype")).collect();
        assert!(ours.is_empty(), "left in QEMU: {ours:?}");
        traces
    }

    /// Says the same of a guest whose state is called otherwise if it is paused: it
    /// stands still as before, and its owner can let it run.
    pub(crate) fn after_a_migration(&self) -> Self {
        if self.state == "paused" { self.in_state(&json!("postmigrate")) } else { self.clone() }
    }

    /// Says the same of a guest in another state.
    pub(crate) fn in_state(&self, state: &Value) -> Self {
        Self { state: state.clone(), ..self.clone() }
    }
}

fn list(answer: &Value) -> &[Value] {
    answer.as_array().expect("a list is due")
}

fn sorted(answer: &Value, describe: impl Fn(&Value) -> Option<String>) -> Vec<String> {
    let mut lines: Vec<String> = list(answer).iter().filter_map(describe).collect();
    lines.sort();
    lines
}

fn name(node: &Value) -> &str {
    let name = node.as_str().unwrap_or("none");
    if name.starts_with('#') { "#" } else { name }
}
