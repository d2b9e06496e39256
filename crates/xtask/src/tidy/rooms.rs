//! Rules about the rooms, which are the crates in `crates/`: which may use which,
//! how they are called, and that each is introduced in `crates/README.md`.

use std::collections::BTreeSet;

use serde_json::Value;

use super::file::Finding;
use super::source::line_of;

/// Where the rooms are introduced.
pub(super) const README: &str = "crates/README.md";

/// Where this table is.
const TABLE: &str = "crates/xtask/src/tidy/rooms.rs";

/// What a room may use.
struct Rule {
    room: &'static str,
    uses: &'static [&'static str],
    /// What its tests may use besides.
    tests_use: &'static [&'static str],
}

/// The direction of dependencies. A new edge is a design decision: the commit that
/// adds one here says why. An edge that nobody needs any more leaves the table.
const RULES: &[Rule] = &[
    Rule { room: "types", uses: &[], tests_use: &[] },
    Rule { room: "stream", uses: &["types"], tests_use: &[] },
    Rule { room: "inspect", uses: &["types"], tests_use: &["testkit"] },
    Rule { room: "nbd", uses: &["types"], tests_use: &[] },
    Rule { room: "repo", uses: &["types"], tests_use: &["testkit"] },
    Rule { room: "retention", uses: &[], tests_use: &["testkit"] },
    Rule { room: "image", uses: &["nbd", "types"], tests_use: &[] },
    Rule { room: "vm", uses: &["nbd", "stream", "types"], tests_use: &[] },
    Rule {
        room: "engine",
        uses: &["image", "inspect", "nbd", "repo", "retention", "stream", "types", "vm"],
        tests_use: &[],
    },
    Rule { room: "cli", uses: &["engine", "types"], tests_use: &["testkit"] },
    Rule { room: "testkit", uses: &[], tests_use: &[] },
    Rule { room: "witness", uses: &[], tests_use: &[] },
    Rule { room: "xtask", uses: &["testkit"], tests_use: &[] },
];

/// Rooms that never learn of each other, not even by way of a third: the engine
/// alone introduces them.
const STRANGERS: [(&str, &str); 2] = [("repo", "vm"), ("vm", "repo")];

/// A crate of the workspace, as its manifest has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Room {
    /// The name of its folder in `crates`.
    pub(super) folder: String,
    package: String,
    uses: BTreeSet<String>,
    tests_use: BTreeSet<String>,
}

impl Room {
    /// Reads the rooms from what `cargo metadata --no-deps` prints.
    pub(super) fn all_in(metadata: &str) -> Option<Vec<Self>> {
        let metadata: Value = serde_json::from_str(metadata).ok()?;
        let packages = metadata["packages"].as_array()?;
        packages.iter().map(Self::of_package).collect()
    }

    fn of_package(package: &Value) -> Option<Self> {
        let folder = last_folder(package["manifest_path"].as_str()?.strip_suffix("/Cargo.toml")?);
        let dependencies = package["dependencies"].as_array()?;
        let used = |for_tests: bool| {
            let chosen = dependencies.iter().filter(|each| (each["kind"] == "dev") == for_tests);
            chosen.filter_map(|each| Some(last_folder(each["path"].as_str()?))).collect()
        };
        Some(Self {
            folder,
            package: package["name"].as_str()?.to_owned(),
            uses: used(false),
            tests_use: used(true),
        })
    }

    fn expected_package(&self) -> String {
        match self.folder.as_str() {
            "cli" => "tintype".to_owned(),
            // They are no part of what is shipped.
            "witness" | "xtask" => self.folder.clone(),
            folder => format!("tintype-{folder}"),
        }
    }
}

fn last_folder(path: &str) -> String {
    path.rsplit('/').next().unwrap_or(path).to_owned()
}

/// Compares the rooms with the table.
pub(super) fn directions(rooms: &[Room]) -> Vec<(String, Finding)> {
    let mut found = Vec::new();
    for room in rooms {
        let mut report = |advice: String| {
            found.push((format!("crates/{}/Cargo.toml", room.folder), Finding::new(1, advice)));
        };
        let expected = room.expected_package();
        if room.package != expected {
            report(format!("call the package `{expected}`, like its folder"));
        }
        match RULES.iter().find(|rule| rule.room == room.folder) {
            None => report(format!("say in {TABLE} what `{}` may use", room.folder)),
            Some(rule) => {
                compare(room, &room.uses, rule.uses, "", &mut report);
                compare(room, &room.tests_use, rule.tests_use, " in tests", &mut report);
            }
        }
        let reached = reached_from(room, rooms);
        for (_, stranger) in STRANGERS.iter().filter(|(from, _)| *from == room.folder) {
            if reached.contains(*stranger) {
                report(format!("never let `{}` know `{stranger}`: the engine may", room.folder));
            }
        }
    }
    for rule in RULES.iter().filter(|rule| !rooms.iter().any(|room| room.folder == rule.room)) {
        let advice = format!("drop `{}` from the table: there is no such room", rule.room);
        found.push((TABLE.to_owned(), Finding::new(1, advice)));
    }
    found
}

