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
fn records_of_another_version_are_refused_by_name() {
    let folder = Folder::new("records-old");
    let path = folder.join("old.jsonl");
    for (version, word) in [(0, "older"), (9, "newer")] {
        fs::write(&path, format!("{{\"version\":{version},\"bench\":\"peaks\",\"speed\":1}}\n")).unwrap();
        let error = read(std::slice::from_ref(&path)).unwrap_err().to_string();
        assert!(error.contains("old.jsonl") && error.contains(word), "{error}");
    }
}

#[test]
fn no_records_is_an_error_that_says_how_to_make_some() {
    let folder = Folder::new("records-none");
    let error = read(&[folder.path().to_path_buf()]).unwrap_err();
    assert!(error.hint_text().is_some_and(|hint| hint.contains("bench")), "{error}");
}
