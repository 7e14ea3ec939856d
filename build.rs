//! Embeds the CUDA kernels: a table of the file names and texts of kernels/, so that the program carries what it compiles.
//! No toolkit and no GPU is asked for; NVRTC compiles the kernels on the machine that runs them.
//!
//! Embeds the commit as well, so that a record names what the program was built from, wherever it runs.

use std::{
    error::Error,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// What the program is made from. A folder stands for everything in it, so that a new or a removed file counts too.
const SOURCES: [&str; 5] = ["kernels", "src", "build.rs", "Cargo.toml", "Cargo.lock"];

fn main() -> Result<(), Box<dyn Error>> {
    for path in SOURCES {
        println!("cargo::rerun-if-changed={path}");
    }
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?);
    println!("cargo::rustc-env=MNIST_SWIGLU_COMMIT={}", commit(&root));
    let folder = root.join("kernels");
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).map_err(|error| format!("cannot list {}: {error}", folder.display()))? {
        let name = entry?.file_name().into_string().map_err(|name| format!("kernels/{name:?} is not UTF-8"))?;
        if Path::new(&name).extension().is_some_and(|extension| extension == "cu" || extension == "cuh") {
            names.push(name);
        }
    }
    // The order of a listing is the file system's: sorted, the table is the same everywhere.
    names.sort();

    let mut table = String::from("&[\n");
    for name in &names {
        let path = format!("/kernels/{name}");
        writeln!(table, "    ({name:?}, include_str!(concat!(env!(\"CARGO_MANIFEST_DIR\"), {path:?}))),")?;
    }
    table.push_str("]\n");
    fs::write(Path::new(&std::env::var("OUT_DIR")?).join("kernel_sources.rs"), table)?;
    Ok(())
}

/// The commit of the sources, with `-dirty` when they were changed since; `unknown` without git, or where the sources lie
/// in somebody else's tree.
fn commit(root: &Path) -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").arg("-C").arg(root).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let described = || {
        let top = git(&["rev-parse", "--show-toplevel"])?;
        if fs::canonicalize(top).ok()? != fs::canonicalize(root).ok()? {
            return None;
        }
        // What a commit or a checkout changes: HEAD when the branch changes, its log and the branch's file at a commit.
        let branch = git(&["rev-parse", "--symbolic-full-name", "HEAD"])?;
        for name in ["HEAD", "logs/HEAD", branch.as_str(), "packed-refs"] {
            let path = root.join(git(&["rev-parse", "--git-path", name])?);
            // A path that is not there would make every build a new one.
            if path.is_file() {
                println!("cargo::rerun-if-changed={}", path.display());
            }
        }
        let hash = git(&["rev-parse", "--short=10", "HEAD"])?;
        let untouched = git(&[&["status", "--porcelain", "--"], SOURCES.as_slice()].concat())?.is_empty();
        Some(if untouched { hash } else { hash + "-dirty" })
    };
    described().filter(|text| !text.is_empty()).unwrap_or_else(|| "unknown".into())
}
