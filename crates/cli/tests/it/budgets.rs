//! Budgets, what they refuse, and what `du` and `doctor` say of space.

use serde_json::Value;

use crate::switched_off::{SwitchedOff, failed};

fn number(value: &Value, field: &str) -> u64 {
    value[field].as_u64().unwrap_or_else(|| panic!("no {field} in {value}"))
}

#[test]
fn takes_beyond_a_budget_are_refused() {
    let vm = SwitchedOff::start();
    vm.tintype.json(&["vm", "set", "web", "--budget", "13M"]);
    // The first take stored all, so it tells nothing of the next.
    vm.take("s1", 1);
    vm.write(2);
    let second = vm.tintype.run(&["take", "web", "--name", "s2"]);
    let errors = failed(&second, 0);
    assert!(errors.is_empty(), "{errors}");
    vm.write(3);
    let third = failed(&vm.tintype.run(&["take", "web", "--name", "s3"]), 0);
    assert!(third.contains("left of 13.0 MiB: no room for another take"), "{third}");
    vm.write(4);
    let refused = vm.fail(4, &["take", "web", "--name", "s4"]);
    assert!(refused.contains("there is no room for a snapshot of `web`"), "{refused}");
    assert!(refused.contains("state: no snapshot was taken; nothing was changed"), "{refused}");
    let doctor = failed(&vm.tintype.run(&["doctor", "web"]), 1);
    assert!(doctor.is_empty(), "{doctor}");

    let du = vm.tintype.json(&["du"]);
    let web = &du["vms"][0];
    assert_eq!((&web["vm"], number(web, "budget_bytes")), (&"web".into(), 13 << 20), "{du}");
    assert_eq!(number(web, "referenced_bytes"), number(&du, "referenced_bytes"));
    assert_eq!(web["growth"], Value::Null, "too few to tell");
    assert_eq!(number(&du, "logical_bytes"), 12 << 20);
    let [overall, deduplication, compression] =
        ["overall", "deduplication", "compression"].map(|name| du["ratio"][name].as_f64().unwrap());
    assert!((overall - deduplication * compression).abs() < 1e-6, "{du}");
    assert!((0.9..1.1).contains(&overall), "noise is neither: {du}");

    vm.tintype.json(&["rm", "web@s1"]);
    vm.tintype.json(&["take", "web", "--name", "s4"]);
    vm.write(5);
    vm.fail(4, &["take", "web"]);
    vm.tintype.json(&["take", "web", "--name", "s5", "--ignore-space"]);
    vm.tintype.json(&["vm", "set", "web", "--no-budget"]);
    vm.take("s6", 6);

    let all = number(&vm.tintype.json(&["du"]), "repository_bytes");
    let budget = (all + (1 << 20)).to_string();
    vm.write(7);
    let refused = vm.fail(4, &["--repo-budget", &budget, "take", "web"]);
    assert!(refused.contains("the budget of the repository has"), "{refused}");
    vm.fail(1, &["--repo-budget", &budget, "doctor", "web"]);
    vm.tintype.json(&["--repo-budget", "1G", "take", "web"]);
}
