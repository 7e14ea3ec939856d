//! Ctrl-C in a measurement: the first asks for an end after the case in hand, the second ends the process at once.

use std::{
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::{Error, Kind, Result};

/// A flag that the first Ctrl-C (or SIGTERM) sets; `message` is shown then.
///
/// # Errors
/// When signals cannot be watched.
pub fn watch(message: &'static str) -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let asked = stop.clone();
    ctrlc::set_handler(move || {
        if asked.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        // Nothing is left to tell when standard error is gone.
        let _ = writeln!(std::io::stderr(), "\n{message}; press Ctrl-C again to stop at once");
    })
    .map_err(|e| Error::new(Kind::Io, "cannot watch for Ctrl-C").because(e))?;
    Ok(stop)
}
