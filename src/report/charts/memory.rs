//! Memory: what a forward keeps for its backward beside what the step then takes, and the peak of a training.

use super::{Chart, Picture, Section, add, alt, bytes, series, training};
use crate::{
    measure::{peers::Timed, record::Case, work::Pass},
    report::{
        bars::{Bar, Bars},
        data::{Data, shape, shape_name},
        frame::Frame,
        layer_table::gates_name,
        table::ms,
        training_table as end,
    },
    swiglu::{Precision, liger::LIGER_STYLE},
};

pub(super) fn charts(data: &Data) -> Vec<Chart> {
    let settings = data.settings();
    let each = |(device, precision): &(String, Precision)| {
        [saved(data, device, *precision), peak(data, device, *precision)].into_iter().flatten().collect::<Vec<_>>()
    };
    settings.iter().flat_map(each).collect()
}

fn name(case: &Case) -> String {
    if case.swiglu == LIGER_STYLE.name {
        case.swiglu.clone()
    } else {
        format!("{}, gates {}", case.swiglu, gates_name(case.gates))
    }
}

/// What is kept, at the shape that keeps most.
fn saved(data: &Data, device: &str, precision: Precision) -> Option<Chart> {
    let cases: Vec<&Case> = data.warm(device, precision, Pass::Step).into_iter().filter(|case| case.ok).collect();
    let largest = shape(cases.iter().max_by_key(|case| case.saved_bytes)?);
    let here: Vec<&Case> = cases.into_iter().filter(|case| shape(case) == largest).collect();
    let bar = |case: &&Case| Bar {
        label: name(case),
        note: format!(
            "{}{}",
            bytes(case.saved_bytes as f64),
            case.median_ms.map_or(String::new(), |time| format!("; {} ms a step", ms(time)))
        ),
        value: Some(case.saved_bytes as f64),
        series: series(&case.swiglu),
        ..Bar::default()
    };
    let groups = vec![(shape_name(largest), here.iter().map(bar).collect::<Vec<_>>())];
    let title = format!("Kept from forward to backward ({device}, {})", precision.name());
    Some(Chart {
        name: format!("saved{}", data.suffix(device, precision)),
        section: Section::Memory,
        alt: alt(&title, &groups),
        caption: saved_caption(&here),
        picture: Picture::Bars(Bars {
            frame: Frame {
                title,
                subtitle: format!(
                    "bytes of one layer; step: forward, dx and dWf, n >= {}",
                    here.iter().map(|case| case.samples).min().unwrap_or(0)
                ),
                legend:
                    "Bytes are counted, not sampled: they have no spread. x and dz are not in them: all need those."
                        .into(),
                source: data
                    .source(|of| of.is(device, precision) && of.timed == Some(Timed::Pass(Pass::Step)) && !of.peer),
            },
            groups,
        }),
    })
}

fn saved_caption(cases: &[&Case]) -> String {
    let time = |case: &Case| case.median_ms.unwrap_or(f64::INFINITY);
    let fastest = |keeps: bool| {
        cases.iter().copied().filter(|c| (c.saved_bytes > 0) == keeps).min_by(|a, b| time(a).total_cmp(&time(b)))
    };
    match (fastest(true), fastest(false)) {
        (Some(keeps), Some(not)) => {
            let share = 100.0 * (time(not) / time(keeps) - 1.0);
            let kept = bytes(keeps.saved_bytes as f64);
            let than = if share < 0.0 { "less" } else { "more" };
            format!(
                "Computing g and u again frees {kept} and takes {:.0} % {than} time: {} {} ms, {} {} ms.",
                share.abs(),
                name(not),
                ms(time(not)),
                name(keeps),
                ms(time(keeps))
            )
        }
        _ => "All that were measured keep the same.".into(),
    }
}

/// The peak of each training.
fn peak(data: &Data, device: &str, precision: Precision) -> Option<Chart> {
    let mut groups: Vec<(String, Vec<Bar>)> = Vec::new();
    let mut all: Vec<(u64, String)> = Vec::new();
    for training in training::of(data, device, precision) {
        let Some(peak) = training.peak_bytes else { continue };
        let config = &training.configuration;
        // Trainings of other shapes are not to be compared: the sentence is about those of the first.
        if groups.is_empty() || groups[0].0 == end::setting_name(config) {
            all.push((peak, training.name()));
        }
        let bar = Bar {
            label: training.name(),
            note: bytes(peak as f64),
            value: Some(peak as f64),
            series: series(&config.swiglu),
            less_work: !training.trains_wf,
            ..Bar::default()
        };
        add(&mut groups, end::setting_name(config), bar);
    }
    let (least, most) = (all.iter().min()?, all.iter().max()?);
    let title = format!("Peak memory of a training ({device}, {})", precision.name());
    Some(Chart {
        name: format!("peak{}", data.suffix(device, precision)),
        section: Section::Memory,
        alt: alt(&title, &groups),
        caption: format!(
            "Least: {} ({}); most: {} ({}).",
            least.1,
            bytes(least.0 as f64),
            most.1,
            bytes(most.0 as f64)
        ),
        picture: Picture::Bars(Bars {
            frame: Frame {
                title,
                subtitle: "growth up to the peak over the first epoch, data set included; n = 1".into(),
                legend: "Pale: Wf does not learn, and needs no gradient and no momentum.".into(),
                source: training::source(data, device, precision),
            },
            groups,
        }),
    })
}
