//! What tests of the program share: a folder that goes away, a small data set, and running the program in it.

// Each test file compiles this for itself and uses a part of it.
#![allow(dead_code)]

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering},
};

use mnist_swiglu::data::idx::{self, Content};

/// A folder that is removed at the end of the test.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new(name: &str) -> Folder {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("mnist-swiglu-{name}-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a temporary folder");
        Folder(path)
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Ten kinds of vertical bar, 1,000 to train on and 200 to test with, as IDX files in `dir/bars`.
pub fn bars(dir: &Path) -> PathBuf {
    let folder = dir.join("bars");
    std::fs::create_dir_all(&folder).expect("a folder");
    for (name, count, salt) in [("train", 1000_usize, 1_usize), ("t10k", 200, 2)] {
        let label = |i: usize| (i * 7 + i / 10 * salt) % 10;
        let pixel = |i: usize, p: usize| {
            let noise = ((i * 31 + p * 17 * salt) % 23) as u8;
            if (p % 28).abs_diff(label(i) * 2 + 4) < 2 { 220 + noise } else { noise }
        };
        let labels: Vec<u8> = (0..count).map(|i| label(i) as u8).collect();
        let images: Vec<u8> = (0..count).flat_map(|i| (0..784).map(move |p| pixel(i, p))).collect();
        let write = |kind: &str, content, body: &[u8]| {
            let bytes = idx::write(content, body).expect("an IDX file");
            std::fs::write(folder.join(format!("{name}-{kind}-ubyte")), bytes).expect("written");
        };
        write("images-idx3", Content::Images, &images);
        write("labels-idx1", Content::Labels, &labels);
    }
    folder
}

/// The program, to be run in `dir`, with nothing of this machine's settings.
pub fn program(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mnist-swiglu"));
    command.current_dir(dir).env("RAYON_NUM_THREADS", "2").env("NO_COLOR", "1");
    for name in ["MNIST_SWIGLU_DATA", "MNIST_SWIGLU_ISA", "COLUMNS"] {
        command.env_remove(name);
    }
    command
}

/// Runs the program with `args`, split at spaces.
pub fn run(dir: &Path, args: &str) -> Output {
    program(dir).args(args.split_whitespace()).output().expect("the program starts")
}

/// Standard output of a run that must succeed.
pub fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{:?}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Standard error of a run that must fail with `code`.
pub fn failure(output: &Output, code: i32) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(!text.contains("panicked"), "{text}");
    text
}
