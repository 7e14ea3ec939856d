//! How the tuner tries tiles of the fused kernels: layers of their own, with random operands, launched as any layer is. One
//! place for both families of kernels.

use cudarc::driver::result;

use super::{
    super::reference::Dims,
    Keep,
    cuda::{self, Gradients, Next, Workspace},
    hopper,
};
use crate::{
    Result,
    device::{
        Precision, SgdStep,
        cuda::{
            Cuda, Element,
            context::Memory,
            hopper::transposed,
            tune::{Problem, Trial, Written},
        },
    },
    rng::{self, Purpose},
    tensor::{Param, Tensor},
};

/// What a launch of `file` for a layer of this shape is called; `gates` are written (forward) or read (backward), `update`:
/// with SGD.
pub(super) fn problem(cuda: &Cuda, file: &'static str, dims: Dims, gates: bool, update: bool) -> Problem {
    let Dims { batch, inputs, hidden } = dims;
    let aligned = cuda.is_aligned(inputs) && cuda.is_aligned(hidden);
    Problem { file, precision: cuda.precision(), batch, inputs, hidden, gates, update, aligned, beside: false }
}

/// Random numbers that are repeated over and over: a prime number of them, so that no two rows of a matrix are alike.
const PERIOD: usize = 65_521;

/// The step of trials: every term counts, and weights hardly move however often it is taken.
const STEP: SgdStep =
    SgdStep { lr: 1e-3, momentum: 0.9, weight_decay: 5e-4, nesterov: false, scale: 1.0, device_scale: false };

/// A layer's operands.
struct Layer {
    cuda: Cuda,
    dims: Dims,
    x: Tensor,
    /// `value` is fp32 always; `copy` what bf16 products read.
    weight: Param,
    workspace: Workspace,
}

impl Layer {
    fn new(cuda: &Cuda, problem: Problem) -> Result<Layer> {
        let cuda = cuda.with_precision(problem.precision);
        let Problem { batch, inputs, hidden, .. } = problem;
        let x = tensor(&cuda, batch, inputs, cuda.element(), Some((1, 1.0)))?;
        let std = (inputs as f32).powf(-0.5);
        let mut weight = Param::new(tensor(&cuda, 2 * hidden, inputs, Element::F32, Some((2, std)))?, true);
        if cuda.element() == Element::Bf16 {
            weight.copy = Some(tensor(&cuda, 2 * hidden, inputs, Element::Bf16, Some((2, std)))?);
        }
        Ok(Layer { cuda, dims: Dims { batch, inputs, hidden }, x, weight, workspace: Workspace::default() })
    }

    /// Activations (B, `cols`), random or not yet written.
    fn activations(&self, cols: usize, random: Option<(u32, f32)>) -> Result<Tensor> {
        tensor(&self.cuda, self.dims.batch, cols, self.cuda.element(), random)
    }

    fn forward(&mut self, z: &Tensor, keep: Keep) -> Result<()> {
        cuda::forward(&self.cuda, self.dims, &self.x, &self.weight, z, keep, &mut self.workspace)
    }

    /// Bytes of [g | u] or [dg | du].
    fn gates_bytes(&self) -> usize {
        2 * self.dims.batch * self.dims.hidden * self.cuda.element().bytes()
    }

    /// [dg | du], where a backward writes them and dWf reads them.
    fn dgates(&self) -> Result<Written> {
        let element = self.cuda.element();
        let pointer = self.cuda.scratch("dgates", self.gates_bytes())?;
        Ok(Written { pointer, element, count: self.gates_bytes() / element.bytes() })
    }
}

/// A tensor of normal numbers, by seed and standard deviation, or of zeros.
fn tensor(cuda: &Cuda, rows: usize, cols: usize, element: Element, random: Option<(u32, f32)>) -> Result<Tensor> {
    let buffer = cuda.buffer(rows * cols, element)?;
    if let Some(random) = random {
        let whole = Written { pointer: buffer.memory.pointer(), element, count: rows * cols };
        fill(cuda, whole, random)?;
    }
    Ok(Tensor::on_cuda(rows, cols, buffer))
}

/// Fills an array with normal numbers: some that are drawn, then copies of what is there.
fn fill(cuda: &Cuda, array: Written, (seed, std): (u32, f32)) -> Result<()> {
    let values = rng::normal(1, Purpose::Operand(seed), array.count.min(PERIOD), std);
    let drawn = cuda.buffer(values.len(), array.element)?.memory;
    match array.element {
        Element::F32 => drawn.write(&values)?,
        Element::Bf16 => {
            drawn.write(&values.iter().map(|&v| crate::device::precision::to_bf16(v)).collect::<Vec<u16>>())?;
        }
    }
    let bytes = array.element.bytes();
    let mut done = 0;
    while done < array.count {
        // Twice as much each time: what is there is whole periods, so copies of it go on where it ends.
        let (from, count) = if done == 0 { (drawn.pointer(), values.len()) } else { (array.pointer, done) };
        let count = count.min(array.count - done);
        copy(cuda, array.pointer + (done * bytes) as u64, from, count * bytes)?;
        done += count;
    }
    cuda.context().synchronize() // `drawn` goes
}

fn copy(cuda: &Cuda, to: u64, from: u64, bytes: usize) -> Result<()> {
    // SAFETY: the callers' arrays are as long, and both on this device.
    unsafe { result::memcpy_dtod_async(to, from, bytes, cuda.context().stream()) }
        .map_err(|cause| cuda.context().failed("copy", cause))
}

