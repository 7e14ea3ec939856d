//! One thin file a subcommand. Nothing below this module prints.

pub mod bench;
pub mod compare;
pub mod completions;
pub mod data;
pub mod demo;
pub mod doctor;
pub mod epoch_table;
pub mod eval;
pub mod interrupt;
pub mod load;
pub mod out;
pub mod peers;
pub mod predict;
pub mod predict_output;
pub mod report;
pub mod selftest;
pub mod terminal_picture;
pub mod train;
pub mod train_bars;
pub mod train_output;

use std::{error::Error as _, io::Write};

use crate::Error;

/// Prints `error:`, its causes and `hint:` on standard error.
pub fn print_error(error: &Error) {
    let mut err = std::io::stderr().lock();
    // Nothing is left to tell when standard error itself is gone.
    let _ = writeln!(err, "error: {error}");
    let mut cause = error.source();
    while let Some(inner) = cause {
        let _ = writeln!(err, "  because: {inner}");
        cause = inner.source();
    }
    if let Some(hint) = error.hint_text() {
        let _ = writeln!(err, "hint: {hint}");
    }
}
