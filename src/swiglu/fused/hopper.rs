//! The fused kernels on Hopper (compute capability 9.0): kernels/hopper_swiglu_forward.cu, hopper_swiglu_backward_dx.cu and
//! hopper_swiglu_dwf.cu. Shapes that TMA cannot read (rows that are not whole 16 bytes, H not a multiple of 8) and IEEE fp32,
//! which tensor cores do not compute, stay with the portable kernels.

use super::{
    super::reference::Dims,
    Keep,
    cuda::{Gradients, Next, Workspace, backward_outputs, sizes},
    trials,
};
use crate::{
    Result,
    device::{
        Precision, SgdStep,
        cuda::{
            Cuda,
            hopper::{Planes, activations, configuration, element, grid, matrix, room_for_transposed, wide},
            hopper_linear::Input,
            hopper_tiles::{self, HopperTile},
            modules::Arg::{Int, Map, Pointer},
            tensor_map::{Boxes, Fetched, MapElement, Swizzle, TensorMap},
            tune::{self, Problem},
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

/// z (B, H), and [g | u] (B, 2H) as (2, B, H), in the boxes that the forward sends; without gates the second is not looked at.
fn results(cuda: &Cuda, dims: Dims, (z, gates): (u64, u64), tile: HopperTile) -> Result<[TensorMap; 2]> {
    let (row, wide) = (dims.hidden * cuda.element().bytes(), hopper_tiles::WIDE);
    let images = tile.sent(cuda.precision(), gates != 0);
    // Tensor cores round what they read; results are as they are.
    let element = if cuda.precision() == Precision::Bf16 { MapElement::Bf16 } else { MapElement::F32 };
    let swizzle = if element == MapElement::Bf16 { Swizzle::Bytes64 } else { Swizzle::Bytes128 };
    let z = Boxes::of_matrix("z", element, z, (dims.batch, dims.hidden), (images, wide), swizzle)?;
    if gates == 0 {
        return Ok([z, z]);
    }
    let gates = Boxes {
        name: "[g | u]",
        element,
        pointer: gates,
        dims: &[dims.hidden, dims.batch, 2],
        strides: &[2 * row, row],
        box_dims: &[wide, images, 2],
        swizzle,
    };
    Ok([z, gates.encode()?])
}

/// The define for how much of Wf (2H, D) its readers ask L2 to keep, where each line is read once.
fn kept(cuda: &Cuda, dims: Dims, tile: HopperTile, weight: &Param) -> (&'static str, u32) {
    let bytes = 2 * dims.hidden * dims.inputs * cuda.element().bytes();
    let alone = weight.velocity.is_none();
    ("KEPT", if dims.batch <= tile.cols { hopper_tiles::kept(cuda.chip(), cuda.precision(), bytes, alone) } else { 0 })
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
    const FILE: &str = "hopper_swiglu_forward.cu";
    let Dims { batch, inputs, hidden } = dims;
    let (chip, precision) = (cuda.chip(), cuda.precision());
    let rule = hopper_tiles::forward(chip, precision, batch, inputs, hidden);
    let others = || tune::hopper::forward(chip, precision, (batch, inputs, hidden), rule);
    let tile = cuda.tile(trials::problem(cuda, FILE, dims, keep == Keep::Gates, false), rule, others, trials::forward);
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
    let [to_z, to_gates] = results(cuda, dims, (cuda.expect_activation(NAME, "z", z)?, gates), tile)?;
    let args = [
        Map(gate_up(cuda, dims, wf, tile)?),
        Map(operand),
        Map(to_z),
        Map(to_gates),
        Pointer(down),
        Int(i32::from(gates != 0)),
    ];
    let clusters =
        hidden.div_ceil(tile.rows() / 2).div_ceil(tile.share_b) * batch.div_ceil(tile.cols).div_ceil(tile.share_a);
    let configuration = configuration(cuda, FILE, tile, &[kept(cuda, dims, tile, weight)]);
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

/// What a forward, or who came after it, left for a backward.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    /// [g | u], (B, 2H).
    pub gates: Option<u64>,
    /// x split in two.
    pub planes: Option<Planes>,
    /// [dg | du], (B, 2H), made of the gates already.
    pub made: Option<u64>,
}

/// [dg | du] (B, 2H) into scratch, and dx = [dg | du] Wf: (B, 2H) @ (2H, D) -> (B, D), in one launch, from saved gates or
/// with the gates made again. `planes` are x's, where the forward split it. Where a kernel of our own makes dWf `next`, it also
/// leaves x^T in the precision that needs it, or lets that kernel start beside it. Good until the next backward.
///
/// # Errors
/// When the device fails.
pub fn backward_dx(
    cuda: &Cuda,
    dims: Dims,
    (x, dz): (&Tensor, &Tensor),
    weight: &Param,
    dx: Option<&Tensor>,
    Kept { gates: saved, planes, made }: Kept,
    next: Next,
) -> Result<Gradients> {
    const NAME: &str = "hopper_swiglu_backward_dx";
    const FILE: &str = "hopper_swiglu_backward_dx.cu";
    let Dims { batch, inputs, hidden } = dims;
    let (chip, precision, is_saved) = (cuda.chip(), cuda.precision(), saved.is_some());
    let may_be_beside = next == Next::Dwf && is_saved && made.is_none();
    let beside = may_be_beside.then(|| hopper_tiles::beside(chip, precision, batch, inputs, hidden)).flatten();
    let rule = match beside {
        Some((dx, _)) => dx,
        None => hopper_tiles::backward_dx(chip, precision, batch, inputs, hidden, is_saved),
    };
    let others = || match beside {
        Some(_) => Vec::new(),
        None => tune::hopper::backward_dx(chip, precision, (batch, inputs, hidden), is_saved, rule),
    };
    let problem = Problem { beside: beside.is_some(), ..trials::problem(cuda, FILE, dims, is_saved, false) };
    let tile = cuda.tile(problem, rule, others, trials::backward_dx);
    let (dgates, dx) = backward_outputs(cuda, NAME, dims, dx)?;
    let dgates = made.unwrap_or(dgates);
    let wf = cuda.expect_activation(NAME, "Wf", weight.operand())?;
    let x = cuda.expect_activation(NAME, "x", x)?;
    let images = tile.cols / tile.share_b;
    let (from_x, down) = activations(cuda, "x", x, planes, (batch, inputs), images)?;
    let part = if precision == Precision::Fp32Emulated && is_saved { tile.part(batch, hidden) } else { 0 };
    let split = match planes {
        Some(_) => {
            let purposes = ("planes of dgates", "factors of dgates");
            let parts = match part {
                0 => tile.splits * tile.addends,
                _ => (2 * hidden).div_ceil(64 * part),
            };
            Some(Planes::in_scratch(cuda, purposes, (batch, 2 * hidden), parts)?)
        }
        None => None,
    };
    let (from_dgates, _) = activations(cuda, "[dg | du]", dgates, split, (batch, 2 * hidden), images)?;
    let kept = kept(cuda, dims, tile, weight);
    // A box is 128 bytes wide, and the next 128 belong to another block, with another word to L2.
    let fetched = if kept.1 > 0 { Fetched::Bytes128 } else { Fetched::Bytes256 };
    let wft = Boxes {
        name: "Wf",
        element: element(cuda),
        pointer: wf,
        dims: &[inputs, 2 * hidden],
        strides: &[inputs * cuda.element().bytes()],
        box_dims: &[wide(cuda), tile.k_tile(cuda.precision())],
        swizzle: Swizzle::Bytes128,
    };
    let transposed = if next != Next::Other && cuda.precision() == Precision::Tf32 {
        Some(room_for_transposed(cuda, "x transposed", batch, inputs)?)
    } else {
        None
    };
    let args = [
        Map(gate_up(cuda, dims, wf, tile)?),
        Map(from_x),
        Map(wft.encode_fetching(fetched)?),
        Map(from_dgates),
        Pointer(down),
        Pointer(saved.unwrap_or(0)),
        Pointer(cuda.expect_activation(NAME, "dz", dz)?),
        Pointer(dgates),
        Pointer(split.map_or(0, |planes| planes.hi)),
        Pointer(split.map_or(0, |planes| planes.down)),
        Pointer(dx),
        Pointer(cuda.scratch("dx counters", 12)?),
        Pointer(x),
        Pointer(transposed.map_or(0, |transposed| transposed.pointer)),
    ];
    let more = [
        ("SAVED_GATES", if made.is_some() { 2 } else { u32::from(saved.is_some()) }),
        ("EARLY", if beside.is_some() { 2 } else { u32::from(hopper_tiles::is_large(batch)) }),
        ("PART", part as u32),
        kept,
    ];
    let configuration = configuration(cuda, FILE, tile, &more);
    let columns = batch.div_ceil(tile.cols).div_ceil(tile.share_a);
    let phase_1 = hidden.div_ceil(tile.rows() / 2).div_ceil(tile.share_b) * columns;
    let phase_2 = inputs.div_ceil(tile.rows()).div_ceil(tile.share_b) * columns * tile.addends;
    // All blocks wait for each other between the phases: no more than run at once. Where phase 1 is elementwise, idle blocks
    // still share it.
    let whole_chip = cuda.chip().multiprocessors / tile.cluster();
    let wanted = match (made, saved) {
        (Some(_), _) => phase_2,
        (None, Some(_)) => phase_2.max(whole_chip),
        (None, None) => phase_2.max(phase_1),
    };
    let mut resident = cuda.resident_blocks(&configuration, NAME, grid(cuda, tile, wanted))? / tile.cluster();
    if tile.blocks > 1 {
        // Of tiles that fit a multiprocessor twice one is counted: launches of 64 clusters of four such blocks, where the driver
        // counts 66, were seen to wait for ever. It counts the best packing, and blocks that come while those of the kernel before
        // leave need not find it.
        resident = resident.min(whole_chip);
    }
    // SAFETY: the arguments are the kernel's; shapes were checked; the counters are zero before and after; all blocks run at
    // once.
    unsafe {
        let grid = grid(cuda, tile, wanted.min(resident).max(1));
        cuda.launch(&configuration, NAME, grid, &[&args[..], &sizes(dims)?].concat())?;
    }
    Ok(Gradients { dgates, transposed, beside: beside.map(|(_, dwf)| dwf) })
}

/// dWf = [dg | du]^T x: (2H, B) @ (B, D) -> (2H, D): into the gradient's buffer, or into the weights with SGD in the epilogue.
///
/// # Errors
/// When the device fails.
pub fn backward_dwf(
    cuda: &Cuda,
    dims: Dims,
    x: &Tensor,
    (gradients, planes): (Gradients, Option<Planes>),
    weight: &mut Param,
    step: Option<&SgdStep>,
) -> Result<()> {
    const FILE: &str = "hopper_swiglu_dwf.cu";
    let Dims { batch, inputs, hidden } = dims;
    let Gradients { dgates, transposed, beside } = gradients;
    let x = cuda.expect_activation("dWf", "x", x)?;
    if let Some(step) = step {
        let input = Input { transposed, ..Input::of_batch(cuda, x, (batch, inputs), planes)? };
        return cuda.weight_step(dgates, batch, input, weight, None, step);
    }
    let (chip, precision) = (cuda.chip(), cuda.precision());
    let rule = beside.unwrap_or_else(|| hopper_tiles::dwf(chip, precision, batch, inputs, hidden));
    let others = || match beside {
        Some(_) => Vec::new(),
        None => tune::hopper::dwf(chip, precision, (batch, inputs, hidden), rule),
    };
    let problem = Problem { beside: beside.is_some(), ..trials::problem(cuda, FILE, dims, false, false) };
    let tile = cuda.tile(problem, rule, others, trials::dwf);
    let k_tile = tile.k_tile(cuda.precision());
    let operand = match transposed {
        Some(transposed) => transposed.boxes(inputs, (k_tile, tile.cols))?,
        None => activations(cuda, "x", x, planes, (batch, inputs), k_tile)?.0,
    };
    let target = cuda.weight_grad_of(weight)?.cuda()?.memory.pointer();
    // Gradients of weights are of the elements that activations are of.
    let kept_as = if cuda.precision() == Precision::Bf16 { MapElement::Bf16 } else { MapElement::F32 };
    let boxes = (if precision == Precision::Tf32 { 8 } else { 16 }, wide(cuda)); // a warp's neighbouring rows
    let out = Boxes::of_matrix("dWf", kept_as, target, (2 * hidden, inputs), boxes, Swizzle::Bytes128)?;
    let args = [
        Map(matrix(cuda, "[dg | du]", dgates, (batch, 2 * hidden), k_tile)?),
        Map(operand),
        Map(out),
        Pointer(planes.map_or(0, |planes| planes.down)),
    ];
    let configuration = configuration(cuda, FILE, tile, &[("BESIDE", u32::from(beside.is_some()))]);
    let (rows, columns) = ((2 * hidden).div_ceil(tile.rows()), inputs.div_ceil(tile.cols));
    // Blocks that stay and take one tile after the other; beside dx's there is room for one a multiprocessor.
    let room = cuda.chip().multiprocessors * if beside.is_some() { 1 } else { tile.blocks };
    let blocks = if tile.stays { columns * (room / columns).clamp(1, rows) } else { room.min(rows * columns) };
    let grid = grid(cuda, tile, blocks);
    // SAFETY: the arguments are the kernel's, and shapes were checked; a block alone writes its part of the gradient.
    unsafe { cuda.launch(&configuration, "hopper_swiglu_dwf", grid, &[&args[..], &sizes(dims)?].concat()) }
}
