//! What the launches of Hopper's kernels (compute capability 9.0) share: how TMA is to read a matrix, operands split in two or
//! transposed, grids.

use super::{
    Cuda,
    compile::Configuration,
    hopper_tiles::HopperTile,
    modules::{
        Arg::{Int, Pointer},
        Grid,
    },
    ops::int,
    tensor_map::{Boxes, MapElement, Swizzle, TensorMap},
};
use crate::{Result, device::Precision};

/// How the copy engine is to read activations and weights.
pub(crate) fn element(cuda: &Cuda) -> MapElement {
    match cuda.precision() {
        Precision::Tf32 => MapElement::Tf32,
        Precision::Bf16 => MapElement::Bf16,
        Precision::Fp32 | Precision::Fp32Emulated => MapElement::F32,
    }
}

/// Elements in the 128 bytes of a box's row.
pub(crate) fn wide(cuda: &Cuda) -> usize {
    128 / cuda.element().bytes()
}

/// A row-major matrix, `rows` rows of a box at a time, 128 bytes wide.
pub(crate) fn matrix(cuda: &Cuda, name: &str, pointer: u64, shape: (usize, usize), rows: usize) -> Result<TensorMap> {
    Boxes::of_matrix(name, element(cuda), pointer, shape, (rows, wide(cuda)), Swizzle::Bytes128)
}

/// Boxes of `box_rows` x 32 of a matrix that streams past: weights and velocities in fp32, copies in bf16.
pub(super) fn streamed(
    name: &str,
    element: MapElement,
    pointer: u64,
    shape: (usize, usize),
    box_rows: usize,
) -> Result<TensorMap> {
    Boxes::of_matrix(name, element, pointer, shape, (box_rows, 32), Swizzle::of_32(element))
}

/// Activations for fp32-emulated, split into two planes of fp16: hi (rows, cols), then lo, and a factor a row.
#[derive(Clone, Copy, Debug)]
pub struct Planes {
    /// Where hi begins.
    pub hi: u64,
    /// Where the factors begin, (rows) fp32.
    pub down: u64,
}

impl Planes {
    /// Bytes of both planes, and of the factors.
    pub fn bytes(rows: usize, cols: usize) -> (usize, usize) {
        (4 * rows * cols, 4 * rows)
    }

    /// Room for them that nobody reads after the next launches of the same purpose; for `parts` factors a row.
    ///
    /// # Errors
    /// When there is not so much memory.
    pub fn in_scratch(
        cuda: &Cuda,
        purposes: (&'static str, &'static str),
        (rows, cols): (usize, usize),
        parts: usize,
    ) -> Result<Planes> {
        let (hi, down) = Planes::bytes(rows, cols);
        Ok(Planes { hi: cuda.scratch(purposes.0, hi)?, down: cuda.scratch(purposes.1, parts * down)? })
    }

    /// Boxes of `box_rows` rows, 64 elements wide, of both planes: row r of lo is row `rows` + r.
    pub(crate) fn map(&self, name: &str, (rows, cols): (usize, usize), box_rows: usize) -> Result<TensorMap> {
        Boxes::of_matrix(name, MapElement::F16, self.hi, (2 * rows, cols), (box_rows, 64), Swizzle::Bytes128)
    }

    /// Splits x (rows, cols), in one launch.
    pub(crate) fn fill(&self, cuda: &Cuda, x: u64, (rows, cols): (usize, usize)) -> Result<()> {
        let args = [Pointer(x), Pointer(self.hi), Pointer(self.down), Int(int(rows)?), Int(int(cols)?)];
        let configuration = cuda.configuration("hopper_split.cu", true, &[]);
        // SAFETY: the arguments are the kernel's; the planes have room for both halves of x, and the factors for its rows.
        unsafe { cuda.launch(&configuration, "hopper_split", Grid::new(rows, 256, 0).started_early(), &args) }
    }
}

/// The operand that lies along the batch in the forward's product, and the factors of its rows (0 where there are none).
pub(crate) fn activations(
    cuda: &Cuda,
    name: &str,
    pointer: u64,
    planes: Option<Planes>,
    shape: (usize, usize),
    box_rows: usize,
) -> Result<(TensorMap, u64)> {
    match planes {
        Some(planes) => Ok((planes.map(name, shape, box_rows)?, planes.down)),
        None => Ok((matrix(cuda, name, pointer, shape, box_rows)?, 0)),
    }
}

