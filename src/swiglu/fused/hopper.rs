//! The fused kernels on Hopper (compute capability 9.0): kernels/hopper_swiglu_forward.cu, hopper_swiglu_backward_dx.cu and
//! hopper_swiglu_dwf.cu. Shapes that TMA cannot read (rows that are not whole 16 bytes, H not a multiple of 8) and IEEE fp32,
//! which tensor cores do not compute, stay with the portable kernels.

use super::{
    super::reference::Dims,
    Keep,
    cuda::{Workspace, backward_outputs, sizes},
};
use crate::{
    Result,
    device::{
        Precision, SgdStep,
        cuda::{
            Along, Cuda,
            hopper::{Planes, activations, configuration, element, grid, matrix, transposed, wide},
            hopper_linear::{Gradient, Input},
            hopper_tiles::{self, HopperTile},
            modules::Arg::{Int, Map, Pointer},
            ops::int,
            tensor_map::{Boxes, MapElement, Swizzle, TensorMap},
        },
    },
    tensor::{Param, Tensor},
};

/// Whether these kernels take a layer of this shape in the precision of `cuda`.
pub fn takes(cuda: &Cuda, dims: Dims) -> bool {
    cuda.chip().hopper
        && cuda.precision() != Precision::Fp32
        && cuda.is_aligned(dims.inputs)
        && cuda.is_aligned(dims.hidden)
        && dims.hidden.is_multiple_of(8)
}

/// Wf (2H, D) as (H / 8, 2, 8, D), so that one copy brings gates and their ups in turns of 8 rows.
fn gate_up(cuda: &Cuda, dims: Dims, pointer: u64, tile: HopperTile) -> Result<TensorMap> {
    let row = dims.inputs * cuda.element().bytes();
    Boxes {
        name: "Wf",
        element: element(cuda),
        pointer,
        dims: &[dims.inputs, 8, 2, dims.hidden / 8],
        strides: &[row, dims.hidden * row, 8 * row],
        box_dims: &[wide(cuda), 8, 2, tile.rows() / 16 / tile.share_a],
        swizzle: Swizzle::Bytes128,
    }
    .encode()
}

/// The define for how much of Wf (2H, D) its readers ask L2 to keep, where each line is read once.
fn kept(cuda: &Cuda, dims: Dims, tile: HopperTile) -> (&'static str, u32) {
    let bytes = 2 * dims.hidden * dims.inputs * cuda.element().bytes();
    ("KEPT", if dims.batch <= tile.cols { hopper_tiles::kept(cuda.chip(), bytes) } else { 0 })
}

/// z = silu(x Wg^T) * (x Wu^T): (B, D) @ (D, 2H) -> (B, H), in one launch.
///
/// # Errors
/// When the device fails.
pub fn forward(
    cuda: &Cuda,
    dims: Dims,
    x: &Tensor,
    weight: &Param,
    z: &Tensor,
    keep: Keep,
    workspace: &mut Workspace,
) -> Result<()> {
    const NAME: &str = "hopper_swiglu_forward";
    let Dims { batch, inputs, hidden } = dims;
    let tile = hopper_tiles::forward(cuda.chip(), cuda.precision(), batch, inputs, hidden);
    let gates = match keep {
        Keep::Gates => workspace.gates(cuda, 2 * batch * hidden * cuda.element().bytes())?,
        Keep::Nothing | Keep::Inputs => 0,
    };
    let wf = cuda.expect_activation(NAME, "Wf", weight.operand())?;
    let x = cuda.expect_activation(NAME, "x", x)?;
    let planes = workspace.planes(cuda, batch, inputs, keep)?;
    if let Some(planes) = planes {
        planes.fill(cuda, x, (batch, inputs))?;
    }
    let (operand, down) = activations(cuda, "x", x, planes, (batch, inputs), tile.cols / tile.share_b)?;
    let args = [
        Map(gate_up(cuda, dims, wf, tile)?),
        Map(operand),
        Pointer(down),
        Pointer(cuda.expect_activation(NAME, "z", z)?),
        Pointer(gates),
    ];
    let clusters =
        hidden.div_ceil(tile.rows() / 2).div_ceil(tile.share_b) * batch.div_ceil(tile.cols).div_ceil(tile.share_a);
    let configuration = configuration(cuda, "hopper_swiglu_forward.cu", tile, &[kept(cuda, dims, tile)]);
    let mut grid_of = grid(cuda, tile, clusters);
    if grid_of.blocks > cuda.chip().multiprocessors * tile.blocks {
        // Blocks that stay and take one tile after the other begin the next while they finish one.
        grid_of = grid(cuda, tile, cuda.resident_blocks(&configuration, NAME, grid_of)? / tile.cluster());
    }
    // SAFETY: the arguments are the kernel's; shapes were checked; the maps are of these matrices.
    unsafe { cuda.launch(&configuration, NAME, grid_of, &[&args[..], &sizes(dims)?].concat())? };
    workspace.keep(cuda, batch, keep);
    Ok(())
}

