//! The fused implementations: both products and the gate in one kernel, so that g and u never reach memory.
//!
//! | pass | launches | memory |
//! |---|---|---|
//! | forward | 1: g and u of a tile, the gate, z | z written; g and u too with `--gates save` |
//! | backward, dx | 1: g and u again (or read), the gate's derivative, dx | [dg \| du] written and read in cache |
//! | backward, dWf | nothing, 2 library products, or 1 own kernel | see below |
//!
//! The three differ in one thing, where dWf comes from:
//! - `fused-frozen`: from nowhere. Wf keeps its initial values: stem and head learn around a random layer.
//! - `fused-python-grad`: the library multiplies [dg | du]^T x.
//! - `fused-triton-grad`: a kernel of our own, whose epilogue applies SGD, so that dWf is never written at all.
//!
//! They win when memory traffic costs more than arithmetic; with gates recomputed the backward pays 4BDH FLOP for that.

pub mod cpu;
pub mod cuda;
mod hopper;
pub mod hopper_step;
mod trials;

use super::{
    Entry, GateUp, Launches, LayerConfig, Pass, SwiGlu, WeightGrad, WeightLayout, check_backward, check_forward,
    no_forward,
};
use crate::{
    Error, Result,
    device::{Device, cuda::head::GateSlot},
    swiglu::reference::Dims,
    tensor::{Param, Tensor},
};

/// Fused, and Wf does not learn.
pub static FUSED_FROZEN: Entry = Entry {
    name: "fused-frozen",
    aliases: &["fused"],
    summary: "fused kernels; the layer's weights stay as they were initialised (no dWf)",
    weights: WeightLayout::Packed,
    trains_weight: false,
    can_recompute: true,
    launches: Launches { forward: (1, 0), backward_dx: (1, 0), backward_dwf: (0, 0) },
    new: |config| Fused::boxed(config, &FUSED_FROZEN, Source::Nowhere),
};

/// Fused, with dWf from library products.
pub static FUSED_PYTHON_GRAD: Entry = Entry {
    name: "fused-python-grad",
    aliases: &["fused-library-grad"],
    summary: "fused kernels; the weights' gradient from library products",
    weights: WeightLayout::Packed,
    trains_weight: true,
    can_recompute: true,
    launches: Launches { forward: (1, 0), backward_dx: (1, 0), backward_dwf: (0, 1) },
    new: |config| Fused::boxed(config, &FUSED_PYTHON_GRAD, Source::Library),
};

/// Fused, with dWf from our own kernel.
pub static FUSED_TRITON_GRAD: Entry = Entry {
    name: "fused-triton-grad",
    aliases: &["fused-wgrad"],
    summary: "fused kernels; the weights' gradient from a kernel of our own, with SGD in its epilogue",
    weights: WeightLayout::Packed,
    trains_weight: true,
    can_recompute: true,
    launches: Launches { forward: (1, 0), backward_dx: (1, 0), backward_dwf: (1, 0) },
    new: |config| Fused::boxed(config, &FUSED_TRITON_GRAD, Source::OwnKernel),
};

/// What a forward keeps for its backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// No backward follows.
    Nothing,
    /// A backward follows, and computes g and u again.
    Inputs,
    /// g and u.
    Gates,
}

/// Where dWf comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Nowhere,
    Library,
    OwnKernel,
}

struct Fused {
    config: LayerConfig,
    entry: &'static Entry,
    source: Source,
    /// Wf, (2H, D).
    weight: Param,
    workspace: Workspace,
}

/// What lies between a forward and its backward, and scratch.
enum Workspace {
    Cpu(cpu::Workspace),
    Cuda(cuda::Workspace),
}

impl Fused {
    fn boxed(config: &LayerConfig, entry: &'static Entry, source: Source) -> Result<Box<dyn SwiGlu>> {
        let device = config.device.with_precision(config.precision);
        let weight = device.param(2 * config.hidden, config.inputs, true)?;
        let workspace = match &device {
            Device::Cpu(_) => Workspace::Cpu(cpu::Workspace::default()),
            Device::Cuda(_) => Workspace::Cuda(cuda::Workspace::default()),
        };
        let config = LayerConfig { device, ..config.clone() };
        Ok(Box::new(Fused { config, entry, source, weight, workspace }))
    }

