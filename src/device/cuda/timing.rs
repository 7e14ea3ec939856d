//! Device time of some work: events around replays of a graph, after replays that are not counted.

use cudarc::driver::result;

use super::{
    Cuda,
    context::Memory,
    modules::{
        Arg::{Count, Pointer},
        Grid,
    },
};
use crate::Result;

/// Calls of the work in one graph, where the cache is left warm: a call is then free of what a replay costs.
const CALLS: usize = 10;

/// Several times the L2 of any GPU.
const FLUSH_BYTES: usize = 512 << 20;

/// What the L2 cache holds when a call begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum L2 {
    /// What the calls before it left there.
    Warm,
    /// Nothing of use: half a gigabyte was written in between.
    Cold,
}

/// Some work, captured, to be timed.
pub struct Timed {
    cuda: Cuda,
    graph: super::graph::Graph,
    calls: usize,
    flush: Option<Memory>,
}

impl Cuda {
    /// Compiles the kernels of `work` and captures it. `work` must put the same on the stream each time it is called.
    ///
    /// # Errors
    /// When `work` fails, or does something that cannot be captured.
    pub fn timed(&self, cache: L2, mut work: impl FnMut() -> Result<()>) -> Result<Timed> {
        self.prepare(&mut work)?;
        let (calls, flush) = match cache {
            L2::Warm => (CALLS, None),
            L2::Cold => (1, Some(self.context().allocate(FLUSH_BYTES)?)),
        };
        let log = std::sync::Arc::new(super::log::Log::new(self.context(), 1, 1)?);
        let graph = self.record(&log, || (0..calls).try_for_each(|_| work()))?;
        Ok(Timed { cuda: self.clone(), graph, calls, flush })
    }
}

impl Cuda {
    /// Bytes a second, read and written, of arrays of `bytes` bytes on the device: the best of several samples of the driver's
    /// copy and of the elementwise gate kernel. A captured copy goes through a copy engine, which was seen to reach two thirds
    /// of what kernels do.
    ///
    /// # Errors
    /// When there is no memory for three arrays, or the device fails.
    pub fn bytes_per_s(&self, bytes: usize) -> Result<f64> {
        let context = self.context();
        let [from, also, to] = [context.allocate(bytes)?, context.allocate(bytes)?, context.allocate(bytes)?];
        let copy = self.timed(L2::Warm, || {
            if self.is_planning() {
                return Ok(());
            }
            // SAFETY: both are ours and as long, and outlive the graph.
            unsafe { result::memcpy_dtod_async(to.pointer(), from.pointer(), bytes, context.stream()) }
                .map_err(|cause| context.failed("copy", cause))
        })?;
        let count = bytes / self.element().bytes();
        let args = [Pointer(from.pointer()), Pointer(also.pointer()), Pointer(to.pointer()), Count(count as u64)];
        let configuration = self.configuration("swiglu_gate.cu", true, &[]);
        let grid = Grid::new(bytes.div_ceil(256 * 16), 256, 0);
        let kernel = self.timed(L2::Warm, || {
            // SAFETY: the arguments are the kernel's; the three arrays have `count` elements each, and outlive the graph.
            unsafe { self.launch(&configuration, "swiglu_gate_forward", grid, &args) }
        })?;
        let rate = |timed: &Timed, arrays: usize| -> Result<f64> {
            let best = timed.samples(2, 9)?.first().copied().unwrap_or(f64::INFINITY);
            Ok((arrays * bytes) as f64 / best * 1e3)
        };
        Ok(rate(&copy, 2)?.max(rate(&kernel, 3)?))
    }
}

impl Timed {
    /// Launches, copies and fills of one call.
    pub fn launches(&self) -> usize {
        self.graph.nodes() / self.calls
    }

    /// Milliseconds of one call.
    ///
    /// # Errors
    /// When the device fails.
    pub fn sample(&self) -> Result<f64> {
        let replays = if self.flush.is_some() { 1 } else { 3 };
        if let Some(memory) = &self.flush {
            let context = self.cuda.context();
            context.bind()?;
            // SAFETY: the memory is ours and as long.
            unsafe { result::memset_d8_async(memory.pointer(), 1, memory.bytes(), context.stream()) }
                .map_err(|cause| context.failed("flush its cache", cause))?;
        }
        let begin = self.cuda.event()?;
        (0..replays).try_for_each(|_| self.graph.replay())?;
        let end = self.cuda.event()?;
        end.synchronize()?;
        Ok(end.since(&begin)? / (replays * self.calls) as f64)
    }

    /// `count` samples after `warmup` that are not counted, sorted.
    ///
    /// # Errors
    /// When the device fails.
    pub fn samples(&self, warmup: usize, count: usize) -> Result<Vec<f64>> {
        for _ in 0..warmup {
            self.sample()?;
        }
        let mut samples = (0..count).map(|_| self.sample()).collect::<Result<Vec<f64>>>()?;
        samples.sort_by(f64::total_cmp);
        Ok(samples)
    }
}