fn compare(
    room: &Room,
    uses: &BTreeSet<String>,
    allowed: &[&str],
    when: &str,
    report: &mut impl FnMut(String),
) {
    let room = &room.folder;
    for used in uses.iter().filter(|used| !allowed.contains(&used.as_str())) {
        report(format!("do without `{used}`{when}, or defend {room} → {used}{when} in {TABLE}"));
    }
    for unused in allowed.iter().filter(|name| !uses.contains(**name)) {
        report(format!("drop {room} → {unused}{when} from {TABLE}: it is not used"));
    }
}

/// Returns every room that this one uses, also by way of others, also in its tests.
fn reached_from(room: &Room, rooms: &[Room]) -> BTreeSet<String> {
    let mut reached = BTreeSet::new();
    let mut open: Vec<&str> = room.uses.union(&room.tests_use).map(String::as_str).collect();
    while let Some(name) = open.pop() {
        if reached.insert(name.to_owned()) {
            let next = rooms.iter().filter(|room| room.folder == name);
            open.extend(next.flat_map(|room| room.uses.iter().map(String::as_str)));
        }
    }
    reached
}

/// Every room is introduced in one line.
pub(super) fn introductions(rooms: &[Room], readme: &str) -> Vec<Finding> {
    let mut found = Vec::new();
    for Room { folder, .. } in rooms {
        let start = format!("- `{folder}`: ");
        let count = readme.lines().filter(|line| line.starts_with(&start)).count();
        if count != 1 {
            found.push(Finding::new(1, format!("write one line `{start}…`: there are {count}")));
        }
    }
    for (offset, _) in readme.match_indices("- `") {
        let name = readme[offset + 3..].split('`').next().unwrap_or_default();
        let starts_line = offset == 0 || readme[..offset].ends_with('\n');
        if starts_line && !rooms.iter().any(|room| room.folder == name) {
            let advice = format!("drop the line of `{name}`: there is no such room");
            found.push(Finding::new(line_of(readme, offset), advice));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(folder: &str, package: &str, uses: &[&str], tests_use: &[&str]) -> Room {
        let set = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let (folder, package) = (folder.to_owned(), package.to_owned());
        Room { folder, package, uses: set(uses), tests_use: set(tests_use) }
    }

    /// Returns the rooms as the table wants them.
    fn model() -> Vec<Room> {
        let exact = |rule: &Rule| {
            let mut room = room(rule.room, "", rule.uses, rule.tests_use);
            room.package = room.expected_package();
            room
        };
        RULES.iter().map(exact).collect()
    }

    #[test]
    fn the_table_keeps_strangers_apart() {
        assert_eq!(directions(&model()), []);
    }

    #[test]
    fn edges_are_compared_with_the_table() {
        let check = |changed: Room, expected: &[&str]| {
            let path = format!("crates/{}/Cargo.toml", changed.folder);
            let mut rooms = model();
            rooms.retain(|room| room.folder != changed.folder);
            rooms.push(changed.clone());
            let found = directions(&rooms);
            let advice: Vec<&str> = found
                .iter()
                .filter(|(at, _)| *at == path)
                .map(|(_, finding)| finding.advice.as_str())
                .collect();
            assert_eq!(advice.len(), expected.len(), "{advice:?}");
            for (advice, expected) in advice.iter().zip(expected) {
                assert!(advice.contains(expected), "{advice}: {expected}");
            }
        };
        check(room("types", "tintype-types", &[], &[]), &[]);
        check(room("types", "types", &[], &[]), &["call the package `tintype-types`"]);
        check(room("types", "tintype-types", &["nbd"], &[]), &["defend types → nbd"]);
        check(room("types", "tintype-types", &[], &["nbd"]), &["types → nbd in tests"]);
        check(room("nbd", "tintype-nbd", &[], &[]), &["drop nbd → types"]);
        let both = ["defend repo → vm", "never let `repo` know `vm`"];
        check(room("repo", "tintype-repo", &["types", "vm"], &["testkit"]), &both);
        let hidden = ["defend repo → engine", "never let `repo` know `vm`"];
        check(room("repo", "tintype-repo", &["types", "engine"], &["testkit"]), &hidden);
        check(room("hall", "tintype-hall", &[], &[]), &["say in"]);
    }

    #[test]
    fn manifests_are_read() {
        let metadata = r#"{"packages": [{
            "name": "tintype-vm", "manifest_path": "/a/crates/vm/Cargo.toml", "dependencies": [
                {"name": "tintype-nbd", "kind": null, "path": "/a/crates/nbd"},
                {"name": "tintype-testkit", "kind": "dev", "path": "/a/crates/testkit"},
                {"name": "serde", "kind": null}]}]}"#;
        let expected = room("vm", "tintype-vm", &["nbd"], &["testkit"]);
        assert_eq!(Room::all_in(metadata), Some(vec![expected]));
        assert_eq!(Room::all_in("{}"), None);
    }

    #[test]
    fn rooms_are_introduced() {
        let rooms = [room("vm", "", &[], &[]), room("nbd", "", &[], &[])];
        let check = |readme, lines: &[usize]| {
            let found = introductions(&rooms, readme);
            let found: Vec<usize> = found.iter().map(|finding| finding.line).collect();
            assert_eq!(found, lines, "{readme}");
        };
        check("- `vm`: a\n- `nbd`: b\n", &[]);
        check("# Rooms\n\n- `vm`: a\n", &[1]);
        check("- `vm`: a\n- `vm`: a\n- `nbd`: b\n", &[1]);
        check("- `vm`: a\n- `nbd`: b\n- `hall`: c\n", &[3]);
    }
}
