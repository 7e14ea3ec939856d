//! Horizontal bars in groups: label and value on a line, the bar below them. A tick where the floor is, a thin line from p10
//! to p90, pale where less work was done.

use plotters::{prelude::*, style::text_anchor::HPos};

use super::{
    canvas::{Pen, text_width},
    frame::{Frame, Framed, LABEL, MARGIN, WIDTH},
    palette,
};
use crate::Result;

const HEADING: f64 = 32.0;
const TEXT: f64 = 18.0;
const BAR: f64 = 10.0;
const GAP: f64 = 6.0;

/// One bar.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Bar {
    /// What it is.
    pub label: String,
    /// Its value with the unit, and what must be seen with it.
    pub note: String,
    /// Where it begins: not at 0 in a waterfall.
    pub from: f64,
    /// Where it ends; none where there is no number, as of a case that failed.
    pub value: Option<f64>,
    /// How far something wider reaches, drawn pale behind it.
    pub ghost: Option<f64>,
    /// Which colour of the palette.
    pub series: usize,
    /// The least that it could be.
    pub floor: Option<f64>,
    /// From which to which value single measurements went.
    pub spread: Option<(f64, f64)>,
    /// It does less work than the others: pale, with an outline.
    pub less_work: bool,
}

impl Bar {
    fn reach(&self) -> f64 {
        let ends = [self.value, self.ghost, self.floor, self.spread.map(|(_, to)| to), Some(self.from)];
        ends.into_iter().flatten().fold(0.0, f64::max)
    }

    /// Whether label and note stand on lines of their own.
    fn is_long(&self) -> Result<bool> {
        Ok(text_width(&self.label, LABEL)? + text_width(&self.note, LABEL)? + 16.0 > WIDTH - 2.0 * MARGIN)
    }

    fn height(&self) -> Result<f64> {
        Ok(TEXT * if self.is_long()? { 2.0 } else { 1.0 } + BAR + GAP)
    }
}

/// A chart of bars from zero. Each group has its own scale: shapes differ by more than a chart is wide, and it is within a
/// group that bars are to be compared.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Bars {
    /// Title, legend, source.
    pub frame: Frame,
    /// Headings, each with its bars.
    pub groups: Vec<(String, Vec<Bar>)>,
}

impl Framed for Bars {
    fn frame(&self) -> &Frame {
        &self.frame
    }

    fn body(&self) -> Result<f64> {
        let mut height = 0.0;
        for (_, bars) in &self.groups {
            height += HEADING;
            for bar in bars {
                height += bar.height()?;
            }
        }
        Ok(height)
    }

    fn draw_body<DB: DrawingBackend>(&self, pen: &Pen<'_, DB>, top: f64) -> Result<()> {
        let mut y = top;
        for (heading, bars) in &self.groups {
            pen.line(&[(MARGIN, y + 5.0), (WIDTH - MARGIN, y + 5.0)], palette::GRID, 1.0)?;
            pen.text(heading, LABEL, palette::MUTED, HPos::Left, (MARGIN, y + HEADING * 0.58))?;
            y += HEADING;
            let longest = bars.iter().map(Bar::reach).fold(f64::MIN_POSITIVE, f64::max);
            for bar in bars {
                draw_bar(pen, bar, y, longest)?;
                y += bar.height()?;
            }
        }
        Ok(())
    }
}

fn draw_bar<DB: DrawingBackend>(pen: &Pen<'_, DB>, bar: &Bar, mut y: f64, longest: f64) -> Result<()> {
    let x = |value: f64| MARGIN + (WIDTH - 2.0 * MARGIN) * value / longest;
    pen.text(&bar.label, LABEL, palette::INK, HPos::Left, (MARGIN, y + TEXT / 2.0))?;
    if bar.is_long()? {
        y += TEXT;
    }
    pen.text(&bar.note, LABEL, palette::INK, HPos::Right, (WIDTH - MARGIN, y + TEXT / 2.0))?;
    y += TEXT;
    let (top, bottom) = (y, y + BAR);
    let color = palette::series(bar.series);
    // The track: where the bar of the longest would be.
    pen.rect((MARGIN, bottom - 1.0), (WIDTH - MARGIN, bottom), palette::GRID.filled())?;
    if let Some(ghost) = bar.ghost {
        pen.rect((MARGIN, top), (x(ghost), bottom), palette::MUTED.mix(0.3).filled())?;
    }
    if let Some(value) = bar.value.filter(|&value| value != bar.from) {
        // At least a hair, so that the smallest is seen.
        let (from, to) = (x(bar.from.min(value)), x(bar.from.max(value)).max(x(bar.from.min(value)) + 1.5));
        if bar.less_work {
            pen.rect((from, top), (to, bottom), color.mix(0.25).filled())?;
            let corners = [(from, top), (to, top), (to, bottom), (from, bottom), (from, top)];
            pen.line(&corners, color, 1.5)?;
        } else {
            pen.rect((from, top), (to, bottom), color.filled())?;
        }
    }
    if let Some((from, to)) = bar.spread {
        let middle = (top + bottom) / 2.0;
        pen.rect((x(from), middle - 1.5), (x(to), middle + 1.5), palette::PAPER.filled())?;
        pen.rect((x(from), middle - 0.75), (x(to), middle + 0.75), palette::INK.filled())?;
    }
    if let Some(floor) = bar.floor {
        // Dark with a light edge: to be seen on the bar as beside it.
        pen.rect((x(floor) - 2.5, top - 2.0), (x(floor) + 2.5, bottom + 2.0), palette::PAPER.filled())?;
        pen.rect((x(floor) - 1.25, top - 2.0), (x(floor) + 1.25, bottom + 2.0), palette::INK.filled())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::canvas::{to_png, to_svg};

    fn bar(label: &str) -> Bar {
        Bar { label: label.into(), value: Some(2.0), note: "2.00 ms".into(), floor: Some(1.0), ..Bar::default() }
    }

    #[test]
    fn every_bar_its_note_its_floor_and_its_spread_are_drawn() {
        let one = Bar { spread: Some((1.9, 2.2)), ..bar("one") };
        let two = Bar { less_work: true, ..bar("two") };
        let frame = Frame { title: "Forward".into(), legend: "tick: floor".into(), ..Frame::default() };
        let chart = Bars { frame, groups: vec![("B = 64".into(), vec![one, two])] };
        let svg = to_svg(&chart).unwrap();
        for text in ["Forward", "B = 64", "one", "two", "2.00 ms", "tick: floor"] {
            assert!(svg.contains(text), "{text}");
        }
        // The ground; of each bar its track, itself and two rectangles for its tick; two more for the spread.
        assert_eq!(svg.matches("<rect").count(), 1 + 2 * 4 + 2, "{svg}");
        assert!(to_png(&chart).unwrap().starts_with(b"\x89PNG"));
    }

    #[test]
    fn a_failed_case_has_its_words_and_no_bar() {
        let failed = Bar { value: None, floor: None, note: "FAILED".into(), ..bar("wrong") };
        let svg = to_svg(&Bars { groups: vec![("g".into(), vec![failed])], ..Bars::default() }).unwrap();
        assert!(svg.contains("FAILED"));
        assert_eq!(svg.matches("<rect").count(), 2, "the ground and the track");
    }

    #[test]
    fn a_label_and_a_note_that_do_not_fit_stand_below_each_other() {
        let long = Bar { note: "a note as long as a whole line of the chart and a little more".into(), ..bar("label") };
        assert!(long.height().unwrap() > bar("label").height().unwrap());
    }
}
