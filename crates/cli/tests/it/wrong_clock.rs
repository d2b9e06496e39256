//! Commands that are told a wrong time: a small library between them and the C library
//! moves their clock.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const SOURCE: &str = r#"
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *at) {
    int result = syscall(SYS_clock_gettime, clock, at);
    const char *days = getenv("TEST_CLOCK_DAYS");
    if (result == 0 && clock == CLOCK_REALTIME && days)
        at->tv_sec += 86400L * atol(days);
    return result;
}
"#;

/// The library.
pub(crate) struct WrongClock(PathBuf);

impl WrongClock {
    pub(crate) fn build(folder: &Path) -> Self {
        let (source, library) = (folder.join("clock.c"), folder.join("clock.so"));
        fs::write(&source, SOURCE).unwrap();
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source);
        assert!(compiler.status().unwrap().success(), "there is a C compiler");
        Self(library)
    }

    /// Lets a command live so many days later, or earlier.
    pub(crate) fn shift<'c>(&self, command: &'c mut Command, days: i32) -> &'c mut Command {
        command.env("LD_PRELOAD", &self.0).env("TEST_CLOCK_DAYS", days.to_string())
    }
}
