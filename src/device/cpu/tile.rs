//! The register tile: R rows times V vectors of an output, held in registers over the whole depth of a product.
//! It is the heart of the fused SwiGLU kernels on the CPU.
//!
//! ```text
//! acc[r][j] = sum over k of a(r, k) * panel[k][j]        j < V * LANES
//! ```
//!
//! `a` is read by broadcast straight from where it lies (rows, or columns with a step); the panel is packed, `depth` x
//! (V * LANES), so that each step reads whole vectors from consecutive addresses. Each element is summed over k in
//! order, by one thread: results do not depend on the number of threads.

use super::simd::Simd;

/// Multiplies R broadcast rows with a packed panel.
///
/// # Safety
/// The instruction set of `S` is there; each `rows[r]` is readable at `k * step` for k < `depth`; `panel` is readable
/// for `depth * V * LANES` elements.
#[inline(always)]
pub unsafe fn tile<S: Simd, const R: usize, const V: usize>(
    depth: usize,
    rows: [*const f32; R],
    step: usize,
    panel: *const f32,
) -> [[S::V; V]; R] {
    // SAFETY: indices stay below what the caller vouches for.
    unsafe {
        let mut acc = [[S::splat(0.0); V]; R];
        let mut b = [S::splat(0.0); V];
        for k in 0..depth {
            for (v, b) in b.iter_mut().enumerate() {
                *b = S::load(panel.add((k * V + v) * S::LANES));
            }
            for (row, acc) in rows.iter().zip(acc.iter_mut()) {
                let a = S::splat(*row.add(k * step));
                for (acc, b) in acc.iter_mut().zip(b) {
                    *acc = S::fma(a, b, *acc);
                }
            }
        }
        acc
    }
}

/// Packs `cols` columns of a row-major matrix, from column `first`, into a panel `width` wide: panel\[k\]\[j\] =
/// a[k][first + j], zeros beyond `cols`.
pub fn pack_columns(
    a: &[f32],
    depth: usize,
    stride: usize,
    first: usize,
    cols: usize,
    width: usize,
    panel: &mut [f32],
) {
    for k in 0..depth {
        let from = &a[k * stride + first..][..cols];
        let to = &mut panel[k * width..][..width];
        match (<&[f32; 32]>::try_from(from), <&mut [f32; 32]>::try_from(&mut *to)) {
            // A whole panel of the widest kind: a length known to the compiler needs no call.
            (Ok(from), Ok(to)) => *to = *from,
            _ => {
                to[..cols].copy_from_slice(from);
                to[cols..].fill(0.0);
            }
        }
    }
}

/// Packs `rows` rows of a row-major matrix with `depth` columns, from row `first`, transposed into a panel `width`
/// wide: panel\[k\]\[j\] = a\[first + j\]\[k\], zeros beyond `rows`.
pub fn pack_rows(a: &[f32], depth: usize, first: usize, rows: usize, width: usize, panel: &mut [f32]) {
    // Blocks of 16 columns: one cache line of each row is read and used whole.
    for k0 in (0..depth).step_by(16) {
        let block = 16.min(depth - k0);
        for j in 0..rows {
            let from = &a[(first + j) * depth + k0..][..block];
            for (k, &value) in from.iter().enumerate() {
                panel[(k0 + k) * width + j] = value;
            }
        }
        for k in k0..k0 + block {
            panel[k * width + rows..(k + 1) * width].fill(0.0);
        }
    }
}
