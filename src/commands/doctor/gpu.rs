//! What `doctor` finds out about NVIDIA GPUs. Without a driver nothing here is needed: what is not there is a warning then,
//! and only with a driver is it missing.

use std::{error::Error as _, path::Path};

use super::{Item, Section, State};
use crate::{
    Error, Result,
    device::cuda::{
        cache::{Cache, Kind},
        driver::{Driver, Gpu},
        library::Library,
        nvrtc::Nvrtc,
    },
};

/// The oldest compute capability that the kernels run on.
const OLDEST: (i32, i32) = (8, 0);

/// The driver, the devices, the libraries, the cache of compiled kernels.
pub(super) fn section() -> Section {
    let driver = Driver::start();
    let version = driver.as_ref().ok().and_then(|driver| driver.cuda_version().ok());
    // What lacks hurts only where there is a GPU to use.
    let absent = if Driver::is_installed() { State::Missing } else { State::Warn };
    let mut items = Vec::new();
    match driver.and_then(|driver| Ok((driver.cuda_version()?, driver.devices()?))) {
        Ok(((major, minor), gpus)) => {
            items.push(Item::ok("driver", format!("runs CUDA up to {major}.{minor}")));
            items.extend(gpus.iter().map(gpu_item));
            if gpus.is_empty() {
                items.push(Item::missing("device", "none", Some("is a GPU visible? see CUDA_VISIBLE_DEVICES".into())));
            }
        }
        Err(error) => items.push(absent_item("driver", &error, absent)),
    }
    let nvrtc = Nvrtc::load().map(|nvrtc| {
        let (major, minor) = nvrtc.version();
        (format!("{major}.{minor}"), nvrtc.path())
    });
    items.push(library_item(Library::Nvrtc, nvrtc, version, absent));
    let cublas = Library::cublas_version().and_then(|version| Ok((version, Library::Cublas.load()?.path())));
    items.push(library_item(Library::Cublas, cublas, version, absent));
    items.push(cache_item(&Cache::of_user(Kind::Cubins)));
    items.push(tiles_item(&Cache::of_user(Kind::Tiles)));
    Section::new("NVIDIA GPU", items)
}

/// A failure with its causes, on one line.
fn absent_item(name: &str, error: &Error, state: State) -> Item {
    let mut value = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        value.push_str(&format!(": {inner}"));
        cause = inner.source();
    }
    Item { state, hint: error.hint_text().map(str::to_string), ..Item::ok(name, value) }
}

fn gpu_item(gpu: &Gpu) -> Item {
    let (major, minor) = gpu.capability;
    let gib = gpu.memory as f64 / (1_u64 << 30) as f64;
    let value = format!(
        "{}, compute capability {major}.{minor}, {} multiprocessors, {gib:.1} GiB",
        gpu.name, gpu.multiprocessors
    );
    let name = format!("cuda:{}", gpu.ordinal);
    if gpu.capability < OLDEST {
        return Item::warn(&name, value, "the kernels need compute capability 8.0 or later; use --device cpu");
    }
    Item::ok(&name, format!("{value}; {}", gpu.kernel_family()))
}

/// A library with its version and file. `driver` is the newest CUDA version that the driver runs.
fn library_item(
    library: Library,
    found: Result<(String, Option<&Path>)>,
    driver: Option<(i32, i32)>,
    absent: State,
) -> Item {
    let (version, path) = match found {
        Ok(found) => found,
        Err(error) => return absent_item(library.name(), &error, absent),
    };
    let value = path.map_or(version.clone(), |path| format!("{version} ({})", path.display()));
    let major = version.split('.').next().and_then(|major| major.parse::<i32>().ok());
    match (driver, major) {
        // Within a major version, old drivers run what newer libraries make.
        (Some((runs, _)), Some(major)) if major > runs => {
            let hint = format!("newer than the driver: update the driver, or {}-cu{runs}", library.install());
            Item::warn(library.name(), value, hint)
        }
        _ => Item::ok(library.name(), value),
    }
}

