//! What `doctor` finds out about the program, the CPU and the memory. Parsers are apart from the files they read, so that
//! they can be tested on any system.

use super::{Item, Section};
use crate::{
    Result,
    device::cpu::{meminfo, simd::Isa},
};

/// The version, and the system it runs on.
pub(super) fn program() -> Section {
    let build = if cfg!(debug_assertions) {
        Item::warn("build", "debug", "cargo build --release is several times faster")
    } else {
        Item::ok("build", "release")
    };
    let system = format!("{} {}", std::env::consts::OS, std::env::consts::ARCH);
    Section::new(
        "Program",
        vec![Item::ok("mnist-swiglu", env!("CARGO_PKG_VERSION")), build, Item::ok("system", system)],
    )
}

/// Who asks for how many threads.
pub(super) struct Threads {
    /// `--threads`.
    pub(super) flag: Option<u32>,
    /// `RAYON_NUM_THREADS`.
    pub(super) variable: Option<String>,
    /// Cores that this process may use.
    pub(super) cores: usize,
}

impl Threads {
    fn item(&self) -> Item {
        let (count, reason) = match (self.flag, self.variable.as_deref()) {
            (Some(flag), _) => (flag as usize, "--threads".to_string()),
            (None, None | Some("")) => {
                return Item::ok("threads", format!("{} (every core)", self.cores));
            }
            (None, Some(text)) => match text.parse::<usize>() {
                // To rayon, 0 means the default.
                Ok(0) => {
                    return Item::ok("threads", format!("{} (every core; RAYON_NUM_THREADS is 0)", self.cores));
                }
                Ok(count) => (count, "RAYON_NUM_THREADS".to_string()),
                Err(_) => {
                    return Item::warn(
                        "threads",
                        format!("{} (every core: RAYON_NUM_THREADS={text:?} is not a number)", self.cores),
                        "set RAYON_NUM_THREADS to a whole number, or unset it and use --threads",
                    );
                }
            },
        };
        let value = format!("{count} ({reason})");
        if count > self.cores {
            let hint = format!("more threads than the {} cores slow training down", self.cores);
            return Item::warn("threads", value, hint);
        }
        Item::ok("threads", value)
    }
}

/// The CPU: its name, the instructions that it has and those that the kernels use, cores and threads.
pub(super) fn cpu(threads: &Threads, isa: &Result<Isa>) -> Section {
    let model = cpu_model().unwrap_or_else(|| format!("unknown ({})", std::env::consts::ARCH));
    Section::new(
        "CPU",
        vec![
            Item::ok("model", model),
            simd_item(&simd()),
            Item::found("kernels", isa.as_ref().map(|isa| isa.name())),
            Item::ok("cores", threads.cores.to_string()),
            threads.item(),
        ],
    )
}

fn cpu_model() -> Option<String> {
    if cfg!(target_os = "linux") {
        model_in(&std::fs::read_to_string("/proc/cpuinfo").ok()?)
    } else if cfg!(target_os = "macos") {
        sysctl("machdep.cpu.brand_string")
    } else {
        // Windows says it in this variable, in the words of the vendor.
        std::env::var("PROCESSOR_IDENTIFIER").ok()
    }
}

/// The model in the text of /proc/cpuinfo: ARM machines have none, some name the board.
fn model_in(cpuinfo: &str) -> Option<String> {
    ["model name", "Model", "Hardware"].iter().find_map(|key| {
        cpuinfo.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            let value = value.split_whitespace().collect::<Vec<_>>().join(" ");
            (name.trim() == *key && !value.is_empty()).then_some(value)
        })
    })
}

