//! The library GEMM of the CPU: the `matrixmultiply` crate, one thread a panel of the output, panels spread over the threads.
//!
//! The crate's own threading leaves cores idle when the batch is small; panels keep them busy. Each element is summed
//! over the whole depth inside one call, in an order that depends on the depth alone, so that neither the panels nor the
//! threads change a bit of the result (a test holds this).

use super::{Cpu, SharedMut};
use crate::{Error, Result};

/// A matrix in memory: where element (i, j) lies is `i * row_stride + j * col_stride`.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Storage.
    pub data: &'a [f32],
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Elements between two rows.
    pub row_stride: usize,
    /// Elements between two columns.
    pub col_stride: usize,
}

impl<'a> View<'a> {
    /// A row-major matrix without gaps.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        View { data, rows, cols, row_stride: cols, col_stride: 1 }
    }

    /// The transpose, without moving anything.
    #[must_use]
    pub fn t(self) -> Self {
        View {
            data: self.data,
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
        }
    }

    fn fits(&self) -> bool {
        self.rows == 0
            || self.cols == 0
            || (self.rows - 1) * self.row_stride + (self.cols - 1) * self.col_stride < self.data.len()
    }
}

/// c = a b + beta c for a row-major c without gaps: (M, K) @ (K, N) -> (M, N).
///
/// # Errors
/// When the shapes do not fit together, or a view reaches beyond its storage.
pub fn gemm(cpu: &Cpu, a: View<'_>, b: View<'_>, beta: f32, c: &mut [f32]) -> Result<()> {
    let (m, k, n) = (a.rows, a.cols, b.cols);
    if b.rows != k || c.len() != m * n || !a.fits() || !b.fits() {
        return Err(Error::shape(format!("gemm: {m} x {k} times {} x {n} does not give {} elements", b.rows, c.len())));
    }
    if m == 0 || n == 0 {
        return Ok(());
    }
    let (rows, cols) = panel_shape(m, n, cpu.threads());
    let (down, across) = (m.div_ceil(rows), n.div_ceil(cols));
    let out = SharedMut::new(c);
    cpu.for_each(down * across, |task| {
        let (i, j) = (task % down * rows, task / down * cols);
        let (m, n_here) = (rows.min(m - i), cols.min(n - j));
        // SAFETY: the views fit their storage, so the panels of a and b do; panels of c are disjoint between tasks.
        unsafe {
            matrixmultiply::sgemm(
                m,
                k,
                n_here,
                1.0,
                a.data.as_ptr().add(i * a.row_stride),
                a.row_stride as isize,
                a.col_stride as isize,
                b.data.as_ptr().add(j * b.col_stride),
                b.row_stride as isize,
                b.col_stride as isize,
                beta,
                out.at(i * n + j),
                n as isize,
                1,
            );
        }
    });
    Ok(())
}

/// Rows and columns of a panel: one panel a thread, or several of at most 1024 x 512, equally large. Each panel packs
/// both operands for itself, so that more of them would pack more, and narrower ones than 64 are not worth it.
fn panel_shape(m: usize, n: usize, threads: usize) -> (usize, usize) {
    let (mut down, mut across) = (m.div_ceil(1024), n.div_ceil(512));
    across = across.max(threads.div_ceil(down).min(n / 64));
    down = down.max(threads.div_ceil(across).min(m / 64));
    // The library's register tiles are up to 32 wide: edges of panels fall between them.
    let even = |length: usize, parts: usize| length.div_ceil(parts).next_multiple_of(32).min(length);
    (even(m, down), even(n, across))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, normal};

    #[test]
    fn results_are_bit_identical_for_any_number_of_threads() {
        for (m, n, k) in [(1, 1, 1), (64, 512, 784), (127, 129, 65), (1024, 512, 64), (37, 1031, 517), (513, 97, 1200)]
        {
            let (a, b) = (normal(1, Purpose::Operand(0), m * k, 1.0), normal(1, Purpose::Operand(1), n * k, 1.0));
            let start = normal(1, Purpose::Operand(2), m * n, 1.0);
            let run = |threads| {
                let cpu = Cpu::new(Some(threads)).expect("a pool");
                let (mut nt, mut tn) = (start.clone(), start.clone());
                gemm(&cpu, View::new(&a, m, k), View::new(&b, n, k).t(), 0.0, &mut nt).expect("nt");
                gemm(&cpu, View::new(&a, k, m).t(), View::new(&b, k, n), 1.0, &mut tn).expect("tn");
                (nt, tn)
            };
            let one = run(1);
            for threads in [2, 3, 7] {
                let many = run(threads);
                assert!(one == many, "{m} x {n} x {k}: {threads} threads differ from one");
            }
        }
    }

    #[test]
    fn products_equal_the_sums_written_out() {
        let (m, n, k) = (5, 7, 300);
        let (a, b) = (normal(3, Purpose::Operand(0), m * k, 1.0), normal(3, Purpose::Operand(1), k * n, 1.0));
        let mut c = vec![2.0; m * n];
        gemm(&Cpu::new(Some(2)).expect("a pool"), View::new(&a, m, k), View::new(&b, k, n), 0.5, &mut c).expect("gemm");
        for i in 0..m {
            for j in 0..n {
                let want = 1.0 + (0..k).map(|l| f64::from(a[i * k + l]) * f64::from(b[l * n + j])).sum::<f64>();
                assert!((f64::from(c[i * n + j]) - want).abs() < 1e-4, "({i}, {j}): {} for {want}", c[i * n + j]);
            }
        }
    }

    #[test]
    fn shapes_that_do_not_fit_are_an_error() {
        let cpu = Cpu::new(Some(1)).expect("a pool");
        let a = [0.0; 6];
        assert!(gemm(&cpu, View::new(&a, 2, 3), View::new(&a, 2, 3), 0.0, &mut [0.0; 6]).is_err());
        assert!(gemm(&cpu, View::new(&a, 3, 3), View::new(&a, 3, 2), 0.0, &mut [0.0; 6]).is_err());
    }
}
