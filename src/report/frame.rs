//! What every chart of a report has around it: its title and what was measured above, what the marks mean and where the
//! numbers come from below. Charts are as narrow as a phone, so that their text can be read there; a page puts them side
//! by side.

use plotters::{coord::Shift, prelude::*, style::text_anchor::HPos};

use super::{
    canvas::{Figure, Pen, wrapped},
    palette,
};
use crate::Result;

/// Of every chart.
pub const WIDTH: f64 = 440.0;
/// Left and right of everything.
pub const MARGIN: f64 = 14.0;
/// The size of labels.
pub const LABEL: f64 = 15.0;
/// The size of what is below a chart.
pub const SMALL: f64 = 14.0;

const TITLE: f64 = 19.0;
const TITLE_LINE: f64 = 23.0;
const LINE: f64 = 17.0;
const AIR: f64 = 12.0;

/// Words around a chart.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Frame {
    /// What is shown.
    pub title: String,
    /// Of what, how often measured.
    pub subtitle: String,
    /// What the marks mean.
    pub legend: String,
    /// Machine and commit.
    pub source: String,
}

/// What stands in a frame.
pub trait Framed {
    /// The words around it.
    fn frame(&self) -> &Frame;

    /// Its height.
    ///
    /// # Errors
    /// When its text cannot be measured.
    fn body(&self) -> Result<f64>;

    /// Draws it, from `top` on.
    ///
    /// # Errors
    /// When the library cannot draw.
    fn draw_body<DB: DrawingBackend>(&self, pen: &Pen<'_, DB>, top: f64) -> Result<()>;
}

impl<T: Framed> Figure for T {
    fn size(&self) -> Result<(u32, u32)> {
        let lines = self.frame().lines()?;
        Ok((WIDTH as u32, (lines.above() + self.body()? + lines.below()).ceil() as u32))
    }

    fn draw<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>, scale: f64) -> Result<()> {
        let (pen, lines) = (Pen { area, scale }, self.frame().lines()?);
        lines.draw(&pen, lines.above() + self.body()?)?;
        self.draw_body(&pen, lines.above())
    }
}

/// The words cut into lines.
pub struct Lines {
    title: Vec<String>,
    subtitle: Vec<String>,
    below: Vec<String>,
}

impl Frame {
    /// The words in lines that fit.
    ///
    /// # Errors
    /// When the built-in font does not load.
    pub fn lines(&self) -> Result<Lines> {
        let room = WIDTH - 2.0 * MARGIN;
        let mut below = wrapped(&self.legend, SMALL, room)?;
        below.extend(wrapped(&self.source, SMALL, room)?);
        Ok(Lines { title: wrapped(&self.title, TITLE, room)?, subtitle: wrapped(&self.subtitle, SMALL, room)?, below })
    }
}

impl Lines {
    /// Height above the chart.
    pub fn above(&self) -> f64 {
        AIR + TITLE_LINE * self.title.len() as f64 + LINE * self.subtitle.len() as f64 + AIR / 2.0
    }

    /// Height below it.
    pub fn below(&self) -> f64 {
        AIR + LINE * self.below.len() as f64 + AIR / 2.0
    }

    /// Writes what is above, and what is below a chart that ends at `end`.
    ///
    /// # Errors
    /// When the library cannot draw.
    pub fn draw<DB: DrawingBackend>(&self, pen: &Pen<'_, DB>, end: f64) -> Result<()> {
        let mut y = AIR;
        for line in &self.title {
            pen.text(line, TITLE, palette::INK, HPos::Left, (MARGIN, y + TITLE_LINE / 2.0))?;
            y += TITLE_LINE;
        }
        for line in &self.subtitle {
            pen.text(line, SMALL, palette::MUTED, HPos::Left, (MARGIN, y + LINE / 2.0))?;
            y += LINE;
        }
        for (index, line) in self.below.iter().enumerate() {
            let y = end + AIR + LINE * (index as f64 + 0.5);
            pen.text(line, SMALL, palette::MUTED, HPos::Left, (MARGIN, y))?;
        }
        Ok(())
    }
}
