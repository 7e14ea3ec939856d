//! The picture: a title, two panels, a legend below them that no line can run through.

use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use super::Run;
use crate::{
    Result,
    report::{
        axis::{Axis, mesh},
        canvas::{Figure, drawing, text},
        palette,
    },
    train::metrics::Epoch,
};

const WIDTH: u32 = 1120;
const HEADER: u32 = 66;
const PANELS: u32 = 384;
const LEGEND_ROW: u32 = 24;
/// Above this many epochs, dots would hide the line.
const MOST_DOTS: usize = 40;

/// How a curve is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Pen {
    /// A line with a dot at each epoch.
    Solid,
    /// Dashes with a dot at each epoch.
    Dashed,
    /// A thin pale line: losses of single steps.
    Thin,
}

/// (x, y) in epochs and the unit of the panel; y may be no number, which leaves a gap.
struct Curve {
    points: Vec<(f64, f64)>,
    color: RGBColor,
    pen: Pen,
}

struct Entry {
    label: String,
    color: RGBColor,
    pen: Pen,
}

/// The curves of some runs.
pub(super) struct Curves {
    title: String,
    subtitle: String,
    losses: Vec<Curve>,
    accuracies: Vec<Curve>,
    legend: Vec<Entry>,
    last_epoch: f64,
}

impl Curves {
    pub fn new(runs: &[Run]) -> Self {
        let last_epoch = runs.iter().flat_map(|run| {
            let epochs = run.epochs.iter().map(|epoch| epoch.epoch);
            epochs.chain(run.steps.iter().map(|step| step.epoch))
        });
        let mut curves = Curves {
            title: String::new(),
            subtitle: String::new(),
            losses: Vec::new(),
            accuracies: Vec::new(),
            legend: Vec::new(),
            last_epoch: f64::from(last_epoch.max().unwrap_or(1)),
        };
        match runs {
            [run] => curves.one(run),
            _ => curves.several(runs),
        }
        let hidden = curves
            .losses
            .iter()
            .chain(&curves.accuracies)
            .flat_map(|curve| &curve.points)
            .filter(|(_, y)| !y.is_finite())
            .count();
        if hidden > 0 {
            let note = format!("; values that are not finite and leave gaps: {hidden}");
            curves.subtitle.push_str(&note);
        }
        curves
    }

    fn one(&mut self, run: &Run) {
        self.title = run.label.clone();
        self.subtitle = subtitle(run);
        let by = |value: fn(&Epoch) -> Option<f64>| by_epoch(run, value);
        if let Some(start) = run.start.as_ref().filter(|_| !run.steps.is_empty()) {
            let steps = start.steps_per_epoch.max(1) as f64;
            let points = run.steps.iter().map(|step| {
                let x = f64::from(step.epoch) - 1.0 + step.step as f64 / steps;
                (x, f64::from(step.loss))
            });
            self.loss("train, single steps", points.collect(), palette::series(5), Pen::Thin);
        }
        self.loss("train, mean over the epoch", by(|e| Some(e.train_loss)), palette::BLUE, Pen::Dashed);
        if run.epochs.iter().any(|epoch| epoch.valid_loss.is_some() || epoch.valid_accuracy.is_some()) {
            self.loss("validation", by(|e| e.valid_loss), palette::GREEN, Pen::Solid);
            self.accuracy(by(|e| percent(e.valid_accuracy)), palette::GREEN, Pen::Solid);
        }
        self.loss("test", by(|e| Some(e.test_loss)), palette::VERMILION, Pen::Solid);
        self.accuracy(by(|e| percent(Some(e.test_accuracy))), palette::VERMILION, Pen::Solid);
    }

    fn several(&mut self, runs: &[Run]) {
        self.title = format!("{} runs compared", runs.len());
        self.subtitle = "solid: test; dashed: train, mean over the epoch".into();
        for (index, run) in runs.iter().enumerate() {
            let color = palette::series(index);
            let train = by_epoch(run, |e| Some(e.train_loss));
            self.losses.push(Curve { points: train, color, pen: Pen::Dashed });
            self.loss(&run.label, by_epoch(run, |e| Some(e.test_loss)), color, Pen::Solid);
            self.accuracy(by_epoch(run, |e| percent(Some(e.test_accuracy))), color, Pen::Solid);
        }
    }

