//! `liger-style`: what Liger-Kernel does. Library products around one elementwise kernel that fuses SiLU and the product.
//!
//! | pass | launches | memory |
//! |---|---|---|
//! | forward | g = x Wg^T, u = x Wu^T (library), z = silu(g) * u | g and u written, read, and kept for the backward |
//! | backward, dx | dg and du in place over g and u; dx = dg Wg + du Wu (2 library) | g, u, dz read, dg, du written |
//! | backward, dWf | dWg = dg^T x, dWu = du^T x (2 library) | dWg and dWu written, read again by the optimiser |

use super::{
    Entry, GateUp, Launches, LayerConfig, Pass, SwiGlu, WeightGrad, WeightLayout, check_backward, check_forward, gate,
    no_forward,
};
use crate::{
    Error, Result,
    device::{
        Device, Layout,
        cpu::{
            Cpu, SharedMut,
            simd::{Simd, simd_dispatch},
        },
        cuda::{
            Cuda,
            modules::{Arg, Grid},
        },
    },
    swiglu::Gates,
    tensor::{Param, Tensor},
};

/// Library products and one gate kernel each way, as Liger-Kernel has it.
pub static LIGER_STYLE: Entry = Entry {
    name: "liger-style",
    aliases: &["liger"],
    summary: "library products and an elementwise gate kernel, as Liger-Kernel does it",
    weights: WeightLayout::Apart,
    trains_weight: true,
    can_recompute: false,
    launches: Launches { forward: (1, 2), backward_dx: (1, 2), backward_dwf: (0, 2) },
    new: |config| Ok(Box::new(LigerStyle::new(config)?)),
};

struct LigerStyle {
    config: LayerConfig,
    gate: Param,
    up: Param,
    /// g and u of the last forward, which the backward turns into dg and du.
    saved: Option<[Tensor; 2]>,
    /// Rows of `saved` that a backward may still use.
    ready: Option<usize>,
}

impl LigerStyle {
    fn new(config: &LayerConfig) -> Result<Self> {
        if config.gates == Gates::Recompute {
            return Err(Error::usage(
                "liger-style always keeps g and u: --gates recompute is for the fused implementations",
            )
            .hint("leave --gates out, or choose a fused implementation"));
        }
        let device = config.device.with_precision(config.precision);
        let weight = || device.param(config.hidden, config.inputs, true);
        let (gate, up) = (weight()?, weight()?);
        let config = LayerConfig { device, ..config.clone() };
        Ok(LigerStyle { gate, up, config, saved: None, ready: None })
    }

    /// Bytes of an element of g and u.
    fn element_bytes(&self) -> usize {
        match &self.config.device {
            Device::Cpu(_) => size_of::<f32>(),
            Device::Cuda(cuda) => cuda.element().bytes(),
        }
    }

    /// Buffers for g and u with `batch` rows.
    fn buffers(&mut self, batch: usize) -> Result<&mut [Tensor; 2]> {
        let LayerConfig { device, hidden, .. } = &self.config;
        let fits = self.saved.as_mut().is_some_and(|[g, u]| g.set_rows(batch).and_then(|()| u.set_rows(batch)).is_ok());
        if !fits {
            self.saved = Some([device.activations(batch, *hidden)?, device.activations(batch, *hidden)?]);
        }
        self.saved.as_mut().ok_or_else(|| no_forward(LIGER_STYLE.name, batch))
    }
}

