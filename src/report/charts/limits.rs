//! Rooflines: what each pass achieves against its arithmetic intensity, below the ceilings that were measured.

use super::{Chart, Picture, Section, series};
use plotters::style::RGBColor;

use crate::{
    measure::{
        peers::Timed,
        record::{Case, Peaks},
        work::{Pass, Work},
    },
    report::{
        axis::Axis,
        data::{Data, best_gates, shape, shape_name},
        frame::Frame,
        palette,
        plot::{Mark, Panel, Plot, Series},
    },
    swiglu::{self, Precision, reference::Dims},
};

/// The passes that are drawn, with their marks.
const PASSES: [(Pass, Mark, &str); 3] = [
    (Pass::Forward, Mark::Disc, "forward"),
    (Pass::BackwardDx, Mark::Triangle, "backward, dx"),
    (Pass::Backward, Mark::Square, "backward, dx and dWf"),
];

/// A case on the roofline.
struct Dot<'a> {
    case: &'a Case,
    mark: Mark,
    /// FLOP a byte.
    intensity: f64,
    /// FLOP/s, in 1e12.
    tflops: f64,
}

pub(super) fn charts(data: &Data) -> Vec<Chart> {
    data.settings().iter().filter_map(|(device, precision)| chart(data, device, *precision)).collect()
}

fn intensity(case: &Case) -> f64 {
    let work =
        Work::of(case.pass, Dims { batch: case.batch, inputs: case.inputs, hidden: case.hidden }, case.precision);
    work.flop / work.bytes
}

fn chart(data: &Data, device: &str, precision: Precision) -> Option<Chart> {
    let peaks = data.peaks_of(device, precision)?;
    let mut dots: Vec<Dot<'_>> = Vec::new();
    for (pass, mark, _) in PASSES {
        for case in best_gates(&data.warm(device, precision, pass)) {
            if let Some(tflops) = case.tflops.filter(|_| case.ok) {
                dots.push(Dot { case, mark, intensity: intensity(case), tflops });
            }
        }
    }
    let range = |of: fn(&Dot<'_>) -> f64| {
        let all = || dots.iter().map(of);
        (all().fold(f64::INFINITY, f64::min), all().fold(0.0, f64::max))
    };
    let ((left, right), (low, _)) = (range(|dot| dot.intensity), range(|dot| dot.tflops));
    if dots.is_empty() {
        return None;
    }
    // The ridges are in the picture: where a ceiling bends is what a roofline is about.
    let ridge = |bandwidth: f64| 1e3 * peaks.tflops / bandwidth;
    let bandwidths = [peaks.cache_gbytes_per_s, peaks.memory_gbytes_per_s];
    let from = bandwidths.iter().map(|&b| ridge(b)).fold(left, f64::min) / 2.0;
    let to = bandwidths.iter().map(|&b| ridge(b)).fold(right, f64::max) * 1.5;
    let ceiling = |bandwidth: f64, at: f64| peaks.tflops.min(bandwidth * at / 1e3);
    let bottom = bandwidths.iter().map(|&b| ceiling(b, from)).fold(low, f64::min);
    let roof = |bandwidth: f64, mark, width| Series {
        points: [from, ridge(bandwidth), to].iter().map(|&x| (x, ceiling(bandwidth, x))).collect(),
        color: if mark == Mark::Dashes { palette::MUTED } else { palette::INK },
        mark,
        line: Some(width),
    };
    let mut drawn =
        vec![roof(peaks.memory_gbytes_per_s, Mark::Dashes, 1.5), roof(peaks.cache_gbytes_per_s, Mark::Line, 2.0)];
    drawn.extend(dots.iter().map(|dot| Series {
        points: vec![(dot.intensity, dot.tflops)],
        color: palette::series(series(&dot.case.swiglu)),
        mark: dot.mark,
        line: None,
    }));
    let title = format!("Roofline ({device}, {})", precision.name());
    Some(Chart {
        name: format!("roofline{}", data.suffix(device, precision)),
        section: Section::Limits,
        alt: format!("Scatter plot. {title}: achieved TFLOP/s of {} cases against FLOP a byte, with two ceilings.", dots.len()),
        caption: caption(&dots, peaks),
        picture: Picture::Plot(Plot {
            frame: Frame {
                title,
                subtitle: format!(
                    "median of n >= {} calls with warm caches; each implementation with its faster mode of gates",
                    dots.iter().map(|dot| dot.case.samples).min().unwrap_or(0)
                ),
                legend: "FLOP and bytes that the pass cannot do without, each operand once: recomputing gates earns nothing \
                         here. Implementations that share a kernel lie on each other."
                    .into(),
                source: data.source(|of| {
                    of.is(device, precision) && of.timed != Some(Timed::Epoch) && !of.peer
                }),
            },
            panels: vec![Panel {
                heading: "each pass at each shape".into(),
                x: ("intensity (FLOP a byte, log scale)".into(), Axis::logarithmic(from, to)),
                y: ("achieved TFLOP/s (log scale)".into(), Axis::logarithmic(bottom, peaks.tflops)),
                series: drawn,
            }],
            entries: entries(&dots, peaks),
        }),
    })
}

fn entries(dots: &[Dot<'_>], peaks: &Peaks) -> Vec<(String, RGBColor, Mark)> {
    let mut entries = vec![
        (
            format!("{} TFLOP/s; cache {:.0} GB/s", three(peaks.tflops), peaks.cache_gbytes_per_s),
            palette::INK,
            Mark::Line,
        ),
        (format!("memory {:.0} GB/s", peaks.memory_gbytes_per_s), palette::MUTED, Mark::Dashes),
    ];
    for (_, mark, name) in PASSES {
        if dots.iter().any(|dot| dot.mark == mark) {
            entries.push((name.into(), palette::MUTED, mark));
        }
    }
    for entry in swiglu::ALL {
        if dots.iter().any(|dot| dot.case.swiglu == entry.name) {
            entries.push((entry.name.into(), palette::series(series(entry.name)), Mark::Line));
        }
    }
    entries
}

fn three(value: f64) -> String {
    if value >= 10.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

fn caption(dots: &[Dot<'_>], peaks: &Peaks) -> String {
    let bandwidth = peaks.cache_gbytes_per_s.max(peaks.memory_gbytes_per_s);
    let share = |dot: &&Dot<'_>| dot.tflops / peaks.tflops.min(bandwidth * dot.intensity / 1e3);
    let by = |a: &&Dot<'_>, b: &&Dot<'_>| share(a).total_cmp(&share(b));
    let name =
        |dot: &Dot<'_>| format!("{}, {} at {}", dot.case.swiglu, dot.case.pass.name(), shape_name(shape(dot.case)));
    let ridge = 1e3 * peaks.tflops / bandwidth;
    let bound = dots.iter().filter(|dot| dot.intensity >= ridge).count();
    let mut said = vec![format!(
        "{bound} of {} cases lie right of the bend at {ridge:.0} FLOP a byte, where arithmetic is the limit and not traffic.",
        dots.len()
    )];
    if let (Some(most), Some(least)) = (dots.iter().max_by(by), dots.iter().min_by(by)) {
        said.push(format!(
            "Nearest to its ceiling: {} ({:.0} %); farthest: {} ({:.0} %).",
            name(most),
            100.0 * share(&most),
            name(least),
            100.0 * share(&least)
        ));
    }
    said.join(" ")
}