/// A kernel file for a tile.
pub(crate) fn configuration(
    cuda: &Cuda,
    file: &'static str,
    tile: HopperTile,
    more: &[(&'static str, u32)],
) -> Configuration {
    cuda.configuration(file, true, &[&tile.defines()[..], more].concat())
}

/// So many clusters of a tile.
pub(crate) fn grid(cuda: &Cuda, tile: HopperTile, clusters: usize) -> Grid {
    let blocks = clusters * tile.cluster();
    let grid = Grid::new(blocks, tile.threads(), tile.shared(cuda.precision())).in_clusters(tile.cluster());
    // A kernel that fills the chip more than once would only have to share it with the next one's idle blocks.
    if blocks <= cuda.chip().multiprocessors * tile.blocks { grid.started_early() } else { grid }
}

/// x^T (K, pitch) fp32, of images in batches: TF32's tensor cores read operands along the sum only, and weights' gradients sum
/// over the batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transposed {
    /// Where it is.
    pub(crate) pointer: u64,
    /// Images of a batch. Each begins at a multiple of 4 columns, 16 bytes, where alone a copy by TMA may begin.
    pub(crate) batch: usize,
    /// Columns that may be read: those of images, and zeros between batches.
    pub(crate) columns: usize,
}

impl Transposed {
    /// That of all images of an epoch at `pointer`, where columns between batches are zeros.
    pub(crate) fn of_epoch(pointer: u64, images: usize, batch: usize) -> Transposed {
        let empty = Transposed { pointer, batch, columns: 0 };
        Transposed { columns: empty.column(images as i64) as usize, ..empty }
    }

    /// Elements from a row to the next: TMA asks for whole 16 bytes.
    pub(crate) fn pitch(self) -> usize {
        self.columns.next_multiple_of(4)
    }

    /// The column of an image, or of where an image before the first would be.
    pub(crate) fn column(self, image: i64) -> i64 {
        let batch = self.batch as i64;
        image.div_euclid(batch) * self.batch.next_multiple_of(4) as i64 + image.rem_euclid(batch)
    }

    /// Boxes of (columns of x, images) of its `rows` rows, rounded to TF32 by the copy.
    pub(crate) fn boxes(self, rows: usize, (images, inputs): (usize, usize)) -> Result<TensorMap> {
        Boxes {
            name: "x^T",
            element: MapElement::Tf32,
            pointer: self.pointer,
            dims: &[self.columns, rows],
            strides: &[self.pitch() * 4],
            box_dims: &[images, inputs],
            swizzle: Swizzle::Bytes128,
        }
        .encode()
    }
}

/// Room in scratch of this purpose for x^T of a batch.
pub(crate) fn room_for_transposed(
    cuda: &Cuda,
    purpose: &'static str,
    batch: usize,
    inputs: usize,
) -> Result<Transposed> {
    let pointer = cuda.scratch(purpose, inputs * batch.next_multiple_of(4) * 4)?;
    Ok(Transposed { pointer, batch, columns: batch })
}

/// x^T of a batch there.
pub(crate) fn transposed(
    cuda: &Cuda,
    purpose: &'static str,
    (batch, inputs): (usize, usize),
    x: u64,
) -> Result<Transposed> {
    let out = room_for_transposed(cuda, purpose, batch, inputs)?;
    let args = [Pointer(x), Pointer(out.pointer), Int(int(batch)?), Int(int(inputs)?), Int(int(out.pitch())?)];
    let configuration = cuda.configuration("hopper_transpose.cu", true, &[]);
    let grid = Grid::new(inputs.div_ceil(32) * batch.div_ceil(32), 256, 0).started_early();
    // SAFETY: the arguments are the kernel's, and the scratch memory is as large as it writes.
    unsafe { cuda.launch(&configuration, "hopper_transpose", grid, &args)? };
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_batch_begins_at_whole_16_bytes_of_x_transposed() {
        for batch in [1, 64, 65, 127, 515] {
            let transposed = Transposed::of_epoch(16, 3 * batch + batch / 2, batch);
            assert_eq!(transposed.columns as i64, transposed.column(3 * batch as i64) + batch as i64 / 2);
            let first = |step: i64| transposed.column(step * batch as i64);
            for step in -1..4 {
                assert_eq!(first(step) % 4, 0, "batch {batch}, step {step}");
                assert_eq!(first(step) + batch as i64 - 1, transposed.column((step + 1) * batch as i64 - 1));
                assert!(first(step) + batch as i64 <= first(step + 1));
            }
        }
    }
}
