//! dWf: our own kernel, whose epilogue stores the gradient or applies SGD, and the library's product.

use super::{Workspace, gate_stride};
use crate::{
    Result,
    device::cpu::{
        Cpu,
        gemm::{View, gemm},
        weight_grad::{Target, Transposed, weight_grad},
    },
    swiglu::reference::Dims,
};

/// dWf = [dg | du]^T x: (2H, B) @ (B, D) -> (2H, D), or the step of SGD that it stands for. A task's rows are some of the gate's
/// and the same of the up projection's.
pub fn backward_dwf(cpu: &Cpu, dims: Dims, x: &[f32], target: Target<'_>, workspace: &Workspace) {
    let Dims { batch, hidden, .. } = dims;
    let data = workspace.gates.as_slice();
    weight_grad(cpu, Transposed { data, rows: 2 * hidden, batch, stride: gate_stride(batch) }, 2, x, target);
}

/// dWf = [dg | du]^T x by the library GEMM: (2H, B) @ (B, D) -> (2H, D).
///
/// # Errors
/// When the shapes do not fit.
pub fn library_dwf(cpu: &Cpu, dims: Dims, x: &[f32], dwf: &mut [f32], workspace: &Workspace) -> Result<()> {
    let gates = View {
        data: workspace.gates.as_slice(),
        rows: 2 * dims.hidden,
        cols: dims.batch,
        row_stride: gate_stride(dims.batch),
        col_stride: 1,
    };
    gemm(cpu, gates, View::new(x, dims.batch, dims.inputs), 0.0, dwf)
}
