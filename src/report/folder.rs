//! A report from records alone: `index.html` (one file, light and dark, no network), `report.md`, `results.csv`,
//! `results.json`, and each chart as SVG and PNG.

use std::{io::Write, path::Path};

use super::{
    canvas,
    charts::{self, Chart},
    choices, csv,
    data::Data,
    layer_table, layout_table,
    page::Parts,
    peer_table, speedup_table, training_table,
};
use crate::{
    Error, Kind, Result, atomic,
    measure::{
        peers::PeerCase,
        record::{Case, Origin, Records, Training},
    },
};

/// Writes the report on `records` into `folder`, whose other files stay as they are.
///
/// # Errors
/// When the folder cannot be written.
pub fn write(records: &Records, folder: &Path) -> Result<()> {
    let hint = "give a folder that you may write to with --out";
    std::fs::create_dir_all(folder).map_err(|e| Error::io("make the folder", folder, e).hint(hint))?;
    let put = |name: &str, bytes: &[u8]| atomic::write_atomic(&folder.join(name), |file| file.write_all(bytes));
    let parts = parts(records)?;
    for (chart, svg) in &parts.charts {
        put(&format!("{}.svg", chart.name), svg.as_bytes())?;
        put(&format!("{}.png", chart.name), &canvas::to_png(&chart.picture)?)?;
    }
    let json = serde_json::to_string_pretty(&records.lines)
        .map_err(|e| Error::new(Kind::Io, "cannot write the records as JSON").because(e))?;
    put("results.json", json.as_bytes())?;
    put("results.csv", csv::text(&records.lines)?.as_bytes())?;
    put("report.md", parts.markdown().as_bytes())?;
    // Last: who finds the page finds all that it tells of.
    put("index.html", parts.html().as_bytes())
}

/// What is in the report on `records`.
///
/// # Errors
/// When a chart cannot be drawn.
pub fn parts(records: &Records) -> Result<Parts> {
    let data = Data::of(records);
    let cases: Vec<&Case> = data.cases.iter().collect();
    let trainings: Vec<&Training> = data.trainings.iter().collect();
    let peers: Vec<&PeerCase> = data.peers.iter().collect();
    let mut tables: Vec<_> = speedup_table::table(&data).into_iter().collect();
    if !trainings.is_empty() {
        tables.push(training_table::table(&trainings));
    }
    tables.push(layout_table::table());
    tables.extend(layer_table::tables(&cases));
    tables.extend(peer_table::tables(&peers, &cases, &trainings));
    let charts = charts::all(&data)
        .into_iter()
        .map(|chart: Chart| canvas::to_svg(&chart.picture).map(|svg| (chart, svg)))
        .collect::<Result<_>>()?;
    let failed = cases.iter().filter(|case| !case.ok).count();
    let warnings = match failed {
        0 => Vec::new(),
        _ => vec![format!(
            "FAILED: {failed} of {} cases have an error above their bound. They are shown without a time.",
            cases.len()
        )],
    };
    let mut origins: Vec<String> = data.origins.iter().map(origin).collect();
    origins.extend(records.left_out());
    Ok(Parts {
        title: "SwiGLU: what each implementation costs and buys".into(),
        subtitle: subtitle(&data),
        warnings,
        origins,
        sentences: choices::sentences(&cases, &trainings),
        charts,
        tables,
    })
}

/// Machines, days, how much.
fn subtitle(data: &Data) -> String {
    let mut machines: Vec<&str> = Vec::new();
    let mut days: Vec<&str> = Vec::new();
    for origin in &data.origins {
        let day = origin.time.split('T').next().unwrap_or_default();
        if !machines.contains(&origin.model.as_str()) {
            machines.push(&origin.model);
        }
        if !days.contains(&day) {
            days.push(day);
        }
    }
    days.sort_unstable();
    let days = match days.as_slice() {
        [] => String::new(),
        [day] => (*day).to_owned(),
        [first, .., last] => format!("{first} to {last}"),
    };
    let peers = if data.peers.is_empty() { String::new() } else { format!(", {} cases of peers", data.peers.len()) };
    format!(
        "Measured on {}, {days}: {} cases of the layer, {} trainings of MNIST{peers}.",
        machines.join(" and "),
        data.cases.len(),
        data.trainings.len()
    )
}

fn origin(o: &Origin) -> String {
    let threads = if o.threads > 0 { format!(", {} threads", o.threads) } else { String::new() };
    let driver = o.driver.as_ref().map_or(String::new(), |driver| format!(", {driver}"));
    format!("{}{threads}, {}{driver}, mnist-swiglu {}, commit {}, {}", o.model, o.system, o.version, o.commit, o.time)
}
