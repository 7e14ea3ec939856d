//! Where NVIDIA's libraries may be, and what their files are called.

use std::{
    cmp::Reverse,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::library::VARIABLE;

/// A place to look in.
pub(super) struct Place {
    /// How an error calls it.
    pub(super) label: String,
    /// Its folders; none means that the system's loader is asked by name.
    pub(super) folders: Option<Vec<PathBuf>>,
}

impl Place {
    /// What to try to load here, the best first: whole paths, or bare names for the system's loader.
    pub(super) fn candidates(&self, stem: &str) -> Vec<PathBuf> {
        match &self.folders {
            None => cudarc::get_lib_name_candidates(stem).into_iter().map(PathBuf::from).collect(),
            Some(folders) => folders.iter().flat_map(|folder| files_in(folder, stem)).collect(),
        }
    }
}

/// Every place, in the order in which they are looked in. Python is only started when all before it had nothing.
pub(super) fn all() -> impl Iterator<Item = Place> {
    let variable = move || match std::env::var_os(VARIABLE) {
        Some(value) => {
            folders(format!("{VARIABLE}={}", value.to_string_lossy()), std::env::split_paths(&value).collect())
        }
        None => folders(format!("{VARIABLE} (not set)"), Vec::new()),
    };
    let loader = || Place { label: "the system's loader".into(), folders: None };
    let home = |name: &'static str| {
        move || match std::env::var_os(name).filter(|value| !value.is_empty()) {
            Some(value) => folders(format!("{name}={}", value.to_string_lossy()), toolkit(Path::new(&value))),
            None => folders(format!("{name} (not set)"), Vec::new()),
        }
    };
    let local = || {
        let mut roots = listing(Path::new("/usr/local"));
        roots.retain(|root| root.file_name().is_some_and(|name| name.to_string_lossy().starts_with("cuda")));
        // cuda, cuda-12, cuda-13.0: the plain name is the administrator's choice.
        roots.sort_by_key(|root| {
            (root.file_name().is_none_or(|name| name != "cuda"), Reverse(numbers(&root.to_string_lossy())))
        });
        folders("/usr/local/cuda*".into(), roots.iter().flat_map(|root| toolkit(root)).collect())
    };
    let wheels = || folders("the packages of python3 (nvidia/*/lib)".into(), python_wheels());
    let steps: [Box<dyn FnOnce() -> Place>; 6] = [
        Box::new(variable),
        Box::new(loader),
        Box::new(home("CUDA_HOME")),
        Box::new(home("CUDA_PATH")),
        Box::new(local),
        Box::new(wheels),
    ];
    steps.into_iter().map(|step| step())
}

fn folders(label: String, folders: Vec<PathBuf>) -> Place {
    // Relative paths would make the loader search by name, and depend on where the program is started.
    let folders = folders.into_iter().filter_map(|folder| std::path::absolute(folder).ok()).collect();
    Place { label, folders: Some(folders) }
}

/// The folders of a toolkit that hold libraries.
fn toolkit(root: &Path) -> Vec<PathBuf> {
    ["lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib", "bin/x64", "bin"]
        .iter()
        .map(|folder| root.join(folder))
        .collect()
}

