//! NVRTC, NVIDIA's run-time compiler: the functions that are needed of it, and its version.
//!
//! They are bound here, not through cudarc: the library meant is then the library used, even where the system has another,
//! and a result code of a version newer than the bindings stays a number.

use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    path::Path,
    ptr,
    sync::OnceLock,
};

use super::library::{Library, Loaded};
use crate::{Error, Kind, Result};

type Program = *mut c_void;
type SizeOf = unsafe extern "C" fn(Program, *mut usize) -> c_int;
type CopyOf = unsafe extern "C" fn(Program, *mut c_char) -> c_int;

/// NVRTC, loaded.
pub struct Nvrtc {
    library: &'static Loaded,
    version: (i32, i32),
    archs: Vec<u32>,
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int,
    destroy: unsafe extern "C" fn(*mut Program) -> c_int,
    log_size: SizeOf,
    log: CopyOf,
    cubin_size: SizeOf,
    cubin: CopyOf,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
}

/// What a compilation gave: machine code, or none when the source is wrong; and what the compiler said.
pub(super) struct Output {
    pub(super) cubin: Result<Vec<u8>>,
    pub(super) log: String,
}

impl Nvrtc {
    /// NVRTC, found and loaded at the first call.
    ///
    /// # Errors
    /// [`Kind::Device`] when it is not installed or does not answer.
    pub fn load() -> Result<&'static Nvrtc> {
        static NVRTC: OnceLock<Nvrtc> = OnceLock::new();
        if let Some(nvrtc) = NVRTC.get() {
            return Ok(nvrtc);
        }
        let nvrtc = Nvrtc::bind(Library::Nvrtc.load()?)?;
        Ok(NVRTC.get_or_init(|| nvrtc))
    }

    fn bind(library: &'static Loaded) -> Result<Nvrtc> {
        // SAFETY: the types are those of nvrtc.h, which has not changed them since CUDA 11; enums are ints there.
        let mut nvrtc = unsafe {
            Nvrtc {
                library,
                version: (0, 0),
                archs: Vec::new(),
                create: library.function("nvrtcCreateProgram")?,
                compile: library.function("nvrtcCompileProgram")?,
                destroy: library.function("nvrtcDestroyProgram")?,
                log_size: library.function("nvrtcGetProgramLogSize")?,
                log: library.function("nvrtcGetProgramLog")?,
                cubin_size: library.function("nvrtcGetCUBINSize")?,
                cubin: library.function("nvrtcGetCUBIN")?,
                error_string: library.function("nvrtcGetErrorString")?,
            }
        };
        // SAFETY: as above, and each call is given room for what it writes.
        unsafe {
            let version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int = library.function("nvrtcVersion")?;
            let (mut major, mut minor) = (0, 0);
            nvrtc.check("ask for the version", version(&raw mut major, &raw mut minor))?;
            nvrtc.version = (major, minor);

            let count: unsafe extern "C" fn(*mut c_int) -> c_int = library.function("nvrtcGetNumSupportedArchs")?;
            let list: unsafe extern "C" fn(*mut c_int) -> c_int = library.function("nvrtcGetSupportedArchs")?;
            let mut length = 0;
            nvrtc.check("count the architectures", count(&raw mut length))?;
            let mut archs: Vec<c_int> = vec![0; usize::try_from(length).unwrap_or(0)];
            nvrtc.check("list the architectures", list(archs.as_mut_ptr()))?;
            nvrtc.archs = archs.into_iter().filter_map(|arch| u32::try_from(arch).ok()).collect();
        }
        Ok(nvrtc)
    }

    /// Its version: 13, 0.
    pub fn version(&self) -> (i32, i32) {
        self.version
    }

    /// Its file, where the system tells.
    pub fn path(&self) -> Option<&Path> {
        self.library.path()
    }

    /// The compute capabilities that it compiles for, times ten: 80, 86, 90.
    pub fn archs(&self) -> &[u32] {
        &self.archs
    }

    /// Compiles a program; `headers` are (name, text). An error is one of the compiler itself; a wrong source shows in `cubin`.
    pub(super) fn run(&self, name: &str, text: &str, headers: &[(&str, &str)], options: &[String]) -> Result<Output> {
        let (name, text) = (c_string(name)?, c_string(text)?);
        let names = headers.iter().map(|(name, _)| c_string(name)).collect::<Result<Vec<_>>>()?;
        let texts = headers.iter().map(|(_, text)| c_string(text)).collect::<Result<Vec<_>>>()?;
        let options = options.iter().map(|option| c_string(option)).collect::<Result<Vec<_>>>()?;
        let (names, texts, options) = (pointers(&names), pointers(&texts), pointers(&options));
        let mut program = ptr::null_mut();
        // SAFETY: every pointer is to a string that lives to the end of this function, and the counts are theirs.
        let created = unsafe {
            (self.create)(&raw mut program, text.as_ptr(), name.as_ptr(), count(&names), texts.as_ptr(), names.as_ptr())
        };
        self.check("create a program", created)?;
        let program = Guard { nvrtc: self, program };
        // SAFETY: the program is alive until the guard goes, the options as long.
        let compiled = unsafe { (self.compile)(program.program, count(&options), options.as_ptr()) };
        let log = program.copy("read the log", self.log_size, self.log)?;
        let log = String::from_utf8_lossy(&log).trim_end_matches('\0').trim().to_string();
        let cubin =
            self.check("compile", compiled).and_then(|()| program.copy("read the cubin", self.cubin_size, self.cubin));
        Ok(Output { cubin, log })
    }

    fn check(&self, doing: &str, code: c_int) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: it gives a string of its own for every code, known or not; null is looked for all the same.
        let text = unsafe {
            let text = (self.error_string)(code);
            if text.is_null() { "unknown".into() } else { CStr::from_ptr(text).to_string_lossy() }
        };
        Err(Error::new(Kind::Device, format!("NVRTC cannot {doing}: {text} (code {code})")))
    }
}

impl std::fmt::Debug for Nvrtc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nvrtc").field("version", &self.version).field("path", &self.path()).finish_non_exhaustive()
    }
}

/// A program that is destroyed at the end.
struct Guard<'a> {
    nvrtc: &'a Nvrtc,
    program: Program,
}

impl Guard<'_> {
    fn copy(&self, doing: &str, size: SizeOf, copy: CopyOf) -> Result<Vec<u8>> {
        let mut length = 0;
        // SAFETY: the program is alive, and the bytes are as many as NVRTC said it will write.
        unsafe {
            self.nvrtc.check(doing, size(self.program, &raw mut length))?;
            let mut bytes = vec![0_u8; length];
            self.nvrtc.check(doing, copy(self.program, bytes.as_mut_ptr().cast()))?;
            Ok(bytes)
        }
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        // SAFETY: created by NVRTC and destroyed once, here. Nothing could be done about a failure.
        unsafe { (self.nvrtc.destroy)(&raw mut self.program) };
    }
}

fn c_string(text: &str) -> Result<CString> {
    CString::new(text).map_err(|cause| Error::new(Kind::Device, "a zero byte in a kernel's text").because(cause))
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).collect()
}

fn count(list: &[*const c_char]) -> c_int {
    // A dozen headers, a dozen options.
    c_int::try_from(list.len()).unwrap_or(c_int::MAX)
}
