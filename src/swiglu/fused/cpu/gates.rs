//! Register tiles of g and u: the forward, and the backward down to [dg | du].

use super::{super::Keep, BATCH_BLOCK, HIDDEN_TASK, Held, PAD, Workspace, gate_stride};
use crate::{
    device::cpu::{
        Cpu, SharedMut,
        simd::{Simd, simd_dispatch},
        tile::{pack_panels, tile},
        with_scratch,
    },
    swiglu::{gate, reference::Dims},
    tensor::AlignedVec,
};

/// Operands of a pass over the gates.
struct GatePass<'a> {
    dims: Dims,
    wf: &'a [f32],
    /// Panels of x, and how many.
    panels: &'a [f32],
    /// First image of the batch block, and images in it.
    first: usize,
    rows: usize,
    /// [g ; u] or [dg ; du], when it is written.
    gates: Option<SharedMut<'a>>,
    /// z, when it is written (forward).
    z: Option<SharedMut<'a>>,
    /// dz, when it is read (backward).
    dz: Option<&'a [f32]>,
}

/// z = silu(x Wg^T) * (x Wu^T): (B, D) @ (D, 2H) -> (B, 2H) -> (B, H), in one kernel. g and u are written only where
/// they are kept.
pub fn forward(cpu: &Cpu, dims: Dims, x: &[f32], wf: &[f32], z: &mut [f32], keep: Keep, workspace: &mut Workspace) {
    if keep == Keep::Gates {
        workspace.gates.grow(2 * dims.hidden * gate_stride(dims.batch));
    }
    workspace.held = match keep {
        Keep::Nothing => Held::Nothing,
        Keep::Inputs => Held::Forward,
        Keep::Gates => Held::Gates,
    };
    workspace.batch = dims.batch;
    for first in (0..dims.batch).step_by(BATCH_BLOCK) {
        let rows = BATCH_BLOCK.min(dims.batch - first);
        pack_block(cpu, dims, x, first, rows, &mut workspace.panels);
        let gates = (keep == Keep::Gates).then(|| SharedMut::new(workspace.gates.as_mut_slice()));
        let pass = GatePass {
            dims,
            wf,
            panels: workspace.panels.as_slice(),
            first,
            rows,
            gates,
            z: Some(SharedMut::new(z)),
            dz: None,
        };
        run_gate_pass(cpu, &pass);
    }
}

/// [dg | du] from dz: reads g and u where they were kept, or computes them again as the forward does. False when no
/// training forward of this batch came before.
pub fn backward_gates(cpu: &Cpu, dims: Dims, x: &[f32], wf: &[f32], dz: &[f32], workspace: &mut Workspace) -> bool {
    if workspace.batch != dims.batch {
        return false;
    }
    match workspace.held {
        Held::Gates => {
            let gates = SharedMut::new(workspace.gates.as_mut_slice());
            cpu.for_each(dims.hidden.div_ceil(HIDDEN_TASK), |task| {
                let rows = task * HIDDEN_TASK..dims.hidden.min((task + 1) * HIDDEN_TASK);
                // SAFETY: the rows of g and u of this task are its own; they were written by the forward.
                unsafe { derivative(cpu.isa(), dims, dz, rows, &gates) }
            });
        }
        Held::Forward => {
            workspace.gates.grow(2 * dims.hidden * gate_stride(dims.batch));
            for first in (0..dims.batch).step_by(BATCH_BLOCK) {
                let rows = BATCH_BLOCK.min(dims.batch - first);
                // A batch of one block still has its panels from the forward.
                if dims.batch > BATCH_BLOCK {
                    pack_block(cpu, dims, x, first, rows, &mut workspace.panels);
                }
                let gates = Some(SharedMut::new(workspace.gates.as_mut_slice()));
                let pass = GatePass {
                    dims,
                    wf,
                    panels: workspace.panels.as_slice(),
                    first,
                    rows,
                    gates,
                    z: None,
                    dz: Some(dz),
                };
                run_gate_pass(cpu, &pass);
            }
        }
        Held::Nothing | Held::Gradients => return false,
    }
    workspace.held = Held::Gradients;
    true
}

/// Packs x of a batch block into panels.
fn pack_block(cpu: &Cpu, dims: Dims, x: &[f32], first: usize, rows: usize, panels: &mut AlignedVec) {
    let count = rows.div_ceil(cpu.isa().panel()) * cpu.isa().panel();
    panels.grow(count * dims.inputs);
    pack_panels(cpu, x, dims.inputs, first, rows, panels.as_mut_slice());
}

fn run_gate_pass(cpu: &Cpu, pass: &GatePass<'_>) {
    let (hidden, rows) = (pass.dims.hidden, cpu.isa().rows() / 2);
    cpu.for_each(hidden.div_ceil(rows), |task| {
        let rows = task * rows..hidden.min((task + 1) * rows);
        with_scratch(8 * (pass.dims.inputs + PAD), |scratch| {
            // SAFETY: hidden rows, and so the columns of z and the rows of the gates, belong to one task.
            unsafe { gate_pass(cpu.isa(), pass, rows, scratch) }
        });
    });
}

