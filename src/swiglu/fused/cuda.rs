//! The fused kernels on a GPU: Hopper's where they take the shape, else the portable ones, kernels/swiglu_fused_forward.cu,
//! swiglu_fused_backward_dx.cu and swiglu_fused_dwf.cu.

use super::{super::reference::Dims, Keep, hopper, trials};
use crate::{
    Result,
    device::{
        Layout, Precision, SgdStep,
        cuda::{
            Cuda,
            blas::Operand,
            context::Memory,
            head::GateSlot,
            hopper::{Planes, Transposed},
            hopper_tiles::HopperTile,
            modules::{
                Arg::{self, Int, Pointer},
                Grid,
            },
            ops::int,
            tiles, tune,
        },
    },
    tensor::{Param, Tensor},
};

/// What a training forward left for its backward.
#[derive(Debug, Default)]
pub struct Workspace {
    /// [g | u], (B, 2H), where gates are saved.
    gates: Option<Memory>,
    /// The batch of the last training forward, and whether its gates were saved.
    ready: Option<(usize, bool)>,
    /// Where [dg | du] is, when the head's kernel made it of the gates.
    made: Option<u64>,
    element_bytes: usize,
    /// x split in two, where the precision's products read it so: planes and factors, and the bytes of the last forward's.
    planes: Option<(Memory, Memory)>,
    plane_bytes: usize,
}

/// What is launched right after a backward's first launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing of ours that makes dWf.
    Other,
    /// [`backward_dwf`] with a step.
    Step,
    /// [`backward_dwf`] into the gradient's buffer.
    Dwf,
}

/// What a backward's first launch leaves for dWf.
#[derive(Clone, Copy, Debug)]
pub struct Gradients {
    /// Where [dg | du] (B, 2H) is.
    pub(super) dgates: u64,
    /// x^T, if it was wanted.
    pub(super) transposed: Option<Transposed>,
    /// The tile of dWf, if it is to run beside dx, which then lets it start early.
    pub(super) beside: Option<HopperTile>,
}

impl Workspace {
    /// Bytes kept between the forward and its backward.
    pub fn saved_bytes(&self, hidden: usize) -> usize {
        match self.ready {
            Some((batch, true)) => 2 * batch * hidden * self.element_bytes + self.plane_bytes,
            Some((_, false)) => self.plane_bytes,
            None => 0,
        }
    }

    /// Bytes held; scratch is the device's, shared by all layers.
    pub fn bytes(&self) -> usize {
        let planes = self.planes.as_ref().map_or(0, |(planes, factors)| planes.bytes() + factors.bytes());
        self.gates.as_ref().map_or(0, Memory::bytes) + planes
    }

    /// Room for the planes of x (B, D), in the precision that splits it; of its own where a backward will read them, so that an
    /// inference between the two does no harm.
    pub(super) fn planes(&mut self, cuda: &Cuda, batch: usize, inputs: usize, keep: Keep) -> Result<Option<Planes>> {
        if cuda.precision() != Precision::Fp32Emulated {
            return Ok(None);
        }
        if keep == Keep::Nothing {
            return Planes::in_scratch(cuda, ("planes of x", "factors of x"), (batch, inputs), 1).map(Some);
        }
        let (bytes, factors) = Planes::bytes(batch, inputs);
        self.plane_bytes = bytes + factors;
        if self.planes.as_ref().is_none_or(|(planes, down)| planes.bytes() < bytes || down.bytes() < factors) {
            self.planes = Some((cuda.context().allocate(bytes)?, cuda.context().allocate(factors)?));
        }
        Ok(self.last_planes())
    }

    /// The planes that the last forward filled.
    fn last_planes(&self) -> Option<Planes> {
        self.planes.as_ref().map(|(planes, down)| Planes { hi: planes.pointer(), down: down.pointer() })
    }

    /// [g | u] that the last training forward left, if it was one of `batch` images and saved them; used up then.
    pub(super) fn take_gates(&mut self, batch: usize) -> Option<u64> {
        let gates = self.gates.as_ref().filter(|_| self.ready == Some((batch, true))).map(Memory::pointer);
        if gates.is_some() {
            self.ready = None;
        }
        gates
    }

    /// What a forward left.
    pub(super) fn keep(&mut self, cuda: &Cuda, batch: usize, keep: Keep) {
        self.element_bytes = cuda.element().bytes();
        self.made = None;
        self.ready = match keep {
            Keep::Nothing => None,
            Keep::Inputs => Some((batch, false)),
            Keep::Gates => Some((batch, true)),
        };
    }

