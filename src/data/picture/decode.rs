//! Bytes of a PNG, JPEG or PGM file to the brightness and opacity of each pixel.
//!
//! Sizes are checked before anything is allocated for them: a header can claim anything. Large pictures are averaged
//! down as they are converted, so that the steps after this one see at most [`WORKING`] pixels a side.

use std::{io::Cursor, path::Path};

use image::{DynamicImage, ImageBuffer, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, Pixel, Primitive};

use super::{Grey, PIXELS, SIDE, damaged};
use crate::{Error, Result};

/// Pixels a side that a file may claim: twice the largest photograph.
const MAX_SIDE: u32 = 32_768;
/// Bytes that decoding may allocate.
const MAX_ALLOC: u64 = 768 << 20;
/// Pixels of the longer side beyond which a picture is averaged down by a whole factor. A digit ends with 20.
const WORKING: usize = 1024;

/// A decoded picture: what is seen, and how much of each pixel there is to see.
#[derive(Debug)]
pub(super) struct Scene {
    width: usize,
    height: usize,
    /// Brightness times opacity.
    light: Vec<f32>,
    opacity: Vec<f32>,
    /// Pixels of the file before averaging.
    original: (u32, u32),
}

impl Scene {
    /// The picture on a ground of brightness `ground`, which shows where the picture is transparent.
    pub(super) fn over(&self, ground: f32) -> Grey {
        let values = self.light.iter().zip(&self.opacity);
        Grey { width: self.width, height: self.height, values: values.map(|(l, a)| l + (1.0 - a) * ground).collect() }
    }

    /// Whether any of it is not quite opaque.
    pub(super) fn is_transparent(&self) -> bool {
        self.opacity.iter().any(|&a| a < 0.999)
    }

    pub(super) fn is_mnist_sized(&self) -> bool {
        self.original == (SIDE as u32, SIDE as u32)
    }

    /// The pixels of a picture that has MNIST's size, on black. To be called for no other.
    pub(super) fn as_it_is(&self) -> [u8; PIXELS] {
        std::array::from_fn(|i| (self.light[i] * 255.0).round() as u8)
    }
}

/// Decodes `bytes`; `name` is for messages alone.
pub(super) fn scene(bytes: &[u8], name: &Path) -> Result<Scene> {
    if bytes.is_empty() {
        return Err(damaged(name, "the file is empty").hint("write or copy it again"));
    }
    let mut reader =
        ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| Error::io("read", name, e))?;
    match reader.format() {
        Some(ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::Pnm) => {}
        Some(other) => {
            let what = other.extensions_str().first().copied().unwrap_or("other");
            return Err(
                damaged(name, &format!("it is a {} file", what.to_uppercase())).hint("convert it to PNG, JPEG or PGM")
            );
        }
        None => {
            return Err(damaged(name, "it is not a PNG, JPEG or PGM file")
                .hint("give a picture of one digit in one of these formats"));
        }
    }
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_ALLOC);
    reader.limits(limits.clone());
    let fail = |e| refused(name, e);
    let mut decoder = reader.into_decoder().map_err(fail)?;
    let (width, height) = decoder.dimensions();
    if width == 0 || height == 0 {
        return Err(damaged(name, &format!("its size is {width} x {height}")));
    }
    if decoder.total_bytes() > MAX_ALLOC {
        return Err(too_large(name, &format!("{width} x {height} pixels are")));
    }
    limits.reserve(decoder.total_bytes()).map_err(fail)?;
    decoder.set_limits(limits).map_err(fail)?;
    // Phones store a photograph as the sensor saw it and write beside it which way is up. Where that cannot be read, the
    // picture is taken as it is stored.
    let upright = decoder.orientation().ok();
    let mut picture = DynamicImage::from_decoder(decoder).map_err(fail)?;
    if let Some(upright) = upright {
        picture.apply_orientation(upright);
    }
    Ok(reduce(&picture))
}

fn refused(name: &Path, error: ImageError) -> Error {
    match error {
        ImageError::Limits(_) => too_large(name, "it is"),
        ImageError::Unsupported(e) => damaged(name, "it uses a variant of its format that is not known here")
            .hint("save it as an ordinary PNG, JPEG or PGM (8 or 16 bits, grey or RGB)")
            .because(e),
        e => damaged(name, "it is damaged or cut short").hint("copy or save the picture again").because(e),
    }
}

fn too_large(name: &Path, what: &str) -> Error {
    damaged(name, &format!("{what} too large to decode")).hint("crop it to the digit or scale it down first")
}

/// Brightness and opacity, averaged over squares of pixels when the picture is large.
fn reduce(picture: &DynamicImage) -> Scene {
    match picture {
        DynamicImage::ImageLuma8(p) => average(p),
        DynamicImage::ImageLumaA8(p) => average(p),
        DynamicImage::ImageRgb8(p) => average(p),
        DynamicImage::ImageRgba8(p) => average(p),
        DynamicImage::ImageLuma16(p) => average(p),
        DynamicImage::ImageLumaA16(p) => average(p),
        DynamicImage::ImageRgb16(p) => average(p),
        DynamicImage::ImageRgba16(p) => average(p),
        other => average(&other.to_rgba8()),
    }
}

fn average<P>(picture: &ImageBuffer<P, Vec<P::Subpixel>>) -> Scene
where
    P: Pixel,
    P::Subpixel: Primitive + Into<f32>,
{
    let (full_width, full_height) = picture.dimensions();
    let step = (full_width.max(full_height) as usize).div_ceil(WORKING);
    let width = (full_width as usize).div_ceil(step);
    let height = (full_height as usize).div_ceil(step);
    let mut scene = Scene {
        width,
        height,
        light: vec![0.0; width * height],
        opacity: vec![0.0; width * height],
        original: (full_width, full_height),
    };
    let mut counts = vec![0.0_f32; width * height];
    let full: f32 = P::Subpixel::DEFAULT_MAX_VALUE.into();
    for (x, y, pixel) in picture.enumerate_pixels() {
        let [r, g, b, a] = pixel.to_rgba().0.map(|c| c.into() / full);
        let at = (y as usize / step) * width + x as usize / step;
        // Rec. 601: the values are gamma-coded, and these are the weights for such values.
        scene.light[at] += (0.299 * r + 0.587 * g + 0.114 * b) * a;
        scene.opacity[at] += a;
        counts[at] += 1.0;
    }
    for (i, count) in counts.iter().enumerate() {
        scene.light[i] /= count;
        scene.opacity[i] /= count;
    }
    scene
}
