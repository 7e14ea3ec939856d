//! The peak of memory over a stretch of work: a process's, as Linux counts it, or what it holds on a GPU.

use std::{fs, sync::Arc};

use crate::device::{Device, cuda::context::Context};

/// Memory at the beginning of the stretch.
#[derive(Clone, Debug)]
pub struct Watch {
    before: Option<u64>,
    gpu: Option<Arc<Context>>,
}

impl Watch {
    /// Begins: the mark of the peak is put back to what is held now.
    pub fn start(device: &Device) -> Watch {
        match device {
            Device::Cpu(_) => {
                // 5 resets the peak; a system that refuses gives no number.
                let reset = fs::write("/proc/self/clear_refs", "5").is_ok();
                Watch { before: if reset { status("VmRSS") } else { None }, gpu: None }
            }
            Device::Cuda(cuda) => {
                let context = cuda.context().clone();
                context.reset_peak();
                Watch { before: Some(context.held_and_peak().0 as u64), gpu: Some(context) }
            }
        }
    }

    /// Growth up to the peak since then, in bytes.
    pub fn peak_bytes(&self) -> Option<u64> {
        let peak = match &self.gpu {
            None => status("VmHWM")?,
            Some(context) => context.held_and_peak().1 as u64,
        };
        Some(peak.saturating_sub(self.before?))
    }
}

fn status(name: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}
