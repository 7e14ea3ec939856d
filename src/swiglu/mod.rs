//! The SwiGLU layer, and everything that implements it.
//!
//! B batch, D inputs, H hidden; row-major; weights as (out, in):
//!
//! ```text
//! Wf = [Wg ; Wu]              (2H, D)   packed: rows 0..H the gate, rows H..2H the up projection
//! [g | u] = x Wf^T            (B, D) @ (D, 2H) -> (B, 2H)
//! z  = silu(g) * u            (B, H)    silu(g) = g * sigmoid(g)
//! du = dz * silu(g)
//! dg = dz * u * sigmoid(g) * (1 + g * (1 - sigmoid(g)))
//! dx  = [dg | du] Wf          (B, 2H) @ (2H, D) -> (B, D)
//! dWf = [dg | du]^T x         (2H, B) @ (B, D)  -> (2H, D)
//! ```
//!
//! A new implementation is one file here and one line in [`ALL`]; flags, help, checks and tests pick it up from there.

pub mod fused;
pub mod gate;
pub mod liger;
pub mod reference;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

pub use crate::device::Precision;
use crate::{
    Error, Result,
    device::{Device, SgdStep, cuda::head::GateSlot},
    tensor::{Param, Tensor},
};

/// Every implementation, in the order that tables show them.
pub static ALL: &[&Entry] =
    &[&liger::LIGER_STYLE, &fused::FUSED_FROZEN, &fused::FUSED_PYTHON_GRAD, &fused::FUSED_TRITON_GRAD];

/// The entry called `name`, or by an alias of that name.
///
/// # Errors
/// When there is none; the message lists the names.
pub fn find(name: &str) -> Result<&'static Entry> {
    ALL.iter().copied().find(|e| e.name == name || e.aliases.contains(&name)).ok_or_else(|| {
        let names: Vec<_> = ALL.iter().map(|e| e.name).collect();
        Error::usage(format!("there is no SwiGLU implementation called {name:?}"))
            .hint(format!("choose one of {}", names.join(", ")))
    })
}

/// What an implementation is: the columns of the layout tables, and how to make one.
#[derive(Debug)]
pub struct Entry {
    /// The value of `--swiglu`.
    pub name: &'static str,
    /// Other names for it.
    pub aliases: &'static [&'static str],
    /// One line for the help.
    pub summary: &'static str,
    /// How the weights lie in memory.
    pub weights: WeightLayout,
    /// Whether Wg and Wu learn.
    pub trains_weight: bool,
    /// Whether `--gates` means something: whether the layer can do without the saved g and u.
    pub can_recompute: bool,
    /// Kernel launches of each pass.
    pub launches: Launches,
    /// Makes a layer with weights of zeros.
    pub new: fn(&LayerConfig) -> Result<Box<dyn SwiGlu>>,
}

/// How the weights lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightLayout {
    /// Wg and Wu, each (H, D).
    Apart,
    /// Wf = [Wg ; Wu], (2H, D).
    Packed,
}

/// Kernel launches of each pass, as (own kernels, library products).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launches {
    /// Forward.
    pub forward: (u32, u32),
    /// Backward to dx.
    pub backward_dx: (u32, u32),
    /// Backward to dWf, after that to dx.
    pub backward_dwf: (u32, u32),
}

/// When the fused forward keeps g and u for the backward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Gates {
    /// Compute g and u again in the backward: 4BDH more FLOP, 2BH fewer floats kept
    Recompute,
    /// Keep g and u from the forward
    Save,
    /// What is faster on this device
    #[default]
    Auto,
}

impl Gates {
    /// Whether g and u are kept for a layer with `inputs` inputs.
    ///
    /// Keeping them costs 16BH bytes of traffic, computing them again 4BDH FLOP: which is more depends on D alone.
    pub fn keeps(self, device: &Device, inputs: usize) -> bool {
        match (self, device) {
            (Gates::Recompute, _) => false,
            (Gates::Save, _) => true,
            // 100 GFLOP/s a core against 10 GB/s of its cache: 4 D / 100 = 16 / 10 at D = 40.
            (Gates::Auto, Device::Cpu(_)) => inputs >= 40,
            // By rate and bandwidth of an H200: 4.3 TB/s against 51 TFLOP/s, a third of TF32's 300, and 400 to 700.
            (Gates::Auto, Device::Cuda(cuda)) => match cuda.precision() {
                Precision::Fp32 => inputs >= 40,
                Precision::Fp32Emulated => inputs >= 100,
                Precision::Tf32 | Precision::Bf16 => inputs >= 300,
            },
        }
    }
}

/// What a layer is made from.
#[derive(Clone, Debug)]
pub struct LayerConfig {
    /// Where it computes.
    pub device: Device,
    /// D.
    pub inputs: usize,
    /// H.
    pub hidden: usize,
    /// When g and u are kept.
    pub gates: Gates,
    /// The numbers of the products.
    pub precision: Precision,
}

