//! The driver, and the devices that it shows. The driver comes with the kernel module and is never installed by pip.

use cudarc::driver::{result, sys};

use crate::{Error, Kind, Result};

/// A device that the driver shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Its number, as in `cuda:0`.
    pub ordinal: i32,
    /// Its name: `NVIDIA H200`.
    pub name: String,
    /// Compute capability: (9, 0).
    pub capability: (i32, i32),
    /// Bytes of memory.
    pub memory: usize,
    /// Streaming multiprocessors.
    pub multiprocessors: i32,
}

impl Gpu {
    /// Whether it runs machine code for sm_90a: compute capability 9.0 and no other.
    pub fn is_hopper(&self) -> bool {
        self.capability == (9, 0)
    }

    /// Which of the product kernels it is given, for people.
    pub fn kernel_family(&self) -> &'static str {
        if self.is_hopper() { "Hopper kernels: TMA + wgmma" } else { "portable kernels: mma.sync" }
    }
}

/// The driver, started.
#[derive(Clone, Copy, Debug)]
pub struct Driver(());

impl Driver {
    /// Whether a driver's library is there at all; it may still have no device.
    pub fn is_installed() -> bool {
        // SAFETY: it only loads libcuda; the driver's library asks for nothing before that.
        unsafe { sys::is_culib_present() }
    }

    /// Loads and starts the driver. This is to be called before anything else of cudarc, which panics without a driver.
    ///
    /// # Errors
    /// [`Kind::Device`] when there is no driver, or when it does not start.
    pub fn start() -> Result<Driver> {
        if !Driver::is_installed() {
            return Err(Error::new(
                Kind::Device,
                "no NVIDIA driver: the system's loader finds no libcuda.so.1 (nvcuda.dll on Windows)",
            )
            .hint(
                "install NVIDIA's driver (for example: sudo apt install nvidia-driver-580), or start the container with \
                 --gpus all; without one, use --device cpu",
            ));
        }
        result::init().map_err(|cause| {
            let hidden = std::env::var("CUDA_VISIBLE_DEVICES").ok();
            let none = cause.0 == sys::CUresult::CUDA_ERROR_NO_DEVICE;
            let (message, hint) = match hidden {
                Some(value) if none => (
                    "the NVIDIA driver shows no device",
                    format!("CUDA_VISIBLE_DEVICES is set to {value:?}, which hides devices: unset it, or name one that is there"),
                ),
                _ if none => ("the NVIDIA driver shows no device", "nvidia-smi lists the GPUs of this machine".into()),
                _ => (
                    "the NVIDIA driver does not start",
                    "is there a GPU, and may this user open /dev/nvidia*? nvidia-smi tells more".into(),
                ),
            };
            Error::new(Kind::Device, message).hint(hint).because(cause)
        })?;
        Ok(Driver(()))
    }

    /// The newest CUDA version that it runs: 13, 0.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn cuda_version(&self) -> Result<(i32, i32)> {
        let mut version = 0;
        // SAFETY: the driver is started, and the pointer is to an int.
        unsafe { sys::cuDriverGetVersion(&raw mut version) }.result().map_err(failed("tell its version"))?;
        Ok((version / 1000, version % 1000 / 10))
    }

    /// The devices, in the driver's order.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn devices(&self) -> Result<Vec<Gpu>> {
        use sys::CUdevice_attribute as Attribute;
        let count = result::device::get_count().map_err(failed("count its devices"))?;
        (0..count)
            .map(|ordinal| {
                let device = result::device::get(ordinal).map_err(failed("open a device"))?;
                let name = result::device::get_name(device).map_err(failed("name a device"))?;
                // SAFETY: `device` is one that the driver has just given.
                let attribute = |which| unsafe { result::device::get_attribute(device, which) };
                let attribute = |which| attribute(which).map_err(failed("describe a device"));
                // SAFETY: as above.
                let memory = unsafe { result::device::total_mem(device) }.map_err(failed("describe a device"))?;
                Ok(Gpu {
                    ordinal,
                    name,
                    capability: (
                        attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                        attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
                    ),
                    memory,
                    multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
                })
            })
            .collect()
    }
}

fn failed(doing: &str) -> impl Fn(result::DriverError) -> Error {
    move |cause| Error::new(Kind::Device, format!("the NVIDIA driver cannot {doing}")).because(cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_driver_starting_it_is_an_error_with_a_hint_and_no_panic() {
        match Driver::start() {
            Ok(driver) => assert!(!driver.devices().unwrap().is_empty()),
            Err(error) => {
                assert_eq!(error.kind(), Kind::Device);
                assert!(error.hint_text().is_some(), "{error}");
            }
        }
    }
}
