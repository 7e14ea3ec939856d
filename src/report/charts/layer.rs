//! Passes of the layer, warm caches: a chart for each pass, device and precision, a group for each shape.

use super::{Chart, Picture, Section, add, alt, join, series};
use crate::{
    measure::{
        peers::{Peer, Timed},
        record::Case,
        work::Pass,
    },
    report::{
        bars::{Bar, Bars},
        data::{Data, best_gates, shape, shape_name},
        frame::Frame,
        layer_table::{gates_name, ratio},
        peer_table::{self, same_pass},
        table::ms,
    },
    swiglu::{Precision, liger::LIGER_STYLE},
};

pub(super) fn charts(data: &Data) -> Vec<Chart> {
    let mut charts = Vec::new();
    for pass in [Pass::Forward, Pass::BackwardDx, Pass::Backward] {
        for (device, precision) in data.settings() {
            charts.extend(chart(data, &device, precision, pass));
        }
    }
    charts
}

fn chart(data: &Data, device: &str, precision: Precision, pass: Pass) -> Option<Chart> {
    let cases = data.warm(device, precision, pass);
    let best = best_gates(&cases);
    let mut groups: Vec<(String, Vec<Bar>)> = Vec::new();
    for case in &best {
        add(&mut groups, shape_name(shape(case)), bar(case, ratio(case, &cases)));
    }
    for peer in data.peers.iter().filter(|peer| cases.iter().any(|case| same_pass(peer, case))) {
        if let Some(bar) = peer_table::bar(peer, peer.median_ms, peer.peer == Peer::Gemm) {
            join(&mut groups, &shape_name((peer.batch, peer.inputs, peer.hidden)), bar);
        }
    }
    if groups.is_empty() {
        return None;
    }
    let pale = groups.iter().flat_map(|(_, bars)| bars).any(|bar| bar.less_work);
    let samples = best.iter().filter(|c| c.ok).map(|c| c.samples).min().unwrap_or(0);
    let title = format!("{} ({device}, {})", pass.title(), precision.name());
    Some(Chart {
        name: format!("{}{}", pass.name(), data.suffix(device, precision)),
        section: Section::Layer,
        alt: alt(&format!("{title}: median times"), &groups),
        caption: caption(&best, &cases),
        picture: Picture::Bars(Bars {
            frame: Frame {
                title,
                subtitle: format!("median time with warm caches, n >= {samples}; thin line: p10 to p90"),
                legend: format!(
                    "Black tick: the floor, max(FLOP / measured peak, bytes / measured bandwidth). In brackets: times \
                     liger-style's speed on equal work. Each group has its own scale.{}",
                    if pale { " Pale: less work, the product alone." } else { "" }
                ),
                source: data.source(|of| {
                    // Ticks are drawn from the peaks.
                    of.is(device, precision) && (of.timed.is_none() || of.timed == Some(Timed::Pass(pass)))
                }),
            },
            groups,
        }),
    })
}

fn bar(case: &Case, speed: Option<f64>) -> Bar {
    let note = match (case.median_ms.filter(|_| case.ok), case.rel_err) {
        (Some(time), _) => format!("{} ms{}", ms(time), speed.map_or(String::new(), |s| format!(" ({s:.2} x)"))),
        (None, Some(error)) => format!("FAILED: error {error:.1e}"),
        (None, None) => "FAILED: not finite".into(),
    };
    Bar {
        label: case_name(case),
        note,
        value: case.median_ms.filter(|_| case.ok),
        series: series(&case.swiglu),
        floor: case.ok.then_some(case.floor_ms),
        spread: case.p10_ms.zip(case.p90_ms).filter(|_| case.ok),
        ..Bar::default()
    }
}

/// The implementation, with its gates where they make a difference: a forward for inference keeps none.
fn case_name(case: &Case) -> String {
    match case.pass {
        Pass::Forward => case.swiglu.clone(),
        _ if case.swiglu == LIGER_STYLE.name => case.swiglu.clone(),
        _ => format!("{}, gates {}", case.swiglu, gates_name(case.gates)),
    }
}

fn caption(best: &[&Case], cases: &[&Case]) -> String {
    let mut said = Vec::new();
    let speeds: Vec<(f64, &Case)> =
        best.iter().filter(|c| c.ok).filter_map(|case| Some((ratio(case, cases)?, *case))).collect();
    match speeds.iter().max_by(|a, b| a.0.total_cmp(&b.0)) {
        Some((speed, case)) if *speed > 1.005 => {
            said.push(format!(
                "Most gained over liger-style: {speed:.2} times, by {} at {}.",
                case_name(case),
                shape_name(shape(case))
            ));
        }
        Some(_) => said.push("Nothing here is faster than liger-style.".into()),
        None => {}
    }
    if let Some((speed, case)) = speeds.iter().min_by(|a, b| a.0.total_cmp(&b.0)).filter(|(speed, _)| *speed < 0.995) {
        said.push(format!("Least: {speed:.2} times, by {} at {}.", case_name(case), shape_name(shape(case))));
    }
    let floors = best.iter().filter_map(|c| Some((c.floor_ms / c.median_ms.filter(|_| c.ok)?, *c)));
    if let Some((share, case)) = floors.max_by(|a, b| a.0.total_cmp(&b.0)) {
        let share = 100.0 * share;
        said.push(format!("Nearest to its floor: {} at {} ({share:.0} %).", case_name(case), shape_name(shape(case))));
    }
    let failed = cases.iter().filter(|case| !case.ok).count();
    if failed > 0 {
        said.push(format!("Wrong, and so without a time: {failed} of {} cases.", cases.len()));
    }
    said.join(" ")
}
