//! dx and the optimiser's step in one pass over the weights on Hopper, for small batches: kernels/hopper_swiglu_backward_step.cu.

use super::{
    super::reference::Dims,
    cuda::{dx_output, sizes},
    hopper,
};
use crate::{
    Result,
    device::{
        Precision, SgdStep,
        cuda::{
            Cuda,
            context::Chip,
            hopper_stem::IMAGES,
            modules::{
                Arg::{Int, Map, Pointer},
                Grid,
            },
            ops::{int, pointer},
            tensor_map::{Boxes, MapElement, Swizzle, TensorMap},
        },
    },
    tensor::{Param, Tensor},
};

const FILE: &str = "hopper_swiglu_backward_step.cu";
/// Columns of Wf a block, and hidden units of a stage: as in the kernel.
const COLUMNS: usize = 128;
const UNITS: usize = 16;
/// What L2 keeps from a step to the next: more would not stay beside all else that passes.
const KEPT_BYTES: usize = 9 << 20;

/// What the kernel is compiled for, and how Wf is dealt out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepShape {
    precision: Precision,
    stages: usize,
    /// Sixteenths of Wf, and of its velocity, that L2 is asked to keep until the forward and the next step want them.
    kept: (usize, usize),
    /// Blocks that share 64 columns of Wf, each with a range of the hidden units.
    pub splits: usize,
}

impl StepShape {
    /// For Wf (2 * `hidden`, `inputs`): as many ranges as give no multiprocessor two blocks.
    pub fn fitting(chip: Chip, precision: Precision, inputs: usize, hidden: usize) -> StepShape {
        let splits = (chip.multiprocessors / inputs.div_ceil(COLUMNS)).clamp(1, hidden.div_ceil(2 * UNITS));
        // A weight is read twice in a step, or written in two precisions; a velocity is read once. fp32-emulated was measured to lose at some widths.
        let sixteenths = KEPT_BYTES * 16 / (2 * hidden * inputs * 4);
        let kept = match precision {
            Precision::Fp32Emulated => ((sixteenths / 2).min(2), (sixteenths / 2).min(2)),
            Precision::Fp32 | Precision::Tf32 | Precision::Bf16 => (sixteenths.min(16), 0),
        };
        StepShape { precision, stages: 5, kept, splits }
    }

    /// Its defines.
    pub fn defines(&self) -> Vec<(&'static str, u32)> {
        let (weights, velocities) = self.kept;
        vec![
            ("STAGES", self.stages as u32),
            ("KEPT", weights as u32),
            ("KEPT_VELOCITY", velocities as u32),
            ("SHARED_BYTES", self.shared() as u32),
        ]
    }

    /// Bytes of shared memory: stages of weights, velocities and (bf16) copies, two tiles of dgates, barriers.
    pub fn shared(&self) -> usize {
        let (state, pitch) = match self.precision {
            Precision::Bf16 => (10, 2 * 32 * 2 + 16),
            Precision::Fp32 | Precision::Tf32 | Precision::Fp32Emulated => (8, 2 * 16 * 4 + 32),
        };
        self.stages * (2 * UNITS * COLUMNS * state + 24) + 2 * IMAGES * pitch
    }

    /// Threads of a block: eight warps that multiply, and two, or fp32-emulated a warpgroup that hands registers over, that copy.
    fn threads(&self) -> usize {
        256 + if self.precision == Precision::Fp32Emulated { 128 } else { 64 }
    }
}

/// Wf, or its velocity or copy, (2H, D) as (2, H, D), in boxes of 32 columns of as many gates and their ups.
fn gates_and_ups(name: &str, element: MapElement, tensor: &Tensor) -> Result<TensorMap> {
    let (rows, cols) = tensor.shape();
    let row = cols * element.bytes();
    Boxes {
        name,
        element,
        pointer: pointer(tensor)?,
        dims: &[cols, rows / 2, 2],
        strides: &[row, rows / 2 * row],
        box_dims: &[32, UNITS, 2],
        swizzle: Swizzle::of_32(element),
    }
    .encode()
}

/// Whether the one-pass backward takes a layer of this shape.
pub fn takes(cuda: &Cuda, dims: Dims) -> bool {
    hopper::takes(cuda, dims) && dims.batch <= IMAGES
}

/// dx = [dg | du] Wf: (B, 2H) @ (2H, D) -> (B, D), and Wf <- SGD with dWf = [dg | du]^T x: (2H, B) @ (B, D) -> (2H, D), in one
/// launch, from saved gates.
///
/// # Errors
/// When the device fails.
pub fn backward_step(
    cuda: &Cuda,
    dims: Dims,
    (x, dz, gates): (&Tensor, &Tensor, u64),
    weight: &mut Param,
    dx: Option<&Tensor>,
    step: &SgdStep,
) -> Result<()> {
    const NAME: &str = "hopper_swiglu_backward_step";
    let shape = StepShape::fitting(cuda.chip(), cuda.precision(), dims.inputs, dims.hidden);
    let columns = dims.inputs.div_ceil(COLUMNS);
    let velocity = gates_and_ups("velocity", MapElement::F32, cuda.velocity_of(weight)?)?;
    let value = gates_and_ups("Wf", MapElement::F32, &weight.value)?;
    let copy = weight.copy.as_ref().map(|copy| gates_and_ups("Wf in bf16", MapElement::Bf16, copy)).transpose()?;
    let head = [
        Map(value),
        Map(velocity),
        Map(copy.unwrap_or(value)),
        Pointer(cuda.expect_activation(NAME, "x", x)?),
        Pointer(gates),
        Pointer(cuda.expect_activation(NAME, "dz", dz)?),
        Pointer(dx_output(cuda, NAME, dims, dx)?),
        Pointer(cuda.scratch("parts of dx", shape.splits * columns * IMAGES * COLUMNS * 4)?),
        Pointer(cuda.scratch("counters of dx's parts", columns * 4)?),
    ];
    let sgd = cuda.sgd_args(&step.for_param(weight.decays))?;
    let args = [&head[..], &sgd, &[Int(int(shape.splits)?)], &sizes(dims)?].concat();
    let grid = Grid::new(columns * shape.splits, shape.threads(), shape.shared());
    let grid = if grid.blocks <= cuda.chip().multiprocessors { grid.started_early() } else { grid };
    let configuration = cuda.configuration(FILE, true, &shape.defines());
    // SAFETY: the arguments are the kernel's; shapes were checked; the counters are zero before and after; a block alone touches its weights; blocks that
    // wait for each other are all on the chip at once.
    unsafe { cuda.launch(&configuration, NAME, grid, &args) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_blocks_of_one_pass_fit_the_chip_and_each_has_units() {
        for precision in [Precision::Tf32, Precision::Bf16, Precision::Fp32Emulated] {
            for (inputs, hidden) in [(8, 8), (72, 40), (512, 512), (784, 1024), (2048, 2048), (4096, 4096), (16384, 64)]
            {
                let shape = StepShape::fitting(Chip::H200, precision, inputs, hidden);
                assert!(shape.shared() <= Chip::H200.shared_per_block, "{shape:?}");
                assert!((1..=hidden.div_ceil(UNITS)).contains(&shape.splits), "{shape:?}");
                assert!(shape.splits == 1 || shape.splits * inputs.div_ceil(COLUMNS) <= 132, "{shape:?}");
            }
        }
    }
}
