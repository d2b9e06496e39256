//! Another inspector as the judge, that of `oslo.utils`: what it refuses is refused
//! here too.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use tintype_inspect::{ImageFormat, inspect};
use tintype_testkit::image_inspector_folder;

use crate::tools::{Place, place};

/// Prints the names of the files in a folder that are refused as what their names say.
const JUDGE: &str = r#"
import logging, os, sys
from oslo_utils.imageutils import format_inspector
logging.disable(logging.CRITICAL)
for name in sorted(os.listdir(sys.argv[1])):
    path = os.path.join(sys.argv[1], name)
    form = name.split(".")[-1]
    try:
        found = format_inspector.detect_file_format(path)
        if str(found) != form:
            raise Exception("it is " + str(found))
        found.safety_check()
        format_inspector.get_inspector(form).from_file(path).safety_check()
    except Exception as error:
        print(name)
"#;

/// Returns the seed that was asked for, or another one each time.
pub(crate) fn seed() -> u64 {
    let wanted = std::env::var("TINTYPE_SOAK_SEED").ok().map(|text| text.parse().unwrap());
    wanted.unwrap_or_else(|| {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos().into()
    })
}

/// Asserts that nothing is accepted that the judge refuses, and returns how many it
/// refuses.
fn compare(place: &Place, images: &[(String, ImageFormat, Vec<u8>)]) -> usize {
    let folder = place.path("judged");
    std::fs::create_dir_all(&folder).unwrap();
    let name = |number: usize| format!("{number}.{}", images[number].1.name());
    for (number, (_, _, bytes)) in images.iter().enumerate() {
        std::fs::write(folder.join(name(number)), bytes).unwrap();
    }
    let python = image_inspector_folder().join("bin/python");
    let judged = Command::new(python).args(["-c", JUDGE]).arg(&folder).output().unwrap();
    assert!(judged.status.success(), "{}", String::from_utf8_lossy(&judged.stderr));
    let refused = String::from_utf8(judged.stdout).unwrap();
    let refused: BTreeSet<&str> = refused.lines().collect();
    for (number, (about, format, bytes)) in images.iter().enumerate() {
        if refused.contains(name(number).as_str()) {
            // A backing file is the caller's to allow. The judge knows no subclusters,
            // which QEMU has had since 5.2.
            let has_subclusters =
                *format == ImageFormat::Qcow2 && bytes.get(79).is_some_and(|b| b & 16 != 0);
            if has_subclusters {
                continue;
            }
            let inspected = inspect(bytes, *format).map(|report| report.backing.is_some());
            assert!(matches!(inspected, Err(_) | Ok(true)), "{about} is refused by the judge");
        }
    }
    std::fs::remove_dir_all(&folder).unwrap();
    refused.len()
}

#[test]
fn nothing_is_accepted_that_oslo_utils_refuses() {
    if !image_inspector_folder().join("version").exists() {
        eprintln!("skipped: there is no oslo.utils: `cargo xtask setup` installs it");
        return;
    }
    let Some(place) = place() else { return };
    let mut images: Vec<_> = crate::attacks::all(&place)
        .into_iter()
        .map(|(about, format, bytes, _)| (about, format, bytes))
        .collect();
    let seed = seed();
    for (number, (format, bytes)) in crate::mutants::mutants(&place, seed).into_iter().enumerate() {
        images.push((format!("mutant {number} of seed {seed}"), format, bytes));
    }
    let mut refused = 0;
    for some in images.chunks(32) {
        refused += compare(&place, some);
    }
    eprintln!("{refused} of {} images are refused by oslo.utils, seed {seed}", images.len());
    assert!(refused >= 40, "the judge was asked");
}