impl SwiGlu for LigerStyle {
    fn entry(&self) -> &'static Entry {
        &LIGER_STYLE
    }

    fn forward(&mut self, x: &Tensor, z: &mut Tensor, pass: Pass) -> Result<()> {
        check_forward(LIGER_STYLE.name, &self.config, x, z)?;
        self.ready = None;
        self.buffers(x.rows())?;
        let Some([g, u]) = &mut self.saved else { return Err(no_forward(LIGER_STYLE.name, x.rows())) };
        let device = &self.config.device;
        device.gemm(Layout::Nt, x, self.gate.operand(), 0.0, g)?; // (B, D) @ (D, H) -> (B, H)
        device.gemm(Layout::Nt, x, self.up.operand(), 0.0, u)?; // (B, D) @ (D, H) -> (B, H)
        match device {
            Device::Cpu(cpu) => gate_forward(cpu, g.cpu()?, u.cpu()?, z.cpu_mut()?),
            Device::Cuda(cuda) => launch_gate(cuda, "swiglu_gate_forward", g, u, z)?,
        }
        self.ready = (pass == Pass::Training).then_some(x.rows());
        Ok(())
    }

    fn backward(&mut self, x: &Tensor, dz: &Tensor, dx: Option<&mut Tensor>, dwf: WeightGrad<'_>) -> Result<()> {
        check_backward(LIGER_STYLE.name, &self.config, x, dz, dx.as_deref())?;
        let (Some(rows), Some([g, u])) = (self.ready.take(), &mut self.saved) else {
            return Err(no_forward(LIGER_STYLE.name, x.rows()));
        };
        if rows != x.rows() {
            return Err(no_forward(LIGER_STYLE.name, x.rows()));
        }
        let device = &self.config.device;
        match device {
            Device::Cpu(cpu) => gate_backward(cpu, dz.cpu()?, g.cpu_mut()?, u.cpu_mut()?),
            Device::Cuda(cuda) => launch_gate(cuda, "swiglu_gate_backward", g, u, dz)?,
        }
        let (dg, du) = (g, u);
        if let Some(dx) = dx {
            device.gemm(Layout::Nn, dg, self.gate.operand(), 0.0, dx)?; // (B, H) @ (H, D) -> (B, D)
            device.gemm(Layout::Nn, du, self.up.operand(), 1.0, dx)?; // (B, H) @ (H, D) -> (B, D), added
        }
        if let WeightGrad::Skip = dwf {
            return Ok(());
        }
        device.gemm(Layout::Tn, dg, x, 0.0, device.gradient(&mut self.gate)?)?; // (H, B) @ (B, D) -> (H, D)
        device.gemm(Layout::Tn, du, x, 0.0, device.gradient(&mut self.up)?)?; // (H, B) @ (B, D) -> (H, D)
        if let WeightGrad::Step(step) = dwf {
            device.sgd(step, &mut self.gate)?;
            device.sgd(step, &mut self.up)?;
        }
        Ok(())
    }

    fn params(&mut self) -> Vec<&mut Param> {
        vec![&mut self.gate, &mut self.up]
    }

    fn weights(&self) -> Result<GateUp> {
        let device = &self.config.device;
        Ok(GateUp { gate: device.download(&self.gate.value)?, up: device.download(&self.up.value)? })
    }

    fn set_weights(&mut self, weights: &GateUp) -> Result<()> {
        self.config.device.write_param(&mut self.gate, &weights.gate)?;
        self.config.device.write_param(&mut self.up, &weights.up)
    }

    fn velocities(&self) -> Result<Option<GateUp>> {
        both(&self.config.device, self.gate.velocity.as_ref(), self.up.velocity.as_ref())
    }

    fn set_velocities(&mut self, velocities: &GateUp) -> Result<()> {
        let LayerConfig { device, inputs, hidden, .. } = &self.config;
        self.gate.velocity = Some(device.upload(*hidden, *inputs, &velocities.gate)?);
        self.up.velocity = Some(device.upload(*hidden, *inputs, &velocities.up)?);
        Ok(())
    }

    fn gradients(&self) -> Result<Option<GateUp>> {
        both(&self.config.device, self.gate.grad.as_ref(), self.up.grad.as_ref())
    }

    fn saved_bytes(&self) -> usize {
        self.ready.map_or(0, |rows| 2 * rows * self.config.hidden * self.element_bytes())
    }

    fn workspace_bytes(&self) -> usize {
        self.saved.as_ref().map_or(0, |[g, u]| (g.len() + u.len()) * self.element_bytes())
    }
}

/// kernels/swiglu_gate.cu: the gate over contiguous arrays. The forward writes z; the backward reads dz in its place, and
/// writes dg over g and du over u.
fn launch_gate(cuda: &Cuda, name: &'static str, g: &Tensor, u: &Tensor, z_or_dz: &Tensor) -> Result<()> {
    let count = g.len();
    let pointer = |what, tensor| Ok::<_, Error>(Arg::Pointer(cuda.expect_activation(name, what, tensor)?));
    let args = [pointer("g", g)?, pointer("u", u)?, pointer("z", z_or_dz)?, Arg::Count(count as u64)];
    let blocks = count.div_ceil(256 * 16 / cuda.element().bytes());
    let configuration = cuda.configuration("swiglu_gate.cu", true, &[]);
    // SAFETY: the arguments are the kernel's; all three arrays have as many elements as g.
    unsafe { cuda.launch(&configuration, name, Grid::new(blocks, 256, 0), &args) }
}

