//! The README's commands do what it says. Each `sh` block's lines that call the program are run, in order, in one folder,
//! with the data of this repository; training is cut to one short epoch.

mod common;

use common::{Folder, program};

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
