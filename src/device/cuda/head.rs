//! The head with softmax and cross-entropy, and its backward: kernels/head.cu, one launch each way.

use super::{
    Cuda,
    compile::Configuration,
    context::Memory,
    modules::{
        Arg::{Int, Pointer},
        Grid,
    },
    ops::{grid, int, pointer},
};
use crate::{
    Result,
    device::{SgdStep, Tally},
    tensor::{Param, Tensor},
};

impl Cuda {
    /// Head rows that a block takes: four share each read of the weights when there are enough rows for every multiprocessor.
    fn head(&self, batch: usize, hidden: usize) -> (Configuration, Grid) {
        let rows = if batch >= 512 { 4 } else { 1 };
        let configuration = self.configuration("head.cu", self.is_aligned(hidden), &[("HEAD_ROWS", rows)]);
        (configuration, grid(batch.div_ceil(rows as usize), 256))
    }

    /// logits = z W^T + b: (B, H) @ (H, 10) -> (B, 10).
    ///
    /// # Errors
    /// When the device fails.
    pub fn head_forward(&self, z: &Tensor, w: &Tensor, b: &Tensor, logits: &mut Tensor) -> Result<()> {
        let (batch, hidden) = z.shape();
        let (configuration, grid) = self.head(batch, hidden);
        let args = [
            Pointer(self.expect_activation("head", "z", z)?),
            Pointer(pointer(w)?),
            Pointer(pointer(b)?),
            Pointer(pointer(logits)?),
            Int(int(batch)?),
            Int(int(hidden)?),
        ];
        // SAFETY: the arguments are the kernel's, and shapes were checked.
        unsafe { self.launch(&configuration, "head_forward", grid, &args) }
    }

    /// The head with softmax, cross-entropy and dlogits. In a captured step the losses go to the log; else they are waited
    /// for and added to `tally`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn head_loss(
        &self,
        z: &Tensor,
        (w, b): (&Tensor, &Tensor),
        labels: &Memory,
        dlogits: Option<&mut Tensor>,
        tally: &mut Tally,
    ) -> Result<()> {
        let (batch, hidden) = z.shape();
        let (configuration, grid) = self.head(batch, hidden);
        let dlogits = match dlogits {
            Some(dlogits) => pointer(dlogits)?,
            None => 0,
        };
        let losses = self.scratch("losses", batch * 4)?;
        let counter = self.scratch("loss counter", 4)?;
        let result = self.scratch("loss", 8)?;
        let log = self.recording();
        let (loss, hits, step) = log
            .as_ref()
            .map_or((result, result + 4, 0), |log| (log.losses().pointer(), log.hits().pointer(), log.step_pointer()));
        let args = [
            Pointer(self.expect_activation("head", "z", z)?),
            Pointer(pointer(w)?),
            Pointer(pointer(b)?),
            Pointer(labels.pointer()),
            Pointer(dlogits),
            Pointer(losses),
            Pointer(counter),
            Pointer(loss),
            Pointer(hits),
            Pointer(step),
            Int(int(batch)?),
            Int(int(hidden)?),
        ];
        // SAFETY: the arguments are the kernel's, and shapes were checked; the counter is zero before and after.
        unsafe { self.launch(&configuration, "head_loss", grid, &args)? };
        if self.is_eager() {
            let [loss, hits] = self.read_two_words(result)?;
            tally.add(f32::from_bits(loss), hits, batch);
        }
        Ok(())
    }

    /// dz = dlogits W: (B, 10) @ (10, H) -> (B, H); dW and db into their buffers, or straight into a step.
    ///
    /// # Errors
    /// When the device fails.
    pub fn head_backward(
        &self,
        z: &Tensor,
        (weight, bias): (&mut Param, &mut Param),
        dlogits: &Tensor,
        dz: &mut Tensor,
        step: Option<&SgdStep>,
    ) -> Result<()> {
        let (batch, hidden) = z.shape();
        let (configuration, _) = self.head(batch, hidden);
        let launch = grid(hidden.div_ceil(16), 1024);
        let z = Pointer(self.expect_activation("head backward", "z", z)?);
        let dz = Pointer(self.expect_activation("head backward", "dz", dz)?);
        let dlogits = Pointer(pointer(dlogits)?);
        let w = Pointer(pointer(&weight.value)?);
        let sizes = [Int(int(batch)?), Int(int(hidden)?)];
        if let Some(step) = step {
            let step = step.for_param(weight.decays); // the kernel leaves the bias without decay
            let v = Pointer(pointer(self.velocity_of(weight)?)?);
            let (b, bv) = (Pointer(pointer(&bias.value)?), Pointer(pointer(self.velocity_of(bias)?)?));
            let args = [&[z, w, v, b, bv, dlogits, dz], &self.sgd_args(&step)?[..], &sizes].concat();
            // SAFETY: the arguments are the kernel's, and shapes were checked.
            return unsafe { self.launch(&configuration, "head_backward_sgd", launch, &args) };
        }
        let (dw, db) = (Pointer(pointer(self.grad_of(weight)?)?), Pointer(pointer(self.grad_of(bias)?)?));
        let args = [z, w, dlogits, dz, dw, db, sizes[0], sizes[1]];
        // SAFETY: as above.
        unsafe { self.launch(&configuration, "head_backward", launch, &args) }
    }
}
