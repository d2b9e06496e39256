//! The only file that prints: results to stdout, all else to stderr.

use std::error::Error as _;
use std::fmt::Display;
use std::io::{IsTerminal, Write};

use serde::Serialize;
use serde_json::json;
use tintype_engine::Error;

use crate::arguments::{Color, Globals};

/// Where and how to print.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    json: bool,
    quiet: bool,
    colors: bool,
    live: bool,
}

impl Output {
    pub(crate) fn new(globals: &Globals) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let colors = match globals.color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => std::io::stdout().is_terminal() && terminal,
        };
        Self {
            json: globals.json,
            quiet: globals.quiet,
            colors,
            live: terminal && !globals.quiet && !globals.json,
        }
    }

    /// Tells whether results are JSON.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Tells whether a line of progress can be redrawn.
    pub(crate) fn is_live(&self) -> bool {
        self.live
    }

    /// Prints a result: the value as JSON, or the text for people.
    pub(crate) fn result(&self, value: &impl Serialize, text: impl FnOnce() -> String) {
        if self.json {
            self.line(&serde_json::to_string(value).expect("our own values are plain data"));
        } else {
            self.line(text().trim_end());
        }
    }

    /// Prints a line to stdout. A reader that went away is no error of ours.
    pub(crate) fn line(&self, line: &str) {
        let _ = writeln!(std::io::stdout(), "{line}");
    }

    /// Prints a sentence to stderr.
    pub(crate) fn notice(&self, sentence: &str) {
        if self.quiet {
            return;
        }
        if self.json {
            self.event(&json!({"event": "notice", "text": sentence}));
        } else {
            self.side(&format!("note: {sentence}"));
        }
    }

    /// Prints a JSON event to stderr.
    pub(crate) fn event(&self, event: &serde_json::Value) {
        if !self.quiet {
            self.side(&event.to_string());
        }
    }

    /// Redraws the line of progress; an empty one clears it.
    pub(crate) fn redraw(&self, line: &str) {
        let mut stderr = std::io::stderr();
        let _ = write!(stderr, "\r\u{1b}[2K{line}");
        let _ = stderr.flush();
    }

    /// Prints an error: what failed, why, what state things are in, what to type next.
    pub(crate) fn error(&self, error: &Error) {
        let mut causes = Vec::new();
        let mut cause = error.source();
        while let Some(source) = cause {
            causes.push(source.to_string());
            cause = source.source();
        }
        if self.json {
            let value = json!({"error": {
                "kind": format!("{:?}", error.kind()).to_lowercase(),
                "message": error.to_string(),
                "causes": causes,
                "state": error.state_now(),
                "hint": error.next_step(),
            }});
            self.side(&value.to_string());
            return;
        }
        if self.live {
            self.redraw("");
        }
        self.side(&format!("{} {error}", self.painted("error:", "31;1")));
        for cause in causes {
            self.side(&format!("  {} {cause}", self.painted("caused by:", "31")));
        }
        if let Some(state) = error.state_now() {
            self.side(&format!("  {} {state}", self.painted("state:", "36")));
        }
        if let Some(hint) = error.next_step() {
            self.side(&format!("  {} {hint}", self.painted("hint:", "32")));
        }
    }

    /// Paints text for a terminal with the colour of an ANSI code.
    pub(crate) fn painted(&self, text: impl Display, code: &str) -> String {
        if self.colors { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_string() }
    }

    fn side(&self, line: &str) {
        let _ = writeln!(std::io::stderr(), "{line}");
    }
}
