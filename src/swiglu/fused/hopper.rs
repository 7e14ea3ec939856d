//! The fused kernels on Hopper (compute capability 9.0): kernels/hopper_swiglu_forward.cu, hopper_swiglu_backward_dx.cu and
//! hopper_swiglu_dwf.cu. Shapes that TMA cannot read (rows that are not whole 16 bytes, H not a multiple of 8) and IEEE fp32,
//! which tensor cores do not compute, stay with the portable kernels.

use super::{
    super::reference::Dims,
    Keep,
    cuda::{Workspace, backward_outputs, sizes},
    trials,
};
use crate::{
    Result,
    device::{
        Precision, SgdStep,
        cuda::{
            Cuda,
            compile::Configuration,
            hopper_tiles::{self, HopperTile},
            modules::{
                Arg::{Int, Map, Pointer},
                Grid,
            },
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

/// How the copy engine is to read activations and weights.
fn element(cuda: &Cuda) -> MapElement {
    match cuda.precision() {
        Precision::Tf32 => MapElement::Tf32,
        Precision::Bf16 => MapElement::Bf16,
        Precision::Fp32 | Precision::Fp32Emulated => MapElement::F32,
    }
}

/// Elements in the 128 bytes of a box's row.
fn wide(cuda: &Cuda) -> usize {
    128 / cuda.element().bytes()
}

/// A row-major matrix, `rows` rows of a box at a time, 128 bytes wide.
fn matrix(cuda: &Cuda, name: &str, pointer: u64, shape: (usize, usize), rows: usize) -> Result<TensorMap> {
    Boxes::of_matrix(name, element(cuda), pointer, shape, (rows, wide(cuda)), Swizzle::Bytes128)
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

/// Activations for fp32-emulated, split into two planes of fp16: hi (rows, cols), then lo, and a factor a row.
#[derive(Clone, Copy, Debug)]
pub struct Planes {
    /// Where hi begins.
    pub hi: u64,
    /// Where the factors begin, (rows) fp32.
    pub down: u64,
}

impl Planes {
    /// Bytes of both planes, and of the factors.
    pub fn bytes(rows: usize, cols: usize) -> (usize, usize) {
        (4 * rows * cols, 4 * rows)
    }

    /// Room for them that nobody reads after the next launches of the same purpose.
    ///
    /// # Errors
    /// When there is not so much memory.
    pub fn in_scratch(
        cuda: &Cuda,
        purposes: (&'static str, &'static str),
        (rows, cols): (usize, usize),
    ) -> Result<Planes> {
        let (hi, down) = Planes::bytes(rows, cols);
        Ok(Planes { hi: cuda.scratch(purposes.0, hi)?, down: cuda.scratch(purposes.1, down)? })
    }

    /// Boxes of `box_rows` rows, 64 elements wide, of both planes: row r of lo is row `rows` + r.
    fn map(&self, name: &str, (rows, cols): (usize, usize), box_rows: usize) -> Result<TensorMap> {
        Boxes::of_matrix(name, MapElement::F16, self.hi, (2 * rows, cols), (box_rows, 64), Swizzle::Bytes128)
    }

    /// Splits x (rows, cols), in one launch.
    fn fill(&self, cuda: &Cuda, x: u64, (rows, cols): (usize, usize)) -> Result<()> {
        let args = [Pointer(x), Pointer(self.hi), Pointer(self.down), Int(int(rows)?), Int(int(cols)?)];
        let configuration = cuda.configuration("hopper_split.cu", true, &[]);
        // SAFETY: the arguments are the kernel's; the planes have room for both halves of x, and the factors for its rows.
        unsafe { cuda.launch(&configuration, "hopper_split", Grid::new(rows, 256, 0).started_early(), &args) }
    }
}

/// The operand that lies along the batch in the forward's product, and the factors of its rows (0 where there are none).
fn activations(
    cuda: &Cuda,
    name: &str,
    pointer: u64,
    planes: Option<Planes>,
    shape: (usize, usize),
    box_rows: usize,
) -> Result<(TensorMap, u64)> {
    match planes {
        Some(planes) => Ok((planes.map(name, shape, box_rows)?, planes.down)),
        None => Ok((matrix(cuda, name, pointer, shape, box_rows)?, 0)),
    }
}

fn configuration(cuda: &Cuda, file: &'static str, tile: HopperTile, more: &[(&'static str, u32)]) -> Configuration {
    cuda.configuration(file, true, &[&tile.defines()[..], more].concat())
}

fn grid(cuda: &Cuda, tile: HopperTile, clusters: usize) -> Grid {
    let blocks = clusters * tile.cluster();
    let grid = Grid::new(blocks, tile.threads(), tile.shared(cuda.precision())).in_clusters(tile.cluster());
    // A kernel that fills the chip more than once would only have to share it with the next one's idle blocks.
    if blocks <= cuda.chip().multiprocessors * tile.blocks { grid.started_early() } else { grid }
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
    const FILE: &str = "hopper_swiglu_forward.cu";
    let tiles = hopper_tiles::forward(cuda.chip(), cuda.precision(), batch, inputs, hidden);
    let problem = trials::problem(cuda, FILE, dims, keep == Keep::Gates, false);
    let tile = cuda.tile(problem, &tiles, trials::forward);
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
    let configuration = configuration(cuda, FILE, tile, &[]);
    // SAFETY: the arguments are the kernel's; shapes were checked; the maps are of these matrices.
    unsafe {
        cuda.launch(&configuration, NAME, grid(cuda, tile, clusters), &[&args[..], &sizes(dims)?].concat())?;
    }
    workspace.keep(cuda, batch, keep);
    Ok(())
}

/// [dg | du] (B, 2H) into scratch, and dx = [dg | du] Wf: (B, 2H) @ (2H, D) -> (B, D), in one launch, from saved gates or
/// with the gates made again. `planes` are x's, where the forward split it. The address of [dg | du], good until the next
/// backward.
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
) -> Result<u64> {
    const NAME: &str = "hopper_swiglu_backward_dx";
    let Dims { batch, inputs, hidden } = dims;
    const FILE: &str = "hopper_swiglu_backward_dx.cu";
    let tiles = hopper_tiles::backward_dx(cuda.chip(), cuda.precision(), batch, inputs, hidden, saved.is_some());
    let problem = trials::problem(cuda, FILE, dims, saved.is_some(), false);
    let tile = cuda.tile(problem, &tiles, trials::backward_dx);
    let (dgates, dx) = backward_outputs(cuda, NAME, dims, dx)?;
    let wf = cuda.expect_activation(NAME, "Wf", weight.operand())?;
    let x = cuda.expect_activation(NAME, "x", x)?;
    let images = tile.cols / tile.share_b;
    let (from_x, down) = activations(cuda, "x", x, planes, (batch, inputs), images)?;
    let split = match planes {
        Some(_) => Some(Planes::in_scratch(cuda, ("planes of dgates", "factors of dgates"), (batch, 2 * hidden))?),
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
    let saved_gates = [("SAVED_GATES", u32::from(saved.is_some()))];
    let configuration = configuration(cuda, FILE, tile, &saved_gates);
    let columns = batch.div_ceil(tile.cols).div_ceil(tile.share_a);
    let phase_1 = hidden.div_ceil(tile.rows() / 2).div_ceil(tile.share_b) * columns;
    let phase_2 = inputs.div_ceil(tile.rows()).div_ceil(tile.share_b) * columns;
    // All blocks wait for each other between the phases: no more than run at once. Where phase 1 is elementwise, idle blocks
    // still share it.
    let whole_chip = cuda.chip().multiprocessors / tile.cluster();
    let wanted = phase_2.max(if saved.is_some() { whole_chip } else { phase_1 });
    let mut resident = cuda.resident_blocks(&configuration, NAME, grid(cuda, tile, wanted))? / tile.cluster();
    // Of tiles that fit a multiprocessor twice one is counted: launches of 64 clusters of four such blocks, where the driver
    // counts 66, were seen to wait for each other for ever, now and then.
    if tile.blocks > 1 {
        resident = resident.min(whole_chip);
    }
    // SAFETY: the arguments are the kernel's; shapes were checked; the counters are zero before and after; all blocks run at
    // once.
    unsafe {
        let grid = grid(cuda, tile, wanted.min(resident).max(1));
        cuda.launch(&configuration, NAME, grid, &[&args[..], &sizes(dims)?].concat())?;
    }
    Ok(dgates)
}

/// x^T (D, pitch) in scratch: TF32's tensor cores read operands along the sum only, and dWf sums over the batch.
fn transposed(cuda: &Cuda, batch: usize, inputs: usize, x: u64) -> Result<(u64, usize)> {
    let pitch = batch.next_multiple_of(4);
    let out = cuda.scratch("x transposed", inputs * pitch * 4)?;
    let args = [Pointer(x), Pointer(out), Int(int(batch)?), Int(int(inputs)?), Int(int(pitch)?)];
    let configuration = cuda.configuration("hopper_transpose.cu", true, &[]);
    let grid = Grid::new(inputs.div_ceil(32) * batch.div_ceil(32), 256, 0).started_early();
    // SAFETY: the arguments are the kernel's, and the scratch memory is as large as it writes.
    unsafe { cuda.launch(&configuration, "hopper_transpose", grid, &args)? };
    Ok((out, pitch))
}

/// dWf = [dg | du]^T x: (2H, B) @ (B, D) -> (2H, D): into the gradient's buffer, or into the weights with SGD in the epilogue.
///
/// # Errors
/// When the device fails.
pub fn backward_dwf(
    cuda: &Cuda,
    dims: Dims,
    x: &Tensor,
    (dgates, planes): (u64, Option<Planes>),
    weight: &mut Param,
    step: Option<&SgdStep>,
) -> Result<()> {
    let Dims { batch, inputs, hidden } = dims;
    const FILE: &str = "hopper_swiglu_dwf.cu";
    let tiles = hopper_tiles::dwf(cuda.chip(), cuda.precision(), batch, inputs, hidden, step.is_some());
    let tile = cuda.tile(trials::problem(cuda, FILE, dims, false, step.is_some()), &tiles, trials::dwf);
    let k_tile = tile.k_tile(cuda.precision());
    let x = cuda.expect_activation("dWf", "x", x)?;
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
    let update = [("UPDATE", u32::from(step.is_some()))];
    let configuration = configuration(cuda, FILE, tile, &update);
    let grid = grid(cuda, tile, (2 * hidden).div_ceil(tile.rows()) * inputs.div_ceil(tile.cols));
    let (name, target) = match step {
        Some(step) => ("hopper_swiglu_dwf_sgd", super::cuda::update_args(cuda, weight, step)?),
        None => ("hopper_swiglu_dwf", vec![Pointer(cuda.weight_grad_of(weight)?.cuda()?.memory.pointer())]),
    };
    // SAFETY: the arguments are the kernel's, and shapes were checked; a block alone touches its weights.
    unsafe { cuda.launch(&configuration, name, grid, &[&head[..], &target, &sizes(dims)?].concat()) }
}
