//! The stem on Hopper: kernels/hopper_linear.cu forward, hopper_weight_step.cu backward; and what both read.

use super::{
    Cuda,
    epoch::Place,
    hopper::{self, Planes, Transposed, matrix},
    hopper_tiles::{self, HopperTile},
    log::Log,
    modules::Arg::{self, Int, Map, Pointer},
    ops::{int, pointer},
    tensor_map::TensorMap,
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
    pub(super) fn summed_over(self, cuda: &Cuda) -> Result<Input> {
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
    pub(super) fn place_args_over_batch(&self, cuda: &Cuda) -> Result<[Arg; 3]> {
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
    pub(super) fn map_over_batch(&self, cuda: &Cuda, tile: HopperTile) -> Result<TensorMap> {
        let k_tile = tile.k_tile(cuda.precision());
        match self.transposed {
            Some(transposed) => transposed.boxes(self.shape.1, (k_tile, tile.cols)),
            None => Ok(hopper::activations(cuda, "x", self.x, self.planes, self.shape, k_tile)?.0),
        }
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
}