    /// Room for [g | u].
    pub(super) fn gates(&mut self, cuda: &Cuda, bytes: usize) -> Result<u64> {
        match &self.gates {
            Some(memory) if memory.bytes() >= bytes => Ok(memory.pointer()),
            _ => {
                let memory = cuda.context().allocate(bytes)?;
                let pointer = memory.pointer();
                self.gates = Some(memory);
                Ok(pointer)
            }
        }
    }
}

/// B, D, H, as kernels take them last.
pub(super) fn sizes(dims: Dims) -> Result<[Arg; 3]> {
    Ok([Int(int(dims.batch)?), Int(int(dims.inputs)?), Int(int(dims.hidden)?)])
}

/// Whether every row of x, Wf, z and [g | u] starts on 16 bytes.
fn is_aligned(cuda: &Cuda, dims: Dims) -> bool {
    cuda.is_aligned(dims.inputs) && cuda.is_aligned(dims.hidden)
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
    const NAME: &str = "swiglu_fused_forward";
    const FILE: &str = "swiglu_fused_forward.cu";
    if hopper::takes(cuda, dims) {
        return hopper::forward(cuda, dims, x, weight, z, keep, workspace);
    }
    let Dims { batch, inputs, hidden } = dims;
    let (chip, precision) = (cuda.chip(), cuda.precision());
    let rule = tiles::forward(chip, precision, batch, inputs, hidden);
    let others = || tune::portable::forward(chip, precision, (batch, inputs, hidden), rule);
    let problem = trials::problem(cuda, FILE, dims, keep == Keep::Gates, false);
    let (tile, mut splits) = cuda.tile(problem, rule, others, trials::forward);
    let count = tile.count(batch, 2 * hidden);
    let configure = |splits: usize| {
        let defines = [tile.defines(), vec![("K_SPLITS", splits as u32)]].concat();
        cuda.configuration(FILE, is_aligned(cuda, dims), &defines)
    };
    let grid = |splits: usize| Grid::new(count * splits, tile.threads(), tile.shared(0));
    let mut configuration = configure(splits);
    // Blocks of a tile wait for each other, so all must run at once; the rules see to it, this makes sure.
    if splits > 1 && cuda.resident_blocks(&configuration, NAME, grid(splits))? < count * splits {
        splits = 1;
        configuration = configure(1);
    }
    let gates = match keep {
        Keep::Gates => workspace.gates(cuda, 2 * batch * hidden * cuda.element().bytes())?,
        Keep::Nothing | Keep::Inputs => 0,
    };
    let sums = if splits > 1 { cuda.scratch("split sums", tile.rows * tile.cols * splits * count * 4)? } else { 0 };
    let counters = cuda.scratch("split counters", count * 4)?;
    let args = [
        Pointer(cuda.expect_activation(NAME, "x", x)?),
        Pointer(cuda.expect_activation(NAME, "Wf", weight.operand())?),
        Pointer(cuda.expect_activation(NAME, "z", z)?),
        Pointer(gates),
        Pointer(sums),
        Pointer(counters),
    ];
    // SAFETY: the arguments are the kernel's; shapes were checked; counters are zero before and after.
    unsafe { cuda.launch(&configuration, NAME, grid(splits), &[&args[..], &sizes(dims)?].concat())? };
    workspace.keep(cuda, batch, keep);
    Ok(())
}

/// Where a backward writes [dg | du] (B, 2H), in scratch, and dx (B, D).
pub(super) fn backward_outputs(cuda: &Cuda, op: &str, dims: Dims, dx: Option<&Tensor>) -> Result<(u64, u64)> {
    Ok((dgates(cuda, dims)?, dx_output(cuda, op, dims, dx)?))
}

fn dgates(cuda: &Cuda, dims: Dims) -> Result<u64> {
    cuda.scratch("dgates", 2 * dims.batch * dims.hidden * cuda.element().bytes())
}

/// Where the head's kernel can make [dg | du] of the gates that the last forward kept; the backward that follows goes on from there. On
/// Hopper in TF32, where it wins: in bf16 the head's kernel takes longer by more than dx saves.
///
/// # Errors
/// When there is no memory for it.
pub fn gate_slot(cuda: &Cuda, dims: Dims, workspace: &mut Workspace) -> Result<Option<GateSlot>> {
    let ready = workspace.ready == Some((dims.batch, true)) && hopper::takes(cuda, dims);
    let Some(gates) = workspace.gates.as_ref().filter(|_| ready && cuda.precision() == Precision::Tf32) else {
        return Ok(None);
    };
    let dgates = dgates(cuda, dims)?;
    workspace.made = Some(dgates);
    Ok(Some(GateSlot { gates: gates.pointer(), dgates }))
}

