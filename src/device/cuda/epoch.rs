//! A whole epoch's images laid out in its order, normalised, as the stem's products on Hopper read them: one launch an epoch in
//! place of a gather a step (kernels/hopper_epoch.cu).

use super::{
    Cuda,
    context::Memory,
    hopper::{Planes, Transposed},
    hopper_linear::Input,
    hopper_stem::reads_bytes,
    log::Log,
    modules::{
        Arg::{Float, Int, Pointer},
        Grid,
    },
    ops::int,
};
use crate::{
    Error, Kind, Result,
    data::{MEAN, PIXEL_SCALE, PIXEL_SHIFT, PIXELS, STD},
    device::Precision,
};

/// Where the images of a step begin in their epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The first, where the step does not move it.
    pub(super) first: i64,
    /// Whether it moves on by a batch with every step of the log.
    pub(in crate::device) moves: bool,
}

impl Place {
    /// The same place, told by a counter of steps that has moved on since.
    pub(super) fn a_step_back(self, batch: usize) -> Place {
        Place { first: self.first - if self.moves { batch as i64 } else { 0 }, ..self }
    }
}

/// The images of an epoch, in its order.
#[derive(Debug)]
pub struct Epoch {
    images: usize,
    batch: usize,
    /// (N, 784) of the precision's elements, or two planes of fp16, or bytes.
    x: Memory,
    /// Whether the pixels are bytes, as they came: for [`Cuda::passes_stem_once`].
    is_bytes: bool,
    /// x^T (784, pitch), for TF32: [`Transposed`].
    transposed: Option<Memory>,
    /// A factor for each row of a batch, for planes: all the same, since all pixels have one range.
    factors: Option<Memory>,
    labels: Memory,
}

/// The largest normalised pixel.
const LARGEST: f32 = (1.0 - MEAN) / STD;

impl Epoch {
    /// Room for `images` images, in batches of `batch` (the last may be smaller), for a stem of `width` outputs.
    ///
    /// # Errors
    /// When there is no memory for them.
    pub fn new(cuda: &Cuda, (images, batch): (usize, usize), width: usize) -> Result<Epoch> {
        let context = cuda.context();
        let once = cuda.passes_stem_once(batch, PIXELS, width);
        let is_bytes = once && reads_bytes(cuda.precision());
        // Two planes of fp16 take as much as fp32.
        let x = context.allocate(images * PIXELS * if is_bytes { 1 } else { cuda.element().bytes() })?;
        let only = |precision, bytes| match cuda.precision() == precision && !once {
            true => context.allocate(bytes).map(Some),
            false => Ok(None),
        };
        Ok(Epoch {
            images,
            batch,
            x,
            is_bytes,
            transposed: only(Precision::Tf32, PIXELS * Transposed::of_epoch(0, images, batch).pitch() * 4)?,
            factors: only(Precision::Fp32Emulated, batch * 4)?,
            labels: context.allocate(images)?,
        })
    }

    /// Whether its pixels are bytes, as they came.
    pub(super) fn is_bytes(&self) -> bool {
        self.is_bytes
    }

    /// Where its pixels are, and how many images they are of.
    pub(super) fn pixels(&self) -> (u64, usize) {
        (self.x.pointer(), self.images)
    }

    /// Images of the epoch from `place` on, as an operand; not of bytes.
    pub(super) fn input(&self, place: Place) -> Input {
        let planes = self.factors.as_ref().map(|factors| Planes { hi: self.x.pointer(), down: factors.pointer() });
        let of_epoch = |memory: &Memory| Transposed::of_epoch(memory.pointer(), self.images, self.batch);
        let transposed = self.transposed.as_ref().map(of_epoch);
        Input { x: self.x.pointer(), shape: (self.images, PIXELS), transposed, planes, place }
    }

    /// Where the labels are, in the order of the images.
    pub(super) fn labels(&self) -> u64 {
        self.labels.pointer()
    }
}

impl Cuda {
    /// Lays the images out in the order that the log holds, where it has room for them.
    ///
    /// # Errors
    /// When the device fails, or the log is one of other images.
    pub fn lay_out(&self, log: &Log, (images, labels): (&Memory, &Memory)) -> Result<()> {
        let Some(epoch) = log.epoch() else { return Ok(()) };
        if labels.bytes() < epoch.images || images.bytes() < epoch.images * PIXELS {
            return Err(Error::new(Kind::Device, format!("lay out: there are not {} images", epoch.images)));
        }
        let address = |memory: &Option<Memory>| Pointer(memory.as_ref().map_or(0, Memory::pointer));
        let factors = epoch.factors.as_ref().map_or(0, |factors| factors.bytes() / 4);
        let args = [
            Pointer(images.pointer()),
            Pointer(labels.pointer()),
            Pointer(log.order_pointer()),
            Pointer(epoch.x.pointer()),
            address(&epoch.transposed),
            Pointer(epoch.x.pointer()),
            address(&epoch.factors),
            Pointer(epoch.labels.pointer()),
            Int(int(epoch.images)?),
            Int(int(PIXELS)?),
            Int(int(epoch.batch)?),
            Int(int(Transposed::of_epoch(0, epoch.images, epoch.batch).pitch())?),
            Int(int(factors)?),
            Float(PIXEL_SCALE),
            Float(PIXEL_SHIFT),
            Float(LARGEST),
        ];
        let grid = Grid::new(epoch.images.div_ceil(32) * PIXELS.div_ceil(32), 256, 0);
        let as_bytes: &[_] = if epoch.is_bytes { &[("AS_BYTES", 1)] } else { &[] };
        let configuration = self.configuration("hopper_epoch.cu", true, as_bytes);
        // SAFETY: the arguments are the kernel's; the order is a permutation of the images, of which there are enough.
        unsafe { self.launch(&configuration, "hopper_epoch", grid, &args) }
    }
}
