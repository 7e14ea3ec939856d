//! Finds NVIDIA's libraries and loads them for the rest of the process, wherever they were installed.
//!
//! Looked in, in this order: the folders of `MNIST_SWIGLU_CUDA_LIBS`; the system's loader; `CUDA_HOME` and `CUDA_PATH`;
//! /usr/local/cuda*; the pip wheels of the `python3` on the PATH. A library that is loaded by its path is then found by its
//! bare name too, which is how cudarc asks for cuBLAS.

use std::{
    ffi::{c_int, c_void},
    path::{Path, PathBuf},
    sync::OnceLock,
};

use super::places::{self, Place};
use crate::{Error, Kind, Result};

/// The variable that names folders to look in first.
pub const VARIABLE: &str = "MNIST_SWIGLU_CUDA_LIBS";

/// What can be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    /// NVIDIA's run-time compiler.
    Nvrtc,
    /// NVIDIA's matrix products.
    Cublas,
}

/// A library that stays loaded.
#[derive(Debug)]
pub struct Loaded {
    library: libloading::Library,
    path: Option<PathBuf>,
}

impl Loaded {
    /// The file, where the system tells.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// A function of it.
    ///
    /// # Errors
    /// When the library has none of this name.
    ///
    /// # Safety
    /// `F` must be a function pointer of the type that the library gives this name.
    pub unsafe fn function<F: Copy>(&self, name: &str) -> Result<F> {
        // SAFETY: the type is the caller's promise; the library is never unloaded, so the pointer stays good.
        let symbol = unsafe { self.library.get::<F>(name.as_bytes()) };
        symbol.map(|function| *function).map_err(|cause| {
            let file = self.path.as_ref().map_or("the library".to_string(), |path| path.display().to_string());
            Error::new(Kind::Device, format!("{file} has no function {name}: it is too old or not what its name says"))
                .hint("install a CUDA 12 or 13 library")
                .because(cause)
        })
    }
}

impl Library {
    /// Its name, for people.
    pub fn name(self) -> &'static str {
        match self {
            Library::Nvrtc => "NVRTC",
            Library::Cublas => "cuBLAS",
        }
    }

    /// The middle of its file name.
    fn stem(self) -> &'static str {
        match self {
            Library::Nvrtc => "nvrtc",
            Library::Cublas => "cublas",
        }
    }

    /// Libraries that it needs, which lie beside it and which the loader may not look for there.
    fn companions(self) -> &'static [&'static str] {
        match self {
            // Some versions look for it by its name alone, which the loader does not know beside a library in a wheel.
            Library::Nvrtc => &["nvrtc-builtins"],
            Library::Cublas => &["cublasLt"],
        }
    }

    /// A function that every version has, to learn where the library came from.
    fn landmark(self) -> &'static str {
        match self {
            Library::Nvrtc => "nvrtcVersion",
            Library::Cublas => "cublasGetProperty",
        }
    }

    /// The command that provides it.
    pub fn install(self) -> &'static str {
        match self {
            Library::Nvrtc => "pip install nvidia-cuda-nvrtc",
            Library::Cublas => "pip install nvidia-cublas",
        }
    }

    /// The library, loaded at the first call.
    ///
    /// # Errors
    /// [`Kind::Device`] when it is nowhere, or cannot be loaded; it says where was looked, and the hint what to install.
    pub fn load(self) -> Result<&'static Loaded> {
        static NVRTC: OnceLock<Loaded> = OnceLock::new();
        static CUBLAS: OnceLock<Loaded> = OnceLock::new();
        let slot = match self {
            Library::Nvrtc => &NVRTC,
            Library::Cublas => &CUBLAS,
        };
        if let Some(loaded) = slot.get() {
            return Ok(loaded);
        }
        let mut loaded = self.search(places::all())?;
        if self == Library::Cublas {
            loaded = self.as_cudarc_finds_it(loaded)?;
        }
        Ok(slot.get_or_init(|| loaded))
    }

    /// The version of the library that is loaded, as it gives it: `13.0.2`. NVRTC's is [`super::nvrtc::Nvrtc::version`].
    ///
    /// # Errors
    /// When cuBLAS cannot be loaded, or does not answer.
    pub fn cublas_version() -> Result<String> {
        type Property = unsafe extern "C" fn(c_int, *mut c_int) -> c_int;
        // SAFETY: the type in cublas_api.h, enums being ints; it needs no handle and no device.
        let property: Property = unsafe { Library::Cublas.load()?.function("cublasGetProperty")? };
        let mut parts = [0; 3];
        for (which, part) in (0..).zip(&mut parts) {
            // SAFETY: as above; 0, 1 and 2 are the major version, the minor one and the patch level.
            let code = unsafe { property(which, part) };
            if code != 0 {
                return Err(Error::new(Kind::Device, format!("cuBLAS does not tell its version (code {code})")));
            }
        }
        Ok(parts.map(|part| part.to_string()).join("."))
    }

    fn search(self, places: impl Iterator<Item = Place>) -> Result<Loaded> {
        let mut looked = Vec::new();
        let mut failure = None;
        for place in places {
            for candidate in place.candidates(self.stem()) {
                if candidate.is_absolute() {
                    self.load_companions(&candidate);
                }
                // SAFETY: loading runs the library's initialisers; these are NVIDIA's, which ask for nothing first.
                match unsafe { libloading::Library::new(&candidate) } {
                    Ok(library) => {
                        let path = address(&library, self.landmark()).and_then(file_at);
                        let path = path.or_else(|| candidate.is_absolute().then_some(candidate));
                        return Ok(Loaded { library, path });
                    }
                    // A name that the system's loader does not know is no failure; a file that is there and unusable is.
                    Err(cause) if candidate.is_absolute() => {
                        failure.get_or_insert((candidate, cause));
                    }
                    Err(_) => {}
                }
            }
            looked.push(place.label);
        }
        let hint = format!("{}, or name the folder that holds it in {VARIABLE}", self.install());
        let looked = looked.join(", ");
        Err(match failure {
            Some((path, cause)) => Error::new(
                Kind::Device,
                format!(
                    "{} cannot be loaded: {} is there but unusable; looked in: {looked}",
                    self.name(),
                    path.display()
                ),
            )
            .because(cause),
            None => Error::new(Kind::Device, format!("{} is not installed; looked in: {looked}", self.name())),
        }
        .hint(hint))
    }

    fn load_companions(self, beside: &Path) {
        for stem in self.companions() {
            let folder = beside.parent().map(Path::to_path_buf).into_iter().collect();
            for file in (Place { label: String::new(), folders: Some(folder) }).candidates(stem) {
                // SAFETY: as above. A failure shows when the library that needs it is loaded.
                if let Ok(library) = unsafe { libloading::Library::new(&file) } {
                    std::mem::forget(library);
                    break;
                }
            }
        }
    }

    /// The same library through cudarc's own list of names: it takes the first, so what it takes must be what was found.
    fn as_cudarc_finds_it(self, found: Loaded) -> Result<Loaded> {
        let by_name = cudarc::get_lib_name_candidates(self.stem())
            .into_iter()
            // SAFETY: as above.
            .find_map(|name| unsafe { libloading::Library::new(name) }.ok());
        let place = |library: &libloading::Library| address(library, self.landmark());
        let file = found.path.as_ref().map_or("a file".to_string(), |path| path.display().to_string());
        match by_name {
            Some(library) if place(&library) == place(&found.library) => Ok(found),
            Some(library) => {
                let other = place(&library).and_then(file_at);
                let other = other.map_or("another file".to_string(), |path| path.display().to_string());
                Err(Error::new(
                    Kind::Device,
                    format!("{}: {file} was found, but the system's loader puts {other} before it", self.name()),
                )
                .hint("put its folder first in LD_LIBRARY_PATH, or take it out of MNIST_SWIGLU_CUDA_LIBS"))
            }
            None => Err(Error::new(
                Kind::Device,
                format!("{}: {file} was loaded, but is not of a version that this program knows", self.name()),
            )
            .hint("install the library of CUDA 12 or 13")),
        }
    }
}

