//! The peak of a process's memory over a stretch of work, as Linux counts it.

use std::fs;

/// Memory at the beginning of the stretch.
#[derive(Clone, Copy, Debug)]
pub struct Watch {
    before: Option<u64>,
}

impl Watch {
    /// Begins: the system's mark of the peak is put back to what is held now.
    pub fn start() -> Watch {
        // 5 resets the peak; a system that refuses gives no number.
        let reset = fs::write("/proc/self/clear_refs", "5").is_ok();
        Watch { before: if reset { status("VmRSS") } else { None } }
    }

    /// Growth up to the peak since then, in bytes.
    pub fn peak_bytes(&self) -> Option<u64> {
        Some(status("VmHWM")?.saturating_sub(self.before?))
    }
}

fn status(name: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}