    fn dims(&self, batch: usize) -> Dims {
        Dims { batch, inputs: self.config.inputs, hidden: self.config.hidden }
    }

    fn backward_cpu(&mut self, x: &Tensor, dz: &Tensor, dx: Option<&mut Tensor>, dwf: WeightGrad<'_>) -> Result<()> {
        let dims = self.dims(x.rows());
        let (Device::Cpu(cpu), Workspace::Cpu(workspace)) = (&self.config.device, &mut self.workspace) else {
            return Err(other_device(self.entry.name));
        };
        if !cpu::backward_gates(cpu, dims, x.cpu()?, self.weight.value.cpu()?, dz.cpu()?, workspace) {
            return Err(no_forward(self.entry.name, x.rows()));
        }
        // dx reads the weights that the forward used, so it comes before any step that changes them.
        if let Some(dx) = dx {
            cpu::backward_dx(cpu, dims, self.weight.value.cpu()?, dx.cpu_mut()?, workspace);
        }
        match (dwf, self.source) {
            (WeightGrad::Skip, _) | (_, Source::Nowhere) => {}
            (WeightGrad::Step(step), Source::OwnKernel) => {
                let Param { value, velocity, decays, .. } = &mut self.weight;
                let velocity = self.config.device.velocity(velocity, value.shape())?;
                let target = cpu::Target::Step(step.for_param(*decays), value.cpu_mut()?, velocity.cpu_mut()?);
                cpu::backward_dwf(cpu, dims, x.cpu()?, target, workspace);
            }
            (_, Source::OwnKernel) => {
                let dwf = self.config.device.gradient(&mut self.weight)?;
                cpu::backward_dwf(cpu, dims, x.cpu()?, cpu::Target::Buffer(dwf.cpu_mut()?), workspace);
            }
            (_, Source::Library) => {
                let grad = self.config.device.gradient(&mut self.weight)?;
                cpu::library_dwf(cpu, dims, x.cpu()?, grad.cpu_mut()?, workspace)?;
                if let WeightGrad::Step(step) = dwf {
                    self.config.device.sgd(step, &mut self.weight)?;
                }
            }
        }
        Ok(())
    }

    fn backward_cuda(&mut self, x: &Tensor, dz: &Tensor, dx: Option<&mut Tensor>, dwf: WeightGrad<'_>) -> Result<()> {
        let dims = self.dims(x.rows());
        let (Device::Cuda(cuda), Workspace::Cuda(workspace)) = (&self.config.device, &mut self.workspace) else {
            return Err(other_device(self.entry.name));
        };
        if let (WeightGrad::Step(step), Source::OwnKernel) = (&dwf, self.source)
            && hopper_step::takes(cuda, dims)
            && let Some(gates) = workspace.take_gates(dims.batch)
        {
            let weight = &mut self.weight;
            return hopper_step::backward_step(cuda, dims, (x, dz, gates), weight, dx.as_deref(), step);
        }
        // dx reads the weights that the forward used, so it comes before any step that changes them.
        let next = match (&dwf, self.source) {
            (WeightGrad::Step(_), Source::OwnKernel) => cuda::Next::Step,
            (WeightGrad::Buffer, Source::OwnKernel) => cuda::Next::Dwf,
            _ => cuda::Next::Other,
        };
        let gradients = cuda::backward_dx(cuda, dims, (x, dz), &self.weight, dx.as_deref(), (&mut *workspace, next))?
            .ok_or_else(|| no_forward(self.entry.name, x.rows()))?;
        match (dwf, self.source) {
            (WeightGrad::Skip, _) | (_, Source::Nowhere) => Ok(()),
            (WeightGrad::Step(step), Source::OwnKernel) => {
                cuda::backward_dwf(cuda, dims, x, (gradients, workspace), &mut self.weight, Some(step))
            }
            (WeightGrad::Buffer, Source::OwnKernel) => {
                cuda::backward_dwf(cuda, dims, x, (gradients, workspace), &mut self.weight, None)
            }
            (_, Source::Library) => {
                cuda::library_dwf(cuda, dims, x, gradients, &mut self.weight)?;
                match dwf {
                    WeightGrad::Step(step) => cuda.sgd(step, &mut self.weight),
                    WeightGrad::Skip | WeightGrad::Buffer => Ok(()),
                }
            }
        }
    }
}

