//! What a replayed step reads and writes beside the network: which images, which learning rate, what came of it. It all
//! stays on the device, at fixed addresses, so that the host need not speak to it between steps.

use std::sync::Arc;

use super::{
    context::{Context, Memory},
    epoch::Epoch,
};
use crate::{Error, Result};

/// Counters, order, learning rates, losses and hits of the steps of an epoch.
#[derive(Debug)]
pub struct Log {
    steps: usize,
    images: usize,
    /// Which step is next: u32.
    step: Memory,
    /// The images' order: u32 each.
    order: Memory,
    /// The learning rate of each step.
    rates: Memory,
    /// Mean loss of each step: f32.
    losses: Memory,
    /// Images of each step that were classified right: u32.
    hits: Memory,
    /// Its images in their order, where the stem reads them so.
    epoch: Option<Epoch>,
}

impl Log {
    /// Room for `steps` steps over `images` images.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn new(context: &Arc<Context>, steps: usize, images: usize) -> Result<Log> {
        Ok(Log {
            steps,
            images,
            step: context.allocate(4)?,
            order: context.allocate(images * 4)?,
            rates: context.allocate(steps * 4)?,
            losses: context.allocate(steps * 4)?,
            hits: context.allocate(steps * 4)?,
            epoch: None,
        })
    }

    /// The same with room for its images, laid out in their order: [`Cuda::lay_out`](super::Cuda::lay_out) fills it.
    #[must_use]
    pub fn with_epoch(self, epoch: Epoch) -> Log {
        Log { epoch: Some(epoch), ..self }
    }

    /// Begins at step `first` of an epoch with this order and these learning rates (none for an evaluation).
    ///
    /// # Errors
    /// When there are more than there is room for, or the device fails.
    pub fn begin(&self, first: usize, order: &[u32], rates: &[f32]) -> Result<()> {
        if order.len() > self.images || rates.len() > self.steps || first >= self.steps {
            return Err(Error::shape(format!(
                "log: step {first} of {} rates and {} images, with room for {} and {}",
                rates.len(),
                order.len(),
                self.steps,
                self.images
            )));
        }
        self.order.write(order)?;
        if !rates.is_empty() {
            self.rates.write(rates)?;
        }
        self.step.write(&[first as u32])
    }

    /// Begins again at step 0 with what is there.
    ///
    /// # Errors
    /// When the device fails.
    pub fn rewind(&self) -> Result<()> {
        self.step.write(&[0_u32])
    }

    /// Mean losses and hits of the first `steps` steps, after waiting for all of them.
    ///
    /// # Errors
    /// When the device fails.
    pub fn results(&self, steps: usize) -> Result<(Vec<f32>, Vec<u32>)> {
        Ok((self.losses.read(steps)?, self.hits.read(steps)?))
    }

    /// Where the losses are.
    pub fn losses(&self) -> &Memory {
        &self.losses
    }

    /// Where the hits are.
    pub fn hits(&self) -> &Memory {
        &self.hits
    }

    pub(super) fn epoch(&self) -> Option<&Epoch> {
        self.epoch.as_ref()
    }

    pub(crate) fn step_pointer(&self) -> u64 {
        self.step.pointer()
    }

    pub(crate) fn order_pointer(&self) -> u64 {
        self.order.pointer()
    }

    pub(crate) fn rates_pointer(&self) -> u64 {
        self.rates.pointer()
    }
}
