//! The numbers of the products, and which of them a device makes.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::Device;
use crate::{Error, Result};

/// The numbers of the products.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// IEEE single precision
    #[default]
    Fp32,
    /// fp32's accuracy from tensor cores: operands split in two, three products for one in the fused kernels; cuBLAS has none
    /// like it, so library products stay fp32 (NVIDIA GPUs)
    Fp32Emulated,
    /// TF32 operands, fp32 accumulation (NVIDIA GPUs)
    Tf32,
    /// bf16 operands and activations, fp32 master weights (NVIDIA GPUs)
    Bf16,
}

impl Precision {
    /// Every precision, in the order that tables show them.
    pub const ALL: &[Precision] = &[Precision::Fp32, Precision::Fp32Emulated, Precision::Tf32, Precision::Bf16];

    /// Those that a device makes.
    pub fn of_device(device: &Device) -> &'static [Precision] {
        match device {
            Device::Cpu(_) => &Precision::ALL[..1],
            Device::Cuda(_) => Precision::ALL,
        }
    }

    /// Its name in flags and records.
    pub fn name(self) -> &'static str {
        match self {
            Precision::Fp32 => "fp32",
            Precision::Fp32Emulated => "fp32-emulated",
            Precision::Tf32 => "tf32",
            Precision::Bf16 => "bf16",
        }
    }

    /// Largest relative Frobenius error against f64 that is still right: random normal operands, weights scaled by
    /// D^-1/2, D up to 4096.
    pub fn bound(self) -> f64 {
        match self {
            // Emulated, about 1e-7 a product for what the split leaves out, as much for sums: within what fp32 itself may be off.
            Precision::Fp32 | Precision::Fp32Emulated => 3e-6,
            Precision::Tf32 => 1e-3,
            Precision::Bf16 => 5e-3,
        }
    }

    /// `value` as it is after being kept in this precision's operands: bf16 keeps 8 bits of mantissa, the others all.
    pub fn round_operand(self, value: f32) -> f32 {
        match self {
            Precision::Fp32 | Precision::Fp32Emulated | Precision::Tf32 => value,
            Precision::Bf16 => from_bf16(to_bf16(value)),
        }
    }

    /// Refuses a precision that the device does not have, with the reason.
    ///
    /// # Errors
    /// On a CPU, for anything but fp32.
    pub fn check(self, device: &Device) -> Result<()> {
        if Precision::of_device(device).contains(&self) {
            return Ok(());
        }
        Err(Error::usage(format!(
            "--precision {}: these numbers are made by an NVIDIA GPU's tensor cores; the CPU computes in fp32",
            self.name()
        ))
        .hint("use --precision fp32, or --device cuda on a machine with an NVIDIA GPU"))
    }
}

/// The nearest bf16, ties to even; a NaN stays one.
pub fn to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    let round = 0x7fff + ((bits >> 16) & 1);
    // Cannot wrap: the largest number that is no NaN is infinity, 0xff80_0000 with its sign.
    ((bits + round) >> 16) as u16
}

/// The number that a bf16 stands for.
pub fn from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_rounds_to_nearest_even_and_keeps_nan_and_infinity() {
        for (value, bits) in [(1.0, 0x3f80), (1.0 + 1.0 / 256.0, 0x3f80), (1.0 + 3.0 / 256.0, 0x3f82), (-2.5, 0xc020)] {
            assert_eq!(to_bf16(value), bits, "{value}");
        }
        assert_eq!(to_bf16(f32::INFINITY), 0x7f80);
        assert_eq!(to_bf16(f32::MAX), 0x7f80, "rounds up to infinity");
        assert!(from_bf16(to_bf16(f32::NAN)).is_nan());
        assert!(from_bf16(to_bf16(f32::from_bits(0x7f80_0001))).is_nan(), "a NaN whose upper mantissa is empty");
        assert_eq!(Precision::Bf16.round_operand(0.1).to_bits(), 0x3dcd_0000);
        assert_eq!(Precision::Tf32.round_operand(0.1), 0.1);
    }
}
