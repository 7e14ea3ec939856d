//! A linear layer on Hopper: kernels/hopper_linear.cu forward, and kernels/hopper_weight_step.cu, which makes a weight's gradient
//! and takes the optimiser's step with it in one launch, for the stem and for SwiGLU layers.

use super::{
    Cuda,
    context::Chip,
    epoch::Place,
    hopper::{self, Planes, Transposed, matrix},
    hopper_tiles::{self, HopperTile},
    log::Log,
    modules::{
        Arg::{self, Int, Map, Pointer},
        Grid,
    },
    ops::{int, pointer},
    tensor_map::{Boxes, MapElement, Swizzle, TensorMap},
};
use crate::{
    Error, Result,
    device::{Precision, SgdStep},
    tensor::{Param, Tensor},
};

/// Images, or what a layer reads: the operand whose rows a product with a weight runs along, or sums over. N rows, of which a batch
/// may be a part.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Input {
    /// (N, K) of the precision's elements; 0 where only `planes` are there.
    pub(crate) x: u64,
    /// N, K.
    pub(crate) shape: (usize, usize),
    /// x^T, where the precision sums over rows along them (TF32).
    pub(crate) transposed: Option<Transposed>,
    /// x split in two, where the precision reads it so.
    pub(crate) planes: Option<Planes>,
    /// Where the batch begins.
    pub(crate) place: Place,
}

impl Input {
    /// All of a batch x (B, K): split, where planes are wanted and not given, in one launch.
    pub(crate) fn of_batch(cuda: &Cuda, x: u64, shape: (usize, usize), planes: Option<Planes>) -> Result<Input> {
        let planes = match (planes, cuda.precision()) {
            (None, Precision::Fp32Emulated) => {
                let planes = Planes::in_scratch(cuda, ("planes of images", "factors of images"), shape, 1)?;
                planes.fill(cuda, x, shape)?;
                Some(planes)
            }
            (planes, _) => planes,
        };
        Ok(Input { x, shape, transposed: None, planes, place: Place::default() })
    }

    /// The images of a batch, or, with a place, of the epoch that the log of this step holds.
    fn of_images(cuda: &Cuda, x: &Tensor, place: Option<Place>) -> Result<Input> {
        let batch = || Input::of_batch(cuda, cuda.expect_activation("stem", "x", x)?, x.shape(), None);
        let Some(place) = place else { return batch() };
        let log = cuda.recording();
        let epoch = log.as_deref().and_then(Log::epoch);
        epoch.map(|epoch| epoch.input(place)).ok_or_else(|| Error::shape("stem: no epoch is laid out"))
    }

    /// The same with x^T, where the precision needs it.
    fn summed_over(self, cuda: &Cuda) -> Result<Input> {
        if cuda.precision() != Precision::Tf32 || self.transposed.is_some() {
            return Ok(self);
        }
        let (rows, cols) = self.shape;
        Ok(Input { transposed: Some(hopper::transposed(cuda, "images transposed", (rows, cols), self.x)?), ..self })
    }

    /// What the kernels are told of the batch's place: the step, the first row, N.
    fn place_args(&self, cuda: &Cuda) -> Result<[Arg; 3]> {
        self.place_args_from(cuda, self.place.first)
    }

    /// The same of its place in what a sum over the batch reads: the first column, where that is x^T.
    fn place_args_over_batch(&self, cuda: &Cuda) -> Result<[Arg; 3]> {
        let Place { first, .. } = self.place;
        self.place_args_from(cuda, self.transposed.map_or(first, |transposed| transposed.column(first)))
    }

    fn place_args_from(&self, cuda: &Cuda, first: i64) -> Result<[Arg; 3]> {
        let Place { moves, .. } = self.place;
        let step = match cuda.recording() {
            Some(log) if moves => log.step_pointer(),
            Some(_) | None => 0,
        };
        let first = i32::try_from(first).map_err(|_| Error::shape(format!("row {first} is too far for a kernel")))?;
        Ok([Pointer(step), Int(first), Int(int(self.shape.0)?)])
    }

    pub(super) fn factors(&self) -> u64 {
        self.planes.map_or(0, |planes| planes.down)
    }

