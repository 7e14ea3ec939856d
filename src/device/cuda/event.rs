//! Marks in the stream: how long the device took between two, and a way to wait for one without waiting for the rest.

use std::sync::Arc;

use cudarc::driver::{result, sys};

use super::context::Context;
use crate::Result;

/// A mark in the stream.
#[derive(Debug)]
pub struct Event {
    event: sys::CUevent,
    context: Arc<Context>,
}

// SAFETY: an event is the driver's, and may be used from any thread.
unsafe impl Send for Event {}
// SAFETY: as above; nothing of it changes after it was recorded.
unsafe impl Sync for Event {}

impl Event {
    /// Marks the stream here: after all that was asked for so far.
    ///
    /// # Errors
    /// When the device fails.
    pub fn record(context: &Arc<Context>) -> Result<Event> {
        context.bind()?;
        let failed = |cause| context.failed("be timed", cause);
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).map_err(failed)?;
        let event = Event { event, context: context.clone() };
        // SAFETY: the event and the stream live.
        unsafe { result::event::record(event.event, context.stream()) }.map_err(failed)?;
        Ok(event)
    }

    /// Waits until the device has come here.
    ///
    /// # Errors
    /// When something before it failed.
    pub fn synchronize(&self) -> Result<()> {
        self.context.bind()?;
        // SAFETY: the event lives.
        unsafe { result::event::synchronize(self.event) }.map_err(|cause| self.context.failed("finish its work", cause))
    }

    /// Milliseconds of device time since `start`, both having been reached.
    ///
    /// # Errors
    /// When one was not reached, or the device fails.
    pub fn since(&self, start: &Event) -> Result<f64> {
        // SAFETY: both events live, and were recorded on one stream.
        unsafe { result::event::elapsed(start.event, self.event) }
            .map(f64::from)
            .map_err(|cause| self.context.failed("be timed", cause))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: it was created once; the driver keeps it until it is reached.
            let _ = unsafe { result::event::destroy(self.event) };
        }
    }
}