    fn loss(&mut self, label: &str, points: Vec<(f64, f64)>, color: RGBColor, pen: Pen) {
        if !points.is_empty() {
            self.losses.push(Curve { points, color, pen });
            self.legend.push(Entry { label: label.into(), color, pen });
        }
    }

    fn accuracy(&mut self, points: Vec<(f64, f64)>, color: RGBColor, pen: Pen) {
        self.accuracies.push(Curve { points, color, pen });
    }

    /// The entries of the legend in rows that fit the picture; widths are of text at scale 1.
    fn legend_rows(&self) -> Vec<Vec<(&Entry, f64)>> {
        let mut rows: Vec<Vec<(&Entry, f64)>> = vec![Vec::new()];
        let mut used = 0.0;
        for entry in &self.legend {
            let width = SWATCH + text_width(&entry.label) + GAP;
            if used + width > f64::from(WIDTH) - 2.0 * GAP && used > 0.0 {
                rows.push(Vec::new());
                used = 0.0;
            }
            used += width;
            if let Some(row) = rows.last_mut() {
                row.push((entry, width));
            }
        }
        rows
    }

    fn draw_legend<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>, scale: f64) -> Result<()> {
        for (index, row) in self.legend_rows().into_iter().enumerate() {
            let total: f64 = row.iter().map(|(_, width)| width).sum::<f64>() - GAP;
            let mut x = (f64::from(WIDTH) - total) / 2.0;
            let y = (6.0 + f64::from(LEGEND_ROW) * (index as f64 + 0.5)) * scale;
            for (entry, width) in row {
                let at = |dx: f64| (((x + dx) * scale) as i32, y as i32);
                let line = [at(0.0), at(SWATCH - 8.0)];
                let style = stroke(entry.pen, entry.color, scale);
                if entry.pen == Pen::Dashed {
                    let third = (SWATCH - 8.0) / 5.0;
                    for part in [0.0, 2.0, 4.0] {
                        let dash = vec![at(part * third), at((part + 1.0) * third)];
                        area.draw(&PathElement::new(dash, style)).map_err(drawing)?;
                    }
                } else {
                    area.draw(&PathElement::new(line.to_vec(), style)).map_err(drawing)?;
                }
                if entry.pen != Pen::Thin {
                    // A run of one epoch is all dots.
                    let radius = (3.5 * scale) as i32;
                    let dot = Circle::new(at((SWATCH - 8.0) / 2.0), radius, entry.color.filled());
                    area.draw(&dot).map_err(drawing)?;
                }
                let label = text(LABEL, scale).pos(Pos::new(HPos::Left, VPos::Center));
                area.draw(&Text::new(entry.label.clone(), at(SWATCH), label)).map_err(drawing)?;
                x += width;
            }
        }
        Ok(())
    }
}

const LABEL: f64 = 16.0;
const SWATCH: f64 = 38.0;
const GAP: f64 = 28.0;

impl Figure for Curves {
    fn size(&self) -> Result<(u32, u32)> {
        let legend = self.legend_rows().len() as u32 * LEGEND_ROW + 18;
        Ok((WIDTH, HEADER + PANELS + legend))
    }

    fn draw<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>, scale: f64) -> Result<()> {
        let px = |units: u32| (f64::from(units) * scale) as i32;
        let (header, rest) = area.split_vertically(px(HEADER));
        let (panels, legend) = rest.split_vertically(px(PANELS));
        let center = |size| text(size, scale).pos(Pos::new(HPos::Center, VPos::Center));
        for (line, size, y, color) in
            [(&self.title, 22.0, 24, palette::INK), (&self.subtitle, 15.0, 50, palette::MUTED)]
        {
            let style = center(size).color(&color);
            header.draw(&Text::new(line.clone(), (px(WIDTH) / 2, px(y)), style)).map_err(drawing)?;
        }
        let (left, right) = panels.split_horizontally(px(WIDTH / 2));
        let values =
            |curves: &[Curve]| -> Vec<f64> { curves.iter().flat_map(|curve| &curve.points).map(|(_, y)| *y).collect() };
        let steps = self.losses.iter().any(|curve| curve.pen == Pen::Thin);
        let loss = Axis::loss(values(&self.losses).into_iter());
        let name = if loss.logarithmic {
            "cross-entropy (nats per image, log scale)"
        } else {
            "cross-entropy (nats per image)"
        };
        draw_panel(&left, scale, name, &Axis::epochs(self.last_epoch, steps), &loss, &self.losses)?;
        let percent = Axis::percent(values(&self.accuracies).into_iter());
        let name = "images classified right (%)";
        draw_panel(&right, scale, name, &Axis::epochs(self.last_epoch, false), &percent, &self.accuracies)?;
        self.draw_legend(&legend, scale)
    }
}

