//! Measures, side by side with what the machine and its peers do in the same run.
//! It prints medians and ratios, and never judges: machines are noisy.

mod chain;
mod guest;
mod incremental;
mod pause;
mod peers;
mod repo;
mod restore;
mod space;

use crate::failure::Failure;

pub(crate) const ABOUT: &str = "measures: `bench pause [MIB]…` the pauses of takes, `bench repo [--quick]` the repository, `bench restore [MIB]…` guests that are put back, `bench incremental [GIB]` takes of what changed, `bench chain [N]…` a life with N snapshots, `bench space [N]` what N of them take";

/// Runs a benchmark.
pub(crate) fn chore(arguments: &[String]) -> Result<(), Failure> {
    match arguments.split_first() {
        Some((name, rest)) if name == "pause" => pause::run(rest),
        Some((name, rest)) if name == "repo" => repo::run_all(rest),
        Some((name, rest)) if name == "restore" => restore::run(rest),
        Some((name, rest)) if name == "chain" => chain::run(rest),
        Some((name, rest)) if name == "space" => space::run(rest),
        Some((name, rest)) if name == "incremental" => incremental::run(rest),
        _ => Err(Failure::Other(
            "say which benchmark: pause, repo, restore, incremental, chain or space".to_owned(),
        )),
    }
}

/// Returns the middle value, or the mean of the two in the middle.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.as_slice() {
        [] => f64::NAN,
        sorted if sorted.len() % 2 == 1 => sorted[middle],
        sorted => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// Reads sizes of memory; the usual ones if there are none.
fn sizes_in_mib(arguments: &[String], usual: &[u32]) -> Result<Vec<u32>, Failure> {
    if arguments.is_empty() {
        return Ok(usual.to_vec());
    }
    let size = |text: &String| {
        text.parse().map_err(|_| Failure::Other(format!("`{text}` is no size in MiB")))
    };
    arguments.iter().map(size).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let check = |values: &[f64], middle: f64| assert!((median(values) - middle).abs() < 1e-9);
        check(&[3.0, 1.0, 2.0], 2.0);
        check(&[4.0, 1.0, 2.0, 3.0], 2.5);
    }
}