fn written(tensor: &Tensor) -> Result<Written> {
    let buffer = tensor.cuda()?;
    Ok(Written { pointer: buffer.memory.pointer(), element: buffer.element, count: tensor.len() })
}

struct Forward {
    layer: Layer,
    z: Tensor,
    keep: Keep,
    results: Vec<Written>,
}

/// Tries the forward.
pub(super) fn forward(cuda: &Cuda, problem: Problem) -> Result<Box<dyn Trial>> {
    let mut layer = Layer::new(cuda, problem)?;
    let z = layer.activations(problem.hidden, None)?;
    let mut results = vec![written(&z)?];
    let keep = if problem.gates { Keep::Gates } else { Keep::Nothing };
    if problem.gates {
        let bytes = layer.gates_bytes();
        let pointer = layer.workspace.gates(&layer.cuda, bytes)?;
        let element = layer.cuda.element();
        results.push(Written { pointer, element, count: bytes / element.bytes() });
    }
    Ok(Box::new(Forward { layer, z, keep, results }))
}

impl Trial for Forward {
    fn reset(&mut self) -> Result<()> {
        Ok(())
    }

    fn run(&mut self) -> Result<()> {
        self.layer.forward(&self.z, self.keep)
    }

    fn results(&self) -> Vec<Written> {
        self.results.clone()
    }
}

struct BackwardDx {
    layer: Layer,
    z: Tensor,
    dz: Tensor,
    dx: Tensor,
    keep: Keep,
    results: Vec<Written>,
}

/// Tries the backward to dx.
pub(super) fn backward_dx(cuda: &Cuda, problem: Problem) -> Result<Box<dyn Trial>> {
    let layer = Layer::new(cuda, problem)?;
    let (z, dz) = (layer.activations(problem.hidden, None)?, layer.activations(problem.hidden, Some((3, 1.0)))?);
    let dx = layer.activations(problem.inputs, None)?;
    let results = vec![written(&dx)?, layer.dgates()?];
    let keep = if problem.gates { Keep::Gates } else { Keep::Inputs };
    Ok(Box::new(BackwardDx { layer, z, dz, dx, keep, results }))
}

impl Trial for BackwardDx {
    fn reset(&mut self) -> Result<()> {
        self.layer.forward(&self.z, self.keep) // gates, or x in two planes
    }

    fn run(&mut self) -> Result<()> {
        let Layer { cuda, dims, x, weight, workspace } = &mut self.layer;
        workspace.keep(cuda, dims.batch, self.keep);
        // As before a dWf of our own: its x^T is made beside the product.
        cuda::backward_dx(cuda, *dims, (x, &self.dz), weight, Some(&self.dx), (workspace, Next::Step)).map(|_| ())
    }

    fn results(&self) -> Vec<Written> {
        self.results.clone()
    }
}

struct Dwf {
    layer: Layer,
    gradients: Gradients,
    update: bool,
    /// The weights before the first step.
    start: Option<Memory>,
    results: Vec<Written>,
}

/// Tries dWf, into a buffer or with SGD.
pub(super) fn dwf(cuda: &Cuda, problem: Problem) -> Result<Box<dyn Trial>> {
    let mut layer = Layer::new(cuda, problem)?;
    let dgates = layer.dgates()?;
    fill(&layer.cuda, dgates, (3, 1.0))?;
    if problem.precision == Precision::Fp32Emulated {
        let z = layer.activations(problem.hidden, None)?;
        layer.forward(&z, Keep::Inputs)?; // x in two planes
        layer.cuda.context().synchronize()?; // z goes
    }
    // What the backward to dx leaves.
    let x_transposed = match problem.precision {
        Precision::Tf32 if hopper::takes(&layer.cuda, layer.dims) => {
            Some(transposed(&layer.cuda, "x transposed", (problem.batch, problem.inputs), written(&layer.x)?.pointer)?)
        }
        _ => None,
    };
    let gradients = Gradients { dgates: dgates.pointer, transposed: x_transposed, beside: None };
    let (mut start, mut results) = (None, Vec::new());
    if problem.update {
        let value = written(&layer.weight.value)?;
        let memory = layer.cuda.context().allocate(value.count * value.element.bytes())?;
        copy(&layer.cuda, memory.pointer(), value.pointer, memory.bytes().min(value.count * 4))?;
        start = Some(memory);
        results.extend([value, written(layer.cuda.velocity_of(&mut layer.weight)?)?]);
        results.extend(layer.weight.copy.as_ref().map(written).transpose()?);
    } else {
        results.push(written(layer.cuda.weight_grad_of(&mut layer.weight)?)?);
    }
    Ok(Box::new(Dwf { layer, gradients, update: problem.update, start, results }))
}

impl Trial for Dwf {
    fn reset(&mut self) -> Result<()> {
        let (Some(start), [value, velocity, ..]) = (&self.start, &self.results[..]) else { return Ok(()) };
        let cuda = &self.layer.cuda;
        copy(cuda, value.pointer, start.pointer(), value.count * 4)?;
        // SAFETY: the velocity is as long as the weights, in fp32.
        unsafe { result::memset_d8_async(velocity.pointer, 0, velocity.count * 4, cuda.context().stream()) }
            .map_err(|cause| cuda.context().failed("zero its memory", cause))
    }

    fn run(&mut self) -> Result<()> {
        let Layer { cuda, dims, x, weight, workspace } = &mut self.layer;
        let step = self.update.then_some(&STEP);
        cuda::backward_dwf(cuda, *dims, x, (self.gradients, workspace), weight, step)
    }

    fn results(&self) -> Vec<Written> {
        self.results.clone()
    }
}