fn draw_panel<DB: DrawingBackend>(
    area: &DrawingArea<DB, Shift>,
    scale: f64,
    name: &str,
    x: &Axis,
    y: &Axis,
    curves: &[Curve],
) -> Result<()> {
    let px = |units: f64| (units * scale) as i32;
    let mut chart = ChartBuilder::on(area)
        .margin_right(px(22.0))
        .margin_left(px(10.0))
        .margin_top(px(8.0))
        .x_label_area_size(px(48.0))
        .y_label_area_size(px(68.0))
        .build_cartesian_2d(x.clone(), y.clone())
        .map_err(drawing)?;
    mesh(&mut chart, ("epoch", x), (name, y), LABEL, scale)?;
    for curve in curves {
        let style = stroke(curve.pen, curve.color, scale);
        for run in segments(curve, y) {
            if run.len() > 1 && curve.pen == Pen::Dashed {
                let dashes = DashedLineSeries::new(run.clone(), px(7.0), px(5.0), style);
                chart.draw_series(dashes).map_err(drawing)?;
            } else if run.len() > 1 {
                chart.draw_series(LineSeries::new(run.clone(), style)).map_err(drawing)?;
            }
            let alone = run.len() == 1;
            if alone || (curve.pen != Pen::Thin && curve.points.len() <= MOST_DOTS) {
                let radius = if curve.pen == Pen::Thin { 2.0 } else { 3.5 };
                let dots = run.iter().map(|at| Circle::new(*at, px(radius), curve.color.filled()));
                chart.draw_series(dots).map_err(drawing)?;
            }
        }
    }
    Ok(())
}

/// The curve on the axis, cut where a value cannot be drawn.
fn segments(curve: &Curve, y: &Axis) -> Vec<Vec<(f64, f64)>> {
    curve
        .points
        .split(|(_, value)| !y.place(*value).is_finite())
        .filter(|run| !run.is_empty())
        .map(|run| run.iter().map(|(x, value)| (*x, y.place(*value))).collect())
        .collect()
}

fn stroke(pen: Pen, color: RGBColor, scale: f64) -> ShapeStyle {
    let width = if pen == Pen::Thin { 1.0 } else { 2.0 };
    color.stroke_width((width * scale) as u32)
}

fn by_epoch(run: &Run, value: impl Fn(&Epoch) -> Option<f64>) -> Vec<(f64, f64)> {
    run.epochs.iter().filter_map(|epoch| Some((f64::from(epoch.epoch), value(epoch)?))).collect()
}

fn percent(share: Option<f64>) -> Option<f64> {
    share.map(|share| 100.0 * share)
}

/// The width of a label, generously: the fallback fonts of SVG viewers differ.
fn text_width(label: &str) -> f64 {
    0.47 * LABEL * label.chars().count() as f64
}

/// The network, the optimiser and the result of a run.
fn subtitle(run: &Run) -> String {
    let mut parts = Vec::new();
    if let Some(start) = &run.start {
        let config = &start.configuration;
        let network = &config.network;
        let layers = format!(" → SwiGLU {}", network.hidden).repeat(network.depth.min(3));
        let more = if network.depth > 3 { format!(" ... (depth {})", network.depth) } else { String::new() };
        parts.push(format!("784 → {}{layers}{more} → 10", network.width));
        parts.push(format!(
            "lr {}, momentum {}, batch {}, seed {}",
            config.lr, config.momentum, config.batch_size, config.seed
        ));
    }
    if let Some(last) = run.epochs.last() {
        parts.push(format!("test accuracy {:.2} % after epoch {}", 100.0 * last.test_accuracy, last.epoch));
    }
    parts.join("; ")
}