fn both(device: &Device, gate: Option<&Tensor>, up: Option<&Tensor>) -> Result<Option<GateUp>> {
    let (Some(gate), Some(up)) = (gate, up) else { return Ok(None) };
    Ok(Some(GateUp { gate: device.download(gate)?, up: device.download(up)? }))
}

/// Elements a task handles.
const CHUNK: usize = 2 * 1024;

/// z = silu(g) * u, elementwise: reads 2BH floats, writes BH.
fn gate_forward(cpu: &Cpu, g: &[f32], u: &[f32], z: &mut [f32]) {
    let (len, out) = (z.len(), SharedMut::new(z));
    cpu.for_each(len.div_ceil(CHUNK), |task| {
        let (first, count) = (task * CHUNK, CHUNK.min(len - task * CHUNK));
        // SAFETY: these elements of z belong to this task, and g and u are as long as z.
        unsafe { forward_chunk(cpu.isa(), &g[first..first + count], &u[first..first + count], out.slice(first, count)) }
    });
}

simd_dispatch!(unsafe fn forward_chunk(g: &[f32], u: &[f32], z: &mut [f32]) = forward_kernel);

#[inline(always)]
unsafe fn forward_kernel<S: Simd, const R: usize, const V: usize>(g: &[f32], u: &[f32], z: &mut [f32]) {
    let mut tail = [[0.0; 16]; 3];
    let whole = z.len() / S::LANES * S::LANES;
    // SAFETY: i + LANES <= whole <= len; the tail buffers hold sixteen.
    unsafe {
        for i in (0..whole).step_by(S::LANES) {
            S::store(z.as_mut_ptr().add(i), gate::forward::<S>(S::load(g.as_ptr().add(i)), S::load(u.as_ptr().add(i))));
        }
        let rest = z.len() - whole;
        tail[0][..rest].copy_from_slice(&g[whole..]);
        tail[1][..rest].copy_from_slice(&u[whole..]);
        let value = gate::forward::<S>(S::load(tail[0].as_ptr()), S::load(tail[1].as_ptr()));
        S::store(tail[2].as_mut_ptr(), value);
        z[whole..].copy_from_slice(&tail[2][..rest]);
    }
}

/// dg over g and du over u, in place: reads 3BH floats, writes 2BH.
fn gate_backward(cpu: &Cpu, dz: &[f32], g: &mut [f32], u: &mut [f32]) {
    let (len, g, u) = (dz.len(), SharedMut::new(g), SharedMut::new(u));
    cpu.for_each(len.div_ceil(CHUNK), |task| {
        let (first, count) = (task * CHUNK, CHUNK.min(len - task * CHUNK));
        // SAFETY: these elements of g and u belong to this task, and both are as long as dz.
        unsafe { backward_chunk(cpu.isa(), &dz[first..first + count], g.slice(first, count), u.slice(first, count)) }
    });
}

simd_dispatch!(unsafe fn backward_chunk(dz: &[f32], g: &mut [f32], u: &mut [f32]) = backward_kernel);

#[inline(always)]
unsafe fn backward_kernel<S: Simd, const R: usize, const V: usize>(dz: &[f32], g: &mut [f32], u: &mut [f32]) {
    let mut tail = [[0.0; 16]; 3];
    let whole = dz.len() / S::LANES * S::LANES;
    // SAFETY: i + LANES <= whole <= len; the tail buffers hold sixteen.
    unsafe {
        for i in (0..whole).step_by(S::LANES) {
            let (gp, up) = (g.as_mut_ptr().add(i), u.as_mut_ptr().add(i));
            let (dg, du) = gate::backward::<S>(S::load(gp), S::load(up), S::load(dz.as_ptr().add(i)));
            S::store(gp, dg);
            S::store(up, du);
        }
        let rest = dz.len() - whole;
        for (buffer, from) in tail.iter_mut().zip([&*g, &*u, dz]) {
            buffer[..rest].copy_from_slice(&from[whole..]);
        }
        let (dg, du) =
            gate::backward::<S>(S::load(tail[0].as_ptr()), S::load(tail[1].as_ptr()), S::load(tail[2].as_ptr()));
        S::store(tail[0].as_mut_ptr(), dg);
        S::store(tail[1].as_mut_ptr(), du);
        g[whole..].copy_from_slice(&tail[0][..rest]);
        u[whole..].copy_from_slice(&tail[1][..rest]);
    }
}
