//! The texts of the kernels, embedded by build.rs: the program carries what it compiles.

use sha2::{Digest, Sha256};

/// Every file of kernels/ that the compiler reads: its name and its text, sorted by name.
pub const SOURCES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/kernel_sources.rs"));

/// The text of a file.
pub fn text(name: &str) -> Option<&'static str> {
    SOURCES.iter().find(|(file, _)| *file == name).map(|(_, text)| *text)
}

/// The files that others include (`.cuh`), with their texts.
pub fn headers() -> impl Iterator<Item = (&'static str, &'static str)> {
    SOURCES.iter().copied().filter(|(name, _)| name.ends_with(".cuh"))
}

/// The files that are compiled (`.cu`).
pub fn kernels() -> impl Iterator<Item = &'static str> {
    SOURCES.iter().map(|(name, _)| *name).filter(|name| name.ends_with(".cu"))
}

/// SHA-256, in hexadecimal, of everything that the compiler can read when it compiles `file`: its text and every header.
/// None when there is no such file.
pub fn fingerprint(file: &str) -> Option<String> {
    let mut hash = Sha256::new();
    // Lengths keep the end of one text from being taken for the start of the next.
    let mut add = |name: &str, text: &str| {
        hash.update(format!("{name} {}\n", text.len()));
        hash.update(text);
    };
    add(file, text(file)?);
    headers().for_each(|(name, text)| add(name, text));
    Some(hex(&hash.finalize()))
}

/// Bytes in hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_folder_is_embedded_as_it_is() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&folder).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.ends_with(".cu") || name.ends_with(".cuh") {
                assert_eq!(text(&name), Some(std::fs::read_to_string(folder.join(&name)).unwrap().as_str()), "{name}");
                files.push(name);
            }
        }
        files.sort();
        assert_eq!(SOURCES.iter().map(|(name, _)| *name).collect::<Vec<_>>(), files);
        assert!(kernels().any(|name| name == "swiglu_fused_forward.cu"));
        assert_eq!(text("README.md"), None);
    }

    #[test]
    fn kernels_include_only_headers_that_are_embedded() {
        for (name, text) in SOURCES {
            for line in text.lines().filter_map(|line| line.trim().strip_prefix("#include")) {
                let included = line.trim().strip_prefix('"').and_then(|rest| rest.split('"').next());
                let embedded = included.is_some_and(|included| headers().any(|(header, _)| header == included));
                assert!(embedded, "{name} includes {line}, which the compiler will not find");
            }
        }
    }

    #[test]
    fn a_fingerprint_is_the_files_own() {
        let forward = fingerprint("swiglu_fused_forward.cu").unwrap();
        assert_eq!(forward.len(), 64);
        assert_eq!(fingerprint("swiglu_fused_forward.cu").as_ref(), Some(&forward));
        assert_ne!(fingerprint("sgd.cu").as_ref(), Some(&forward));
        assert_eq!(fingerprint("no_such_kernel.cu"), None);
    }
}
