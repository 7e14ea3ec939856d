//! The README's commands do what it says. Each `sh` block's lines that call the program are run, in order, in one folder,
//! with the data of this repository; training is cut to one short epoch.

mod common;

use std::path::Path;

use common::{Folder, program};
use mnist_swiglu::{
    measure::record,
    report::{data::Data, training_table},
    swiglu,
};

/// The report that the README's first picture and table are of.
const REPORT: &str = "reports/2026-11-24-cpu";

#[test]
fn the_commands_of_the_readme_run() {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).expect("a README");
    let folder = Folder::new("readme");
    let mut ran = Vec::new();
    let mut in_block = false;
    for line in readme.lines() {
        if line.starts_with("```") {
            in_block = line == "```sh";
            continue;
        }
        let command = line.strip_prefix("cargo run --release -- ").or_else(|| line.strip_prefix("mnist-swiglu "));
        let Some(command) = command.filter(|_| in_block) else { continue };
        let mut words: Vec<&str> = command.split('#').next().unwrap_or_default().split_whitespace().collect();
        if words[0] == "train" && !words.contains(&"--resume") {
            for (flag, value) in [("--width", "32"), ("--epochs", "1")] {
                if !words.contains(&flag) {
                    words.extend([flag, value]);
                }
            }
        }
        if words[0] == "data" && words[1] == "fetch" {
            // It needs a network; that the flags are right shows in its help.
            words.push("--help");
        }
        let data = concat!(env!("CARGO_MANIFEST_DIR"), "/data");
        let output = program(&folder.0).args(&words).env("MNIST_SWIGLU_DATA", data).output().expect("it starts");
        assert!(output.status.success(), "{line}\n{}", String::from_utf8_lossy(&output.stderr));
        ran.push(words[0].to_string());
    }
    for command in ["train", "eval", "predict", "doctor", "selftest"] {
        assert!(ran.iter().any(|name| name == command), "the README shows no {command}: {ran:?}");
    }
}

#[test]
fn the_first_picture_and_table_say_what_the_records_do() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = std::fs::read_to_string(root.join("README.md")).expect("a README");
    let picture = readme.split("src=\"").nth(1).and_then(|rest| rest.split('"').next()).expect("a picture");
    assert!(picture.starts_with(REPORT) && root.join(picture).is_file(), "{picture}");
    let data = Data::of(&record::read(&[root.join(REPORT).join("records")]).expect("records"));
    let table: Vec<&str> =
        readme.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|')).collect();
    assert_eq!(table.len(), 2 + swiglu::ALL.len(), "a header, a rule, a row for each: {table:#?}");
    for (row, entry) in table[2..].iter().zip(swiglu::ALL) {
        let training = data.trainings.iter().find(|t| t.configuration.swiglu == entry.name).expect("a record of it");
        let accuracy = training_table::accuracy(training).expect("an epoch");
        let time = training_table::train_ms(training).expect("an epoch");
        let learns = if training.trains_wf { "yes" } else { "no" };
        let wanted = format!("| `{}` | {:.2} % | {time:.0} | {learns}", entry.name, 100.0 * accuracy);
        assert!(row.starts_with(&wanted), "the README says {row}\nand the records {wanted}");
    }
}
