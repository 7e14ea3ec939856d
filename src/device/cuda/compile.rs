//! A kernel file and its defines, compiled to machine code (a cubin) for one architecture.
//!
//! To a cubin and not to PTX: PTX of a newer NVRTC is refused by an older driver, and some mistakes only the assembler sees.

use std::fmt;

use super::{nvrtc::Nvrtc, sources};
use crate::{Error, Kind, Result, device::Precision};

/// An architecture: compute capability 9.0 is `sm_90`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Arch {
    /// Compute capability times ten: 80, 86, 90, 120.
    pub capability: u32,
    /// Whether instructions of this very architecture may be used (`sm_90a`).
    pub specific: bool,
}

impl Arch {
    /// `sm_80`, `sm_86`, ... from the capability times ten.
    pub const fn sm(capability: u32) -> Arch {
        Arch { capability, specific: false }
    }

    /// The architecture of a device of compute capability `major`.`minor`, with the instructions of its own where a
    /// generation has such (`sm_90a`, `sm_100a`): the machine code runs on just this device, so it may use them.
    pub const fn of_device(major: u32, minor: u32) -> Arch {
        Arch { capability: major * 10 + minor, specific: minor == 0 && (major == 9 || major == 10) }
    }
}

/// What kernel files are tried for, oldest first: one of each generation. The portable ones run on what lies between too.
const PORTABLE: &[Arch] =
    &[Arch::sm(80), Arch::sm(86), Arch::sm(89), Arch::of_device(9, 0), Arch::of_device(10, 0), Arch::sm(120)];

/// TMA, wgmma and clusters as these kernels use them: Hopper alone.
const HOPPER: &[Arch] = &[Arch::of_device(9, 0)];

/// The architectures that a kernel file claims to compile for: the `hopper` ones for sm_90a, all others from sm_80 on.
pub fn architectures(file: &str) -> &'static [Arch] {
    if is_hopper(file) { HOPPER } else { PORTABLE }
}

fn is_hopper(file: &str) -> bool {
    file.starts_with("hopper")
}

/// What `PRECISION` is defined as in kernels/.
pub const fn define(precision: Precision) -> u32 {
    match precision {
        Precision::Fp32 => 0,
        Precision::Tf32 => 1,
        Precision::Bf16 => 2,
        Precision::Fp32Emulated => 3,
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sm_{}{}", self.capability, if self.specific { "a" } else { "" })
    }
}

/// What is compiled into one module: kernels/README.md lists the defines of each file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Configuration {
    /// A file of kernels/: `swiglu_fused_forward.cu`.
    pub file: &'static str,
    /// Defines, in the order given: `("PRECISION", 2)`.
    pub defines: Vec<(&'static str, u32)>,
    /// The architecture.
    pub arch: Arch,
}

impl Configuration {
    /// The options that NVRTC is given.
    pub fn options(&self) -> Vec<String> {
        let mut options = vec![
            format!("--gpu-architecture={}", self.arch),
            "--std=c++17".to_string(),
            "--ptxas-options=-v".to_string(),
        ];
        options.extend(self.defines.iter().map(|(name, value)| format!("-D{name}={value}")));
        options
    }

    /// Compiles it.
    ///
    /// # Errors
    /// [`Kind::Device`] when there is no such file, when this NVRTC does not know the architecture, or when the compiler
    /// refuses the source: its log is the cause.
    pub fn compile(&self, nvrtc: &Nvrtc) -> Result<Compiled> {
        let text = sources::text(self.file)
            .ok_or_else(|| Error::new(Kind::Device, format!("compile {self}: there is no such kernel file")))?;
        if is_hopper(self.file) && !HOPPER.contains(&self.arch) {
            return Err(Error::new(
                Kind::Device,
                format!("compile {self}: this kernel is for {} alone; other GPUs run the portable ones", HOPPER[0]),
            ));
        }
        let (major, minor) = nvrtc.version();
        if !nvrtc.archs().contains(&self.arch.capability) {
            let known = nvrtc.archs().iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
            return Err(Error::new(
                Kind::Device,
                format!(
                    "compile {self}: NVRTC {major}.{minor} compiles for compute capability (times 10) {known} only"
                ),
            )
            .hint("install another version: pip install --upgrade nvidia-cuda-nvrtc"));
        }
        let headers: Vec<(&str, &str)> = sources::headers().collect();
        let output = nvrtc.run(self.file, text, &headers, &self.options())?;
        match output.cubin {
            Ok(cubin) if !cubin.is_empty() => Ok(Compiled { cubin, log: output.log }),
            Ok(_) => {
                Err(Error::new(Kind::Device, format!("compile {self}: NVRTC {major}.{minor} gave no machine code"))
                    .because(output.log))
            }
            Err(error) => Err(Error::new(Kind::Device, format!("compile {self} with NVRTC {major}.{minor}: {error}"))
                .because(output.log)),
        }
    }
}

impl fmt::Display for Configuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} for {}", self.file, self.arch)?;
        self.defines.iter().try_for_each(|(name, value)| write!(f, " {name}={value}"))
    }
}

/// Machine code, and what the compiler said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// An ELF file that the driver loads.
    pub cubin: Vec<u8>,
    /// The compiler's log; for each kernel its registers, stack and spills.
    pub log: String,
}

impl Compiled {
    /// Bytes that its kernels keep on the stack for want of registers, stores and loads added up. None when the log does
    /// not tell.
    pub fn spilled_bytes(&self) -> Option<u64> {
        let mut lines = self.log.lines().filter(|line| line.contains("bytes spill stores")).peekable();
        lines.peek()?;
        lines.map(spilled_in).sum()
    }
}

/// "0 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads" is 12.
fn spilled_in(line: &str) -> Option<u64> {
    let bytes = |what: &str| line.split(what).next()?.split_whitespace().next_back()?.parse::<u64>().ok();
    Some(bytes(" bytes spill stores")? + bytes(" bytes spill loads")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spills_are_read_from_the_log() {
        let of = |log: &str| Compiled { cubin: Vec::new(), log: log.to_string() }.spilled_bytes();
        let none = "ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads";
        let some = "ptxas         .     48 bytes stack frame, 48 bytes spill stores, 76 bytes spill loads";
        assert_eq!(of(none), Some(0));
        assert_eq!(of(&format!("{none}\nptxas info    : Used 128 registers\n{some}")), Some(124));
        assert_eq!(of("ptxas info    : 63 bytes gmem"), None);
    }

    #[test]
    fn hopper_files_are_for_hopper_alone() {
        let names = |file| architectures(file).iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        assert_eq!(names("hopper_forward.cu"), "sm_90a");
        assert_eq!(names("swiglu_fused_forward.cu"), "sm_80 sm_86 sm_89 sm_90a sm_100a sm_120");
    }

    #[test]
    fn a_configuration_becomes_options_in_the_order_given() {
        let configuration = Configuration {
            file: "sgd.cu",
            defines: vec![("PRECISION", 2), ("ALIGNED", 0)],
            arch: Arch { capability: 90, specific: true },
        };
        let options =
            ["--gpu-architecture=sm_90a", "--std=c++17", "--ptxas-options=-v", "-DPRECISION=2", "-DALIGNED=0"];
        assert_eq!(configuration.options(), options);
        assert_eq!(configuration.to_string(), "sgd.cu for sm_90a PRECISION=2 ALIGNED=0");
        let of = |major, minor| Arch::of_device(major, minor).to_string();
        assert_eq!([of(8, 6), of(9, 0), of(10, 0), of(12, 0)], ["sm_86", "sm_90a", "sm_100a", "sm_120"]);
    }
}