    /// Boxes for a product that sums over the batch.
    fn map_over_batch(&self, cuda: &Cuda, tile: HopperTile) -> Result<TensorMap> {
        let k_tile = tile.k_tile(cuda.precision());
        match self.transposed {
            Some(transposed) => transposed.boxes(self.shape.1, (k_tile, tile.cols)),
            None => Ok(hopper::activations(cuda, "x", self.x, self.planes, self.shape, k_tile)?.0),
        }
    }
}

/// The tile of a weight's step, and the slots of ROWS x 32 weights that stream past it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepTile {
    /// The product's tile.
    pub tile: HopperTile,
    /// Slots of the stream.
    pub slots: usize,
    /// Weights that a launch takes, one or two.
    pub jobs: usize,
}

impl StepTile {
    const fn new((warpgroups, cols, blocks): (usize, usize, usize), (stages, slots): (usize, usize)) -> StepTile {
        let tile =
            HopperTile { warpgroups, m_tiles: 1, cols, stages, splits: 1, share_a: 1, share_b: 1, blocks, results: 0 };
        StepTile { tile, slots, jobs: 1 }
    }

    /// Its defines.
    pub fn defines(&self) -> Vec<(&'static str, u32)> {
        [self.tile.defines(), vec![("STATE_SLOTS", self.slots as u32), ("JOBS", self.jobs as u32)]].concat()
    }

    /// Bytes of dynamic shared memory: a slot holds weights and velocities, and in bf16 the copies; three barriers each.
    pub fn shared(&self, precision: Precision) -> usize {
        let weight = if precision == Precision::Bf16 { 10 } else { 8 };
        self.tile.shared(precision) + self.slots * (self.tile.rows() * 32 * weight + 24)
    }

    /// Tiles of some weights (rows, columns) together.
    fn count(&self, shapes: &[(usize, usize)]) -> usize {
        shapes.iter().map(|(rows, cols)| rows.div_ceil(self.tile.rows()) * cols.div_ceil(self.tile.cols)).sum()
    }

    /// The tile for weights (rows, cols) with gradients summed over `batch` rows: the largest that gives seven eighths of the
    /// multiprocessors a block. At small batches it is a stream, which two small blocks a multiprocessor keep more even.
    pub fn choose(chip: Chip, precision: Precision, batch: usize, shapes: &[(usize, usize)]) -> StepTile {
        const fn of(tile: (usize, usize, usize), ring: (usize, usize)) -> StepTile {
            StepTile::new(tile, ring)
        }
        let tiles: &[StepTile] = match (precision, batch <= 256) {
            (Precision::Tf32, true) => &[of((1, 64, 2), (2, 5))],
            (Precision::Tf32, false) => {
                &[of((2, 128, 1), (4, 3)), of((2, 64, 1), (5, 3)), of((1, 128, 2), (3, 2)), of((1, 64, 1), (8, 4))]
            }
            // The stages' own sums take registers: one block a multiprocessor.
            (Precision::Fp32Emulated, true) => &[of((2, 64, 1), (2, 4)), of((1, 64, 1), (3, 6))],
            (Precision::Fp32Emulated, false) => {
                &[of((2, 128, 1), (2, 3)), of((1, 128, 1), (3, 4)), of((1, 64, 1), (4, 4))]
            }
            (Precision::Bf16 | Precision::Fp32, true) => &[of((1, 64, 2), (2, 4))],
            (Precision::Bf16 | Precision::Fp32, false) => {
                &[of((2, 128, 1), (4, 2)), of((2, 64, 1), (5, 2)), of((1, 128, 2), (3, 2)), of((1, 64, 1), (8, 4))]
            }
        };
        let fills = |tile: &&StepTile| tile.count(shapes) * 8 >= chip.multiprocessors * 7;
        StepTile { jobs: shapes.len(), ..tiles.iter().find(fills).copied().unwrap_or(tiles[tiles.len() - 1]) }
    }
}

/// A weight's step that can be launched: where everything is. A launch may take two.
#[derive(Clone, Copy, Debug)]
pub(super) struct WeightStep {
    /// dy (B, rows), and B.
    dy: u64,
    batch: usize,
    input: Input,
    value: u64,
    velocity: u64,
    /// The weights in bf16, where products read them so.
    copy: Option<u64>,
    /// Rows and columns of the weight.
    shape: (usize, usize),
    decays: bool,
    sgd: SgdStep,
}

