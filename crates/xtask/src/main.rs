//! The project's own chores, one module each. This file only finds the chore
//! that was asked for; it does no work itself.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "chores talk to the developer")]

mod accelerator;
mod bench;
mod demo;
mod failure;
mod fuzz;
mod guests;
mod process;
mod setup;
mod soak;
mod test;
mod tidy;

use std::process::ExitCode;

use failure::Failure;

/// A chore: its name, what it is for, and what does it with the rest of the arguments.
struct Chore {
    name: &'static str,
    about: &'static str,
    run: fn(&[String]) -> Result<(), Failure>,
}

const CHORES: &[Chore] = &[
    Chore { name: "setup", about: setup::ABOUT, run: setup::chore },
    Chore { name: "guests", about: guests::ABOUT, run: guests::chore },
    Chore { name: "demo", about: demo::ABOUT, run: demo::chore },
    Chore { name: "bench", about: bench::ABOUT, run: bench::chore },
    Chore { name: "test", about: test::ABOUT, run: test::chore },
    Chore { name: "soak", about: soak::ABOUT, run: soak::chore },
    Chore { name: "fuzz", about: fuzz::ABOUT, run: fuzz::chore },
    Chore { name: "tidy", about: tidy::ABOUT, run: tidy::chore },
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((name, rest)) = arguments.split_first() else {
        print_chores();
        return ExitCode::from(2);
    };
    let Some(chore) = CHORES.iter().find(|chore| chore.name == name) else {
        eprintln!("error: there is no chore `{name}`");
        print_chores();
        return ExitCode::from(2);
    };
    match (chore.run)(rest) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.print();
            ExitCode::FAILURE
        }
    }
}

fn print_chores() {
    println!("usage: cargo xtask CHORE [ARGUMENT]…\n");
    for Chore { name, about, .. } in CHORES {
        println!("  {name:8} {about}");
    }
}
