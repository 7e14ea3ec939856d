//! `doctor`: what this machine offers, what is missing, and what to do about it.
//!
//! Each [`Section`] is gathered by one function and knows nothing of the others; text and JSON are drawn from the list.

use serde::Serialize;

use super::out;
use crate::{Error, Kind, Result, cli::DoctorArgs, data::Dataset, device::cpu::simd::Isa};

mod gpu;
mod machine;

/// How well something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// It works, but not as well as it could, or not as was asked for.
    Warn,
    /// It is not there.
    Missing,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Item {
    /// What it is.
    pub name: String,
    /// What was found.
    pub value: String,
    /// How well it is.
    pub state: State,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Item {
    /// Something that is as it should be.
    pub fn ok(name: &str, value: impl Into<String>) -> Item {
        Item { name: name.to_string(), value: value.into(), state: State::Ok, hint: None }
    }

    /// Something that works, with what would make it better.
    pub fn warn(name: &str, value: impl Into<String>, hint: impl Into<String>) -> Item {
        Item { state: State::Warn, hint: Some(hint.into()), ..Item::ok(name, value) }
    }

    /// Something that is not there, with how to get it.
    pub fn missing(name: &str, value: impl Into<String>, hint: Option<String>) -> Item {
        Item { state: State::Missing, hint, ..Item::ok(name, value) }
    }

    /// What was found, or the error that says why it was not.
    pub fn found(name: &str, value: Result<impl Into<String>, &Error>) -> Item {
        match value {
            Ok(value) => Item::ok(name, value),
            Err(error) => Item::missing(name, error.to_string(), error.hint_text().map(str::to_string)),
        }
    }
}

/// Things that belong together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Section {
    /// Its heading.
    pub title: String,
    /// What was looked at, in the order in which it is shown.
    pub items: Vec<Item>,
}

impl Section {
    /// A section of `items`.
    pub fn new(title: &str, items: Vec<Item>) -> Section {
        Section { title: title.to_string(), items }
    }
}

/// Shows what this machine offers. `data` is what loading the data set gave: [`describe`] of it, or why it failed.
///
/// # Errors
/// [`Kind::Data`] when there is no data, and that of [`Isa::detect`] when `MNIST_SWIGLU_ISA` names what this processor lacks:
/// nothing can be trained. Everything else that is missing is only shown.
pub fn run(args: &DoctorArgs, data: Result<String>) -> Result<()> {
    let found = data.is_ok();
    let isa = Isa::detect();
    let threads = machine::Threads {
        flag: args.device.threads,
        variable: std::env::var_os("RAYON_NUM_THREADS").map(|value| value.to_string_lossy().into_owned()),
        cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
    };
    let sections = [
        machine::program(),
        machine::cpu(&threads, &isa),
        machine::memory(),
        gpu::section(),
        data_section(&args.data.dataset, data),
    ];
    if args.json {
        out::print_line(&json(&sections).to_string())?;
    } else {
        out::print_line(&text(&sections))?;
    }
    isa?;
    if found {
        return Ok(());
    }
    Err(Error::new(Kind::Data, "nothing can be trained: the data set cannot be used")
        .hint("see the section Data above"))
}

/// A data set in a few words.
pub fn describe(data: &Dataset) -> String {
    let (train, test) = (data.train.labels.len(), data.test.labels.len());
    format!("{train} training and {test} test images in {}", data.dir.display())
}

fn data_section(name: &str, data: Result<String>) -> Section {
    Section::new("Data", vec![Item::found(name, data.as_ref().map(String::as_str))])
}

/// The sections as text, without a line feed at its end.
pub fn text(sections: &[Section]) -> String {
    let items = || sections.iter().flat_map(|section| &section.items);
    let width = items().map(|item| item.name.chars().count()).max().unwrap_or(0);
    let mut lines = Vec::new();
    for section in sections {
        lines.push(section.title.clone());
        for Item { name, value, state, hint } in &section.items {
            let mark = match state {
                State::Ok => "ok",
                State::Warn => "warning",
                State::Missing => "missing",
            };
            lines.push(format!("  {mark:<7}  {name:<width$}  {value}"));
            lines.extend(hint.iter().map(|hint| format!("           {:<width$}  hint: {hint}", "")));
        }
        lines.push(String::new());
    }
    let count = |state| items().filter(|item| item.state == state).count();
    lines.push(match (count(State::Missing), count(State::Warn)) {
        (0, 0) => "Everything is there.".to_string(),
        (missing, warnings) => format!("{missing} missing, {warnings} with a warning."),
    });
    lines.join("\n")
}

/// The sections as a JSON object: `version`, `ok` (nothing is missing), `sections`.
pub fn json(sections: &[Section]) -> serde_json::Value {
    let missing = |item: &Item| item.state == State::Missing;
    let ok = !sections.iter().flat_map(|section| &section.items).any(missing);
    serde_json::json!({ "version": env!("CARGO_PKG_VERSION"), "ok": ok, "sections": sections })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Vec<Section> {
        let missing = Error::new(Kind::Data, "no MNIST files in data/").hint("mnist-swiglu data fetch mnist");
        vec![
            Section::new("CPU", vec![Item::ok("cores", "8"), Item::warn("SIMD", "avx2 only", "a newer CPU is faster")]),
            data_section("mnist", Err(missing)),
        ]
    }

    #[test]
    fn text_shows_state_value_and_hint_in_columns() {
        assert_eq!(
            text(&example()),
            "\
CPU
  ok       cores  8
  warning  SIMD   avx2 only
                  hint: a newer CPU is faster

Data
  missing  mnist  no MNIST files in data/
                  hint: mnist-swiglu data fetch mnist

1 missing, 1 with a warning."
        );
        let well = [data_section("mnist", Ok("60000 training and 10000 test images in data".to_string()))];
        assert!(text(&well).ends_with("\n\nEverything is there."));
    }

    #[test]
    fn json_says_the_same() {
        let object = json(&example());
        assert_eq!(object["ok"], false);
        let item = &object["sections"][1]["items"][0];
        assert_eq!(item["state"], "missing");
        assert_eq!(item["hint"], "mnist-swiglu data fetch mnist");
        assert_eq!(object["sections"][0]["items"][0]["hint"], serde_json::Value::Null);
        assert_eq!(json(&example()[..1])["ok"], true);
    }
}