impl WeightStep {
    fn of(
        cuda: &Cuda,
        (dy, batch): (u64, usize),
        input: Input,
        weight: &mut Param,
        sgd: &SgdStep,
    ) -> Result<WeightStep> {
        Ok(WeightStep {
            dy,
            batch,
            input: input.summed_over(cuda)?,
            value: pointer(&weight.value)?,
            velocity: pointer(cuda.velocity_of(weight)?)?,
            copy: weight.copy.as_ref().map(pointer).transpose()?,
            shape: weight.value.shape(),
            decays: weight.decays,
            sgd: *sgd,
        })
    }

    /// Whether it may wait for another's.
    pub(super) fn may_wait(&self) -> bool {
        hopper_tiles::is_large(self.batch)
    }

    /// What the kernel is told of it.
    fn args(&self, cuda: &Cuda, tile: HopperTile) -> Result<Vec<Arg>> {
        let (rows, cols) = self.shape;
        // Boxes of ROWS x 32 of a matrix that streams past.
        let stream = |name, element, pointer| {
            let swizzle = if element == MapElement::F32 { Swizzle::Bytes128 } else { Swizzle::Bytes64 };
            Boxes::of_matrix(name, element, pointer, self.shape, (tile.rows(), 32), swizzle)
        };
        let value = stream("W", MapElement::F32, self.value)?;
        let copy = self.copy.map(|copy| stream("W in bf16", MapElement::Bf16, copy)).transpose()?;
        let head = [
            Map(matrix(cuda, "dy", self.dy, (self.batch, rows), tile.k_tile(cuda.precision()))?),
            Map(self.input.map_over_batch(cuda, tile)?),
            Map(value),
            Map(stream("velocity", MapElement::F32, self.velocity)?),
            Map(copy.unwrap_or(value)),
            Pointer(self.input.factors()),
        ];
        Ok([&head[..], &self.input.place_args_over_batch(cuda)?, &[Int(int(rows)?), Int(int(cols)?)]].concat())
    }
}

impl Cuda {
    /// Whether Hopper's kernels take a linear layer of this shape.
    pub fn takes_linear(&self, inputs: usize, outputs: usize) -> bool {
        self.chip().hopper && self.precision() != Precision::Fp32 && self.is_aligned(inputs) && self.is_aligned(outputs)
    }

