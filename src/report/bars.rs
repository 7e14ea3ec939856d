//! Horizontal bars in groups: a label, the bar, its value beside it; a tick where the floor is; pale where less work was done.

use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use super::{
    canvas::{Figure, drawing, text},
    palette,
};
use crate::Result;

const WIDTH: f64 = 1000.0;
const LABELS: f64 = 250.0;
const VALUES: f64 = 270.0;
const HEADER: f64 = 66.0;
const ROW: f64 = 24.0;
const HEADING: f64 = 34.0;
const FOOTER: f64 = 44.0;

/// One bar.
#[derive(Clone, Debug, PartialEq)]
pub struct Bar {
    /// What it is.
    pub label: String,
    /// How long.
    pub value: f64,
    /// What stands beside it: the value with its unit, and what must be seen with it.
    pub note: String,
    /// Which colour of the palette.
    pub series: usize,
    /// The least that it could be.
    pub floor: Option<f64>,
    /// It does less work than the others: pale, with an outline.
    pub less_work: bool,
}

/// A chart of bars from zero. Each group has its own scale: shapes differ by more than a chart is wide, and it is within a
/// group that bars are to be compared.
#[derive(Clone, Debug, PartialEq)]
pub struct Bars {
    /// What is shown.
    pub title: String,
    /// Of what, on what, how often measured.
    pub subtitle: String,
    /// What the marks mean.
    pub legend: String,
    /// Headings, each with its bars.
    pub groups: Vec<(String, Vec<Bar>)>,
}

impl Bars {
    fn height(&self) -> f64 {
        let rows: usize = self.groups.iter().map(|(_, bars)| bars.len()).sum();
        HEADER + HEADING * self.groups.len() as f64 + ROW * rows as f64 + FOOTER
    }

    /// The chart in words, for those who cannot see it.
    pub fn alt(&self) -> String {
        let group = |(heading, bars): &(String, Vec<Bar>)| {
            let bars: Vec<String> = bars.iter().map(|bar| format!("{} {}", bar.label, bar.note)).collect();
            format!("{heading}: {}", bars.join(", "))
        };
        format!("{}. {}.", self.title, self.groups.iter().map(group).collect::<Vec<_>>().join(". "))
    }
}

impl Figure for Bars {
    fn size(&self) -> (u32, u32) {
        (WIDTH as u32, self.height() as u32)
    }

    fn draw<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>, scale: f64) -> Result<()> {
        let at = |x: f64, y: f64| ((x * scale).round() as i32, (y * scale).round() as i32);
        let write = |words: &str, size: f64, color: RGBColor, align: HPos, x: f64, y: f64| {
            let style = text(size, scale).color(&color).pos(Pos::new(align, VPos::Center));
            area.draw(&Text::new(words.to_string(), at(x, y), style)).map_err(drawing)
        };
        let bar = |from: (f64, f64), to: (f64, f64), style: ShapeStyle| {
            area.draw(&Rectangle::new([at(from.0, from.1), at(to.0, to.1)], style)).map_err(drawing)
        };
        write(&self.title, 19.0, palette::INK, HPos::Center, WIDTH / 2.0, 22.0)?;
        write(&self.subtitle, 13.0, palette::MUTED, HPos::Center, WIDTH / 2.0, 46.0)?;

        let room = WIDTH - LABELS - VALUES;
        let mut y = HEADER;
        for (heading, bars) in &self.groups {
            write(heading, 14.0, palette::INK, HPos::Left, 16.0, y + HEADING * 0.6)?;
            y += HEADING;
            let reach = |bar: &Bar| bar.value.max(bar.floor.unwrap_or(0.0));
            let longest = bars.iter().map(reach).fold(f64::MIN_POSITIVE, f64::max);
            for one in bars {
                let (middle, end) = (y + ROW / 2.0, LABELS + room * one.value / longest);
                write(&one.label, 13.0, palette::INK, HPos::Right, LABELS - 10.0, middle)?;
                let color = palette::series(one.series);
                let fill = if one.less_work { color.mix(0.25).filled() } else { color.filled() };
                bar((LABELS, y + 4.0), (end, y + ROW - 4.0), fill)?;
                if one.less_work {
                    bar((LABELS, y + 4.0), (end, y + ROW - 4.0), color.stroke_width(scale.ceil() as u32))?;
                }
                if let Some(floor) = one.floor {
                    let x = LABELS + room * floor / longest;
                    // Dark with a light edge: to be seen on the bar as beside it.
                    bar((x - 2.0, y + 1.0), (x + 2.0, y + ROW - 1.0), WHITE.filled())?;
                    bar((x - 1.0, y + 1.0), (x + 1.0, y + ROW - 1.0), palette::INK.filled())?;
                }
                write(&one.note, 13.0, palette::INK, HPos::Left, end.max(LABELS) + 8.0, middle)?;
                y += ROW;
            }
        }
        write(&self.legend, 12.0, palette::MUTED, HPos::Left, 16.0, y + FOOTER / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::canvas::{to_png, to_svg};

    #[test]
    fn every_bar_its_note_and_its_floor_are_drawn() {
        let bar = |label: &str, less_work| Bar {
            label: label.into(),
            value: 2.0,
            note: "2.00 ms".into(),
            series: 0,
            floor: Some(1.0),
            less_work,
        };
        let chart = Bars {
            title: "Forward".into(),
            subtitle: "cpu".into(),
            legend: "tick: floor".into(),
            groups: vec![("B = 64".into(), vec![bar("one", false), bar("two", true)])],
        };
        let svg = to_svg(&chart).unwrap();
        for text in ["Forward", "B = 64", "one", "two", "2.00 ms", "tick: floor"] {
            assert!(svg.contains(text), "{text}");
        }
        // The ground, two bars, an outline, and two rectangles for each tick.
        assert_eq!(svg.matches("<rect").count(), 1 + 2 + 1 + 4, "{svg}");
        assert!(to_png(&chart).unwrap().starts_with(b"\x89PNG"));
        assert_eq!(chart.alt(), "Forward. B = 64: one 2.00 ms, two 2.00 ms.");
    }
}