fn cache_item(cache: &Cache) -> Item {
    const NAME: &str = "kernel cache";
    let size = match cache.size() {
        Ok(size) => size,
        Err(error) => return absent_item(NAME, &error, State::Warn),
    };
    let Some(dir) = cache.dir() else {
        return Item::warn(NAME, "nowhere: every start compiles", "set HOME or XDG_CACHE_HOME");
    };
    let mib = size.bytes as f64 / (1_u64 << 20) as f64;
    let value = match size.entries {
        0 => format!("{} (empty)", dir.display()),
        entries => format!("{} ({entries} files, {mib:.1} MiB; they can be removed)", dir.display()),
    };
    Item::ok(NAME, value)
}

/// Tiles that were found to be the fastest.
fn tiles_item(cache: &Cache) -> Item {
    const NAME: &str = "fastest tiles";
    let entries = match cache.size() {
        Ok(size) => size.entries,
        Err(error) => return absent_item(NAME, &error, State::Warn),
    };
    let Some(dir) = cache.dir() else {
        return Item::warn(NAME, "nowhere: every start tunes", "set HOME or XDG_CACHE_HOME");
    };
    let value = match entries {
        0 => format!("{} (none yet)", dir.display()),
        entries => format!("{} (of {entries} problems; they can be removed)", dir.display()),
    };
    Item::ok(NAME, value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Kind as ErrorKind, testing::Folder};

    #[test]
    fn the_section_is_there_on_any_machine_and_nothing_is_missing_without_a_driver() {
        let section = section();
        let names: Vec<&str> = section.items.iter().map(|item| item.name.as_str()).collect();
        for name in ["driver", "NVRTC", "cuBLAS", "kernel cache", "fastest tiles"] {
            assert!(names.contains(&name), "{names:?}");
        }
        if !Driver::is_installed() {
            assert!(section.items.iter().all(|item| item.state != State::Missing), "{section:?}");
            assert_eq!(section.items[0].state, State::Warn);
        }
    }

    #[test]
    fn a_library_that_is_absent_says_what_to_install() {
        let absent = || Err(Error::new(ErrorKind::Device, "NVRTC is not installed").hint("pip install it"));
        let item = library_item(Library::Nvrtc, absent(), None, State::Missing);
        assert_eq!(item, Item::missing("NVRTC", "NVRTC is not installed", Some("pip install it".into())));
        assert_eq!(library_item(Library::Nvrtc, absent(), None, State::Warn).state, State::Warn);
    }

    #[test]
    fn a_library_newer_than_the_driver_gets_a_warning() {
        let item = |version: &str, driver| {
            let found = Ok((version.to_string(), Some(Path::new("/lib/libcublas.so.13"))));
            library_item(Library::Cublas, found, driver, State::Missing)
        };
        assert_eq!(item("13.0.2", Some((13, 0))), Item::ok("cuBLAS", "13.0.2 (/lib/libcublas.so.13)"));
        assert_eq!(item("12.8.4", Some((13, 0))).state, State::Ok);
        let newer = item("13.0.2", Some((12, 8)));
        assert_eq!(newer.state, State::Warn);
        let hint = "newer than the driver: update the driver, or pip install nvidia-cublas-cu12";
        assert_eq!(newer.hint.as_deref(), Some(hint));
    }

    #[test]
    fn an_old_gpu_gets_a_warning() {
        let gpu = |capability| Gpu {
            ordinal: 1,
            name: "NVIDIA H200".into(),
            capability,
            memory: 141 << 30,
            multiprocessors: 132,
        };
        let value = "NVIDIA H200, compute capability 9.0, 132 multiprocessors, 141.0 GiB";
        assert_eq!(gpu_item(&gpu((9, 0))), Item::ok("cuda:1", format!("{value}; Hopper kernels: TMA + wgmma")));
        assert!(gpu_item(&gpu((8, 9))).value.ends_with("; portable kernels: mma.sync"));
        assert_eq!(gpu_item(&gpu((7, 5))).state, State::Warn);
    }

    #[test]
    fn the_cache_shows_where_it_is_and_what_it_holds() {
        let folder = Folder::new("doctor-cache");
        let shown = folder.path().display();
        let cache = Cache::at(Kind::Cubins, folder.path());
        assert_eq!(cache_item(&cache).value, format!("{shown} (empty)"));
        std::fs::write(folder.join("a.cubin"), vec![0; 3 << 19]).unwrap();
        assert_eq!(cache_item(&cache).value, format!("{shown} (1 files, 1.5 MiB; they can be removed)"));
        assert_eq!(tiles_item(&cache).value, format!("{shown} (of 1 problems; they can be removed)"));
    }
}
