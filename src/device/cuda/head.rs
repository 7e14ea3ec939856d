//! The head with softmax and cross-entropy, and its backward: kernels/head.cu, one launch each way.

use super::{
    Cuda,
    compile::Configuration,
    context::Memory,
    epoch::{Epoch, Place},
    modules::{
        Arg::{self, Int, Pointer},
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
    /// The head's configuration, the grid of its forward, and the threads of a block of its backward. Eight rows share each read of the weights
    /// when there are enough rows for every multiprocessor; blocks of small batches are small, so that the layer's backward can start beside them.
    fn head(&self, batch: usize, hidden: usize) -> (Configuration, Grid, usize) {
        let (rows, threads, chunk) = match batch {
            512.. => (8, 1024, 1024),
            65.. => (1, 1024, 256),
            _ => (1, 320, 80),
        };
        let defines = [("HEAD_ROWS", rows), ("HEAD_THREADS", threads), ("HEAD_CHUNK", chunk)];
        let configuration = self.configuration("head.cu", self.is_aligned(hidden), &defines);
        (configuration, self.early(grid(batch.div_ceil(rows as usize), 256)), threads as usize)
    }

    /// Where the loss of each row stands, and what is told of where they are added up: loss, hits, step. In a captured step that
    /// is its log.
    fn tally_args(&self, batch: usize) -> Result<[Arg; 4]> {
        let losses = Pointer(self.scratch("losses", batch * 4)?);
        if let Some(log) = self.recording() {
            let [loss, hits] = [log.losses(), log.hits()].map(|memory| Pointer(memory.pointer()));
            return Ok([losses, loss, hits, Pointer(log.step_pointer())]);
        }
        let result = self.scratch("loss", 8)?;
        Ok([losses, Pointer(result), Pointer(result + 4), Pointer(0)])
    }

    /// logits = z W^T + b: (B, H) @ (H, 10) -> (B, 10).
    ///
    /// # Errors
    /// When the device fails.
    pub fn head_forward(&self, z: &Tensor, w: &Tensor, b: &Tensor, logits: &mut Tensor) -> Result<()> {
        let (batch, hidden) = z.shape();
        let (configuration, grid, _) = self.head(batch, hidden);
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

    /// The head with softmax, cross-entropy and dlogits. In a captured step of training the backward of the head adds the losses
    /// up and moves the log on; in an evaluation this does; else they are waited for and added to `tally`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn head_loss(
        &self,
        z: &Tensor,
        (w, b): (&Tensor, &Tensor),
        (labels, place): (&Memory, Option<Place>),
        dlogits: Option<&mut Tensor>,
        tally: &mut Tally,
    ) -> Result<()> {
        let (batch, hidden) = z.shape();
        let (configuration, grid, _) = self.head(batch, hidden);
        let (trains, dlogits) = match dlogits {
            Some(dlogits) => (true, pointer(dlogits)?),
            None => (false, 0),
        };
        let log = self.recording();
        let counter = match &log {
            Some(_) if trains => 0,
            Some(_) | None => self.scratch("loss counter", 4)?,
        };
        let [losses, loss, hits, step] = self.tally_args(batch)?;
        let (labels, label_step, first) = match (&log, place) {
            (Some(log), Some(place)) => {
                let labels = log.epoch().map_or(labels.pointer(), Epoch::labels);
                (labels, if place.moves { log.step_pointer() } else { 0 }, place.first)
            }
            _ => (labels.pointer(), 0, 0),
        };
        let (rates, rate) = match &log {
            Some(log) if trains => (log.rates_pointer(), self.shared.scalars.pointer()),
            Some(_) | None => (0, 0),
        };
        let args = [
            Pointer(self.expect_activation("head", "z", z)?),
            Pointer(pointer(w)?),
            Pointer(pointer(b)?),
            Pointer(labels),
            Pointer(label_step),
            Int(int(first as usize)?),
            Pointer(dlogits),
            losses,
            Pointer(counter),
            loss,
            hits,
            step,
            Pointer(rates),
            Pointer(rate),
            Int(int(batch)?),
            Int(int(hidden)?),
        ];
        // SAFETY: the arguments are the kernel's, and shapes were checked; the counter is zero before and after.
        unsafe { self.launch(&configuration, "head_loss", grid, &args)? };
        if self.is_eager() {
            let [loss, hits] = self.read_two_words(self.scratch("loss", 8)?)?;
            tally.add(f32::from_bits(loss), hits, batch);
        }
        Ok(())
    }

    /// dz = dlogits W: (B, 10) @ (10, H) -> (B, H); dW and db into their buffers, or straight into a step. In a captured step the
    /// losses of its rows are added up as well, into the log, which moves on to the next step.
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
        let (configuration, _, threads) = self.head(batch, hidden);
        let mut tally = self.tally_args(batch)?;
        let adds_up = self.recording().is_some();
        if !adds_up {
            tally = [Pointer(0); 4];
        }
        let launch = self.early(grid(hidden.div_ceil(16) + usize::from(adds_up), threads));
        let z = Pointer(self.expect_activation("head backward", "z", z)?);
        let dz = Pointer(self.expect_activation("head backward", "dz", dz)?);
        let dlogits = Pointer(pointer(dlogits)?);
        let w = Pointer(pointer(&weight.value)?);
        let sizes = [Int(int(batch)?), Int(int(hidden)?)];
        if let Some(step) = step {
            let step = step.for_param(weight.decays); // the kernel leaves the bias without decay
            let v = Pointer(pointer(self.velocity_of(weight)?)?);
            let (b, bv) = (Pointer(pointer(&bias.value)?), Pointer(pointer(self.velocity_of(bias)?)?));
            let args = [&[z, w, v, b, bv, dlogits, dz][..], &tally[..], &self.sgd_args(&step)?[..], &sizes].concat();
            // SAFETY: the arguments are the kernel's, and shapes were checked.
            return unsafe { self.launch(&configuration, "head_backward_sgd", launch, &args) };
        }
        let (dw, db) = (Pointer(pointer(self.grad_of(weight)?)?), Pointer(pointer(self.grad_of(bias)?)?));
        let args = [&[z, w, dlogits, dz, dw, db][..], &tally[..], &sizes].concat();
        // SAFETY: as above.
        unsafe { self.launch(&configuration, "head_backward", launch, &args) }
    }
}
