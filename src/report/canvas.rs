//! A figure as SVG and as PNG, from one drawing routine.
//!
//! The font comes with the program: charts look the same on every machine, and a server needs none.

use std::io::Cursor;

use image::{ImageEncoder, codecs::png::PngEncoder, imageops};
use plotters::{
    coord::Shift,
    prelude::*,
    style::{FontFamily, FontStyle, register_font},
};

use super::palette;
use crate::{Error, Kind, Result};

/// What SVG viewers are asked for: the font that the bitmap is drawn with, and what comes closest to it.
const FONT: &str = "DejaVu Sans, Verdana, sans-serif";

/// Pixels of the PNG for each unit of the SVG.
const PNG_SCALE: u32 = 2;
/// Pixels drawn for each pixel kept, in both directions: lines are smooth, which the library's are not.
const OVERSAMPLING: u32 = 2;

/// Something that can be drawn. Coordinates are multiplied by `scale`, and so must be sizes of text and lines.
pub trait Figure {
    /// Width and height at scale 1.
    fn size(&self) -> (u32, u32);

    /// Draws it; [`drawing`] turns the library's errors into this crate's.
    fn draw<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>, scale: f64) -> Result<()>;
}

/// The figure as the text of an SVG file.
pub fn to_svg(figure: &impl Figure) -> Result<String> {
    register()?;
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, figure.size()).into_drawing_area();
        area.fill(&WHITE).map_err(drawing)?;
        figure.draw(&area, 1.0)?;
        area.present().map_err(drawing)?;
    }
    Ok(text)
}

/// The figure as the bytes of a PNG file.
pub fn to_png(figure: &impl Figure) -> Result<Vec<u8>> {
    register()?;
    let factor = PNG_SCALE * OVERSAMPLING;
    let (width, height) = figure.size();
    let (wide, high) = (width * factor, height * factor);
    let mut pixels = vec![0; wide as usize * high as usize * 3];
    {
        let area = BitMapBackend::with_buffer(&mut pixels, (wide, high)).into_drawing_area();
        area.fill(&WHITE).map_err(drawing)?;
        figure.draw(&area, f64::from(factor))?;
        area.present().map_err(drawing)?;
    }
    let large = image::RgbImage::from_raw(wide, high, pixels)
        .ok_or_else(|| Error::new(Kind::Io, "cannot draw a chart: its buffer is too small"))?;
    let (width, height) = (width * PNG_SCALE, height * PNG_SCALE);
    let small = imageops::thumbnail(&large, width, height);
    let mut bytes = Cursor::new(Vec::new());
    PngEncoder::new(&mut bytes)
        .write_image(small.as_raw(), width, height, image::ExtendedColorType::Rgb8)
        .map_err(|source| Error::new(Kind::Io, "cannot encode a chart as PNG").because(source))?;
    Ok(bytes.into_inner())
}

/// Text of `size` at scale 1.
pub fn text<'a>(size: f64, scale: f64) -> TextStyle<'a> {
    FontDesc::new(FontFamily::Name(FONT), size * scale, FontStyle::Normal).color(&palette::INK)
}

/// An error of the drawing library as one of this crate.
pub fn drawing<E: std::fmt::Display>(source: E) -> Error {
    Error::new(Kind::Io, format!("cannot draw a chart: {source}"))
}

/// Makes the font known; again is harmless.
fn register() -> Result<()> {
    register_font(FONT, FontStyle::Normal, include_bytes!("assets/DejaVuSans-latin.ttf"))
        .map_err(|_| Error::new(Kind::Io, "cannot draw a chart: the built-in font does not load"))
}
