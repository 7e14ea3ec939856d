//! The tour: its chapters that do not depend on time to the letter, all of it on a small data set, jumps, refusals, Ctrl-C.

mod common;

use common::{Folder, bars, failure, program, run, stdout};
use mnist_swiglu::swiglu;

const SMALL: &str = "demo --device cpu --dataset bars/ --width 48 --epochs 2";

#[test]
fn the_whole_tour_ends_with_a_report() {
    let folder = Folder::new("demo");
    bars(&folder.0);
    let text = stdout(&run(&folder.0, &format!("{SMALL} --out tour")));
    for line in text.lines() {
        assert!(line.chars().count() <= 80, "wider than a terminal: {line}");
        assert!(line.chars().all(|c| (' '..='~').contains(&c)), "not plain: {line:?}");
    }
    for chapter in 1..=7 {
        assert!(text.contains(&format!("\n-- {chapter} of 7: ")), "no chapter {chapter} in\n{text}");
    }
    // The race, the frozen weights, the pieces, the advice and the report: each with every implementation.
    let chapters: Vec<&str> = text.split("\n-- ").collect();
    for entry in swiglu::ALL {
        for chapter in [2, 3, 4, 5] {
            assert!(chapters[chapter].contains(entry.name), "{} is not in\n{}", entry.name, chapters[chapter]);
        }
        let finished = chapters[3].lines().filter(|line| line.contains(&format!("{:<18} epoch 2 of 2: ", entry.name)));
        assert_eq!(finished.count(), 1, "{}\n{}", entry.name, chapters[3]);
        let row = chapters[4].lines().find(|line| line.trim_start().starts_with(entry.name)).expect("a row");
        assert_eq!(row.contains("none"), !entry.trains_weight, "{row}");
        assert!(row.contains(" % "), "{row}");
    }
    assert!(chapters[6].contains("- Training from scratch (cpu, "), "{}", chapters[6]);
    assert!(chapters[7].contains("tour/index.html"), "{}", chapters[7]);
    for file in ["demo.jsonl", "index.html", "report.md", "results.json", "training.svg", "forward.png"] {
        assert!(folder.join("tour").join(file).is_file(), "{file}");
    }
    assert_eq!(text.matches('\x1b').count(), 0);
    let records = std::fs::read_to_string(folder.join("tour/demo.jsonl")).expect("records");
    assert_eq!(records.matches(r#""bench":"train""#).count(), swiglu::ALL.len());
    let read = mnist_swiglu::measure::record::read(&[folder.join("tour")]).expect("records");
    for line in read.lines {
        let mnist_swiglu::measure::record::Record::Train(training) = line.record else { continue };
        let wall = &training.elapsed_ms;
        let work: f64 = training.epochs.iter().map(|epoch| epoch.train_ms + epoch.infer_ms).sum();
        assert_eq!(wall.len(), training.epochs.len());
        assert!(wall[0] < wall[1] && wall[1] > work, "{wall:?} after {work} ms of work");
    }
    let read = mnist_swiglu::measure::record::read(&[folder.join("tour")]).expect("records");
    for line in read.lines {
        let mnist_swiglu::measure::record::Record::Train(training) = line.record else { continue };
        let wall = &training.elapsed_ms;
        let work: f64 = training.epochs.iter().map(|epoch| epoch.train_ms + epoch.infer_ms).sum();
        assert_eq!(wall.len(), training.epochs.len());
        assert!(wall[0] < wall[1] && wall[1] > work, "{wall:?} after {work} ms of work");
    }
    // Its records are as good as any others.
    assert!(stdout(&run(&folder.0, "report tour --out again")).contains("again"));
    only(&folder, &["again", "bars", "tour"]);

    // What does not depend on time, to the letter.
    let timeless = text.split("\n-- 3 of").next().expect("a beginning").split_once("\n\n").expect("a device").1;
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots/demo.txt");
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(&path, timeless).expect("written");
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(timeless, expected, "UPDATE_SNAPSHOTS=1 cargo test --test demo, and look at the difference");
}

#[test]
fn a_jump_says_what_it_needs_and_measures_that_first() {
    let folder = Folder::new("demo-jump");
    bars(&folder.0);
    let text = stdout(&run(&folder.0, &format!("{SMALL} --chapter 6 --out tour")));
    assert!(text.contains("Chapter 6 shows what chapter 3 measures, so first:"), "{text}");
    assert!(text.contains("Chapter 6 needs times of the layer alone"), "{text}");
    let places: Vec<usize> = [3, 6, 7].map(|n| text.find(&format!("-- {n} of 7")).expect("a chapter")).to_vec();
    assert!(places.is_sorted(), "{text}");
    for chapter in [1, 2, 4, 5] {
        assert!(!text.contains(&format!("-- {chapter} of 7")), "{text}");
    }
    assert!(folder.join("tour/index.html").is_file());
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_is_measured() {
    let folder = Folder::new("demo-refused");
    bars(&folder.0);
    std::fs::create_dir(folder.join("full")).expect("a folder");
    std::fs::write(folder.join("full/mine"), "mine").expect("written");
    for (flags, code, words) in [
        ("--pause", 2, ["--pause", "terminal"]),
        ("--out full", 2, ["full is not empty", "new or empty"]),
        ("--out full/mine", 2, ["full/mine is a file", "name of a folder"]),
        ("--chapter 8", 2, ["--chapter", "1..=7"]),
        ("--chapter 0", 2, ["--chapter", "1..=7"]),
        ("--precision tf32", 2, ["tf32", "--precision fp32"]),
        ("--data-dir nowhere --dataset mnist", 1, ["nowhere", "hint"]),
    ] {
        let output = run(
            &folder.0,
            &format!("{SMALL} {flags}")
                .replace("--dataset bars/ --width 48 --epochs 2 --data-dir", "--width 48 --data-dir"),
        );
        let error = failure(&output, code);
        for word in words {
            assert!(error.contains(word), "{flags}: no {word:?} in\n{error}");
        }
        assert!(output.stdout.is_empty(), "{flags}: {}", String::from_utf8_lossy(&output.stdout));
    }
    assert_eq!(std::fs::read_to_string(folder.join("full/mine")).expect("still there"), "mine");
    only(&folder, &["bars", "full"]);
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_with_130_and_leaves_nothing() {
    use std::io::{BufRead, BufReader};
    let folder = Folder::new("demo-stop");
    bars(&folder.0);
    // Far more epochs than are waited for.
    let args = format!("{SMALL} --out tour").replace("--epochs 2", "--epochs 500");
    let mut command = program(&folder.0);
    command.args(args.split_whitespace()).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("epoch 1 of 500")), "the race begins");
    let killed = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(killed.expect("kill runs").success());
    let rest: Vec<String> = lines.collect();
    assert!(!rest.iter().any(|line| line.contains("-- 4 of")), "{rest:?}");
    let output = child.wait_with_output().expect("it ends");
    assert!(failure(&output, 130).contains("interrupted; nothing was written"));
    only(&folder, &["bars"]);
}

/// That a folder holds these alone.
fn only(folder: &Folder, names: &[&str]) {
    let mut found: Vec<String> = std::fs::read_dir(&folder.0)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    found.sort();
    assert_eq!(found, names);
}
