//! What a network gets wrong: the digits themselves, and the confusion matrix.

use plotters::{prelude::*, style::text_anchor::HPos};

use super::{
    canvas::Pen,
    frame::{Frame, Framed, LABEL, MARGIN, SMALL, WIDTH},
    palette,
};
use crate::{Result, measure::record::Wrong};

const COLUMNS: usize = 4;
const CELL: f64 = (WIDTH - 2.0 * MARGIN) / COLUMNS as f64;
/// Units of a pixel of a digit: whole ones, so that no seam shows between pixels.
const PIXEL: f64 = 3.0;
const SIDE: f64 = 28.0 * PIXEL;
const ROW: f64 = SIDE + 44.0;

/// Digits with what they are and what the network said.
#[derive(Clone, Debug, PartialEq)]
pub struct Digits {
    /// Title, legend, source.
    pub frame: Frame,
    /// The digits.
    pub wrong: Vec<Wrong>,
}

impl Framed for Digits {
    fn frame(&self) -> &Frame {
        &self.frame
    }

    fn body(&self) -> Result<f64> {
        Ok(self.wrong.len().div_ceil(COLUMNS) as f64 * ROW + 4.0)
    }

    fn draw_body<DB: DrawingBackend>(&self, pen: &Pen<'_, DB>, top: f64) -> Result<()> {
        let top = top.round();
        for (index, wrong) in self.wrong.iter().enumerate() {
            let left = (MARGIN + CELL * (index % COLUMNS) as f64 + (CELL - SIDE) / 2.0).round();
            let y = top + ROW * (index / COLUMNS) as f64 + 6.0;
            draw_digit(pen, &wrong.pixels, (left, y))?;
            let middle = left + SIDE / 2.0;
            let said = format!("{} read as {}", wrong.label, wrong.said);
            pen.text(&said, SMALL, palette::INK, HPos::Center, (middle, y + SIDE + 11.0))?;
            let sure = format!("{:.1} % sure", (1000.0 * wrong.probability).floor() / 10.0);
            pen.text(&sure, SMALL, palette::MUTED, HPos::Center, (middle, y + SIDE + 27.0))?;
        }
        Ok(())
    }
}

/// A digit as ink on paper: dark on light in any colour scheme. Equal neighbours are one rectangle.
fn draw_digit<DB: DrawingBackend>(pen: &Pen<'_, DB>, pixels: &str, (left, top): (f64, f64)) -> Result<()> {
    // Sixteen levels are as many as an eye tells apart; a trace of blue keeps them apart from the palette's greys.
    let level =
        |index: usize| pixels.get(2 * index..2 * index + 1).and_then(|digit| u8::from_str_radix(digit, 16).ok());
    let shade = |level: u8| {
        let grey = 250 - level * 15;
        RGBColor(grey, grey, grey + 3)
    };
    pen.rect((left, top), (left + SIDE, top + SIDE), shade(0).filled())?;
    for row in 0..28 {
        let mut from = 0;
        while from < 28 {
            let ink = level(28 * row + from).unwrap_or(0);
            let to = (from..28).find(|&x| level(28 * row + x).unwrap_or(0) != ink).unwrap_or(28);
            if ink > 0 {
                let at = |x: usize, y: usize| (left + PIXEL * x as f64, top + PIXEL * y as f64);
                pen.rect(at(from, row), at(to, row + 1), shade(ink).filled())?;
            }
            from = to;
        }
    }
    Ok(())
}

/// The confusion matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    /// Title, legend, source.
    pub frame: Frame,
    /// Rows are labels, columns what the network said.
    pub counts: Vec<Vec<u64>>,
}

const LEFT: f64 = 62.0;
const HEAD: f64 = 46.0;

impl Matrix {
    fn cell(&self) -> f64 {
        (WIDTH - LEFT - MARGIN) / self.counts.len().max(1) as f64
    }
}

impl Framed for Matrix {
    fn frame(&self) -> &Frame {
        &self.frame
    }

    fn body(&self) -> Result<f64> {
        Ok(HEAD + self.cell() * self.counts.len() as f64)
    }

    fn draw_body<DB: DrawingBackend>(&self, pen: &Pen<'_, DB>, top: f64) -> Result<()> {
        let cell = self.cell();
        let size = cell * self.counts.len() as f64;
        pen.text("read as", LABEL, palette::MUTED, HPos::Center, (LEFT + size / 2.0, top + 12.0))?;
        pen.text("is", LABEL, palette::MUTED, HPos::Left, (MARGIN, top + HEAD + size / 2.0))?;
        let most = most_confused(&self.counts).map_or(1, |(_, _, count)| count).max(1);
        for (row, counts) in self.counts.iter().enumerate() {
            let y = top + HEAD + cell * (row as f64 + 0.5);
            let x = LEFT + cell * (row as f64 + 0.5);
            pen.text(&row.to_string(), LABEL, palette::INK, HPos::Center, (x, top + HEAD - 13.0))?;
            pen.text(&row.to_string(), LABEL, palette::INK, HPos::Right, (LEFT - 10.0, y))?;
            for (column, &count) in counts.iter().enumerate() {
                let x = LEFT + cell * (column as f64 + 0.5);
                let (from, to) = ((x - cell / 2.0, y - cell / 2.0), (x + cell / 2.0 - 1.5, y + cell / 2.0 - 1.5));
                let (fill, words) = match (row == column, count) {
                    (true, _) => (palette::BLUE.mix(0.22), count.to_string()),
                    (false, 0) => (palette::MUTED.mix(0.08), String::new()),
                    (false, _) => (palette::VERMILION.mix(0.12 + 0.68 * count as f64 / most as f64), count.to_string()),
                };
                pen.rect(from, to, fill.filled())?;
                pen.text(&words, SMALL, palette::INK, HPos::Center, (x - 0.75, y - 0.75))?;
            }
        }
        Ok(())
    }
}

/// The pair that is confused most: (what it is, what the network said, how often).
pub fn most_confused(counts: &[Vec<u64>]) -> Option<(usize, usize, u64)> {
    let cells = counts.iter().enumerate().flat_map(|(row, counts)| {
        counts
            .iter()
            .enumerate()
            .filter(move |(column, _)| *column != row)
            .map(move |(column, &count)| (row, column, count))
    });
    cells.rev().max_by_key(|(_, _, count)| *count).filter(|(_, _, count)| *count > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::canvas::to_svg;

    #[test]
    fn a_digit_is_drawn_where_its_ink_is() {
        let mut pixels = vec!["00"; 784];
        // Two neighbours of one shade in the second row: one rectangle of two by one pixels.
        (pixels[28 + 3], pixels[28 + 4]) = ("f8", "f0");
        let wrong = Wrong { index: 0, label: 4, said: 9, probability: 0.99999, pixels: pixels.concat() };
        let svg = to_svg(&Digits { frame: Frame::default(), wrong: vec![wrong] }).unwrap();
        assert!(svg.contains("4 read as 9") && svg.contains("99.9 % sure"), "{svg}");
        assert_eq!(svg.matches("<rect").count(), 3, "the ground, the paper, the ink: {svg}");
        assert!(svg.contains("width=\"6\" height=\"3\""), "{svg}");
    }

    #[test]
    fn the_most_confused_pair_is_off_the_diagonal_and_the_first_of_equals() {
        assert_eq!(most_confused(&[vec![9, 0, 2], vec![2, 9, 0], vec![0, 1, 9]]), Some((0, 2, 2)));
        assert_eq!(most_confused(&[vec![9, 0], vec![0, 9]]), None);
    }
}
