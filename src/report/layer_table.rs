//! The tables of the layer's microbenchmarks: one a pass, precision and state of the caches.

use super::{
    data::shape,
    table::{Table, ms},
};
use crate::{
    measure::record::Case,
    swiglu::{Gates, liger::LIGER_STYLE},
};

/// The tables of these cases, in the order in which passes come first.
pub fn tables(cases: &[&Case]) -> Vec<Table> {
    let key = |case: &Case| (case.pass, case.device.clone(), case.precision.name(), case.cache);
    let mut keys: Vec<_> = cases.iter().map(|case| key(case)).collect();
    keys.sort();
    keys.dedup();
    keys.into_iter()
        .map(|wanted| table(&cases.iter().copied().filter(|case| key(case) == wanted).collect::<Vec<_>>()))
        .collect()
}

fn table(cases: &[&Case]) -> Table {
    let first = cases[0];
    let title =
        format!("{} ({}, {}, {} cache)", first.pass.title(), first.device, first.precision.name(), first.cache.name());
    let header = [
        "swiglu",
        "gates",
        "B",
        "D",
        "H",
        "median ms",
        "p10",
        "p90",
        "x liger-style",
        "floor ms",
        "% of floor",
        "error",
    ];
    let mut table = Table::new(title, 2, &header);
    for case in cases {
        table.rows.push(row(case, ratio(case, cases)));
    }
    table.notes.push(
        "x liger-style: how many times faster, at the same shape, precision, cache and gradients. % of floor: the least \
         possible time by the time taken."
            .into(),
    );
    table
}

fn row(case: &Case, ratio: Option<f64>) -> Vec<String> {
    let time = |value: Option<f64>| value.map_or_else(|| "-".into(), ms);
    let median = if case.ok { time(case.median_ms) } else { "FAILED".into() };
    vec![
        case.swiglu.clone(),
        gates_name(case.gates).into(),
        case.batch.to_string(),
        case.inputs.to_string(),
        case.hidden.to_string(),
        median,
        time(case.p10_ms),
        time(case.p90_ms),
        ratio.map_or_else(|| "-".into(), |ratio| format!("{ratio:.2}")),
        ms(case.floor_ms),
        case.median_ms.map_or_else(|| "-".into(), |median| format!("{:.0}", 100.0 * case.floor_ms / median)),
        case.rel_err.map_or_else(|| "not finite".into(), |error| format!("{error:.1e}")),
    ]
}

/// How many times faster than `liger-style` on equal work; none without such a case among `cases`.
pub fn ratio(case: &Case, cases: &[&Case]) -> Option<f64> {
    let work = |case: &Case| (shape(case), case.precision, case.pass, case.cache);
    let same =
        |other: &&&Case| other.swiglu == LIGER_STYLE.name && work(other) == work(case) && other.device == case.device;
    Some(cases.iter().find(same)?.median_ms? / case.median_ms?)
}

/// The value of `--gates`.
pub fn gates_name(gates: Gates) -> &'static str {
    match gates {
        Gates::Recompute => "recompute",
        Gates::Save => "save",
        Gates::Auto => "auto",
    }
}
