use super::*;
use crate::testing::Folder;

fn origin() -> Origin {
    Origin {
        model: "a processor".into(),
        system: "linux x86_64".into(),
        threads: 2,
        driver: None,
        version: "0.1.0".into(),
        commit: "0123456789".into(),
        time: "2026-11-24T00:00:00Z".into(),
    }
}

fn peaks() -> Record {
    Record::Peaks(Peaks {
        device: "cpu".into(),
        precision: Precision::Fp32,
        tflops: 0.2,
        memory_gbytes_per_s: 20.25,
        cache_gbytes_per_s: 100.5,
    })
}

#[test]
fn records_come_back_and_a_half_written_line_is_counted() {
    let folder = Folder::new("records");
    let mut writer = Writer::append(folder.path(), "bench.jsonl", origin()).unwrap();
    let line = writer.write(peaks()).unwrap();
    let text = line.to_json().unwrap();
    assert!(
        text.starts_with(r#"{"version":1,"bench":"peaks","device":"cpu","precision":"fp32","tflops":0.2,"#),
        "{text}"
    );
    // A process that was killed leaves half a line; the next one goes on after it.
    let mut file = OpenOptions::new().append(true).open(writer.path()).unwrap();
    file.write_all(&text.as_bytes()[..50]).unwrap();
    Writer::append(folder.path(), "bench.jsonl", origin()).unwrap().write(peaks()).unwrap();
    let records = read(&[folder.path().to_path_buf()]).unwrap();
    assert_eq!((records.lines.len(), records.skipped), (2, 1));
    assert_eq!(records.lines, [line.clone(), line]);
}

#[test]
fn records_of_another_version_or_kind_are_counted_and_the_others_read() {
    let folder = Folder::new("records-old");
    let mut writer = Writer::append(folder.path(), "all.jsonl", origin()).unwrap();
    let line = writer.write(peaks()).unwrap();
    let other = |version: u32, kind: &str| format!("{{\"version\":{version},\"bench\":\"{kind}\",\"speed\":1}}\n");
    let mut file = OpenOptions::new().append(true).open(writer.path()).unwrap();
    // The last is a record of a kind that is known, with half of its fields.
    let rest =
        [other(0, "peaks"), other(0, "peaks"), other(9, "peaks"), other(VERSION, "soon"), other(VERSION, "peaks")];
    file.write_all(rest.concat().as_bytes()).unwrap();
    let before = fs::read(writer.path()).unwrap();
    let records = read(&[folder.path().to_path_buf()]).unwrap();
    assert_eq!(records.lines, [line]);
    assert_eq!(
        records.left_out(),
        [
            "all.jsonl: 2 records of version 0, from an older program, left out (this one reads 1: measure again)",
            "all.jsonl: 1 record of version 9, from a newer program, left out (this one reads 1: update)",
            "1 record of a kind that this program does not know, left out",
            "1 line half-written or edited, skipped",
        ]
    );
    assert_eq!(fs::read(writer.path()).unwrap(), before, "reading changes nothing");
}

#[test]
fn nothing_but_records_of_another_version_is_an_error_that_names_them() {
    let folder = Folder::new("records-only-old");
    let path = folder.join("old.jsonl");
    for (version, word, hint) in [(0, "older", "bench"), (9, "newer", "update")] {
        fs::write(&path, format!("{{\"version\":{version},\"bench\":\"peaks\",\"speed\":1}}\n")).unwrap();
        let error = read(std::slice::from_ref(&path)).unwrap_err();
        assert!(error.to_string().contains("old.jsonl") && error.to_string().contains(word), "{error}");
        assert!(error.hint_text().is_some_and(|text| text.contains(hint)), "{error:?}");
    }
}

#[test]
fn a_training_without_the_newer_fields_still_reads() {
    let text = r#"{"configuration":CONFIG,"epochs":[],"trains_wf":true,"launches":3,"peak_bytes":null,"confusion":[],"wrong":[],"interleaved":4}"#;
    let config = serde_json::to_string(&crate::testing::config()).unwrap();
    let training: Training = serde_json::from_str(&text.replace("CONFIG", &config)).unwrap();
    assert!(training.elapsed_ms.is_empty());
}

#[test]
fn no_records_is_an_error_that_says_how_to_make_some() {
    let folder = Folder::new("records-none");
    let error = read(&[folder.path().to_path_buf()]).unwrap_err();
    assert!(error.hint_text().is_some_and(|hint| hint.contains("bench")), "{error}");
    let error = read(&[folder.join("not-there")]).unwrap_err();
    assert!(error.to_string().contains("not-there") && error.hint_text().is_some(), "{error}");
}
