//! The table of where the speedup comes from: a row a setting, a column a step with its factor.

use super::{
    data::Data,
    table::{Table, ms},
    waterfall::{self, Cause, Goal, Waterfall},
};

const CAUSES: [Cause; 6] =
    [Cause::Precision, Cause::LessWork, Cause::Fusion, Cause::Gates, Cause::OwnDwf, Cause::OneLaunch];

/// All ways that have records.
pub fn table(data: &Data) -> Option<Table> {
    let ways = [
        ("a training's epoch", waterfall::training(&data.trainings)),
        ("a step of the layer, the fastest", waterfall::layer(&data.cases, Goal::Fastest)),
        ("a step of the layer, learning", waterfall::layer(&data.cases, Goal::Learning)),
    ];
    let mut header = vec!["of", "setting", "start ms", "end ms", "in all"];
    header.extend(CAUSES.iter().map(|cause| cause.name()));
    let mut table = Table::new("Where the speedup comes from: factors of the steps", 2, &header);
    for (what, ways) in ways {
        table.rows.extend(ways.iter().map(|way| row(what, way)));
    }
    table.notes.push(
        "From liger-style in fp32 with trained weights to the fastest. A factor above 1 is faster; their product is the whole; \
         -: no such step, or no record of it; in ...: not measured apart. Precision and work left out are not equal work."
            .into(),
    );
    (!table.rows.is_empty()).then_some(table)
}

fn row(what: &str, way: &Waterfall) -> Vec<String> {
    let time = |step: Option<&waterfall::Step>| step.map_or_else(|| "-".into(), |step| ms(step.ms));
    let factors = way.factors();
    let mut row = vec![
        what.into(),
        way.setting.clone(),
        time(way.steps.first()),
        time(way.steps.last()),
        format!("{:.2}", way.speedup()),
    ];
    // What was not measured apart is told in the column of the last of them.
    row.extend(CAUSES.iter().map(|cause| match factors.iter().find(|(causes, _)| causes.contains(cause)) {
        Some((causes, factor)) if causes.last() == Some(cause) => format!("{factor:.2}"),
        Some((causes, _)) => causes.last().map_or_else(String::new, |last| format!("in {}", last.name())),
        None => "-".into(),
    }));
    row
}
