//! The buffers between the layers of a network.

use crate::{Result, device::Batch, tensor::Tensor};

/// The buffers of a forward pass, and of its backward.
#[derive(Debug)]
pub struct Activations {
    /// The images.
    pub batch: Batch,
    /// The stem's output (B, D), then each layer's (B, H).
    pub(super) hidden: Vec<Tensor>,
    pub(super) logits: Tensor,
    /// Gradients of `hidden`, and of the logits; none for inference.
    pub(super) grads: Option<(Vec<Tensor>, Tensor)>,
    /// Whether the step before has left the stem's output for the images of this one.
    pub(super) ahead: bool,
}

impl Activations {
    pub(super) fn set_rows(&mut self, rows: usize) -> Result<()> {
        let grads = self.grads.iter_mut().flat_map(|(hidden, logits)| hidden.iter_mut().chain([logits]));
        self.hidden.iter_mut().chain([&mut self.logits]).chain(grads).try_for_each(|t| t.set_rows(rows))
    }

    /// The logits of the last forward, (B, 10).
    pub fn logits(&self) -> &Tensor {
        &self.logits
    }
}