/// What a forward is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// No backward follows: nothing is kept.
    Inference,
    /// A backward follows.
    Training,
}

/// Where dWf goes.
#[derive(Clone, Copy, Debug)]
pub enum WeightGrad<'a> {
    /// Nowhere: nobody reads it, so it is not computed.
    Skip,
    /// Into the gradient buffer of each parameter.
    Buffer,
    /// Into the weights: SGD is applied, at the latest when the backward returns. Implementations that can do so never
    /// write dWf at all.
    Step(&'a SgdStep),
}

/// Wg and Wu, each (H, D), in main memory: the form of checkpoints, whatever the layout on the device.
#[derive(Clone, Debug, PartialEq)]
pub struct GateUp {
    /// The gate.
    pub gate: Vec<f32>,
    /// The up projection.
    pub up: Vec<f32>,
}

impl GateUp {
    /// One after the other: Wf, (2H, D).
    pub fn packed(&self) -> Vec<f32> {
        [self.gate.as_slice(), &self.up].concat()
    }

    /// The two halves of Wf.
    pub fn unpack(packed: &[f32]) -> GateUp {
        let (gate, up) = packed.split_at(packed.len() / 2);
        GateUp { gate: gate.to_vec(), up: up.to_vec() }
    }
}

/// A SwiGLU layer: its weights, and what it keeps between a forward and its backward.
pub trait SwiGlu: Send {
    /// Which implementation it is.
    fn entry(&self) -> &'static Entry;

    /// z = silu(x Wg^T) * (x Wu^T): (B, D) -> (B, H).
    ///
    /// # Errors
    /// When the shapes do not fit, or the device fails.
    fn forward(&mut self, x: &Tensor, z: &mut Tensor, pass: Pass) -> Result<()>;

    /// Where whoever makes dz over `batch` images can put [dg | du] itself, from the gates that the last forward kept. The backward that
    /// follows then reads no dz. None where the layer wants dz.
    ///
    /// # Errors
    /// When there is no memory for it.
    fn gate_slot(&mut self, _batch: usize) -> Result<Option<GateSlot>> {
        Ok(None)
    }

    /// From dz (B, H) to dx (B, D), where wanted, and to dWf. `x` is what the last forward read.
    ///
    /// # Errors
    /// When the shapes do not fit, no training forward came before, or dWf is asked of a layer that does not learn.
    fn backward(&mut self, x: &Tensor, dz: &Tensor, dx: Option<&mut Tensor>, dwf: WeightGrad<'_>) -> Result<()>;

    /// The parameters, for an optimiser: Wg and Wu, or Wf.
    fn params(&mut self) -> Vec<&mut Param>;

    /// The weights.
    ///
    /// # Errors
    /// When the device fails.
    fn weights(&self) -> Result<GateUp>;

    /// Replaces the weights.
    ///
    /// # Errors
    /// When their shapes are others.
    fn set_weights(&mut self, weights: &GateUp) -> Result<()>;

    /// The momentum, where training has made one.
    ///
    /// # Errors
    /// When the device fails.
    fn velocities(&self) -> Result<Option<GateUp>>;

    /// Replaces the momentum.
    ///
    /// # Errors
    /// When the shapes are others.
    fn set_velocities(&mut self, velocities: &GateUp) -> Result<()>;

    /// The gradient of the weights, where the last backward wrote one.
    ///
    /// # Errors
    /// When the device fails.
    fn gradients(&self) -> Result<Option<GateUp>>;

    /// Bytes that the last training forward kept for its backward.
    fn saved_bytes(&self) -> usize;

    /// Bytes of scratch memory held.
    fn workspace_bytes(&self) -> usize;
}

/// Checks the operands of a forward.
fn check_forward(name: &str, config: &LayerConfig, x: &Tensor, z: &Tensor) -> Result<()> {
    let op = format!("{name} forward (B = {}, D = {}, H = {})", x.rows(), config.inputs, config.hidden);
    x.expect(&op, "x", x.rows(), config.inputs)?;
    z.expect(&op, "z", x.rows(), config.hidden)
}

/// Checks the operands of a backward.
fn check_backward(name: &str, config: &LayerConfig, x: &Tensor, dz: &Tensor, dx: Option<&Tensor>) -> Result<()> {
    let op = format!("{name} backward (B = {}, D = {}, H = {})", x.rows(), config.inputs, config.hidden);
    x.expect(&op, "x", x.rows(), config.inputs)?;
    dz.expect(&op, "dz", x.rows(), config.hidden)?;
    dx.map_or(Ok(()), |dx| dx.expect(&op, "dx", x.rows(), config.inputs))
}

/// A backward without its forward.
fn no_forward(name: &str, batch: usize) -> Error {
    Error::shape(format!("{name} backward: no training forward with a batch of {batch} came before"))
}
