//! The stem's step and its forward of the images that follow, in one pass over its weights, for small batches of a captured epoch:
//! kernels/hopper_stem_step.cu.

use super::{
    Cuda,
    epoch::{Epoch, Place},
    hopper::streamed,
    log::Log,
    modules::{
        Arg::{Float, Int, Map, Pointer},
        Grid,
    },
    ops::{int, pointer},
    tensor_map::{Boxes, MapElement, Swizzle, TensorMap},
};
use crate::{
    Error, Result,
    data::{PIXEL_SCALE, PIXEL_SHIFT},
    device::{Precision, SgdStep},
    tensor::{Param, Tensor},
};

const FILE: &str = "hopper_stem_step.cu";
/// Images, outputs of a block, inputs of a chunk, and chunks that there is room for: as in the kernel.
pub(crate) const IMAGES: usize = 64;
const OUTPUTS: usize = 16;
const COLUMNS: usize = 64;
const CHUNKS: usize = 13;

/// Whether the images are bytes, and not of the precision's elements: see the kernel's head.
pub(super) fn reads_bytes(precision: Precision) -> bool {
    precision != Precision::Bf16
}

/// The slots of images that pass through shared memory, as many as there is room for, and the groups of four warps that take them.
fn slots_and_groups(precision: Precision) -> (usize, usize) {
    (if reads_bytes(precision) { CHUNKS } else { 5 }, 2)
}

fn shared(precision: Precision) -> usize {
    let (state, image, element) = if reads_bytes(precision) { (8, COLUMNS, 4) } else { (10, 2 * COLUMNS, 2) };
    let (slots, _) = slots_and_groups(precision);
    CHUNKS * (OUTPUTS * COLUMNS * state + 24)
        + slots * 2 * IMAGES * image
        + IMAGES * (OUTPUTS * element + 16)
        + OUTPUTS * 4
}

/// The kernel's defines.
pub fn defines(precision: Precision) -> Vec<(&'static str, u32)> {
    let (slots, groups) = slots_and_groups(precision);
    vec![("SLOTS", slots as u32), ("GROUPS", groups as u32), ("SHARED_BYTES", shared(precision) as u32)]
}

fn stream(name: &str, element: MapElement, tensor: &Tensor) -> Result<TensorMap> {
    streamed(name, element, pointer(tensor)?, tensor.shape(), OUTPUTS)
}

/// What changes the weights on the way.
struct Change<'a> {
    /// (B, N).
    dy: &'a Tensor,
    place: Place,
    sgd: &'a SgdStep,
}

impl Cuda {
    /// Whether a stem of this shape takes its steps, and makes its outputs, in one pass over its weights: in captured steps whose
    /// epoch is laid out. All steps of such a training do, so that numbers do not depend on which steps share a graph.
    pub(crate) fn passes_stem_once(&self, batch: usize, inputs: usize, outputs: usize) -> bool {
        let fits = batch <= IMAGES && inputs <= CHUNKS * COLUMNS && inputs.is_multiple_of(16);
        self.takes_linear(inputs, outputs) && fits
    }

    /// Whether this step does, whose images are at `place`: its epoch was laid out for whole batches, and only those of a training in
    /// small ones are laid out for it.
    pub(crate) fn passes_stem_once_at(
        &self,
        place: Option<Place>,
        batch: usize,
        inputs: usize,
        outputs: usize,
    ) -> bool {
        let laid_out = || {
            let log = self.recording();
            log.as_deref().and_then(Log::epoch).is_some_and(|epoch| epoch.is_bytes() == reads_bytes(self.precision()))
        };
        place.is_some() && self.passes_stem_once(batch, inputs, outputs) && (self.is_planning() || laid_out())
    }

