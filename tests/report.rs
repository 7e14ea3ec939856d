//! The report from fixed records: its Markdown and tables to the letter, its charts as XML, its page without an address that
//! leads outside or nowhere, and the committed reports as the README tells of them.

mod common;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use common::{Folder, failure, program, run, stdout};
use mnist_swiglu::{
    measure::{peers::Timed, record},
    report::{
        data::{Data, Measured},
        folder, training_table, waterfall,
    },
};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn fixed() -> record::Records {
    record::read(&[Path::new(ROOT).join("tests/records")]).expect("the fixed records")
}

/// The report on the fixed records.
fn written(name: &str) -> (Folder, PathBuf) {
    let folder = Folder::new(name);
    let out = folder.join("report");
    folder::write(&fixed(), &out).expect("a report");
    (folder, out)
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn the_markdown_is_to_the_letter_what_the_records_say() {
    let (_folder, out) = written("report-markdown");
    let text = read(&out.join("report.md"));
    let path = Path::new(ROOT).join("tests/snapshots/report.md");
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        fs::write(&path, &text).expect("the snapshot is written");
    }
    let wanted = read(&path);
    let first = text.lines().zip(wanted.lines()).find(|(a, b)| a != b);
    assert!(text == wanted, "{first:#?} differ; with UPDATE_SNAPSHOTS=1 the snapshot is written anew");
}

#[test]
fn every_chart_is_an_xml_picture_and_a_png_and_stands_on_the_page() {
    let (_folder, out) = written("report-charts");
    let page = read(&out.join("index.html"));
    let markdown = read(&out.join("report.md"));
    let mut charts = 0;
    for entry in fs::read_dir(&out).expect("listed").flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|extension| extension != "svg") {
            continue;
        }
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let text = read(&path);
        let svg = roxmltree::Document::parse(&text).unwrap_or_else(|e| panic!("{name}.svg: {e}"));
        assert_eq!(svg.root_element().tag_name().name(), "svg");
        assert!(svg.descendants().filter(|node| node.has_tag_name(("http://www.w3.org/2000/svg", "text"))).count() > 4);
        let words: String = svg.descendants().filter_map(|node| node.text()).collect();
        assert!(words.contains("commit 0123456789"), "{name} names its machine and commit: {words}");
        assert!(fs::read(path.with_extension("png")).expect("a PNG").starts_with(b"\x89PNG"), "{name}");
        assert!(page.contains(&format!("<figure id=\"chart-{name}\">")), "{name} is on the page");
        assert!(markdown.contains(&format!("src=\"{name}.png\"")), "{name} is in the Markdown");
        charts += 1;
    }
    // Three waterfalls, two of mistakes; for each of two precisions training, cost, curves, three passes, roofline, two of memory.
    assert_eq!(charts, 3 + 2 + 2 * 9);
    assert_eq!(page.matches("<figure ").count(), charts);
}

#[test]
fn a_chart_names_the_commits_of_its_own_records_alone() {
    let mut records = fixed();
    let trainings = |line: &record::Line| matches!(line.record, record::Record::Train(_));
    for line in records.lines.iter_mut().filter(|line| trainings(line)) {
        line.origin.commit = "89abcdef01".into();
    }
    let data = Data::of(&records);
    let device = |of: &Measured| of.device == "cuda:0";
    let source = |of: &dyn Fn(&Measured) -> bool| data.source(|measured| device(measured) && of(measured));
    assert_eq!(source(&|of| of.timed == Some(Timed::Epoch) && !of.peer), "a GPU, CUDA 13.0; commit 89abcdef01");
    assert_eq!(source(&|of| of.timed != Some(Timed::Epoch)), "a GPU, CUDA 13.0; commit 0123456789");
    assert_eq!(source(&|_| true), "a GPU, CUDA 13.0; commits 0123456789 and 89abcdef01");
    assert_eq!(data.source(|of| of.device == "cpu"), "", "no records, no machine");
    let folder = Folder::new("report-commits");
    let out = folder.join("report");
    folder::write(&records, &out).expect("a report");
    for (name, commit) in [("confusion", "commit 89abcdef01"), ("speedup-learning", "commit 0123456789")] {
        let text = read(&out.join(format!("{name}.svg")));
        assert!(text.contains(commit) && text.matches("commit").count() == 1, "{name} names {commit} alone");
    }
}

#[test]
fn the_page_loads_nothing_and_every_anchor_leads_somewhere() {
    let (_folder, out) = written("report-page");
    let page = read(&out.join("index.html"));
    for outside in ["://", "src=", "url(", "@import", "<link", "<script"] {
        assert!(!page.contains(outside), "{outside}");
    }
    let values = |name: &str| -> Vec<String> {
        page.split(&format!(" {name}=\""))
            .skip(1)
            .filter_map(|rest| rest.split('"').next())
            .map(str::to_owned)
            .collect()
    };
    let ids = values("id");
    assert_eq!(ids.len(), ids.iter().collect::<BTreeSet<_>>().len(), "every id is there once: {ids:?}");
    let links = values("href");
    assert!(links.len() >= 8, "{links:?}");
    for link in links {
        let id = link.strip_prefix('#').unwrap_or_else(|| panic!("{link} leads outside"));
        assert!(ids.iter().any(|other| other == id), "nothing is called {id}");
    }
}