simd_dispatch!(unsafe fn gate_pass(pass: &GatePass<'_>, hidden: std::ops::Range<usize>, scratch: &mut [f32]) = gate_pass_kernel);

/// R / 2 gate rows and as many up rows at a time, each against every panel of images.
#[inline(always)]
unsafe fn gate_pass_kernel<S: Simd, const R: usize, const V: usize>(
    pass: &GatePass<'_>,
    hidden: std::ops::Range<usize>,
    scratch: &mut [f32],
) {
    let Dims { batch, inputs, hidden: total } = pass.dims;
    let (width, stride, half) = (V * S::LANES, gate_stride(batch), R / 2);
    for h in hidden.clone().step_by(half) {
        // Weight rows, copied side by side: D is often a power of two, and rows that far apart would evict each other.
        // Beyond the last row the last is taken again, and its result left unused.
        let pitch = inputs + PAD;
        for r in 0..R {
            let row = (h + r % half).min(total - 1) + if r < half { 0 } else { total };
            scratch[r * pitch..][..inputs].copy_from_slice(&pass.wf[row * inputs..][..inputs]);
        }
        let mut rows = [scratch.as_ptr(); R];
        for (r, row) in rows.iter_mut().enumerate() {
            *row = scratch[r * pitch..].as_ptr();
        }
        let valid = half.min(hidden.end - h);

        for p in 0..pass.rows.div_ceil(width) {
            let (b, count) = (pass.first + p * width, width.min(pass.rows - p * width));
            let mut transposed = [[0.0_f32; 32]; 8];
            if let Some(dz) = pass.dz {
                for j in 0..count {
                    for (r, row) in transposed.iter_mut().enumerate().take(valid) {
                        row[j] = dz[(b + j) * total + h + r];
                    }
                }
            }
            // SAFETY: `rows` are `inputs` long; panel p is inputs x width; row h + r of the gates has room for whole
            // panels, and belongs to this task, as column h + r of z does.
            unsafe {
                let acc = tile::<S, R, V>(inputs, rows, 1, pass.panels.as_ptr().add(p * inputs * width));
                for r in 0..valid {
                    for (v, (&g, &u)) in acc[r].iter().zip(&acc[half + r]).enumerate() {
                        let lane = v * S::LANES;
                        let out = transposed[r].as_mut_ptr().add(lane);
                        let (first, second) = if pass.dz.is_some() {
                            gate::backward::<S>(g, u, S::load(out))
                        } else {
                            S::store(out, gate::forward::<S>(g, u));
                            (g, u)
                        };
                        if let Some(gates) = &pass.gates {
                            S::store(gates.at((h + r) * stride + b + lane), first);
                            S::store(gates.at((total + h + r) * stride + b + lane), second);
                        }
                    }
                }
                if let Some(z) = &pass.z {
                    for j in 0..count {
                        for (r, row) in transposed.iter().enumerate().take(valid) {
                            z.at((b + j) * total + h + r).write(row[j]);
                        }
                    }
                }
            }
        }
    }
}

simd_dispatch!(unsafe fn derivative(dims: Dims, dz: &[f32], hidden: std::ops::Range<usize>, gates: &SharedMut<'_>) = derivative_kernel);

/// dg over g and du over u, in place, for some hidden rows.
#[inline(always)]
unsafe fn derivative_kernel<S: Simd, const R: usize, const V: usize>(
    dims: Dims,
    dz: &[f32],
    hidden: std::ops::Range<usize>,
    gates: &SharedMut<'_>,
) {
    let Dims { batch, hidden: total, .. } = dims;
    let stride = gate_stride(batch);
    // Sixteen images at a time: each line of dz is read once.
    for b in (0..batch).step_by(16) {
        let count = 16.min(batch - b);
        let mut transposed = [[0.0_f32; 16]; HIDDEN_TASK];
        for j in 0..count {
            for (row, &dz) in
                transposed.iter_mut().zip(&dz[(b + j) * total + hidden.start..(b + j) * total + hidden.end])
            {
                row[j] = dz;
            }
        }
        for (h, dz) in hidden.clone().zip(&transposed) {
            for lane in (0..16).step_by(S::LANES) {
                // SAFETY: rows h and H + h belong to this task and have room for whole panels of 32.
                unsafe {
                    let (g, u) = (gates.at(h * stride + b + lane), gates.at((total + h) * stride + b + lane));
                    let (dg, du) = gate::backward::<S>(S::load(g), S::load(u), S::load(dz.as_ptr().add(lane)));
                    S::store(g, dg);
                    S::store(u, du);
                }
            }
        }
    }
}
