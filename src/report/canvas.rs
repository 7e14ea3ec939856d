//! A figure as SVG and as PNG, from one drawing routine.
//!
//! The font comes with the program: charts look the same on every machine, and a server needs none.

use std::io::Cursor;

use image::{ImageEncoder, codecs::png::PngEncoder, imageops};
use plotters::{
    coord::Shift,
    prelude::*,
    style::{
        FontFamily, FontStyle, register_font,
        text_anchor::{HPos, Pos, VPos},
    },
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
    ///
    /// # Errors
    /// When its text cannot be measured.
    fn size(&self) -> Result<(u32, u32)>;

    /// Draws it; [`drawing`] turns the library's errors into this crate's.
    fn draw<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>, scale: f64) -> Result<()>;
}

/// The figure as the text of an SVG file.
pub fn to_svg(figure: &impl Figure) -> Result<String> {
    register()?;
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, figure.size()?).into_drawing_area();
        area.fill(&WHITE).map_err(drawing)?;
        figure.draw(&area, 1.0)?;
        area.present().map_err(drawing)?;
    }
    // A picture that is looked at alone follows the reader's colour scheme; colours are matched by value.
    let style = format!("<style>@media (prefers-color-scheme:dark){{{}}}</style>\n<rect", palette::dark_css(""));
    Ok(text.replacen("<rect", &style, 1))
}

/// The figure as the bytes of a PNG file.
pub fn to_png(figure: &impl Figure) -> Result<Vec<u8>> {
    register()?;
    let factor = PNG_SCALE * OVERSAMPLING;
    let (width, height) = figure.size()?;
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

/// The width of `words` of `size`, in units at scale 1.
///
/// # Errors
/// When the built-in font does not load.
pub fn text_width(words: &str, size: f64) -> Result<f64> {
    register()?;
    // Ten times as large, since the library counts in whole pixels.
    let font = FontDesc::new(FontFamily::Name(FONT), size * 10.0, FontStyle::Normal);
    font.box_size(words).map(|(width, _)| f64::from(width) / 10.0).map_err(drawing)
}

/// `words` cut into lines no wider than `room`, between words.
///
/// # Errors
/// When the built-in font does not load.
pub fn wrapped(words: &str, size: f64, room: f64) -> Result<Vec<String>> {
    let mut lines: Vec<String> = Vec::new();
    for word in words.split_whitespace() {
        match lines.last_mut() {
            Some(line) if text_width(&format!("{line} {word}"), size)? <= room => *line = format!("{line} {word}"),
            _ => lines.push(word.into()),
        }
    }
    Ok(lines)
}

/// Draws in units at scale 1, whatever the scale.
pub struct Pen<'a, DB: DrawingBackend> {
    /// Where it draws.
    pub area: &'a DrawingArea<DB, Shift>,
    /// Pixels of a unit.
    pub scale: f64,
}

impl<DB: DrawingBackend> Pen<'_, DB> {
    /// The pixel at (x, y).
    pub fn at(&self, (x, y): (f64, f64)) -> (i32, i32) {
        ((x * self.scale).round() as i32, (y * self.scale).round() as i32)
    }

    /// Writes `words`; `at` is the middle of their left edge, of their right one, or of all, as `align` says.
    ///
    /// # Errors
    /// When the library cannot draw.
    pub fn text(&self, words: &str, size: f64, color: RGBColor, align: HPos, at: (f64, f64)) -> Result<()> {
        let style = text(size, self.scale).color(&color).pos(Pos::new(align, VPos::Center));
        self.area.draw(&Text::new(words.to_owned(), self.at(at), style)).map_err(drawing)
    }

    /// A rectangle from corner to corner.
    ///
    /// # Errors
    /// When the library cannot draw.
    pub fn rect(&self, from: (f64, f64), to: (f64, f64), style: ShapeStyle) -> Result<()> {
        self.area.draw(&Rectangle::new([self.at(from), self.at(to)], style)).map_err(drawing)
    }

    /// A line through points, `width` wide.
    ///
    /// # Errors
    /// When the library cannot draw.
    pub fn line(&self, points: &[(f64, f64)], color: RGBColor, width: f64) -> Result<()> {
        let points: Vec<_> = points.iter().map(|&point| self.at(point)).collect();
        let style = color.stroke_width((width * self.scale).round().max(1.0) as u32);
        self.area.draw(&PathElement::new(points, style)).map_err(drawing)
    }
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