/// nvidia/*/lib of each folder that `python3` imports from: nvidia/cu13/lib, nvidia/cuda_nvrtc/lib, nvidia/cublas/lib.
fn python_wheels() -> Vec<PathBuf> {
    let python = if cfg!(windows) { "python" } else { "python3" };
    let output = Command::new(python)
        .args(["-c", "import sys; print('\\n'.join(sys.path))"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    let Ok(output) = output else { return Vec::new() };
    wheels_in(String::from_utf8_lossy(&output.stdout).lines().map(Path::new))
}

fn wheels_in<'a>(paths: impl Iterator<Item = &'a Path>) -> Vec<PathBuf> {
    let packages = paths.filter(|path| path.is_absolute()).flat_map(|path| listing(&path.join("nvidia")));
    let mut folders: Vec<PathBuf> = packages.flat_map(|package| [package.join("lib"), package.join("bin")]).collect();
    folders.retain(|folder| folder.is_dir());
    folders
}

/// The files of a library in a folder, the highest version first: `libnvrtc.so.13`, `libnvrtc.so`, `nvrtc64_130_0.dll`.
fn files_in(folder: &Path, stem: &str) -> Vec<PathBuf> {
    let mut files: Vec<(Vec<u32>, PathBuf)> = listing(folder)
        .into_iter()
        .filter_map(|path| Some((version(path.file_name()?.to_str()?, stem)?, path)))
        .collect();
    files.sort_by(|a, b| b.cmp(a));
    files.into_iter().map(|(_, path)| path).collect()
}

/// The numbers at the end of a library's file name; none when it is another library's.
fn version(name: &str, stem: &str) -> Option<Vec<u32>> {
    let rest = name
        .strip_prefix("lib")
        .and_then(|name| name.strip_prefix(stem)?.strip_prefix(".so"))
        .or_else(|| name.strip_prefix(stem)?.strip_prefix("64_")?.strip_suffix(".dll"))?;
    // "libnvrtc.so.alt" and "nvrtc64_130_0.alt.dll" are built in another way.
    rest.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.' || byte == b'_').then(|| numbers(rest))
}

fn numbers(text: &str) -> Vec<u32> {
    text.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

/// What is in a folder, sorted; nothing when it cannot be read.
fn listing(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Folder;

    #[test]
    fn the_highest_version_in_a_folder_comes_first_and_other_libraries_not_at_all() {
        let folder = Folder::new("places-versions");
        for name in [
            "libcublas.so",
            "libcublas.so.9",
            "libcublas.so.12",
            "libcublas.so.12.8.4.1",
            "libcublasLt.so.13",
            "libcublas_static.a",
            "libcublas.so.alt",
        ] {
            std::fs::write(folder.join(name), "").unwrap();
        }
        let place = folders("a folder".into(), vec![folder.path().to_path_buf()]);
        let names: Vec<String> = place
            .candidates("cublas")
            .iter()
            .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
            .collect();
        assert_eq!(names, ["libcublas.so.12.8.4.1", "libcublas.so.12", "libcublas.so.9", "libcublas.so"]);
    }

    #[test]
    fn names_of_windows_libraries_are_understood() {
        assert_eq!(version("nvrtc64_130_0.dll", "nvrtc"), Some(vec![130, 0]));
        assert_eq!(version("nvrtc64_130_0.alt.dll", "nvrtc"), None);
        assert_eq!(version("nvrtc-builtins64_130.dll", "nvrtc"), None);
    }

    #[test]
    fn the_libraries_of_pip_wheels_are_found_beside_the_packages() {
        let folder = Folder::new("places-wheels");
        for package in ["cu13", "cublas"] {
            std::fs::create_dir_all(folder.join("nvidia").join(package).join("lib")).unwrap();
        }
        let paths = [Path::new(""), Path::new("relative"), folder.path()];
        // Sorted: those of CUDA 13 come before the older layout, one folder a library.
        let found = wheels_in(paths.into_iter());
        assert_eq!(found, [folder.join("nvidia/cu13/lib"), folder.join("nvidia/cublas/lib")]);
    }

    #[test]
    fn the_system_loader_is_asked_by_the_names_that_cudarc_knows() {
        let names = Place { label: String::new(), folders: None }.candidates("cublas");
        assert!(names.iter().all(|name| !name.is_absolute()), "{names:?}");
        if cfg!(target_os = "linux") {
            assert!(names.contains(&PathBuf::from("libcublas.so.13")), "{names:?}");
            assert!(names.contains(&PathBuf::from("libcublas.so.12")), "{names:?}");
        }
    }
}
