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

use std::ops::Range;

use super::{Cpu, SharedMut, simd::Simd};

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

/// Writes the first `count` elements of a row of a tile.
///
/// # Safety
/// The instruction set of `S` is there, and `to` is valid for `count` elements.
#[inline(always)]
pub unsafe fn store_row<S: Simd, const V: usize>(row: [S::V; V], to: *mut f32, count: usize) {
    let mut buffer = [0.0_f32; 32];
    // SAFETY: a whole row is V * LANES <= 32 elements; `to` has room for `count`.
    unsafe {
        if count == V * S::LANES {
            for (v, value) in row.into_iter().enumerate() {
                S::store(to.add(v * S::LANES), value);
            }
        } else {
            for (v, value) in row.into_iter().enumerate() {
                S::store(buffer.as_mut_ptr().add(v * S::LANES), value);
            }
            std::ptr::copy_nonoverlapping(buffer.as_ptr(), to, count);
        }
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

/// Columns of a row that a task of [`pack_rows`] takes: two panels of 64 images are work for a dozen threads then.
const PACK_PART: usize = 64;

/// Packs `rows` rows of a row-major matrix with `depth` columns, from row `first`, transposed into a panel `width`
/// wide: panel\[k\]\[j\] = a\[first + j\]\[k\], zeros beyond `rows`. Of the panel it is given the columns `part` alone.
fn pack_rows(a: &[f32], depth: usize, part: Range<usize>, first: usize, rows: usize, width: usize, panel: &mut [f32]) {
    // Blocks of 16 columns: one cache line of each row is read and used whole.
    for k0 in part.clone().step_by(16) {
        let block = 16.min(part.end - k0);
        for j in 0..rows {
            let from = &a[(first + j) * depth + k0..][..block];
            for (k, &value) in from.iter().enumerate() {
                panel[(k0 - part.start + k) * width + j] = value;
            }
        }
        for k in k0 - part.start..k0 - part.start + block {
            panel[k * width + rows..(k + 1) * width].fill(0.0);
        }
    }
}

/// Packs `rows` rows of a row-major matrix with `depth` columns, from row `first`, into consecutive panels of `pack_rows`.
pub fn pack_panels(cpu: &Cpu, a: &[f32], depth: usize, first: usize, rows: usize, panels: &mut [f32]) {
    let (width, parts) = (cpu.isa().panel(), depth.div_ceil(PACK_PART));
    let out = SharedMut::new(panels);
    cpu.for_each(rows.div_ceil(width) * parts, |task| {
        let (panel, k) = (task / parts, task % parts * PACK_PART);
        let part = k..depth.min(k + PACK_PART);
        let (row, count) = (panel * width, width.min(rows - panel * width));
        // SAFETY: each part of a panel belongs to one task.
        let to = unsafe { out.slice((panel * depth + k) * width, part.len() * width) };
        pack_rows(a, depth, part, first + row, count, width, to);
    });
}