/// What a backward left for dWf: good until the next backward.
#[derive(Clone, Copy, Debug)]
pub struct Dgates {
    /// [dg | du], (B, 2H).
    pub pointer: u64,
    /// [dg | du]^T (2H, [`Along::pitch`] of B) and x^T (D, the same), where they were laid out along the batch.
    along: Option<(u64, u64)>,
}

impl From<u64> for Dgates {
    fn from(pointer: u64) -> Dgates {
        Dgates { pointer, along: None }
    }
}

/// [dg | du] (B, 2H) into scratch, and dx = [dg | du] Wf: (B, 2H) @ (2H, D) -> (B, D), in one launch, from saved gates or
/// with the gates made again. `planes` are x's, where the forward split it. `steps` says whether [`backward_dwf`] will take a step with what
/// this leaves for it.
///
/// # Errors
/// When the device fails.
pub fn backward_dx(
    cuda: &Cuda,
    dims: Dims,
    (x, dz): (&Tensor, &Tensor),
    weight: &Param,
    dx: Option<&Tensor>,
    (saved, planes): (Option<u64>, Option<Planes>),
    steps: bool,
) -> Result<Dgates> {
    const NAME: &str = "hopper_swiglu_backward_dx";
    let Dims { batch, inputs, hidden } = dims;
    let tile = hopper_tiles::backward_dx(cuda.chip(), cuda.precision(), batch, inputs, hidden, saved.is_some());
    let dx_along = dx.map(Tensor::cuda).transpose()?.and_then(|dx| dx.along.as_ref());
    let lays_along = cuda.lays_along(batch, inputs.max(hidden)) && saved.is_some() && (steps || dx_along.is_some());
    let pitch = Along::pitch(batch);
    let along = match lays_along && steps {
        true => {
            Some((cuda.scratch("dgates along", 2 * hidden * pitch * 4)?, cuda.scratch("x along", inputs * pitch * 4)?))
        }
        false => None,
    };
    let (dgates, dx) = backward_outputs(cuda, NAME, dims, dx)?;
    let wf = cuda.expect_activation(NAME, "Wf", weight.operand())?;
    let x = cuda.expect_activation(NAME, "x", x)?;
    let images = tile.cols / tile.share_b;
    let beside = match along {
        _ if !lays_along => Vec::new(),
        along => {
            let (dgates, x_along) = along.unwrap_or_default();
            let dx = dx_along.map_or(0, Along::write);
            vec![Pointer(x), Pointer(x_along), Pointer(dgates), Pointer(dx), Int(int(pitch)?)]
        }
    };
    let (from_x, down) = activations(cuda, "x", x, planes, (batch, inputs), images)?;
    let split = match planes {
        Some(_) => {
            let purposes = ("planes of dgates", "factors of dgates");
            Some(Planes::in_scratch(cuda, purposes, (batch, 2 * hidden), tile.splits)?)
        }
        None => None,
    };
    let (from_dgates, _) = activations(cuda, "[dg | du]", dgates, split, (batch, 2 * hidden), images)?;
    let args = [
        Map(gate_up(cuda, dims, wf, tile)?),
        Map(from_x),
        Map(matrix(cuda, "Wf", wf, (2 * hidden, inputs), tile.k_tile(cuda.precision()))?),
        Map(from_dgates),
        Pointer(down),
        Pointer(saved.unwrap_or(0)),
        Pointer(cuda.expect_activation(NAME, "dz", dz)?),
        Pointer(dgates),
        Pointer(split.map_or(0, |planes| planes.hi)),
        Pointer(split.map_or(0, |planes| planes.down)),
        Pointer(dx),
        Pointer(cuda.scratch("dx counters", 12)?),
    ];
    let mut more = vec![("SAVED_GATES", u32::from(saved.is_some())), kept(cuda, dims, tile)];
    if lays_along {
        more.push(("ALONG_BATCH", 1));
    }
    let configuration = configuration(cuda, "hopper_swiglu_backward_dx.cu", tile, &more);
    let columns = batch.div_ceil(tile.cols).div_ceil(tile.share_a);
    let phase_1 = hidden.div_ceil(tile.rows() / 2).div_ceil(tile.share_b) * columns;
    let phase_2 = inputs.div_ceil(tile.rows()).div_ceil(tile.share_b) * columns;
    // All blocks wait for each other between the phases: no more than run at once. Where phase 1 is elementwise, idle blocks
    // still share it.
    let whole_chip = cuda.chip().multiprocessors / tile.cluster();
    let wanted = phase_2.max(if saved.is_some() { whole_chip } else { phase_1 });
    let resident = cuda.resident_blocks(&configuration, NAME, grid(cuda, tile, wanted))? / tile.cluster();
    // SAFETY: the arguments are the kernel's; shapes were checked; the counters are zero before and after; all blocks run at
    // once.
    unsafe {
        let grid = grid(cuda, tile, wanted.min(resident).max(1));
        cuda.launch(&configuration, NAME, grid, &[&args[..], &beside, &sizes(dims)?].concat())?;
    }
    Ok(Dgates { pointer: dgates, along })
}