    /// y = x W^T + b: (B, K) @ (K, N) + (N) -> (B, N), of the images at `place` of the epoch.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) fn stem_first(&self, place: Place, (weight, bias): (&mut Param, &mut Param), y: &Tensor) -> Result<()> {
        self.stem_pass(None, (weight, bias), Some((place, y)))
    }

    /// The stem's step: dW = dy^T x: (N, B) @ (B, K) -> (N, K), db = column sums of dy, of the images at `place`; and the outputs
    /// (B, N) of those at another place, with the weights after the step.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) fn stem_step(
        &self,
        (dy, place): (&Tensor, Place),
        (weight, bias): (&mut Param, &mut Param),
        sgd: &SgdStep,
        following: Option<(Place, &Tensor)>,
    ) -> Result<()> {
        self.stem_pass(Some(Change { dy, place, sgd }), (weight, bias), following)
    }

    fn stem_pass(
        &self,
        change: Option<Change<'_>>,
        (weight, bias): (&mut Param, &mut Param),
        following: Option<(Place, &Tensor)>,
    ) -> Result<()> {
        const NAME: &str = "hopper_stem_step";
        let (outputs, inputs) = weight.value.shape();
        let (images, count) = self.epoch_pixels()?;
        let (element, swizzle) = match reads_bytes(self.precision()) {
            true => (MapElement::U8, Swizzle::Bytes64),
            false => (MapElement::Bf16, Swizzle::Bytes128),
        };
        let images = Boxes::of_matrix("images", element, images, (count, inputs), (IMAGES, COLUMNS), swizzle)?;
        let velocity = stream("velocity", MapElement::F32, self.velocity_of(weight)?)?;
        let value = stream("W", MapElement::F32, &weight.value)?;
        let copy = weight.copy.as_ref().map(|copy| stream("W in bf16", MapElement::Bf16, copy)).transpose()?;
        let biases = [Pointer(pointer(&bias.value)?), Pointer(pointer(self.velocity_of(bias)?)?)];

        let place_of =
            |place: Place| i32::try_from(place.first).map_err(|_| Error::shape("stem step: too many images"));
        let (mut dy, mut sgd, mut first, mut last_batch) =
            (0, [Pointer(0), Pointer(0), Float(0.0), Float(0.0), Int(0)], 0, 0);
        let mut moves = false;
        if let Some(change) = &change {
            dy = self.expect_activation(NAME, "dy", change.dy)?;
            sgd = self.sgd_args(&change.sgd.for_param(weight.decays))?;
            // The backward of the head has moved the step on.
            first = place_of(change.place.a_step_back(change.dy.rows()))?;
            last_batch = change.dy.rows();
            moves |= change.place.moves;
        }
        let (mut y, mut next, mut batch) = (0, 0, last_batch);
        if let Some((place, out)) = following {
            y = self.expect_activation(NAME, "y", out)?;
            next = place_of(place)?;
            batch = out.rows();
            moves |= place.moves;
        }
        let step = match self.recording() {
            Some(log) if moves => log.step_pointer(),
            Some(_) | None => 0,
        };
        let head = [Map(value), Map(velocity), Map(copy.unwrap_or(value)), Map(images), Pointer(dy), Pointer(y)];
        let sizes = [int(last_batch)?, int(batch)?, int(inputs)?, int(outputs)?].map(Int);
        let pixel = [Float(PIXEL_SCALE), Float(PIXEL_SHIFT)];
        let args = [&head[..], &biases, &sgd, &[Pointer(step), Int(first), Int(next)], &pixel, &sizes].concat();
        let configuration = self.configuration(FILE, true, &defines(self.precision()));
        let (_, groups) = slots_and_groups(self.precision());
        let threads = groups * 128 + 64;
        let grid = Grid::new(outputs.div_ceil(OUTPUTS), threads, shared(self.precision())).started_early();
        // SAFETY: the arguments are the kernel's; shapes were checked; a block alone touches its weights.
        unsafe { self.launch(&configuration, NAME, grid, &args) }
    }

    /// Where the pixels are of the epoch that the log of this step holds, (N, K), and N; while planning, which reads nothing, none.
    fn epoch_pixels(&self) -> Result<(u64, usize)> {
        if self.is_planning() {
            return Ok((16, 1));
        }
        let log = self.recording();
        let epoch = log.as_deref().and_then(Log::epoch);
        epoch.map(Epoch::pixels).ok_or_else(|| Error::shape("stem step: no epoch is laid out"))
    }
}
