//! The program as its users meet it: flags, output, exit codes, files; what is stopped or killed goes on.

mod common;

use std::{
    io::Read,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use common::{Folder, bars, failure, program, run, stdout};
use serde_json::Value;

/// Flags of a quick run.
const QUICK: &str = "--dataset bars/ --width 32 --batch-size 32 --epochs 2 --lr 0.01 --warmup 5";

fn events(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

#[test]
fn train_prints_a_table_and_leaves_a_run() {
    let folder = Folder::new("train");
    bars(&folder.0);
    let text = stdout(&run(&folder.0, &format!("train {QUICK} --out r")));
    let lines: Vec<&str> = text.lines().collect();
    assert!(
        lines[0].contains("epoch") && lines[0].contains("test accuracy") && lines[0].contains("inference ms"),
        "{text}"
    );
    assert!(text.contains("run folder") && text.contains("checkpoint") && text.contains("chart"), "{text}");
    for file in ["config.json", "metrics.jsonl", "checkpoint.safetensors", "curves.svg", "curves.png"] {
        assert!(folder.join("r").join(file).is_file(), "{file}");
    }
    let again = failure(&run(&folder.0, &format!("train {QUICK} --out r")), 2);
    assert!(again.contains("is not empty") && again.contains("--resume"), "{again}");
    let default = stdout(&run(&folder.0, &format!("train {QUICK} --quiet")));
    assert!(default.contains("reports/runs/"), "{default}");
}

#[test]
fn json_events_have_the_promised_keys() {
    let folder = Folder::new("json");
    bars(&folder.0);
    let events =
        events(&stdout(&run(&folder.0, &format!("train {QUICK} --swiglu fused --json --validation 100 --out r"))));
    assert_eq!(events[0]["event"], "start");
    assert_eq!(events[0]["configuration"]["swiglu"], "fused-frozen");
    assert_eq!(events[0]["train_images"], 900);
    let epochs: Vec<_> = events.iter().filter(|e| e["event"] == "epoch").collect();
    assert_eq!(epochs.len(), 2);
    for key in
        ["epoch", "train_loss", "test_loss", "test_accuracy", "train_ms", "infer_ms", "images_per_s", "valid_accuracy"]
    {
        assert!(epochs[1][key].is_number(), "{key} in {}", epochs[1]);
    }
    assert_eq!(
        (&epochs[1]["swiglu"], &epochs[1]["device"], &epochs[1]["precision"]),
        (&"fused-frozen".into(), &"cpu".into(), &"fp32".into())
    );
    let end = events.last().expect("an end");
    assert_eq!((&end["event"], &end["interrupted"]), (&"end".into(), &false.into()));
}

#[test]
fn a_wrong_command_line_exits_with_2_and_says_what_to_do() {
    let folder = Folder::new("usage");
    bars(&folder.0);
    for (args, fragments) in [
        ("train --swiglu fussed", ["fussed", "fused-frozen"]),
        ("train --lr nan", ["--lr", "finite"]),
        ("train --lr -1", ["--lr", "finite"]),
        ("train --momentum 1", ["--momentum", "below 1"]),
        ("train --batch-size 0", ["--batch-size", "1..=60000"]),
        ("train --precision fp32-emulated --dataset bars/", ["fp32-emulated", "--precision fp32"]),
        ("train --precision tf32 --dataset bars/", ["tf32", "--precision fp32"]),
        ("train --device tpu", ["tpu", "cpu"]),
        ("train --resume r --lr 0.1", ["--resume", "cannot be used with"]),
        ("train --swiglu liger --gates recompute --dataset bars/", ["liger-style", "fused"]),
        ("train --dataset bars/ --validation 1000", ["1000", "validation"]),
        ("selftest --shape 1,2", ["1,2", "127,129,65"]),
        ("predict", ["PICTURE", "--help"]),
        ("frobnicate", ["frobnicate", "--help"]),
    ] {
        let error = failure(&run(&folder.0, args), 2);
        for fragment in fragments {
            assert!(error.contains(fragment), "{args}: no {fragment:?} in\n{error}");
        }
    }
    assert!(!folder.join("reports").exists(), "a wrong command line leaves nothing behind");
}

#[test]
fn what_is_missing_is_named_and_exits_with_1() {
    let folder = Folder::new("missing");
    for (args, fragment) in [
        ("train --data-dir nowhere", "nowhere"),
        ("train --dataset ./nowhere", "nowhere"),
        ("train --device cuda", "cuda"),
        ("train --resume nowhere", "nowhere"),
        ("eval nowhere", "nowhere"),
        ("predict --index 1", "reports/runs"),
    ] {
        let error = failure(&run(&folder.0, args), 1);
        assert!(error.contains(fragment) && error.contains("hint: "), "{args}:\n{error}");
    }
}

#[test]
fn a_dry_run_writes_nothing() {
    let folder = Folder::new("dry");
    bars(&folder.0);
    let text = stdout(&run(&folder.0, &format!("train {QUICK} --dry-run")));
    assert!(text.contains("one step of 32 images") && text.contains("nothing was written"), "{text}");
    assert!(!folder.join("reports").exists());
    let events = events(&stdout(&run(&folder.0, &format!("train {QUICK} --dry-run --json"))));
    assert_eq!((&events[0]["event"], &events[1]["event"]), (&"start".into(), &"dry_run".into()));
}

/// Starts a long run, waits until it has saved and trains on, and calls `stop` with its process id.
fn stopped_run(dir: &Path, stop: impl FnOnce(u32)) -> std::process::ExitStatus {
    let args = "train --dataset bars/ --width 64 --batch-size 8 --epochs 400 --schedule constant --lr 0.001 --warmup 5 --json --log-interval 1000000 --out r";
    let mut child =
        program(dir).args(args.split(' ')).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
    let begin = Instant::now();
    while !dir.join("r/checkpoint.safetensors").exists() {
        assert!(begin.elapsed() < Duration::from_secs(60), "no checkpoint after a minute");
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(60));
    stop(child.id());
    child.wait().expect("it ends")
}

fn signal(name: &str) -> impl FnOnce(u32) {
    let name = format!("-{name}");
    move |pid| {
        let status = std::process::Command::new("kill").args([name, pid.to_string()]).status();
        assert!(status.expect("kill runs").success());
    }
}

/// (epoch, train loss) of every epoch in a run's metrics.
fn losses(dir: &Path) -> Vec<(u64, f64)> {
    let text = std::fs::read_to_string(dir.join("r/metrics.jsonl")).expect("metrics");
    let epochs = events(&text).into_iter().filter(|e| e["event"] == "epoch");
    epochs.map(|e| (e["epoch"].as_u64().expect("a number"), e["train_loss"].as_f64().expect("a loss"))).collect()
}

#[cfg(unix)]
#[test]
fn ctrl_c_saves_and_exits_with_130_and_a_kill_loses_nothing_that_was_saved() {
    let folder = Folder::new("stop");
    bars(&folder.0);
    let whole = {
        let args =
            "train --dataset bars/ --width 64 --batch-size 8 --epochs 400 --schedule constant --lr 0.001 --warmup 5";
        // As many epochs as the stopped runs can have done is a lot: a reference of 60 is compared where they overlap.
        let args = args.replace("400", "60");
        stdout(&run(&folder.0, &format!("{args} --quiet --out r")));
        let losses = losses(&folder.0);
        std::fs::remove_dir_all(folder.join("r")).expect("removed");
        losses
    };
    for (name, code) in [("INT", Some(130)), ("TERM", Some(130)), ("KILL", None)] {
        let status = stopped_run(&folder.0, signal(name));
        assert_eq!(status.code(), code, "SIG{name}");
        let evaluated = stdout(&run(&folder.0, "eval r --dataset bars/ --json"));
        assert!(events(&evaluated)[0]["test_accuracy"].is_number());
        let done = losses(&folder.0).len();
        let resumed = run(&folder.0, &format!("train --resume r --epochs {} --quiet", done + 2));
        assert!(resumed.status.success(), "{}", String::from_utf8_lossy(&resumed.stderr));
        let after = losses(&folder.0);
        let epochs: Vec<u64> = after.iter().map(|&(epoch, _)| epoch).collect();
        assert_eq!(epochs, (1..=done as u64 + 2).collect::<Vec<_>>(), "SIG{name}: each epoch once");
        for (got, want) in after.iter().zip(&whole) {
            assert_eq!(got, want, "SIG{name}: a stopped run gives the losses of one that was not");
        }
        std::fs::remove_dir_all(folder.join("r")).expect("removed");
    }
}

#[test]
fn a_finished_run_says_that_nothing_is_left() {
    let folder = Folder::new("finished");
    bars(&folder.0);
    stdout(&run(&folder.0, &format!("train {QUICK} --quiet --out r")));
    let error = failure(&run(&folder.0, "train --resume r"), 2);
    assert!(error.contains("all of its 2 epochs"), "{error}");
    let error = failure(&run(&folder.0, "train --resume r --epochs 4"), 2);
    assert!(error.contains("cosine"), "{error}");
}

#[test]
fn a_diverging_run_says_where_and_keeps_what_was_good() {
    let folder = Folder::new("diverge");
    bars(&folder.0);
    let args = format!("train {QUICK} --out r --quiet --log-interval 1")
        .replace("--lr 0.01", "--lr 10000 --schedule constant");
    let error = failure(&run(&folder.0, &args), 1);
    assert!(
        error.contains("diverged") && error.contains("step") && error.contains("hint: try a smaller --lr"),
        "{error}"
    );
    assert!(folder.join("r/curves.svg").is_file(), "the chart shows how it went");
}

#[test]
fn a_closed_pipe_ends_the_output_and_not_the_training() {
    let folder = Folder::new("pipe");
    bars(&folder.0);
    let mut child = program(&folder.0)
        .args(format!("train {QUICK} --json --log-interval 1 --out r").split(' '))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut first = [0; 1];
    child.stdout.take().expect("a pipe").read_exact(&mut first).expect("a byte");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(losses(&folder.0).len(), 2);
}

#[test]
fn every_implementation_gives_one_network() {
    let folder = Folder::new("swap");
    bars(&folder.0);
    stdout(&run(&folder.0, &format!("train {QUICK} --swiglu fused-wgrad --quiet --out r")));
    let accuracy = |name: &str| {
        let text = stdout(&run(&folder.0, &format!("eval r --swiglu {name} --dataset bars/ --json")));
        events(&text)[0]["test_accuracy"].as_f64().expect("a number")
    };
    let all: Vec<f64> = mnist_swiglu::swiglu::ALL.iter().map(|entry| accuracy(entry.name)).collect();
    assert!(all.iter().all(|a| *a == all[0]) && all[0] > 0.9, "{all:?}");
}

#[test]
fn predict_names_the_digit_of_test_images_and_pictures() {
    let folder = Folder::new("predict");
    bars(&folder.0);
    stdout(&run(&folder.0, &format!("train {QUICK} --quiet --epochs 4 --out r").replacen("--epochs 2 ", "", 1)));
    let text = stdout(&run(&folder.0, "predict -c r --dataset bars/ --index 0 --index 3"));
    assert_eq!(text.lines().count(), 2, "{text}");
    assert!(text.starts_with("digit 0 (") && text.contains("test image 0  right"), "{text}");
    // A dark bar on white paper, as a picture.
    let mut pgm = b"P5 100 200 255\n".to_vec();
    pgm.extend(
        (0..200 * 100).map(|i| if (30..170).contains(&(i / 100)) && (45..55).contains(&(i % 100)) { 20 } else { 250 }),
    );
    std::fs::write(folder.join("bar.pgm"), pgm).expect("written");
    let json = stdout(&run(&folder.0, "predict -c r bar.pgm --json"));
    let value = &events(&json)[0];
    assert!(value["digit"].is_number() && value["probabilities"].as_array().is_some_and(|p| p.len() == 10), "{value}");
    let output = run(&folder.0, "predict -c r missing.png bar.pgm");
    let error = failure(&output, 1);
    assert!(error.contains("missing.png"), "{error}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("bar.pgm"), "the good picture is still told of");
    let error = failure(&run(&folder.0, "predict -c r --dataset bars/ --index 200"), 2);
    assert!(error.contains("200 test images") && error.contains("0 to 199"), "{error}");
}

#[test]
fn selftest_doctor_completions_and_verify_work() {
    let folder = Folder::new("others");
    bars(&folder.0);
    let text = stdout(&run(&folder.0, "selftest --shape 5,7,9 --shape 1,1,1"));
    assert!(
        text.lines().last().is_some_and(|line| line.starts_with("all ") && line.ends_with(" checks passed")),
        "{text}"
    );
    for check in events(&stdout(&run(&folder.0, "selftest --shape 5,7,9 --json --swiglu fused-wgrad"))) {
        assert_eq!((&check["ok"], &check["swiglu"]), (&true.into(), &"fused-triton-grad".into()));
    }
    let text = stdout(&run(&folder.0, "doctor --dataset bars/"));
    assert!(text.contains("threads") && text.contains("1000 training"), "{text}");
    stdout(&run(&folder.0, "doctor --json --dataset bars/"));
    let unknown = |args: &str| {
        let mut program = program(&folder.0);
        program.env("MNIST_SWIGLU_ISA", "sse9").args(args.split(' ')).output().expect("the program starts")
    };
    let output = unknown("doctor --dataset bars/");
    assert!(String::from_utf8_lossy(&output.stdout).contains("missing  kernels"), "{output:?}");
    assert_eq!(failure(&output, 2), failure(&unknown("selftest --shape 1,1,1"), 2), "doctor foretells what others say");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(stdout(&run(&folder.0, &format!("completions {shell}"))).contains("selftest"), "{shell}");
    }
    assert!(stdout(&run(&folder.0, "data verify --dataset bars/")).contains("1000"));
}

#[test]
fn bench_writes_a_record_a_case_and_prints_the_tables_of_every_implementation() {
    let folder = Folder::new("bench");
    let text = stdout(&run(&folder.0, "bench --batch 3 --dim 5 --hidden 7 --out m"));
    for name in mnist_swiglu::swiglu::ALL.iter().map(|entry| entry.name) {
        assert!(text.contains(name), "{name}\n{text}");
    }
    let json = stdout(&run(&folder.0, "bench --batch 3 --dim 5 --pass step --cache warm --json --out m"));
    let printed = events(&json);
    for record in printed.iter().filter(|record| record["bench"] == "swiglu") {
        assert_eq!(
            (&record["ok"], &record["pass"], &record["B"]),
            (&true.into(), &"step".into(), &3.into()),
            "{record}"
        );
        assert!(record["median_ms"].as_f64() > Some(0.0) && record["origin"]["commit"].is_string(), "{record}");
    }
    let kept = std::fs::read_to_string(folder.join("m/bench.jsonl")).expect("records");
    assert!(kept.ends_with(&json), "what is printed is what is kept, after the first run's records");
    assert!(stdout(&run(&folder.0, "report m --out r")).contains("index.html"));
    let page = std::fs::read_to_string(folder.join("r/index.html")).expect("a page");
    assert!(page.contains("Which one should I use") && !page.contains("http") && !page.contains("src="), "{page}");
    assert!(std::fs::read_to_string(folder.join("r/report.md")).expect("Markdown").contains("| liger-style |"));
    let error = failure(&run(&folder.0, "bench --batch 3 --dim 5 --swiglu fused-frozen --pass step --out m"), 2);
    assert!(error.contains("nothing to measure"), "{error}");
    std::fs::write(folder.join("file"), "x").expect("written");
    let error = failure(&run(&folder.0, "bench --batch 3 --dim 5 --out file"), 1);
    assert!(error.contains("file") && error.contains("hint:"), "{error}");
}

#[test]
fn compare_trains_all_from_one_seed_and_marks_the_one_that_does_not_learn() {
    let folder = Folder::new("compare");
    bars(&folder.0);
    let text = stdout(&run(&folder.0, "compare --dataset bars/ --width 16 --epochs 2 --out m"));
    assert!(text.contains("End to end") && text.contains("* less work"), "{text}");
    let kept = std::fs::read_to_string(folder.join("m/compare.jsonl")).expect("records");
    let records = events(&kept);
    assert_eq!(records.len(), mnist_swiglu::swiglu::ALL.len());
    for record in &records {
        assert_eq!(record["epochs"].as_array().map(Vec::len), Some(2), "{record}");
        let rows = record["confusion"].as_array().expect("a matrix");
        let images: u64 =
            rows.iter().flat_map(|row| row.as_array().into_iter().flatten()).filter_map(|n| n.as_u64()).sum();
        assert_eq!(images, 200, "every test image is counted once");
    }
}

#[test]
fn help_is_what_it_was() {
    let folder = Folder::new("help");
    for (name, args) in
        [("help", "--help"), ("train-short", "train -h"), ("train-long", "train --help"), ("eval", "eval --help")]
    {
        let got = stdout(&run(&folder.0, args));
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/snapshots/{name}.txt"));
        if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
            std::fs::write(&path, &got).expect("written");
        }
        let want = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(got == want, "{args} has changed; if that is meant: UPDATE_SNAPSHOTS=1 cargo test --test cli\n{got}");
    }
    let long = stdout(&run(&folder.0, "train --help")).split_whitespace().collect::<Vec<_>>().join(" ");
    for entry in mnist_swiglu::swiglu::ALL {
        assert!(long.contains(entry.name) && long.contains(entry.summary), "{}", entry.name);
    }
}