/// Where a backward writes dx (B, D): in scratch when nobody wants it.
pub(super) fn dx_output(cuda: &Cuda, op: &str, dims: Dims, dx: Option<&Tensor>) -> Result<u64> {
    match dx {
        Some(dx) => cuda.expect_activation(op, "dx", dx),
        None => cuda.scratch("unwanted dx", dims.batch * dims.inputs * cuda.element().bytes()),
    }
}

/// [dg | du] (B, 2H) into scratch, and dx = [dg | du] Wf: (B, 2H) @ (2H, D) -> (B, D), in one launch. Where [dg | du] is, good
/// until the next backward, and what else [`backward_dwf`] reads if it is to come (`next`); None when no training forward with this
/// batch came before.
///
/// # Errors
/// When the device fails.
pub fn backward_dx(
    cuda: &Cuda,
    dims: Dims,
    (x, dz): (&Tensor, &Tensor),
    weight: &Param,
    dx: Option<&Tensor>,
    (workspace, next): (&mut Workspace, Next),
) -> Result<Option<Gradients>> {
    const NAME: &str = "swiglu_fused_backward_dx";
    const FILE: &str = "swiglu_fused_backward_dx.cu";
    let Dims { batch, inputs, hidden } = dims;
    let Some((_, saved)) = workspace.ready.take().filter(|&(rows, _)| rows == batch) else { return Ok(None) };
    let gates = workspace.gates.as_ref().filter(|_| saved).map(Memory::pointer);
    if hopper::takes(cuda, dims) {
        let kept = hopper::Kept { gates, planes: workspace.last_planes(), made: workspace.made.take() };
        return hopper::backward_dx(cuda, dims, (x, dz), weight, dx, kept, next).map(Some);
    }
    let (chip, precision) = (cuda.chip(), cuda.precision());
    let rule = tiles::backward_dx(chip, precision, batch, inputs, hidden);
    let others = || tune::portable::backward_dx(chip, precision, (batch, inputs, hidden), rule);
    let problem = trials::problem(cuda, FILE, dims, saved, false);
    let (tile, dx_cols, splits, dx_splits) = cuda.tile(problem, rule, others, trials::backward_dx);
    // Saved gates are read, not multiplied: nothing is left to split.
    let splits = if saved { 1 } else { splits };
    let more = [
        ("DX_TILE_N", dx_cols as u32),
        ("K_SPLITS", splits as u32),
        ("DX_SPLITS", dx_splits as u32),
        ("SAVED_GATES", u32::from(saved)),
    ];
    let defines = [&tile.defines()[..], &more].concat();
    let configuration = cuda.configuration(FILE, is_aligned(cuda, dims), &defines);

    let rows = batch.div_ceil(tile.rows);
    let (columns_1, columns_2) = ((2 * hidden).div_ceil(tile.cols), inputs.div_ceil(dx_cols));
    let (pieces_1, pieces_2) = (rows * columns_1 * splits, rows * columns_2 * dx_splits);
    let mut grid = Grid::new(1, tile.threads(), tile.shared(dx_cols));
    let multiprocessors = cuda.chip().multiprocessors;
    grid.blocks = if pieces_1.max(pieces_2) <= multiprocessors {
        multiprocessors
    } else {
        cuda.resident_blocks(&configuration, NAME, grid)?.min(pieces_1 + pieces_2)
    }
    .max(splits.max(dx_splits));

    let (dgates, dx) = backward_outputs(cuda, NAME, dims, dx)?;
    let sums_1 = if splits > 1 { rows * columns_1 * tile.rows * tile.cols * splits } else { 0 };
    let sums_2 = if dx_splits > 1 { rows * columns_2 * tile.rows * dx_cols * dx_splits } else { 0 };
    let args = [
        Pointer(cuda.expect_activation(NAME, "x", x)?),
        Pointer(cuda.expect_activation(NAME, "Wf", weight.operand())?),
        Pointer(gates.unwrap_or(0)),
        Pointer(cuda.expect_activation(NAME, "dz", dz)?),
        Pointer(dgates),
        Pointer(dx),
        Pointer(cuda.scratch("split sums", (sums_1 + sums_2) * 4)?),
        Pointer(cuda.scratch("dx state", (2 + rows * (1 + columns_1 + columns_2)) * 4)?),
    ];
    // SAFETY: the arguments are the kernel's; shapes were checked; the state is zero before and after.
    unsafe { cuda.launch(&configuration, NAME, grid, &[&args[..], &sizes(dims)?].concat())? };
    Ok(Some(Gradients { dgates, transposed: None, beside: None }))
}