#[test]
fn a_case_that_failed_is_marked_and_has_no_time() {
    let (_folder, out) = written("report-failed");
    let markdown = read(&out.join("report.md"));
    assert!(markdown.contains("**FAILED: 2 of "), "said at the top");
    let rows: Vec<&str> = markdown.lines().filter(|line| line.starts_with('|') && line.contains("FAILED")).collect();
    assert_eq!(rows.len(), 2);
    for row in rows {
        assert!(row.contains("| FAILED | - | - | - |") && row.contains("4.0e-1"), "{row}");
    }
    let chart = read(&out.join("backward-bf16.svg"));
    assert!(chart.contains("FAILED: error 4.0e-1"));
}

#[test]
fn the_csv_has_a_row_a_record_and_the_numbers_of_the_json() {
    let (_folder, out) = written("report-csv");
    let (csv, json) = (read(&out.join("results.csv")), read(&out.join("results.json")));
    let records: Vec<serde_json::Value> = serde_json::from_str(&json).expect("JSON");
    let mut rows = csv.lines();
    let header: Vec<&str> = rows.next().expect("a header").split(',').collect();
    assert_eq!(
        header[..12],
        ["bench", "swiglu", "device", "gpu", "precision", "pass", "gates", "B", "D", "H", "cache", "median_ms"]
    );
    let mut seen = 0;
    for (row, record) in rows.zip(&records) {
        // The only cell with a comma among the fixed records is quoted: none is here.
        let cells: Vec<&str> = row.split(',').collect();
        assert_eq!(cells.len(), header.len(), "{row}");
        for (name, cell) in header.iter().zip(cells) {
            if let Some(number) = record.get(name).and_then(serde_json::Value::as_f64) {
                assert_eq!(cell.parse::<f64>(), Ok(number), "{name}");
            }
        }
        seen += 1;
    }
    assert_eq!(seen, records.len());
}

#[test]
fn what_was_not_read_is_counted_on_the_page_and_on_the_terminal() {
    let folder = Folder::new("report-left-out");
    let text = stdout(
        &program(&folder.0)
            .arg("report")
            .arg(Path::new(ROOT).join("tests/records"))
            .args(["--out", "r"])
            .output()
            .expect("it starts"),
    );
    let page = read(&folder.join("r/index.html"));
    for why in [
        "bench.jsonl: 1 record of version 0, from an older program",
        "1 record of a kind that this program does not know",
        "1 line half-written or edited, skipped",
    ] {
        assert!(text.contains(why) && page.contains(why), "{why}: {text}");
    }
}

#[test]
fn nothing_to_read_and_nowhere_to_write_are_said_in_words() {
    let folder = Folder::new("report-errors");
    fs::create_dir(folder.join("empty")).expect("a folder");
    fs::write(folder.join("file"), "in the way").expect("a file");
    let text = failure(&run(&folder.0, "report empty"), 1);
    assert!(text.contains("no records in empty") && text.contains("hint: measure first"), "{text}");
    let text = failure(&run(&folder.0, "report not-there"), 1);
    assert!(text.contains("not-there") && text.contains("hint:"), "{text}");
    let records = Path::new(ROOT).join("tests/records");
    let output =
        program(&folder.0).arg("report").arg(records).args(["--out", "file/report"]).output().expect("it starts");
    let text = failure(&output, 1);
    assert!(text.contains("file/report") && text.contains("hint: give a folder"), "{text}");
    assert_eq!(read(&folder.join("file")), "in the way");
}

#[test]
fn the_steps_of_a_waterfall_multiply_to_the_whole_and_are_records() {
    let data = Data::of(&fixed());
    let ways = [
        waterfall::training(&data.trainings),
        waterfall::layer(&data.cases, waterfall::Goal::Fastest),
        waterfall::layer(&data.cases, waterfall::Goal::Learning),
    ]
    .concat();
    assert_eq!(ways.len(), 3);
    for way in ways {
        let product: f64 = way.factors().iter().map(|(_, factor)| factor).product();
        assert!((product / way.speedup() - 1.0).abs() < 1e-12, "{way:?}");
        for step in &way.steps {
            let case = data.cases.iter().any(|case| case.median_ms == Some(step.ms));
            let training = data.trainings.iter().any(|training| training_table::train_ms(training) == Some(step.ms));
            assert!(case || training, "{step:?} was measured");
        }
        assert_eq!(way.steps[1].causes, [waterfall::Cause::Precision]);
    }
    // Without the records of a step, what it changed is part of the next, and of nothing where none comes after.
    let cases: Vec<_> =
        data.cases.iter().filter(|c| c.gates != mnist_swiglu::swiglu::Gates::Recompute).cloned().collect();
    let way = &waterfall::layer(&cases, waterfall::Goal::Fastest)[0];
    let last = way.steps.last().expect("a step");
    assert_eq!(last.causes, [waterfall::Cause::Fusion, waterfall::Cause::Gates]);
    assert!(way.missing.is_empty());
    let liger: Vec<_> = cases.iter().filter(|c| c.swiglu == "liger-style").cloned().collect();
    let way = &waterfall::layer(&liger, waterfall::Goal::Learning)[0];
    use waterfall::Cause::{Fusion, Gates, OwnDwf};
    assert_eq!(way.missing, [Fusion, Gates, OwnDwf]);
}

#[test]
fn a_report_again_from_the_same_records_is_the_same() {
    let (_a, first) = written("report-once");
    let (_b, second) = written("report-twice");
    for entry in fs::read_dir(&first).expect("listed").flatten() {
        let name = entry.file_name();
        assert_eq!(fs::read(entry.path()).ok(), fs::read(second.join(&name)).ok(), "{name:?}");
    }
}
