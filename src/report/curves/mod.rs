//! Learning curves of one run, or of several on the same axes, from their metrics alone.
//!
//! On the left the loss, on the right the test accuracy, both by epoch. One run shows its training loss by step as well,
//! and validation where images were held out; of several runs, the colour says which, and dashes mean training.

mod figure;
#[cfg(test)]
mod tests;

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use super::canvas;
use crate::{
    Error, Kind, Result, atomic,
    train::metrics::{Epoch, Event, Start, Step},
};

/// What is drawn of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// Its name in the legend.
    pub label: String,
    /// How it started; none when its metrics were cut.
    pub start: Option<Start>,
    /// Its epochs.
    pub epochs: Vec<Epoch>,
    /// The losses that were looked at inside epochs.
    pub steps: Vec<Step>,
}

impl Run {
    /// The run that these events tell of. Without a `label`, it is called by its implementation, device and precision.
    pub fn new(label: Option<&str>, events: &[Event]) -> Self {
        let mut run = Run { label: String::new(), start: None, epochs: Vec::new(), steps: Vec::new() };
        for event in events {
            match event {
                Event::Start(start) if run.start.is_none() => run.start = Some((**start).clone()),
                Event::Step(step) => run.steps.push(*step),
                Event::Epoch(epoch) => run.epochs.push(epoch.clone()),
                Event::Start(_) | Event::End(_) => {}
            }
        }
        run.label = label.map_or_else(|| run.default_label(), str::to_owned);
        run
    }

    /// Whether there is nothing to draw.
    pub fn is_empty(&self) -> bool {
        self.epochs.is_empty() && self.steps.is_empty()
    }

    fn default_label(&self) -> String {
        match (self.epochs.first(), &self.start) {
            (Some(epoch), _) => format!("{}, {}, {}", epoch.swiglu, epoch.device, epoch.precision),
            (None, Some(start)) => format!("{}, {}", start.configuration.swiglu, start.device),
            (None, None) => "run".to_owned(),
        }
    }
}

/// The curves as the text of an SVG file.
pub fn svg(runs: &[Run]) -> Result<String> {
    canvas::to_svg(&figure::Curves::new(drawable(runs)?))
}

/// The curves as the bytes of a PNG file.
pub fn png(runs: &[Run]) -> Result<Vec<u8>> {
    canvas::to_png(&figure::Curves::new(drawable(runs)?))
}

/// Writes `curves.svg` and `curves.png` into `dir`, in place of earlier ones; returns their paths.
pub fn write(dir: &Path, runs: &[Run]) -> Result<[PathBuf; 2]> {
    let (svg, png) = (svg(runs)?, png(runs)?);
    let paths = [dir.join("curves.svg"), dir.join("curves.png")];
    for (path, bytes) in paths.iter().zip([svg.as_bytes(), &png]) {
        atomic::write_atomic(path, |file| file.write_all(bytes))?;
    }
    Ok(paths)
}

fn drawable(runs: &[Run]) -> Result<&[Run]> {
    if runs.iter().all(Run::is_empty) {
        return Err(Error::new(
            Kind::Data,
            "there are no learning curves to draw: the metrics hold no step and no epoch",
        )
        .hint("train for at least one epoch"));
    }
    Ok(runs)
}