/// dWf = [dg | du]^T x: (2H, B) @ (B, D) -> (2H, D), by our own kernel: into the gradient's buffer, or into the weights
/// with SGD in the epilogue.
///
/// # Errors
/// When the device fails.
pub fn backward_dwf(
    cuda: &Cuda,
    dims: Dims,
    x: &Tensor,
    (gradients, workspace): (Gradients, &Workspace),
    weight: &mut Param,
    step: Option<&SgdStep>,
) -> Result<()> {
    if hopper::takes(cuda, dims) {
        return hopper::backward_dwf(cuda, dims, x, (gradients, workspace.last_planes()), weight, step);
    }
    let Dims { batch, inputs, hidden } = dims;
    const FILE: &str = "swiglu_fused_dwf.cu";
    let (chip, precision, update) = (cuda.chip(), cuda.precision(), step.is_some());
    let rule = tiles::dwf(chip, precision, batch, inputs, hidden, update);
    let others = || tune::portable::dwf(chip, precision, (inputs, hidden), rule);
    let tile = cuda.tile(trials::problem(cuda, FILE, dims, false, update), rule, others, trials::dwf);
    let defines = [tile.defines(), vec![("UPDATE", u32::from(step.is_some()))]].concat();
    let configuration = cuda.configuration(FILE, is_aligned(cuda, dims), &defines);
    let grid = Grid::new(tile.count(2 * hidden, inputs), tile.threads(), tile.shared(0));
    let head = [Pointer(gradients.dgates), Pointer(cuda.expect_activation("dWf", "x", x)?)];
    match step {
        Some(step) => {
            let args = [&head[..], &update_args(cuda, weight, step)?, &sizes(dims)?].concat();
            // SAFETY: the arguments are the kernel's, and shapes were checked; a block alone touches its weights.
            unsafe { cuda.launch(&configuration, "swiglu_fused_dwf_sgd", grid, &args) }
        }
        None => {
            let grad = Pointer(cuda.weight_grad_of(weight)?.cuda()?.memory.pointer());
            let args = [&head[..], &[grad], &sizes(dims)?].concat();
            // SAFETY: as above.
            unsafe { cuda.launch(&configuration, "swiglu_fused_dwf", grid, &args) }
        }
    }
}

/// What a kernel that updates weights in place is given: weights, velocity, the copy that products read, and the step.
fn update_args(cuda: &Cuda, weight: &mut Param, step: &SgdStep) -> Result<Vec<Arg>> {
    let velocity = cuda.velocity_of(weight)?.cuda()?.memory.pointer();
    let copy = weight.copy.as_ref().map_or(Ok(0), |copy| copy.cuda().map(|copy| copy.memory.pointer()))?;
    let value = weight.value.cuda()?.memory.pointer();
    let update = [Pointer(value), Pointer(velocity), Pointer(copy)];
    Ok([&update[..], &cuda.sgd_args(&step.for_param(weight.decays))?].concat())
}

/// dWf by a library product, into the gradient's buffer.
///
/// # Errors
/// When cuBLAS refuses.
pub fn library_dwf(cuda: &Cuda, dims: Dims, x: &Tensor, gradients: Gradients, weight: &mut Param) -> Result<()> {
    let Dims { batch, inputs, hidden } = dims;
    let grad = cuda.weight_grad_of(weight)?.cuda()?.memory.pointer();
    let element = cuda.element();
    let dgates = Operand { pointer: gradients.dgates, element, shape: (batch, 2 * hidden) };
    let x = Operand { pointer: cuda.expect_activation("dWf", "x", x)?, element, shape: (batch, inputs) };
    let grad = Operand { pointer: grad, element, shape: (2 * hidden, inputs) };
    // SAFETY: (2H, B) @ (B, D) -> (2H, D): the shapes fit, and all three live on this device.
    unsafe { cuda.gemm_operands(Layout::Tn, dgates, x, 0.0, grad) }
}
