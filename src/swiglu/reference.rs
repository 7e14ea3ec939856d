//! The reference: the formulas in f64, written to be read and not to be fast. Every implementation on every device is
//! checked against it; it is checked itself against central differences (`tests/gradients.rs`).

use rayon::prelude::*;

use crate::{
    device::Precision,
    rng::{Purpose, normal},
};

/// Shapes of a layer's pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dims {
    /// B.
    pub batch: usize,
    /// D.
    pub inputs: usize,
    /// H.
    pub hidden: usize,
}

impl std::fmt::Display for Dims {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{},{},{}", self.batch, self.inputs, self.hidden)
    }
}

/// Operands of a pass.
#[derive(Clone, Debug)]
pub struct Operands {
    /// (B, D)
    pub x: Vec<f32>,
    /// (2H, D)
    pub wf: Vec<f32>,
    /// (B, H)
    pub dz: Vec<f32>,
}

impl Operands {
    /// Random normal operands, the weights scaled by D^-1/2 so that g and u are about 1.
    pub fn random(dims: Dims, seed: u64) -> Operands {
        let Dims { batch, inputs, hidden } = dims;
        Operands {
            x: normal(seed, Purpose::Operand(0), batch * inputs, 1.0),
            wf: normal(seed, Purpose::Operand(1), 2 * hidden * inputs, (inputs as f32).powf(-0.5)),
            dz: normal(seed, Purpose::Operand(2), batch * hidden, 1.0),
        }
    }

    /// The same numbers as `precision` keeps them.
    #[must_use]
    pub fn rounded(mut self, precision: Precision) -> Operands {
        for values in [&mut self.x, &mut self.wf, &mut self.dz] {
            values.iter_mut().for_each(|value| *value = precision.round_operand(*value));
        }
        self
    }
}

/// Results of a forward and backward.
#[derive(Clone, Debug)]
pub struct Results {
    /// (B, H)
    pub z: Vec<f64>,
    /// (B, D)
    pub dx: Vec<f64>,
    /// (2H, D)
    pub dwf: Vec<f64>,
}

/// sigmoid(x) = 1 / (1 + e^-x)
pub fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// z, dx and dWf in f64.
pub fn swiglu(dims: Dims, operands: &Operands) -> Results {
    let wide = |values: &[f32]| values.iter().map(|&v| f64::from(v)).collect::<Vec<f64>>();
    swiglu_f64(dims, &wide(&operands.x), &wide(&operands.wf), &wide(&operands.dz))
}

/// z, dx and dWf of operands in f64: x (B, D), Wf (2H, D), dz (B, H).
pub fn swiglu_f64(dims: Dims, x: &[f64], wf: &[f64], dz: &[f64]) -> Results {
    let Dims { batch, inputs, hidden } = dims;
    let mut out =
        Results { z: vec![0.0; batch * hidden], dx: vec![0.0; batch * inputs], dwf: vec![0.0; 2 * hidden * inputs] };

    // Image by image: z, dx, and dg and du of each hidden unit.
    let row = |r: usize| &wf[r * inputs..(r + 1) * inputs];
    let images = x.par_chunks(inputs).zip(dz.par_chunks(hidden));
    let outputs = out.z.par_chunks_mut(hidden).zip(out.dx.par_chunks_mut(inputs));
    let gradients: Vec<Vec<(f64, f64)>> = images
        .zip(outputs)
        .map(|((x, dz), (z, dx))| {
            let unit = |(h, (z, dz)): (usize, (&mut f64, &f64))| {
                let (gate, up) = (row(h), row(hidden + h));
                let g: f64 = x.iter().zip(gate).map(|(x, w)| x * w).sum();
                let u: f64 = x.iter().zip(up).map(|(x, w)| x * w).sum();
                let s = sigmoid(g);
                *z = g * s * u;

                let du = dz * g * s;
                let dg = dz * u * s * (1.0 + g * (1.0 - s));
                for (dx, (wg, wu)) in dx.iter_mut().zip(gate.iter().zip(up)) {
                    *dx += dg * wg + du * wu;
                }
                (dg, du)
            };
            z.iter_mut().zip(dz).enumerate().map(unit).collect()
        })
        .collect();
    // Row by row of dWf: the sum over all images.
    out.dwf.par_chunks_mut(inputs).enumerate().for_each(|(r, dwf)| {
        for (x, gradients) in x.chunks(inputs).zip(&gradients) {
            let (dg, du) = gradients[r % hidden];
            let d = if r < hidden { dg } else { du };
            dwf.iter_mut().zip(x).for_each(|(dwf, x)| *dwf += d * x);
        }
    });
    out
}

/// ||got - want|| / ||want||, the relative Frobenius error; infinite when a number is not finite.
pub fn relative_error(got: &[f32], want: &[f64]) -> f64 {
    if got.len() != want.len() {
        return f64::INFINITY;
    }
    let (mut difference, mut norm) = (0.0, 0.0);
    for (&got, &want) in got.iter().zip(want) {
        difference += (f64::from(got) - want).powi(2);
        norm += want * want;
    }
    let error = (difference / norm).sqrt();
    if norm == 0.0 && difference == 0.0 {
        0.0
    } else if error.is_finite() {
        error
    } else {
        f64::INFINITY
    }
}
