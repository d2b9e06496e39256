//! The commands that change what is said of a snapshot.

use std::fmt::Write;

use tintype_engine::{Engine, Result, TagParams};

use crate::arguments::LabelCommand;
use crate::output::Output;

/// Changes what is said of a snapshot, and says what is said now.
pub(crate) fn run(engine: &Engine, command: LabelCommand, output: &Output) -> Result<()> {
    let report = match command {
        LabelCommand::Rename { snapshot, name } => engine.rename(&snapshot, &name)?,
        LabelCommand::Tag { snapshot, tags: set, remove } => {
            engine.tag(&snapshot, &TagParams { set, remove })?
        }
        LabelCommand::Pin { snapshot } => engine.set_pinned(&snapshot, true)?,
        LabelCommand::Unpin { snapshot } => engine.set_pinned(&snapshot, false)?,
        LabelCommand::Note { snapshot, text } => engine.note(&snapshot, &text)?,
    };
    output.result(&report, || {
        let mut text = format!("{}@{} ({})", report.vm, report.name, report.id.short());
        if report.pinned {
            text.push_str(", pinned");
        }
        for (key, value) in &report.tags {
            let _ = write!(text, ", {key}={value}");
        }
        if !report.message.is_empty() {
            let _ = write!(text, "\n{}", report.message);
        }
        text
    });
    Ok(())
}
