//! The charts of a report, each made from the records alone: what it shows, of what, and what to see in it.

mod curves;
mod layer;
mod limits;
mod memory;
mod mistakes;
mod speedup;
mod training;

use plotters::{coord::Shift, prelude::*};

use super::{
    bars::{Bar, Bars},
    canvas::Figure,
    data::Data,
    frame::Frame,
    mistakes::{Digits, Matrix},
    plot::Plot,
};
use crate::{Result, swiglu};

/// Where in a report a chart stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// What makes it fast.
    Speedup,
    /// The whole network.
    Training,
    /// The layer alone.
    Layer,
    /// What the machine allows.
    Limits,
    /// What is kept and held.
    Memory,
    /// What is misread.
    Mistakes,
}

impl Section {
    /// In the order of the report.
    pub const ALL: [Section; 6] =
        [Section::Speedup, Section::Training, Section::Layer, Section::Limits, Section::Memory, Section::Mistakes];

    /// Its heading.
    pub fn title(self) -> &'static str {
        match self {
            Section::Speedup => "Where the speedup comes from",
            Section::Training => "Training",
            Section::Layer => "The layer alone",
            Section::Limits => "What the machine allows",
            Section::Memory => "Memory",
            Section::Mistakes => "What it gets wrong",
        }
    }

    /// Its anchor.
    pub fn id(self) -> &'static str {
        match self {
            Section::Speedup => "speedup",
            Section::Training => "training",
            Section::Layer => "layer",
            Section::Limits => "limits",
            Section::Memory => "memory",
            Section::Mistakes => "mistakes",
        }
    }
}

/// What is drawn.
#[derive(Clone, Debug, PartialEq)]
pub enum Picture {
    /// Bars.
    Bars(Bars),
    /// Lines and points.
    Plot(Plot),
    /// Digits.
    Digits(Digits),
    /// A confusion matrix.
    Matrix(Matrix),
}

impl Figure for Picture {
    fn size(&self) -> Result<(u32, u32)> {
        match self {
            Picture::Bars(bars) => bars.size(),
            Picture::Plot(plot) => plot.size(),
            Picture::Digits(digits) => digits.size(),
            Picture::Matrix(matrix) => matrix.size(),
        }
    }

    fn draw<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>, scale: f64) -> Result<()> {
        match self {
            Picture::Bars(bars) => bars.draw(area, scale),
            Picture::Plot(plot) => plot.draw(area, scale),
            Picture::Digits(digits) => digits.draw(area, scale),
            Picture::Matrix(matrix) => matrix.draw(area, scale),
        }
    }
}

impl Picture {
    /// The words around it.
    pub fn frame(&self) -> &Frame {
        match self {
            Picture::Bars(bars) => &bars.frame,
            Picture::Plot(plot) => &plot.frame,
            Picture::Digits(digits) => &digits.frame,
            Picture::Matrix(matrix) => &matrix.frame,
        }
    }
}

/// A chart with its file name and what to see in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Chart {
    /// Name of the files, without extension.
    pub name: String,
    /// Where it stands.
    pub section: Section,
    /// The picture.
    pub picture: Picture,
    /// What to see in it, from the numbers.
    pub caption: String,
    /// What is drawn, for those who cannot see it; what to see in it is the caption.
    pub alt: String,
}

/// Every chart that the records have something for, in the order of the report.
pub fn all(data: &Data) -> Vec<Chart> {
    let mut charts = speedup::charts(data);
    charts.extend(training::charts(data));
    charts.extend(curves::charts(data));
    charts.extend(layer::charts(data));
    charts.extend(limits::charts(data));
    charts.extend(memory::charts(data));
    charts.extend(mistakes::charts(data));
    charts
}

/// The colour of an implementation: the same in every chart.
fn series(name: &str) -> usize {
    swiglu::ALL.iter().position(|entry| entry.name == name).unwrap_or(swiglu::ALL.len())
}

/// Puts a bar under its heading; headings stand in the order in which they come first.
fn add(groups: &mut Vec<(String, Vec<Bar>)>, heading: String, bar: Bar) {
    match groups.iter_mut().find(|(name, _)| *name == heading) {
        Some((_, bars)) => bars.push(bar),
        None => groups.push((heading, vec![bar])),
    }
}

/// Puts a bar under a heading that is there already.
fn join(groups: &mut [(String, Vec<Bar>)], heading: &str, bar: Bar) {
    if let Some((_, bars)) = groups.iter_mut().find(|(name, _)| name == heading) {
        bars.push(bar);
    }
}

/// What bars show, in words.
fn alt(what: &str, groups: &[(String, Vec<Bar>)]) -> String {
    let bars: usize = groups.iter().map(|(_, bars)| bars.len()).sum();
    let headings: Vec<&str> = groups.iter().map(|(heading, _)| heading.as_str()).collect();
    match headings.as_slice() {
        // A few bars are told one by one; many are in the table.
        _ if bars <= 8 => {
            let group = |(heading, bars): &(String, Vec<Bar>)| {
                let bars: Vec<String> = bars.iter().map(|bar| format!("{} {}", bar.label, bar.note)).collect();
                format!("{heading}: {}", bars.join(", "))
            };
            format!("Bar chart. {what}. {}.", groups.iter().map(group).collect::<Vec<_>>().join(". "))
        }
        headings => format!("Bar chart. {what}: {bars} bars in {} groups ({}).", headings.len(), headings.join("; ")),
    }
}

/// `a`, `a and b`, `a, b and c`.
pub(super) fn joined(words: &[String]) -> String {
    match words.split_last() {
        None => String::new(),
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
    }
}

/// A time in seconds with as many digits as count.
fn seconds(value: f64) -> String {
    if value < 0.995 { format!("{:.0} ms", value * 1e3) } else { format!("{value:.1} s") }
}

/// Bytes in the unit that reads best.
pub(super) fn bytes(value: f64) -> String {
    match value {
        ..1024.0 => format!("{value:.0} bytes"),
        ..1_048_576.0 => format!("{:.0} KiB", value / 1024.0),
        ..10_485_760.0 => format!("{:.1} MiB", value / 1_048_576.0),
        _ => format!("{:.0} MiB", value / 1_048_576.0),
    }
}
