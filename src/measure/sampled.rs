//! The f64 reference for shapes at which all of it would take minutes: some images give rows of z and dx, some hidden units
//! rows of dWf. Each row sums over a whole dimension, and rows are spread over all tiles. What is not sampled must at
//! least have been written: outputs are poisoned with NaN before.

use rayon::prelude::*;

use crate::swiglu::reference::{Dims, Operands, relative_error, sigmoid};

/// A row in this many is computed, but never fewer than [`LEAST`]: one in every tile of 64, at a residue that moves.
const EVERY: usize = 64;
const LEAST: usize = 16;
const MOST: usize = 64;

/// Rows of the reference's results.
#[derive(Clone, Debug)]
pub struct Sample {
    dims: Dims,
    images: Vec<usize>,
    units: Vec<usize>,
    z: Vec<f64>,
    dx: Vec<f64>,
    /// For each unit its row of dWg, then its row of dWu.
    dwf: Vec<f64>,
}

impl Sample {
    /// Computes the rows; every row of small shapes.
    pub fn new(dims: Dims, operands: &Operands) -> Sample {
        let images = spread(dims.batch);
        let units = spread(dims.hidden);
        let rows: Vec<(Vec<f64>, Vec<f64>)> = images.par_iter().map(|&image| of_image(dims, operands, image)).collect();
        let (z, dx): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
        let dwf: Vec<Vec<f64>> = units.par_iter().map(|&unit| of_unit(dims, operands, unit)).collect();
        Sample { dims, images, units, z: z.concat(), dx: dx.concat(), dwf: dwf.concat() }
    }

    /// Error of z, (B, H).
    pub fn z_error(&self, z: &[f32]) -> f64 {
        of_rows(z, self.dims.hidden, &self.images, &self.z)
    }

    /// Error of dx, (B, D).
    pub fn dx_error(&self, dx: &[f32]) -> f64 {
        of_rows(dx, self.dims.inputs, &self.images, &self.dx)
    }

    /// Error of dWf, (2H, D).
    pub fn dwf_error(&self, dwf: &[f32]) -> f64 {
        let rows: Vec<usize> = self.units.iter().flat_map(|&unit| [unit, self.dims.hidden + unit]).collect();
        of_rows(dwf, self.dims.inputs, &rows, &self.dwf)
    }
}

/// Indices below `count`: the first, the last, and others at an even distance of one another.
fn spread(count: usize) -> Vec<usize> {
    let wanted = (count / EVERY).clamp(LEAST, MOST).min(count);
    (0..wanted).map(|i| if wanted == 1 { 0 } else { i * (count - 1) / (wanted - 1) }).collect()
}

fn of_rows(got: &[f32], cols: usize, rows: &[usize], want: &[f64]) -> f64 {
    if !got.iter().all(|value| value.is_finite()) {
        return f64::INFINITY;
    }
    let picked: Vec<f32> = rows.iter().flat_map(|&row| &got[row * cols..][..cols]).copied().collect();
    relative_error(&picked, want)
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// (z, dg, du) of one image and one hidden unit.
fn gate(dims: Dims, operands: &Operands, image: usize, unit: usize) -> (f64, f64, f64) {
    let Dims { inputs, hidden, .. } = dims;
    let x = &operands.x[image * inputs..][..inputs];
    let g = dot(x, &operands.wf[unit * inputs..][..inputs]);
    let u = dot(x, &operands.wf[(hidden + unit) * inputs..][..inputs]);
    let (s, dz) = (sigmoid(g), f64::from(operands.dz[image * hidden + unit]));
    (g * s * u, dz * u * s * (1.0 + g * (1.0 - s)), dz * g * s)
}

fn of_image(dims: Dims, operands: &Operands, image: usize) -> (Vec<f64>, Vec<f64>) {
    let Dims { inputs, hidden, .. } = dims;
    let (mut z, mut dx) = (vec![0.0; hidden], vec![0.0; inputs]);
    for (unit, z) in z.iter_mut().enumerate() {
        let (value, dg, du) = gate(dims, operands, image, unit);
        *z = value;
        let wg = &operands.wf[unit * inputs..][..inputs];
        let wu = &operands.wf[(hidden + unit) * inputs..][..inputs];
        for (dx, (&wg, &wu)) in dx.iter_mut().zip(wg.iter().zip(wu)) {
            *dx += dg * f64::from(wg) + du * f64::from(wu);
        }
    }
    (z, dx)
}

fn of_unit(dims: Dims, operands: &Operands, unit: usize) -> Vec<f64> {
    let inputs = dims.inputs;
    let mut rows = vec![0.0; 2 * inputs];
    let (gate_row, up_row) = rows.split_at_mut(inputs);
    for image in 0..dims.batch {
        let (_, dg, du) = gate(dims, operands, image, unit);
        let x = &operands.x[image * inputs..][..inputs];
        for ((gate, up), &x) in gate_row.iter_mut().zip(&mut *up_row).zip(x) {
            *gate += dg * f64::from(x);
            *up += du * f64::from(x);
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::swiglu::reference::swiglu;

    fn whole(dims: Dims) -> (Operands, Vec<f32>, Vec<f32>, Vec<f32>) {
        let operands = Operands::random(dims, 3);
        let want = swiglu(dims, &operands);
        let single = |values: &[f64]| values.iter().map(|&v| v as f32).collect();
        (operands, single(&want.z), single(&want.dx), single(&want.dwf))
    }

    #[test]
    fn the_sample_agrees_with_the_whole_reference() {
        for dims in [Dims { batch: 1, inputs: 3, hidden: 1 }, Dims { batch: 130, inputs: 37, hidden: 141 }] {
            let (operands, z, dx, dwf) = whole(dims);
            let sample = Sample::new(dims, &operands);
            for error in [sample.z_error(&z), sample.dx_error(&dx), sample.dwf_error(&dwf)] {
                assert!(error < 1e-7, "{dims}: {error}");
            }
        }
    }

    #[test]
    fn a_lost_tile_and_an_unwritten_element_are_seen() {
        let dims = Dims { batch: 130, inputs: 37, hidden: 141 };
        let (operands, mut z, mut dx, mut dwf) = whole(dims);
        let sample = Sample::new(dims, &operands);
        z[64 * 141..128 * 141].fill(0.0);
        assert!(sample.z_error(&z) > 0.3);
        dx[5] = f32::NAN;
        assert_eq!(sample.dx_error(&dx), f64::INFINITY);
        dwf[141 * 37..].fill(0.0);
        assert!(sample.dwf_error(&dwf) > 0.3);
    }
}
