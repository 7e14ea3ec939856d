//! Work captured once and replayed: one call puts a whole step on the stream.

use std::sync::Arc;

use cudarc::driver::{result, sys};

use super::{context::Context, log::Log};
use crate::{Error, Kind, Result};

/// Captured work, ready to be replayed. What its kernels read and write must live as long as it is replayed.
#[derive(Debug)]
pub struct Graph {
    exec: sys::CUgraphExec,
    graph: sys::CUgraph,
    /// Launches, copies and fills in it.
    nodes: usize,
    context: Arc<Context>,
    /// The counters and logs that its kernels use.
    _log: Option<Arc<Log>>,
}

// SAFETY: graphs are the driver's handles; replays go to one stream, from one owner.
unsafe impl Send for Graph {}

impl Graph {
    /// Captures what `work` puts on the stream. Memory that it makes is made now, and is no part of the graph.
    ///
    /// # Errors
    /// When `work` fails, or does something that cannot be captured (a synchronisation, a copy to main memory).
    pub(super) fn capture(
        context: &Arc<Context>,
        log: Option<Arc<Log>>,
        work: impl FnOnce() -> Result<()>,
    ) -> Result<Graph> {
        context.synchronize()?;
        let failed = |cause| context.failed("capture a graph", cause);
        // Relaxed: allocation and the loading of kernels are allowed meanwhile; neither goes to this stream.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream lives, and this thread captures on it alone.
        unsafe { result::stream::begin_capture(context.stream(), mode) }.map_err(failed)?;
        let outcome = work();
        context.bind()?;
        // SAFETY: the capture began above; it must end whatever came of the work.
        let graph = unsafe { result::stream::end_capture(context.stream()) };
        outcome?;
        let graph = graph.map_err(failed)?;
        if graph.is_null() {
            return Err(Error::new(Kind::Device, "a capture was broken off by something that cannot be captured"));
        }
        let mut nodes = 0;
        // SAFETY: the graph is whole; with no array given, only the number of nodes is written.
        let counted = unsafe { sys::cuGraphGetNodes(graph, std::ptr::null_mut(), &raw mut nodes) }.result();
        // SAFETY: the graph is whole.
        let exec =
            counted.and_then(|()| unsafe { result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)) });
        let exec = exec.inspect_err(|_| {
            // SAFETY: it was made above and nothing uses it.
            let _ = unsafe { result::graph::destroy(graph) };
        });
        let graph = Graph { exec: exec.map_err(failed)?, graph, nodes, context: context.clone(), _log: log };
        // So that the first replay does not pay for it.
        // SAFETY: graph and stream live.
        unsafe { result::graph::upload(graph.exec, context.stream()) }.map_err(failed)?;
        context.synchronize()?;
        Ok(graph)
    }

    /// Launches, copies and fills of one replay.
    pub fn nodes(&self) -> usize {
        self.nodes
    }

    /// Puts the work on the stream again.
    ///
    /// # Errors
    /// When the driver refuses; a failure of a kernel shows at the next synchronisation.
    pub fn replay(&self) -> Result<()> {
        self.context.bind()?;
        // SAFETY: graph and stream live; the owner keeps alive what the kernels use.
        unsafe { result::graph::launch(self.exec, self.context.stream()) }
            .map_err(|cause| self.context.failed("replay a graph", cause))
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.context.synchronize().is_ok() {
            // SAFETY: both were made once, and no replay is under way. A failure has nobody to hear it.
            unsafe {
                let _ = result::graph::exec_destroy(self.exec);
                let _ = result::graph::destroy(self.graph);
            }
        }
    }
}