/// dWf = [dg | du]^T x: (2H, B) @ (B, D) -> (2H, D): into the gradient's buffer, or into the weights with SGD in the epilogue.
///
/// # Errors
/// When the device fails.
pub fn backward_dwf(
    cuda: &Cuda,
    dims: Dims,
    x: &Tensor,
    (dgates, planes): (Dgates, Option<Planes>),
    weight: &mut Param,
    step: Option<&SgdStep>,
) -> Result<()> {
    let Dims { batch, inputs, hidden } = dims;
    let x = cuda.expect_activation("dWf", "x", x)?;
    let Dgates { pointer: dgates, along } = dgates;
    if let Some(step) = step {
        let input = Input::of_batch(cuda, x, (batch, inputs), planes)?;
        let input = Input { transposed: along.map(|(_, x)| (x, Along::pitch(batch))), ..input };
        let dgates = Gradient { pointer: dgates, batch, along: along.map(|(dgates, _)| dgates) };
        return cuda.weight_step(dgates, input, weight, None, step);
    }
    let tile = hopper_tiles::dwf(cuda.chip(), cuda.precision(), batch, inputs, hidden);
    let k_tile = tile.k_tile(cuda.precision());
    let operand = match cuda.precision() {
        Precision::Tf32 => {
            let (transposed, pitch) = transposed(cuda, batch, inputs, x)?;
            Boxes {
                name: "x^T",
                element: MapElement::Tf32,
                pointer: transposed,
                dims: &[batch, inputs],
                strides: &[pitch * 4],
                box_dims: &[k_tile, tile.cols],
                swizzle: Swizzle::Bytes128,
            }
            .encode()?
        }
        Precision::Fp32 | Precision::Fp32Emulated | Precision::Bf16 => {
            activations(cuda, "x", x, planes, (batch, inputs), k_tile)?.0
        }
    };
    let down = planes.map_or(0, |planes| planes.down);
    let head = [Map(matrix(cuda, "[dg | du]", dgates, (batch, 2 * hidden), k_tile)?), Map(operand), Pointer(down)];
    let configuration = configuration(cuda, "hopper_swiglu_dwf.cu", tile, &[]);
    let grid = grid(cuda, tile, (2 * hidden).div_ceil(tile.rows()) * inputs.div_ceil(tile.cols));
    let target = [Pointer(cuda.weight_grad_of(weight)?.cuda()?.memory.pointer())];
    // SAFETY: the arguments are the kernel's, and shapes were checked; a block alone writes its part of the gradient.
    unsafe { cuda.launch(&configuration, "hopper_swiglu_dwf", grid, &[&head[..], &target, &sizes(dims)?].concat()) }
}
