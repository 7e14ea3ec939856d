//! `--peers`: what a script prints becomes records and tables; what is missing is said in a line. A stand-in for Python
//! prints what the scripts would; where torch is installed for python3, the scripts themselves run too.
#![cfg(unix)]

mod common;

use std::{os::unix::fs::PermissionsExt, path::PathBuf, process::Output};

use common::{Folder, bars, failure, program, stdout};

const BENCH: &str = "bench --device cpu --batch 8 --dim 16 --cache warm --pass forward --swiglu liger --out r";
const CASE: &str = r#"{"peer":"torch","name":"PyTorch 9.9","versions":{"torch":"9.9"},"device":"cpu","gpu":null,"precision":"fp32","B":8,"D":16,"H":16,"cache":"warm","rel_err":1e-7,"bound":3e-6,"ok":true,"trains_wf":false,"seed":1,"pass":"forward","median_ms":0.5,"p10_ms":0.4,"p90_ms":0.6,"samples":15}"#;

/// A stand-in for Python that runs `script`.
fn python(folder: &Folder, script: &str) -> PathBuf {
    let path = folder.join("python");
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("executable");
    path
}

fn run_with(folder: &Folder, python: &str, args: &str) -> Output {
    let mut command = program(&folder.0);
    command.args(args.split_whitespace()).env("MNIST_SWIGLU_PYTHON", python).env("TMPDIR", &folder.0);
    command.output().expect("the program starts")
}

#[test]
fn what_a_script_prints_is_recorded_and_shown_beside_ours() {
    let folder = Folder::new("peers");
    let said =
        format!("echo 'a package talks'; echo '{CASE}'; test -f \"$(dirname \"$1\")/common.py\" && cp \"$1\" seen.py");
    let python = python(&folder, &said).display().to_string();
    let text = stdout(&run_with(&folder, &python, &format!("{BENCH} --peers")));
    assert!(text.contains("PyTorch 9.9  forward  fp32") && text.contains("liger-style"), "{text}");
    let records = std::fs::read_to_string(folder.join("r/bench.jsonl")).expect("records");
    assert!(records.lines().last().is_some_and(|l| l.contains(r#""bench":"peer","peer":"torch""#)), "{records}");
    let seen = std::fs::read_to_string(folder.join("seen.py")).expect("the script was there, with what it imports");
    assert_eq!(seen, include_str!("../reports/peers/torch_layer.py"));
    let left: Vec<_> = std::fs::read_dir(&folder.0).expect("a folder").flatten().map(|e| e.file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("peers-")), "scripts are removed: {left:?}");

    let report = stdout(&run_with(&folder, &python, "report r --out page"));
    assert!(report.contains("page"), "{report}");
    for file in ["report.md", "index.html", "forward.svg"] {
        let text = std::fs::read_to_string(folder.join("page").join(file)).expect(file);
        assert!(text.contains("PyTorch 9.9"), "{file}");
    }
}

#[test]
fn what_is_missing_is_said_in_a_line_and_is_an_error_only_when_it_was_named() {
    let folder = Folder::new("peers-missing");
    let missing = python(&folder, r#"echo '{"missing":"torch","why":"No module named torch"}'"#).display().to_string();
    for (python, word) in [(missing.as_str(), "No module named torch"), ("/nowhere/python", "/nowhere/python")] {
        let text = stdout(&run_with(&folder, python, &format!("{BENCH} --peers")));
        assert_eq!(text.lines().filter(|line| line.starts_with("peers: ") && line.contains(word)).count(), 1, "{text}");
        let output = run_with(&folder, python, &format!("{BENCH} --peers gemm"));
        let error = failure(&output, 1);
        assert!(error.contains("--peers gemm") && error.contains("MNIST_SWIGLU_PYTHON"), "{error}");
        assert!(
            String::from_utf8_lossy(&output.stdout).contains("liger-style"),
            "our own numbers are shown all the same"
        );
    }
    let json = run_with(&folder, &missing, &format!("{BENCH} --peers --json"));
    for line in stdout(&json).lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    }
    assert!(String::from_utf8_lossy(&json.stderr).contains("No module named torch"));
}

#[test]
fn a_script_that_fails_says_so_and_wrong_numbers_have_no_time() {
    let folder = Folder::new("peers-failed");
    let wrong =
        CASE.replace(r#""ok":true"#, r#""ok":false"#).split(r#","median_ms""#).next().unwrap_or_default().to_owned();
    let script =
        format!("echo '{wrong},\"samples\":0}}'; echo 'Traceback' >&2; echo 'MemoryError: too large' >&2; exit 1");
    let python = python(&folder, &script).display().to_string();
    let text = stdout(&run_with(&folder, &python, &format!("{BENCH} --peers")));
    assert!(text.contains("torch_layer.py went wrong (MemoryError: too large)"), "{text}");
    assert!(text.lines().any(|line| line.starts_with("PyTorch 9.9") && line.contains("FAILED")), "{text}");
}

#[test]
fn compare_has_peers_of_its_own() {
    let folder = Folder::new("peers-compare");
    bars(&folder.0);
    let epoch = CASE.replace(r#""pass":"forward""#, r#""pass":"epoch","accuracy":0.975,"infer_ms":7.5"#);
    let epoch = epoch.replace(r#""trains_wf":false"#, r#""trains_wf":true"#).replace(r#""B":8"#, r#""B":64"#);
    let script = format!(
        "case $1 in *torch_epochs*) echo '{epoch}'; echo \"$@\" > args;; *) echo '{{\"missing\":\"jax\",\"why\":\"-\"}}';; esac"
    );
    let python = python(&folder, &script).display().to_string();
    let args = "compare --device cpu --dataset bars/ --width 16 --epochs 1 --out r --peers";
    let text = stdout(&run_with(&folder, &python, args));
    assert!(text.contains("peers: jax is not there"), "{text}");
    assert!(text.lines().any(|line| line.starts_with("PyTorch 9.9") && line.contains("97.50")), "{text}");
    let given = std::fs::read_to_string(folder.join("args")).expect("arguments");
    for words in ["--shape 64,16,16", "--weights learn,frozen", "--epochs 1", "--precision fp32=3e-6"] {
        assert!(given.contains(words), "{words}: {given}");
    }
    let error = failure(&run_with(&folder, &python, &format!("{args} gemm")), 2);
    assert!(error.contains("compare has no such peer"), "{error}");
}

#[test]
fn the_scripts_themselves_measure_where_torch_is_installed() {
    let python = std::env::var("MNIST_SWIGLU_PYTHON").unwrap_or_else(|_| "python3".into());
    let has_torch = std::process::Command::new(&python).args(["-c", "import torch"]).output();
    if !has_torch.is_ok_and(|output| output.status.success()) {
        println!("skipped: {python} has no torch");
        return;
    }
    let folder = Folder::new("peers-torch");
    let args = format!("{BENCH} --pass forward,step-dx,step --peers torch,gemm --json");
    let records = stdout(&run_with(&folder, &python, &args.replace("--pass forward ", "")));
    let peers: Vec<serde_json::Value> = records
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .filter(|r: &serde_json::Value| r["bench"] == "peer")
        .collect();
    assert_eq!(peers.len(), 4, "{records}");
    for peer in peers {
        assert!(peer["ok"] == true && peer["median_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{peer}");
    }
}
