//! A report from records alone: `index.html` (one file, light and dark, no network), `report.md`, `results.json`, and each
//! chart as SVG and PNG.

use std::{io::Write, path::Path};

use super::{
    canvas,
    charts::{self, Chart},
    choices, layer_table, layout_table, peer_table,
    table::{Table, escape},
    training_table,
};
use crate::{
    Error, Kind, Result, atomic,
    measure::{
        peers::PeerCase,
        record::{Case, Record, Records, Training},
    },
};

/// The look of the page: colours of the system's scheme, tables that scroll sideways on a narrow screen.
const STYLE: &str = ":root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:auto;\
padding:1rem}.scroll{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}caption{\
text-align:left;font-weight:600;padding:.5rem 0}th,td{padding:.25rem .6rem;text-align:left;border-bottom:1px solid \
#8886;white-space:nowrap}.n{text-align:right}.note{opacity:.8}figure{margin:1.5rem 0}figure svg{width:100%;height:auto;min-width:44rem;background:#fff;border-radius:6px}\
@media print{.scroll{overflow:visible}table{font-size:8pt}}";

/// What is in a report.
struct Parts {
    title: String,
    origins: Vec<String>,
    sentences: Vec<String>,
    charts: Vec<(Chart, String)>,
    tables: Vec<Table>,
}

/// Writes the report on `records` into `folder`.
///
/// # Errors
/// When the folder cannot be written.
pub fn write(records: &Records, folder: &Path) -> Result<()> {
    let hint = "give a folder that you may write to with --out";
    std::fs::create_dir_all(folder).map_err(|e| Error::io("make the folder", folder, e).hint(hint))?;
    let parts = parts(records)?;
    for (chart, svg) in &parts.charts {
        let png = canvas::to_png(&chart.bars)?;
        atomic::write_atomic(&folder.join(format!("{}.svg", chart.name)), |file| file.write_all(svg.as_bytes()))?;
        atomic::write_atomic(&folder.join(format!("{}.png", chart.name)), |file| file.write_all(&png))?;
    }
    let json = serde_json::to_string_pretty(&records.lines)
        .map_err(|e| Error::new(Kind::Io, "cannot write the records as JSON").because(e))?;
    for (name, text) in [("report.md", markdown(&parts)), ("index.html", html(&parts)), ("results.json", json)] {
        atomic::write_atomic(&folder.join(name), |file| file.write_all(text.as_bytes()))?;
    }
    Ok(())
}

fn parts(records: &Records) -> Result<Parts> {
    let mut cases: Vec<&Case> = Vec::new();
    let mut trainings: Vec<&Training> = Vec::new();
    let mut peers: Vec<&PeerCase> = Vec::new();
    let mut origins: Vec<String> = Vec::new();
    for line in &records.lines {
        let o = &line.origin;
        let origin = format!("{}, {} threads, {}, commit {}, {}", o.model, o.threads, o.system, o.commit, o.time);
        if !origins.contains(&origin) {
            origins.push(origin);
        }
        match &line.record {
            Record::Peaks(_) => {}
            // Of what was measured again, the newest counts.
            Record::Swiglu(case) => {
                cases.retain(|old| !same_case(old, case));
                cases.push(case);
            }
            Record::Train(training) => {
                trainings.retain(|old| old.configuration != training.configuration);
                trainings.push(training);
            }
            Record::Peer(peer) => {
                peers.retain(|old| !peer.same(old));
                peers.push(peer);
            }
        }
    }
    let mut tables = Vec::new();
    if !trainings.is_empty() {
        tables.push(training_table::table(&trainings));
    }
    tables.extend(layer_table::tables(&cases));
    tables.extend(peer_table::tables(&peers, &cases, &trainings));
    tables.push(layout_table::table());
    if records.skipped > 0 {
        origins
            .push(format!("lines skipped that are no records (half-written, or of another kind): {}", records.skipped));
    }
    let sentences = choices::sentences(&cases, &trainings);
    let machine = records
        .lines
        .last()
        .map_or(String::new(), |line| format!("{}, commit {}", line.origin.model, line.origin.commit));
    let mut charts = charts::all(&cases, &trainings, &machine);
    peer_table::add_bars(&mut charts, &peers, &cases, &trainings);
    let charts =
        charts.into_iter().map(|chart| canvas::to_svg(&chart.bars).map(|svg| (chart, svg))).collect::<Result<_>>()?;
    let title = "SwiGLU on this machine: what each implementation costs and buys".into();
    Ok(Parts { title, origins, sentences, charts, tables })
}

fn same_case(a: &Case, b: &Case) -> bool {
    let key = |c: &Case| (c.swiglu.clone(), c.device.clone(), c.precision, c.pass, c.gates, c.cache);
    key(a) == key(b) && (a.batch, a.inputs, a.hidden) == (b.batch, b.inputs, b.hidden)
}

fn markdown(parts: &Parts) -> String {
    let list = |items: &[String]| items.iter().map(|item| format!("- {item}\n")).collect::<String>();
    let tables: String = parts.tables.iter().map(|t| format!("\n## {}\n\n{}", t.title, t.markdown())).collect();
    let chart = |(chart, _): &(Chart, String)| {
        let Chart { name, bars, caption } = chart;
        format!("\n![{}]({name}.png)\n\n{caption}\n", bars.alt())
    };
    let charts: String = parts.charts.iter().map(chart).collect();
    let (which, measured) = (list(&parts.sentences), list(&parts.origins));
    format!("# {}\n\n## Which one should I use\n\n{which}\n## Measured on\n\n{measured}{charts}{tables}", parts.title)
}

fn html(parts: &Parts) -> String {
    let list = |items: &[String]| items.iter().map(|item| format!("<li>{}</li>\n", escape(item))).collect::<String>();
    let title = escape(&parts.title);
    let tables: String = parts.tables.iter().map(Table::html).collect();
    let chart = |(chart, svg): &(Chart, String)| {
        let (alt, caption) = (escape(&chart.bars.alt()), escape(&chart.caption));
        // Inside a page the name space goes without saying, and a page without any address is easily seen to load nothing.
        let svg = svg.replace(" xmlns=\"http://www.w3.org/2000/svg\"", "");
        format!(
            "<figure id=\"{}\"><div class=\"scroll\" role=\"img\" aria-label=\"{alt}\">{svg}</div><figcaption class=\"note\">{caption}</figcaption></figure>\n",
            chart.name
        )
    };
    let charts: String = parts.charts.iter().map(chart).collect();
    let (which, measured) = (list(&parts.sentences), list(&parts.origins));
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width,initial-scale=1\"><title>{title}</title><style>{STYLE}</style></head>\n<body>\
         <h1>{title}</h1>\n<h2>Which one should I use</h2>\n<ul>{which}</ul>\n<h2>Measured on</h2>\n<ul>{measured}</ul>\n\
         <h2>Charts</h2>\n{charts}<h2>Tables</h2>\n{tables}</body></html>\n"
    )
}
