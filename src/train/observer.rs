//! Who watches a run. The loop tells its observers what happens; what they show, where and whether, is their business.

use super::metrics::Event;
use crate::Result;

/// How far the epoch in progress is: told after every step, so it must be cheap to ignore.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// The epoch in progress, from 1.
    pub epoch: u32,
    /// Epochs of the run.
    pub epochs: u32,
    /// Steps of this epoch done.
    pub step: u64,
    /// Steps of an epoch.
    pub steps: u64,
    /// Images of this epoch that were trained on.
    pub images: u64,
    /// Training time of this epoch so far, in milliseconds.
    pub train_ms: f64,
    /// The newest loss that was looked at: not every step's, since looking can stall a device.
    pub loss: Option<f32>,
}

/// Somebody who is told what happens in a run.
pub trait Observer {
    /// Something that belongs in the metrics happened.
    ///
    /// # Errors
    /// What was to be written could not be. The loop stops then: a run that nobody can read is of no use.
    fn on_event(&mut self, event: &Event) -> Result<()>;

    /// A step is done.
    fn on_progress(&mut self, progress: &Progress) {
        let _ = progress;
    }

    /// Something that a person should know, such as the device that was chosen or a checkpoint that was saved.
    fn on_message(&mut self, message: &str) {
        let _ = message;
    }
}

/// Nobody.
impl Observer for () {
    fn on_event(&mut self, _: &Event) -> Result<()> {
        Ok(())
    }
}

/// Keeps every event: for tests, and for whoever wants the results of a run in memory.
impl Observer for Vec<Event> {
    fn on_event(&mut self, event: &Event) -> Result<()> {
        self.push(event.clone());
        Ok(())
    }
}

/// Both, the first one first: `(metrics, (output, ()))` and so on.
impl<A: Observer, B: Observer> Observer for (A, B) {
    fn on_event(&mut self, event: &Event) -> Result<()> {
        self.0.on_event(event)?;
        self.1.on_event(event)
    }

    fn on_progress(&mut self, progress: &Progress) {
        self.0.on_progress(progress);
        self.1.on_progress(progress);
    }

    fn on_message(&mut self, message: &str) {
        self.0.on_message(message);
        self.1.on_message(message);
    }
}

/// Whoever it borrows.
impl<T: Observer + ?Sized> Observer for &mut T {
    fn on_event(&mut self, event: &Event) -> Result<()> {
        (**self).on_event(event)
    }

    fn on_progress(&mut self, progress: &Progress) {
        (**self).on_progress(progress);
    }

    fn on_message(&mut self, message: &str) {
        (**self).on_message(message);
    }
}
