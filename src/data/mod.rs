//! The data set: find it, check it, read it, hold some of it out; and fetch it.
//!
//! | file | what it does |
//! |---|---|
//! | `sets` | the four files, and the data sets with known checksums |
//! | `find` | where a data set stands |
//! | `idx` | the IDX format, read with suspicion |
//! | `check` | whether the four files are right |
//! | `load` | checked files, read through the `mnist` crate |
//! | `split` | images with labels; a validation split |
//! | `fetch` | downloads: mirrors in order, checked before they are put in place |

pub mod picture;

use std::path::PathBuf;

pub mod check;
pub mod fetch;
pub mod find;
pub mod idx;
mod load;
pub mod sets;
mod split;

pub use load::{Loading, load, load_from};
pub use split::{Split, hold_out};

/// Pixels of an image: 28 rows of 28, one byte each, 0 the ground, 255 full ink.
pub const PIXELS: usize = 28 * 28;
/// Rows, and columns, of an image.
pub const SIDE: usize = 28;
/// Kinds of digit.
pub const CLASSES: usize = 10;
/// Mean of the training pixels in [0, 1], of MNIST; used for every data set, so that checkpoints mean one thing.
pub const MEAN: f32 = 0.1307;
/// Their standard deviation.
pub const STD: f32 = 0.3081;
/// What a GPU's kernels make of a pixel's byte: byte * scale + shift, which is (byte / 255 - mean) / deviation.
pub const PIXEL_SCALE: f32 = 1.0 / (255.0 * STD);
/// As above.
pub const PIXEL_SHIFT: f32 = -MEAN / STD;

/// A checked data set.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// `mnist`, `fashion`, or the name of a directory.
    pub name: String,
    /// Where it was found.
    pub dir: PathBuf,
    /// 60,000 images for MNIST.
    pub train: Split,
    /// 10,000 images for MNIST.
    pub test: Split,
}
