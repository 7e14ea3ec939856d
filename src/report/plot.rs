//! Panels of lines and points with axes, one below the other, and a legend.

use plotters::{coord::Shift, prelude::*, style::text_anchor::HPos};

use super::{
    axis::{Axis, mesh},
    canvas::{Pen, drawing, text_width},
    frame::{Frame, Framed, LABEL, MARGIN, SMALL, WIDTH},
    palette,
};
use crate::Result;

const HEADING: f64 = 24.0;
const PANEL: f64 = 270.0;
const ENTRY: f64 = 20.0;
const SWATCH: f64 = 26.0;

/// The form of a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// A disc.
    Disc,
    /// A triangle.
    Triangle,
    /// A square.
    Square,
    /// A thick line: no point at all.
    Line,
    /// A dashed line.
    Dashes,
}

/// Points, joined or not.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// In the units of the axes' values.
    pub points: Vec<(f64, f64)>,
    /// Of line and points.
    pub color: RGBColor,
    /// The form of its points.
    pub mark: Mark,
    /// Width of the line; none leaves the points alone.
    pub line: Option<f64>,
}

/// A pair of axes with what is drawn on them.
#[derive(Clone, Debug, PartialEq)]
pub struct Panel {
    /// What it shows.
    pub heading: String,
    /// Name with unit, and axis.
    pub x: (String, Axis),
    /// Name with unit, and axis.
    pub y: (String, Axis),
    /// Those that come later lie above.
    pub series: Vec<Series>,
}

/// A chart of panels.
#[derive(Clone, Debug, PartialEq)]
pub struct Plot {
    /// Title, legend, source.
    pub frame: Frame,
    /// From top to bottom.
    pub panels: Vec<Panel>,
    /// Words with their colour and mark.
    pub entries: Vec<(String, RGBColor, Mark)>,
}

impl Plot {
    /// The entries in rows that fit, each with its offset.
    fn rows(&self) -> Result<Vec<Vec<(f64, usize)>>> {
        let mut rows: Vec<Vec<(f64, usize)>> = Vec::new();
        let mut used = f64::INFINITY;
        for (index, (words, ..)) in self.entries.iter().enumerate() {
            let width = SWATCH + text_width(words, SMALL)? + 14.0;
            if used + width > WIDTH - MARGIN {
                rows.push(Vec::new());
                used = MARGIN;
            }
            if let Some(row) = rows.last_mut() {
                row.push((used, index));
            }
            used += width;
        }
        Ok(rows)
    }
}

impl Framed for Plot {
    fn frame(&self) -> &Frame {
        &self.frame
    }

    fn body(&self) -> Result<f64> {
        Ok((HEADING + PANEL) * self.panels.len() as f64 + 8.0 + ENTRY * self.rows()?.len() as f64)
    }

    fn draw_body<DB: DrawingBackend>(&self, pen: &Pen<'_, DB>, top: f64) -> Result<()> {
        let (mut y, area, scale) = (top, pen.area, pen.scale);
        for panel in &self.panels {
            pen.text(&panel.heading, LABEL, palette::MUTED, HPos::Left, (MARGIN, y + HEADING / 2.0))?;
            y += HEADING;
            let (_, below) = area.split_vertically((y * scale) as i32);
            let (place, _) = below.split_vertically((PANEL * scale) as i32);
            draw_panel(&place, scale, panel)?;
            y += PANEL;
        }
        y += 8.0;
        for row in self.rows()? {
            for (x, index) in row {
                let (words, color, mark) = &self.entries[index];
                let middle = y + ENTRY / 2.0;
                draw_swatch(pen, (x, middle), *color, *mark)?;
                pen.text(words, SMALL, palette::INK, HPos::Left, (x + SWATCH, middle))?;
            }
            y += ENTRY;
        }
        Ok(())
    }
}

fn draw_swatch<DB: DrawingBackend>(pen: &Pen<'_, DB>, (x, y): (f64, f64), color: RGBColor, mark: Mark) -> Result<()> {
    match mark {
        Mark::Line => pen.line(&[(x, y), (x + SWATCH - 8.0, y)], color, 3.0),
        Mark::Dashes => {
            [0.0, 7.0, 14.0].iter().try_for_each(|&dx| pen.line(&[(x + dx, y), (x + dx + 4.0, y)], color, 2.0))
        }
        _ => draw_mark(pen.area, pen.at((x + (SWATCH - 8.0) / 2.0, y)), color, mark, pen.scale),
    }
}

fn draw_mark<DB: DrawingBackend>(
    area: &DrawingArea<DB, Shift>,
    (x, y): (i32, i32),
    color: RGBColor,
    mark: Mark,
    scale: f64,
) -> Result<()> {
    let radius = (4.0 * scale) as i32;
    let drawn = match mark {
        Mark::Disc => area.draw(&Circle::new((x, y), radius, color.filled())),
        Mark::Triangle => area.draw(&TriangleMarker::new((x, y), radius + radius / 4, color.filled())),
        Mark::Square => {
            let r = radius - radius / 8;
            area.draw(&Rectangle::new([(x - r, y - r), (x + r, y + r)], color.filled()))
        }
        Mark::Line | Mark::Dashes => Ok(()),
    };
    drawn.map_err(drawing)
}

fn draw_panel<DB: DrawingBackend>(area: &DrawingArea<DB, Shift>, scale: f64, panel: &Panel) -> Result<()> {
    let px = |units: f64| (units * scale) as i32;
    let ((x_name, x), (y_name, y)) = (&panel.x, &panel.y);
    let mut chart = ChartBuilder::on(area)
        .margin_right(px(MARGIN + 4.0))
        .margin_left(px(8.0))
        .margin_top(px(6.0))
        .x_label_area_size(px(44.0))
        .y_label_area_size(px(66.0))
        .build_cartesian_2d(x.clone(), y.clone())
        .map_err(drawing)?;
    mesh(&mut chart, (x_name, x), (y_name, y), LABEL, scale)?;
    for series in &panel.series {
        let places: Vec<(f64, f64)> = series.points.iter().map(|&(a, b)| (x.place(a), y.place(b))).collect();
        let places: Vec<(f64, f64)> = places.into_iter().filter(|(a, b)| a.is_finite() && b.is_finite()).collect();
        if let Some(width) = series.line {
            let style = series.color.stroke_width((width * scale).round() as u32);
            if series.mark == Mark::Dashes {
                let dashes = DashedLineSeries::new(places.clone(), px(6.0), px(5.0), style);
                chart.draw_series(dashes).map_err(drawing)?;
            } else {
                chart.draw_series(LineSeries::new(places.clone(), style)).map_err(drawing)?;
            }
        }
        for place in places {
            draw_mark(area, corner(area, chart.backend_coord(&place)), series.color, series.mark, scale)?;
        }
    }
    Ok(())
}

/// A pixel of the whole picture as one of `area`.
fn corner<DB: DrawingBackend>(area: &DrawingArea<DB, Shift>, (x, y): (i32, i32)) -> (i32, i32) {
    let (left, top) = area.get_base_pixel();
    (x - left, y - top)
}