    /// y = x W^T + b: (B, K) @ (K, N) + (N) -> (B, N), in one launch.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) fn linear(
        &self,
        x: &Tensor,
        place: Option<Place>,
        (weight, bias): (&Param, &Param),
        y: &Tensor,
    ) -> Result<()> {
        const NAME: &str = "hopper_linear";
        let (batch, (outputs, inputs)) = (y.rows(), weight.value.shape());
        let tile = hopper_tiles::linear(self.chip(), self.precision(), batch, inputs, outputs);
        let input = Input::of_images(self, x, place)?;
        let w = self.expect_activation(NAME, "W", weight.operand())?;
        let rows = tile.cols / tile.share_b;
        let (operand, factors) = hopper::activations(self, "x", input.x, input.planes, input.shape, rows)?;
        let head = [
            Map(matrix(self, "W", w, (outputs, inputs), tile.rows() / tile.share_a)?),
            Map(operand),
            Pointer(factors),
            Pointer(pointer(&bias.value)?),
            Pointer(self.expect_activation(NAME, "y", y)?),
        ];
        let sizes = [Int(int(batch)?), Int(int(inputs)?), Int(int(outputs)?)];
        let clusters =
            outputs.div_ceil(tile.rows()).div_ceil(tile.share_b) * batch.div_ceil(tile.cols).div_ceil(tile.share_a);
        let configuration = hopper::configuration(self, "hopper_linear.cu", tile, &[]);
        let args = [&head[..], &input.place_args(self)?, &sizes].concat();
        // SAFETY: the arguments are the kernel's; shapes were checked; the maps are of these matrices.
        unsafe { self.launch(&configuration, NAME, hopper::grid(self, tile, clusters), &args) }
    }

    /// The stem's step: dW = dy^T x: (N, B) @ (B, K) -> (N, K), and db = column sums of dy, each straight into its parameter.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) fn linear_step(
        &self,
        dy: &Tensor,
        (x, place): (&Tensor, Option<Place>),
        (weight, bias): (&mut Param, &mut Param),
        step: &SgdStep,
    ) -> Result<()> {
        let dy_rows = dy.rows();
        let dy = self.expect_activation("stem", "dy", dy)?;
        // The backward of the head has moved the step on.
        let place = place.map(|place| place.a_step_back(dy_rows));
        let input = Input::of_images(self, x, place)?;
        self.weight_step(dy, dy_rows, input, weight, Some(bias), step)
    }

    /// W <- SGD with dW = dy^T x, dy (B, rows of W), x (B, columns of W): one launch, and dW is never written; with the bias' step,
    /// where there is a bias.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) fn weight_step(
        &self,
        dy: u64,
        batch: usize,
        input: Input,
        weight: &mut Param,
        bias: Option<&mut Param>,
        step: &SgdStep,
    ) -> Result<()> {
        let weight_step = WeightStep::of(self, (dy, batch), input, weight, step)?;
        let Some(bias) = bias else {
            return if self.hold_step(weight_step) { Ok(()) } else { self.launch_steps(None, weight_step, None) };
        };
        let bias = [pointer(&bias.value)?, pointer(self.velocity_of(bias)?)?];
        self.launch_steps(self.take_held_step(), weight_step, Some(bias))
    }

    /// Takes one weight's step, and `other`'s: in one launch where the chip holds both at once, which each fills badly alone.
    pub(super) fn launch_steps(
        &self,
        other: Option<WeightStep>,
        last: WeightStep,
        bias: Option<[u64; 2]>,
    ) -> Result<()> {
        let choose = |shapes: &[_]| StepTile::choose(self.chip(), self.precision(), last.batch, shapes);
        let room = |chosen: StepTile| self.chip().multiprocessors * chosen.tile.blocks;
        let other = match other {
            Some(other) => {
                let shapes = [other.shape, last.shape];
                let alike = (other.batch, other.decays) == (last.batch, last.decays);
                let chosen = choose(&shapes);
                if alike && chosen.count(&shapes) <= room(chosen) {
                    Some(other)
                } else {
                    self.launch_steps(None, other, None)?;
                    None
                }
            }
            None => None,
        };
        let shapes: Vec<(usize, usize)> = other.iter().chain([&last]).map(|step| step.shape).collect();
        let chosen = choose(&shapes);
        let tile = chosen.tile;
        let [bias, bias_velocity] = bias.unwrap_or_default();
        let jobs = other.iter().chain([&last]).map(|step| step.args(self, tile)).collect::<Result<Vec<_>>>()?.concat();
        let of_bias = [Pointer(last.dy), Pointer(bias), Pointer(bias_velocity)];
        let sgd = self.sgd_args(&last.sgd.for_param(last.decays))?;
        let configuration = self.configuration("hopper_weight_step.cu", true, &chosen.defines());
        let blocks = chosen.count(&shapes).min(room(chosen));
        let grid = Grid::new(blocks, tile.threads(), chosen.shared(self.precision())).started_early();
        let args = [&jobs[..], &of_bias, &sgd, &[Int(int(last.batch)?)]].concat();
        // SAFETY: the arguments are the kernel's; shapes were checked; a block alone touches its weights.
        unsafe { self.launch(&configuration, "hopper_weight_step", grid, &args) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tile_of_a_step_fits_its_multiprocessor() {
        for precision in [Precision::Tf32, Precision::Bf16, Precision::Fp32Emulated] {
            for batch in [1, 64, 256, 257, 1024, 8192] {
                for (rows, cols) in [(16, 8), (128, 784), (1024, 512), (2048, 784), (4096, 2048), (8192, 4096)] {
                    let chosen = StepTile::choose(Chip::H200, precision, batch, &[(rows, cols)]);
                    let bytes = (chosen.shared(precision) + 1024) * chosen.tile.blocks;
                    assert!(bytes <= 228 << 10, "{precision:?} {batch} {rows} {cols}: {bytes} bytes, {chosen:?}");
                    assert!(chosen.slots >= 2 && chosen.tile.stages >= 2 && chosen.tile.cluster() == 1);
                }
            }
        }
    }
}