/// Where a function of the library is in memory.
fn address(library: &libloading::Library, function: &str) -> Option<usize> {
    // SAFETY: the pointer is never called, so its type does not matter.
    let symbol = unsafe { library.get::<*const c_void>(function.as_bytes()) }.ok()?;
    Some((*symbol).addr())
}

/// The file that is mapped at an address: the loader's search is its own secret, this is its result.
fn file_at(address: usize) -> Option<PathBuf> {
    mapped_at(&std::fs::read_to_string("/proc/self/maps").ok()?, address)
}

/// The file at an address in the text of /proc/self/maps.
fn mapped_at(maps: &str, address: usize) -> Option<PathBuf> {
    maps.lines().find_map(|line| {
        let (start, end) = line.split_whitespace().next()?.split_once('-')?;
        let parse = |text| usize::from_str_radix(text, 16).ok();
        let path = &line[line.find('/')?..];
        (parse(start)? <= address && address < parse(end)?).then(|| PathBuf::from(path))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Folder;

    #[test]
    fn a_missing_library_says_where_was_looked_and_what_to_install() {
        let folder = Folder::new("library-missing");
        let place = Place { label: "a folder".into(), folders: Some(vec![folder.path().to_path_buf()]) };
        let error = Library::Nvrtc.search([place].into_iter()).unwrap_err();
        assert_eq!(error.kind(), Kind::Device);
        assert_eq!(error.to_string(), "NVRTC is not installed; looked in: a folder");
        let hint = "pip install nvidia-cuda-nvrtc, or name the folder that holds it in MNIST_SWIGLU_CUDA_LIBS";
        assert_eq!(error.hint_text(), Some(hint));
    }

    #[test]
    fn a_file_that_is_no_library_is_named() {
        let folder = Folder::new("library-damaged");
        for name in ["libcublas.so.13", "libcublasLt.so.13", "cublas64_13.dll"] {
            std::fs::write(folder.join(name), "not a library").unwrap();
        }
        let place = Place { label: "a folder".into(), folders: Some(vec![folder.path().to_path_buf()]) };
        let error = Library::Cublas.search([place].into_iter()).unwrap_err();
        assert_eq!(error.kind(), Kind::Device);
        assert!(error.to_string().contains("is there but unusable"), "{error}");
        assert!(std::error::Error::source(&error).is_some());
    }

    #[test]
    fn the_file_at_an_address_is_read_from_the_maps() {
        let maps = "\
7f00-7f10 r--p 00000000 08:01 12 /usr/lib/libc.so.6
7f10-7f20 r-xp 00010000 08:01 13 /opt/cuda 13/libnvrtc.so.13
7f20-7f30 rw-p 00000000 00:00 0
";
        assert_eq!(mapped_at(maps, 0x7f10), Some(PathBuf::from("/opt/cuda 13/libnvrtc.so.13")));
        assert_eq!(mapped_at(maps, 0x7f0f), Some(PathBuf::from("/usr/lib/libc.so.6")));
        assert_eq!(mapped_at(maps, 0x7f20), None);
        assert_eq!(mapped_at(maps, 0x7f40), None);
    }
}
