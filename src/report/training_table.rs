//! The end-to-end table: what each implementation costs and buys in a training of the whole network.

use super::{
    data::shape_name,
    table::{Table, ms},
};
use crate::{
    measure::{record::Training, timer::quantile},
    model::persistent::Steps,
    swiglu::liger::LIGER_STYLE,
    train::{config::Config, metrics::Epoch},
};

/// The accuracies that trainings race to.
pub const GOALS: [f64; 3] = [0.97, 0.98, 0.985];

/// The accuracy whose time since the start of the process is told.
pub const FROM_START: f64 = 0.98;

/// Median over the epochs.
pub fn train_ms(training: &Training) -> Option<f64> {
    quantile(&training.epochs.iter().map(|epoch| epoch.train_ms).collect::<Vec<_>>(), 0.5)
}

/// Median over the epochs.
pub fn infer_ms(training: &Training) -> Option<f64> {
    quantile(&training.epochs.iter().map(|epoch| epoch.infer_ms).collect::<Vec<_>>(), 0.5)
}

/// The least and the largest of a time over the epochs.
pub fn span(training: &Training, time: impl Fn(&Epoch) -> f64) -> Option<(f64, f64)> {
    let times = || training.epochs.iter().map(&time);
    (!training.epochs.is_empty()).then(|| (times().fold(f64::INFINITY, f64::min), times().fold(0.0, f64::max)))
}

/// Test accuracy after the last epoch.
pub fn accuracy(training: &Training) -> Option<f64> {
    training.epochs.last().map(|epoch| epoch.test_accuracy)
}

/// Training time, in seconds, up to the end of the first epoch after which the test accuracy is `goal`.
pub fn seconds_to(training: &Training, goal: f64) -> Option<f64> {
    let mut total = 0.0;
    training.epochs.iter().find_map(|epoch| {
        total += epoch.train_ms / 1e3;
        (epoch.test_accuracy >= goal).then_some(total)
    })
}

/// Seconds since the process began up to the same moment, loading, compiling and inference included; none where the record
/// does not tell.
pub fn seconds_from_start(training: &Training, goal: f64) -> Option<f64> {
    let index = training.epochs.iter().position(|epoch| epoch.test_accuracy >= goal)?;
    training.elapsed_ms.get(index).map(|ms| ms / 1e3)
}

/// Whether two trainings differ in implementation, precision and what does not change the time of an epoch alone.
pub fn same_setting(a: &Training, b: &Training) -> bool {
    let key = |training: &Training| {
        let config = &training.configuration;
        (config.network.clone(), config.batch_size, config.device.clone(), config.dataset.clone())
    };
    key(a) == key(b)
}

/// `cpu, B = 64, D = H = 512`.
pub fn setting_name(config: &Config) -> String {
    let network = &config.network;
    let depth = if network.depth > 1 { format!(", depth {}", network.depth) } else { String::new() };
    let dataset = if config.dataset == "mnist" { String::new() } else { format!(", {}", config.dataset) };
    let shape = shape_name((config.batch_size, network.width, network.hidden));
    format!("{}, {shape}{depth}{dataset}", config.device)
}

/// How many times faster an epoch is than `liger-style` in the same setting and precision.
pub fn speed(training: &Training, all: &[&Training]) -> Option<f64> {
    let same = |other: &&&Training| {
        other.configuration.swiglu == LIGER_STYLE.name
            && other.configuration.precision == training.configuration.precision
            && same_setting(other, training)
    };
    Some(train_ms(all.iter().find(same)?)? / train_ms(training)?)
}

/// The table of all trainings.
pub fn table(all: &[&Training]) -> Table {
    let header = [
        "swiglu",
        "precision",
        "D",
        "H",
        "B",
        "train ms an epoch",
        "inference ms",
        "accuracy %",
        "Wf learns",
        "peak MB",
        "launches a step",
        "x liger-style",
        "s to 97 %",
        "98 %",
        "98.5 %",
        "98 % from start",
    ];
    let mut table = Table::new("End to end: a training of the whole network", 2, &header);
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".into());
    for training in all {
        let config = &training.configuration;
        let mark = if training.trains_wf { "" } else { "*" };
        let mut row = vec![
            training.name(),
            config.precision.name().into(),
            config.network.width.to_string(),
            config.network.hidden.to_string(),
            config.batch_size.to_string(),
            or_dash(train_ms(training).map(ms)),
            or_dash(infer_ms(training).map(ms)),
            or_dash(accuracy(training).map(|share| format!("{:.2}", 100.0 * share))),
            if training.trains_wf { "yes" } else { "no" }.into(),
            or_dash(training.peak_bytes.map(|bytes| format!("{:.0}", bytes as f64 / 1e6))),
            if config.steps == Steps::Persistent { "-".into() } else { training.launches.to_string() },
            or_dash(speed(training, all).map(|speed| format!("{speed:.2}{mark}"))),
        ];
        let seconds = |s: f64| if s < 1.0 { format!("{s:.2}") } else { format!("{s:.1}") };
        row.extend(GOALS.map(|goal| or_dash(seconds_to(training, goal).map(seconds))));
        row.push(or_dash(seconds_from_start(training, FROM_START).map(seconds)));
        table.rows.push(row);
    }
    if let Some(training) = all.first() {
        let seed = training.configuration.seed;
        table.notes.push(format!(
            "Times are medians of {} epochs; all start from seed {seed} and take turns, an epoch each. Launches are \
             those of the SwiGLU layers.",
            training.epochs.len()
        ));
    }
    if all.iter().any(|training| seconds_from_start(training, FROM_START).is_some()) {
        table.notes.push(
            "s to 97 % and so on are seconds of training; from start: since the process began, with loading, compiling \
             and inference, without the turns of others."
                .into(),
        );
    }
    if all.iter().any(|training| training.configuration.steps == Steps::Persistent) {
        table.notes.push("persistent: hundreds of steps in one launch, whose blocks keep the weights.".into());
    }
    if all.iter().any(|training| !training.trains_wf) {
        table.notes.push("* less work: Wf does not learn. Look at its accuracy too.".into());
    }
    table
}
