//! The head with softmax and cross-entropy, and its backward: kernels/head.cu, one launch each way; and kernels/head_joined.cu, where a
//! large batch goes both ways in one launch and the step on the head's weights follows when it may.

use super::{
    Cuda,
    compile::Configuration,
    context::Memory,
    epoch::{Epoch, Place},
    hopper_tiles,
    modules::{
        Arg::{self, Int, Pointer},
        Grid,
    },
    ops::{grid, int, pointer},
};
use crate::{
    Result,
    data::CLASSES,
    device::{SgdStep, Tally},
    tensor::{Param, Tensor},
};

/// Where the last layer keeps [g | u] and wants [dg | du], both (B, 2H): the head's backward can make these at once, in place of dz.
#[derive(Clone, Copy, Debug)]
pub struct GateSlot {
    /// [g | u].
    pub(crate) gates: u64,
    /// [dg | du].
    pub(crate) dgates: u64,
}

/// What the head's backward gives to the layer below it.
#[derive(Debug)]
pub enum HeadGradient<'a> {
    /// dz, (B, H).
    Dz(&'a mut Tensor),
    /// What the layer would make of dz.
    Gates(GateSlot),
}

/// Head rows that a block takes where there are enough for every multiprocessor.
const ROWS: usize = 8;

impl Cuda {
    /// Whether [`Cuda::head_loss_dz`] wins: where a batch gives every multiprocessor a block, and the parts of dW are not so many that
    /// they leave L2.
    pub fn joins_head(&self, batch: usize, hidden: usize) -> bool {
        hopper_tiles::is_large(batch) && batch <= 2048 && hidden <= 1024 && self.is_aligned(hidden)
    }

    /// The head's configuration, the grid of its forward, and the threads of a block of its backward. Eight rows share each read of the weights
    /// when there are enough rows for every multiprocessor; blocks of small batches are small, so that the layer's backward can start beside them.
    fn head(&self, batch: usize, hidden: usize) -> (Configuration, Grid, usize) {
        let (rows, threads, chunk) = match batch {
            _ if hopper_tiles::is_large(batch) => (ROWS as u32, 1024, 1024),
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

    /// Waits for the sums of a step that is not captured, and adds them to `tally`; a log keeps its own.
    fn read_tally(&self, batch: usize, tally: &mut Tally) -> Result<()> {
        if self.is_eager() {
            let [loss, hits] = self.read_two_words(self.scratch("loss", 8)?)?;
            tally.add(f32::from_bits(loss), hits, batch);
        }
        Ok(())
    }

    /// Where the labels of the batch are: from `first` on, or with a step from that step's first on.
    fn label_args(&self, labels: &Memory, place: Option<Place>) -> Result<[Arg; 3]> {
        let (labels, step, first) = match (self.recording(), place) {
            (Some(log), Some(place)) => {
                let labels = log.epoch().map_or(labels.pointer(), Epoch::labels);
                (labels, if place.moves { log.step_pointer() } else { 0 }, place.first)
            }
            _ => (labels.pointer(), 0, 0),
        };
        Ok([Pointer(labels), Pointer(step), Int(int(first as usize)?)])
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
        let (rates, rate) = match &log {
            Some(log) if trains => (log.rates_pointer(), self.shared.scalars.pointer()),
            Some(_) | None => (0, 0),
        };
        let [labels, label_step, first] = self.label_args(labels, place)?;
        let args = [
            Pointer(self.expect_activation("head", "z", z)?),
            Pointer(pointer(w)?),
            Pointer(pointer(b)?),
            labels,
            label_step,
            first,
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
        self.read_tally(batch, tally)
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

    /// The head, softmax and cross-entropy, and dz = dlogits W: (B, 10) @ (10, H) -> (B, H), or what the layer below makes of it, in one
    /// launch, which also leaves parts of dW and db for [`Cuda::head_step`].
    ///
    /// # Errors
    /// When the device fails.
    pub fn head_loss_dz(
        &self,
        z: &Tensor,
        (w, b): (&Tensor, &Tensor),
        (labels, place): (&Memory, Option<Place>),
        gradient: HeadGradient<'_>,
    ) -> Result<()> {
        let (batch, hidden) = z.shape();
        let (configuration, grid) = self.head_joined(batch, matches!(gradient, HeadGradient::Gates(_)));
        let [losses, _, _, step] = self.tally_args(batch)?;
        let (rates, rate) = match self.recording() {
            Some(log) => (log.rates_pointer(), self.shared.scalars.pointer()),
            None => (0, 0),
        };
        let [labels, label_step, first] = self.label_args(labels, place)?;
        let head = [
            Pointer(self.expect_activation("head", "z", z)?),
            Pointer(pointer(w)?),
            Pointer(pointer(b)?),
            labels,
            label_step,
            first,
            losses,
            step,
            Pointer(rates),
            Pointer(rate),
        ];
        let below = match gradient {
            HeadGradient::Dz(dz) => vec![Pointer(self.expect_activation("head", "dz", dz)?)],
            HeadGradient::Gates(GateSlot { gates, dgates }) => vec![Pointer(gates), Pointer(dgates)],
        };
        let tail = [Pointer(self.head_parts(batch, hidden)?), Int(int(batch)?), Int(int(hidden)?)];
        let args = [&head[..], &below, &tail].concat();
        // SAFETY: the arguments are the kernel's, and shapes were checked; the parts have room for those of every block, and a slot is of a
        // layer that kept its gates for a batch of this size.
        unsafe { self.launch(&configuration, "head_loss_dz", grid, &args) }
    }

    /// The step on W (10, H) and b from the parts that [`Cuda::head_loss_dz`] left for a batch, and the sum of its losses: into the log of a
    /// captured step, which moves on, or to `tally`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn head_step(
        &self,
        batch: usize,
        (weight, bias): (&mut Param, &mut Param),
        step: &SgdStep,
        tally: &mut Tally,
    ) -> Result<()> {
        let hidden = weight.value.cols();
        let (configuration, parts) = self.head_joined(batch, false);
        let sums = self.tally_args(batch)?;
        let step = step.for_param(weight.decays); // the kernel leaves the bias without decay
        let args = [
            Pointer(self.head_parts(batch, hidden)?),
            Int(int(parts.blocks)?),
            Pointer(pointer(&weight.value)?),
            Pointer(pointer(self.velocity_of(weight)?)?),
            Pointer(pointer(&bias.value)?),
            Pointer(pointer(self.velocity_of(bias)?)?),
        ];
        let sizes = [Int(int(batch)?), Int(int(hidden)?)];
        let args = [&args[..], &sums, &self.sgd_args(&step)?, &sizes].concat();
        // SAFETY: the arguments are the kernel's, and the parts those of a batch of this size.
        unsafe { self.launch(&configuration, "head_step", self.early(grid(hidden / 4 + 1, 32)), &args)? };
        self.read_tally(batch, tally)
    }

    fn head_joined(&self, batch: usize, gates: bool) -> (Configuration, Grid) {
        let defines = [("HEAD_ROWS", ROWS as u32), ("HEAD_CHUNK", 1024), ("GATES", u32::from(gates))];
        let configuration = self.configuration("head_joined.cu", true, &defines);
        (configuration, self.early(grid(batch.div_ceil(ROWS), 256)))
    }

    /// Room for each block's part of dW and db.
    fn head_parts(&self, batch: usize, hidden: usize) -> Result<u64> {
        self.scratch("parts of the head's gradient", batch.div_ceil(ROWS) * (hidden + 1) * CLASSES * 4)
    }
}
