//! Embeds the CUDA kernels: a table of the file names and texts of kernels/, so that the program carries what it compiles.
//! No toolkit and no GPU is asked for; NVRTC compiles the kernels on the machine that runs them.

use std::{error::Error, fmt::Write, fs, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    // A folder stands for everything in it, so that a new or a removed file counts too.
    println!("cargo::rerun-if-changed=kernels");
    println!("cargo::rerun-if-changed=build.rs");

    let folder = Path::new(&std::env::var("CARGO_MANIFEST_DIR")?).join("kernels");
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