/// A workspace of one device in a layer of another: a mistake of this program.
fn other_device(name: &str) -> Error {
    Error::shape(format!("{name}: the layer's workspace belongs to another device"))
}

impl SwiGlu for Fused {
    fn entry(&self) -> &'static Entry {
        self.entry
    }

    fn forward(&mut self, x: &Tensor, z: &mut Tensor, pass: Pass) -> Result<()> {
        check_forward(self.entry.name, &self.config, x, z)?;
        let keep = match pass {
            Pass::Inference => Keep::Nothing,
            Pass::Training if self.config.gates.keeps(&self.config.device, self.config.inputs) => Keep::Gates,
            Pass::Training => Keep::Inputs,
        };
        let dims = self.dims(x.rows());
        match (&self.config.device, &mut self.workspace) {
            (Device::Cpu(cpu), Workspace::Cpu(workspace)) => {
                cpu::forward(cpu, dims, x.cpu()?, self.weight.value.cpu()?, z.cpu_mut()?, keep, workspace);
                Ok(())
            }
            (Device::Cuda(cuda), Workspace::Cuda(workspace)) => {
                cuda::forward(cuda, dims, x, &self.weight, z, keep, workspace)
            }
            _ => Err(other_device(self.entry.name)),
        }
    }

    fn gate_slot(&mut self, batch: usize) -> Result<Option<GateSlot>> {
        let dims = self.dims(batch);
        match (&self.config.device, &mut self.workspace) {
            (Device::Cuda(cuda), Workspace::Cuda(workspace)) => cuda::gate_slot(cuda, dims, workspace),
            _ => Ok(None),
        }
    }

    fn backward(&mut self, x: &Tensor, dz: &Tensor, dx: Option<&mut Tensor>, dwf: WeightGrad<'_>) -> Result<()> {
        check_backward(self.entry.name, &self.config, x, dz, dx.as_deref())?;
        if self.source == Source::Nowhere && !matches!(dwf, WeightGrad::Skip) {
            return Err(Error::shape(format!(
                "{}: there is no dWf to write, the weights do not learn",
                self.entry.name
            )));
        }
        match &self.config.device {
            Device::Cpu(_) => self.backward_cpu(x, dz, dx, dwf),
            Device::Cuda(_) => self.backward_cuda(x, dz, dx, dwf),
        }
    }

    fn params(&mut self) -> Vec<&mut Param> {
        vec![&mut self.weight]
    }

    fn weights(&self) -> Result<GateUp> {
        Ok(GateUp::unpack(&self.config.device.download(&self.weight.value)?))
    }

    fn set_weights(&mut self, weights: &GateUp) -> Result<()> {
        self.config.device.write_param(&mut self.weight, &weights.packed())
    }

    fn velocities(&self) -> Result<Option<GateUp>> {
        self.weight.velocity.as_ref().map(|v| Ok(GateUp::unpack(&self.config.device.download(v)?))).transpose()
    }

    fn set_velocities(&mut self, velocities: &GateUp) -> Result<()> {
        let (rows, cols) = self.weight.value.shape();
        self.weight.velocity = Some(self.config.device.upload(rows, cols, &velocities.packed())?);
        Ok(())
    }

    fn gradients(&self) -> Result<Option<GateUp>> {
        self.weight.grad.as_ref().map(|g| Ok(GateUp::unpack(&self.config.device.download(g)?))).transpose()
    }

    fn saved_bytes(&self) -> usize {
        match &self.workspace {
            Workspace::Cpu(workspace) => workspace.saved_bytes(self.config.hidden),
            Workspace::Cuda(workspace) => workspace.saved_bytes(self.config.hidden),
        }
    }

    fn workspace_bytes(&self) -> usize {
        match &self.workspace {
            Workspace::Cpu(workspace) => workspace.bytes(),
            Workspace::Cuda(workspace) => workspace.bytes(),
        }
    }
}
