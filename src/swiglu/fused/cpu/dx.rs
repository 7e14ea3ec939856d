//! dx: the gate gradients times the packed weight, panel of inputs by panel of inputs.

use super::{Workspace, gate_stride};
use crate::{
    device::cpu::{
        Cpu, SharedMut,
        simd::{Simd, simd_dispatch},
        tile::{pack_columns, store_row, tile},
        with_scratch,
    },
    swiglu::reference::Dims,
};

/// Images of a task.
const ROW_TASK: usize = 256;

/// dx = [dg | du] Wf: (B, 2H) @ (2H, D) -> (B, D).
pub fn backward_dx(cpu: &Cpu, dims: Dims, wf: &[f32], dx: &mut [f32], workspace: &Workspace) {
    let Dims { batch, inputs, hidden } = dims;
    let width = cpu.isa().panel();
    let across = inputs.div_ceil(width);
    let (out, gates) = (SharedMut::new(dx), workspace.gates.as_slice());
    cpu.for_each(across * batch.div_ceil(ROW_TASK), |task| {
        let (first, d) = (task / across * ROW_TASK, task % across * width);
        let (rows, cols) = (ROW_TASK.min(batch - first), width.min(inputs - d));
        with_scratch(2 * hidden * width, |panel| {
            pack_columns(wf, 2 * hidden, inputs, d, cols, width, panel);
            // SAFETY: images first..first + rows, columns d..d + cols of dx belong to this task.
            unsafe { dx_kernel(cpu.isa(), dims, gates, panel, first..first + rows, d..d + cols, &out) }
        });
    });
}

simd_dispatch!(unsafe fn dx_kernel(
    dims: Dims,
    gates: &[f32],
    panel: &[f32],
    images: std::ops::Range<usize>,
    cols: std::ops::Range<usize>,
    dx: &SharedMut<'_>,
) = dx_tiles);

#[inline(always)]
unsafe fn dx_tiles<S: Simd, const R: usize, const V: usize>(
    dims: Dims,
    gates: &[f32],
    panel: &[f32],
    images: std::ops::Range<usize>,
    cols: std::ops::Range<usize>,
    dx: &SharedMut<'_>,
) {
    let stride = gate_stride(dims.batch);
    for b in images.clone().step_by(R) {
        let mut rows = [gates.as_ptr(); R];
        for (r, row) in rows.iter_mut().enumerate() {
            *row = gates[(b + r).min(images.end - 1)..].as_ptr();
        }
        // SAFETY: row k of the gates is `stride` further on, for all 2H of them; the panel is 2H x width.
        let acc = unsafe { tile::<S, R, V>(2 * dims.hidden, rows, stride, panel.as_ptr()) };
        for (r, acc) in acc.iter().enumerate().take(images.end - b) {
            // SAFETY: these columns of row b + r belong to this task.
            unsafe { store_row::<S, V>(*acc, dx.at((b + r) * dims.inputs + cols.start), cols.len()) }
        }
    }
}