fn sysctl(name: &str) -> Option<String> {
    let output = std::process::Command::new("/usr/sbin/sysctl").args(["-n", name]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_string();
    (output.status.success() && !text.is_empty()).then_some(text)
}

/// The instruction sets that matter here, and whether the CPU has them.
fn simd() -> Vec<(&'static str, bool)> {
    #[cfg(target_arch = "x86_64")]
    return vec![
        ("avx2", std::arch::is_x86_feature_detected!("avx2")),
        ("fma", std::arch::is_x86_feature_detected!("fma")),
        ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
        ("avx512bw", std::arch::is_x86_feature_detected!("avx512bw")),
        ("avx512bf16", std::arch::is_x86_feature_detected!("avx512bf16")),
    ];
    #[cfg(target_arch = "aarch64")]
    return vec![
        ("neon", std::arch::is_aarch64_feature_detected!("neon")),
        ("bf16", std::arch::is_aarch64_feature_detected!("bf16")),
    ];
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return Vec::new();
}

fn simd_item(features: &[(&str, bool)]) -> Item {
    let list = |wanted: bool| {
        let names: Vec<&str> = features.iter().filter(|f| f.1 == wanted).map(|f| f.0).collect();
        names.join(" ")
    };
    let slow = ["avx2", "fma", "neon"].iter().any(|name| features.contains(&(name, false)));
    let value = match (list(true), list(false)) {
        (has, lacks) if lacks.is_empty() && has.is_empty() => "no instruction set known here".to_string(),
        (has, lacks) if lacks.is_empty() => has,
        (has, lacks) if has.is_empty() => format!("none of {lacks}"),
        (has, lacks) => format!("{has} (without {lacks})"),
    };
    if slow {
        Item::warn("SIMD", value, "products run several times slower without; it still works")
    } else {
        Item::ok("SIMD", value)
    }
}

/// Bytes of memory, all of it and what is free for use.
pub(super) fn memory() -> Section {
    let (total, available) = if cfg!(target_os = "linux") {
        let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        (meminfo(&text, "MemTotal"), meminfo(&text, "MemAvailable"))
    } else if cfg!(target_os = "macos") {
        (sysctl("hw.memsize").and_then(|text| text.parse().ok()), None)
    } else {
        (None, None)
    };
    Section::new("Memory", vec![memory_item(total, available)])
}

/// The data set, the default network and its gradients take less than half of this.
const ENOUGH: u64 = 512 << 20;

fn memory_item(total: Option<u64>, available: Option<u64>) -> Item {
    let gib = |bytes: u64| format!("{:.1} GiB", bytes as f64 / (1_u64 << 30) as f64);
    let value = match (total, available) {
        (Some(total), Some(available)) => format!("{}, {} available", gib(total), gib(available)),
        (Some(total), None) => gib(total),
        (None, _) => "unknown on this system".to_string(),
    };
    match available.or(total) {
        Some(bytes) if bytes < ENOUGH => {
            Item::warn("memory", value, "training takes up to 0.5 GiB: close other programs or use a smaller --width")
        }
        _ => Item::ok("memory", value),
    }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    fn threads(flag: Option<u32>, variable: Option<&str>) -> Item {
        Threads { flag, variable: variable.map(str::to_string), cores: 8 }.item()
    }

    #[test]
    fn threads_come_from_the_flag_then_the_variable_then_the_cores() {
        assert_eq!(threads(None, None), Item::ok("threads", "8 (every core)"));
        assert_eq!(threads(None, Some("3")), Item::ok("threads", "3 (RAYON_NUM_THREADS)"));
        assert_eq!(threads(Some(2), Some("3")), Item::ok("threads", "2 (--threads)"));
        assert_eq!(threads(Some(2), Some("many")), Item::ok("threads", "2 (--threads)"));
        assert_eq!(threads(None, Some("0")).state, State::Ok);
        assert_eq!(threads(Some(9), None).state, State::Warn);
    }

    #[test]
    fn a_thread_count_that_is_no_number_is_reported() {
        let item = threads(None, Some("many"));
        assert_eq!(item.state, State::Warn);
        assert_eq!(item.value, "8 (every core: RAYON_NUM_THREADS=\"many\" is not a number)");
    }

    #[test]
    fn the_cpu_is_named_by_proc_cpuinfo() {
        let intel = "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel\t\t: 143\nmodel name\t: Intel(R)  Xeon(R) CPU\n";
        assert_eq!(model_in(intel).as_deref(), Some("Intel(R) Xeon(R) CPU"));
        let board = "processor\t: 0\nBogoMIPS\t: 108.00\n\nModel\t\t: Raspberry Pi 4\n";
        assert_eq!(model_in(board).as_deref(), Some("Raspberry Pi 4"));
        assert_eq!(model_in("processor : 0\n"), None);
    }

    #[test]
    fn memory_is_read_from_proc_meminfo() {
        let text =
            "MemTotal:       16384000 kB\nMemFree:  1 kB\nMemAvailable:    8192000 kB\nHugePages_Total:       0\n";
        assert_eq!(meminfo(text, "MemTotal"), Some(16_777_216_000));
        assert_eq!(meminfo(text, "MemAvailable"), Some(8_388_608_000));
        assert_eq!(meminfo(text, "HugePages_Total"), None);
        assert_eq!(memory_item(Some(16 << 30), Some(8 << 30)), Item::ok("memory", "16.0 GiB, 8.0 GiB available"));
        assert_eq!(memory_item(Some(16 << 30), Some(1 << 20)).state, State::Warn);
    }

    #[test]
    fn a_cpu_without_wide_instructions_gets_a_warning() {
        assert_eq!(simd_item(&[("avx2", true), ("fma", true)]), Item::ok("SIMD", "avx2 fma"));
        let old = simd_item(&[("avx2", false), ("fma", true)]);
        assert_eq!((old.state, old.value.as_str()), (State::Warn, "fma (without avx2)"));
        let plain = simd_item(&[("avx2", true), ("fma", true), ("avx512f", false)]);
        assert_eq!((plain.state, plain.value.as_str()), (State::Ok, "avx2 fma (without avx512f)"));
        assert_eq!(simd_item(&[]).state, State::Ok);
    }
}
