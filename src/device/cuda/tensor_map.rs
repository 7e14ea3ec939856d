//! Tensor maps: how Hopper's tensor memory accelerator (TMA) finds a box of elements in a matrix on the device.
//!
//! A kernel takes one by value, as `const __grid_constant__ TensorMap map` (128 bytes, aligned to 64). It holds an address and sizes,
//! nothing of a launch, so that captured graphs may hold it as long as the memory behind the address lives.

use std::{fmt::Display, sync::OnceLock};

use cudarc::driver::sys;

use super::driver::Driver;
use crate::{Error, Kind, Result};

/// The elements that are copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapElement {
    /// Bytes.
    U8,
    /// bf16.
    Bf16,
    /// f16.
    F16,
    /// fp32, every bit as it is in memory: TF32 products then drop the low 13 bits.
    F32,
    /// fp32, rounded to the nearest TF32 by the copy.
    Tf32,
}

impl MapElement {
    /// Bytes of one.
    pub fn bytes(self) -> usize {
        match self {
            MapElement::U8 => 1,
            MapElement::Bf16 | MapElement::F16 => 2,
            MapElement::F32 | MapElement::Tf32 => 4,
        }
    }

    fn code(self) -> sys::CUtensorMapDataType {
        use sys::CUtensorMapDataType as Code;
        match self {
            MapElement::U8 => Code::CU_TENSOR_MAP_DATA_TYPE_UINT8,
            MapElement::Bf16 => Code::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            MapElement::F16 => Code::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            MapElement::F32 => Code::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
            MapElement::Tf32 => Code::CU_TENSOR_MAP_DATA_TYPE_TFLOAT32,
        }
    }
}

/// How 16-byte chunks of a box are permuted in shared memory, so that reads of a column meet no bank twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swizzle {
    /// As they are.
    None,
    /// Within 32 bytes.
    Bytes32,
    /// Within 64 bytes.
    Bytes64,
    /// Within 128 bytes: what wgmma reads fastest.
    Bytes128,
}

impl Swizzle {
    /// That of boxes 32 elements wide, which their rows fill.
    pub fn of_32(element: MapElement) -> Swizzle {
        if element == MapElement::F32 { Swizzle::Bytes128 } else { Swizzle::Bytes64 }
    }

    /// Bytes of a box's inner row at most; None when any number will do.
    fn span(self) -> Option<usize> {
        match self {
            Swizzle::None => None,
            Swizzle::Bytes32 => Some(32),
            Swizzle::Bytes64 => Some(64),
            Swizzle::Bytes128 => Some(128),
        }
    }

    fn code(self) -> sys::CUtensorMapSwizzle {
        use sys::CUtensorMapSwizzle as Code;
        match self {
            Swizzle::None => Code::CU_TENSOR_MAP_SWIZZLE_NONE,
            Swizzle::Bytes32 => Code::CU_TENSOR_MAP_SWIZZLE_32B,
            Swizzle::Bytes64 => Code::CU_TENSOR_MAP_SWIZZLE_64B,
            Swizzle::Bytes128 => Code::CU_TENSOR_MAP_SWIZZLE_128B,
        }
    }
}

/// How many neighbouring bytes L2 asks memory for where a box wants some of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// 128.
    Bytes128,
    /// 256.
    Bytes256,
}

impl Fetched {
    fn code(self) -> sys::CUtensorMapL2promotion {
        use sys::CUtensorMapL2promotion as Code;
        match self {
            Fetched::Bytes128 => Code::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
            Fetched::Bytes256 => Code::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        }
    }
}

/// A tensor on the device and the boxes that are copied of it. What of a box lies outside the tensor arrives as zeros, and is not
/// written. A kernel's copy begins at a whole 16 bytes of a row (an illegal instruction elsewhere), which nobody checks.
#[derive(Clone, Copy, Debug)]
pub struct Boxes<'a> {
    /// What the tensor is for, in errors: `x`, `Wf`.
    pub name: &'a str,
    /// Its elements.
    pub element: MapElement,
    /// Its address, a multiple of 16.
    pub pointer: u64,
    /// Its extents, 1 to 5, the one along which elements are neighbours first: (columns, rows) of a row-major matrix.
    pub dims: &'a [usize],
    /// Bytes from one index to the next of each dimension but the first; multiples of 16.
    pub strides: &'a [usize],
    /// A box's extents, in the order of `dims`; at most 256 each.
    pub box_dims: &'a [usize],
    /// How a box lies in shared memory.
    pub swizzle: Swizzle,
}

/// A tensor map, encoded: what the kernel is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorMap(sys::CUtensorMap);

impl Boxes<'_> {
    /// A row-major matrix of rows x cols, in boxes of `box_rows` x `box_cols`.
    ///
    /// # Errors
    /// As [`Boxes::encode`].
    pub fn of_matrix(
        name: &str,
        element: MapElement,
        pointer: u64,
        (rows, cols): (usize, usize),
        (box_rows, box_cols): (usize, usize),
        swizzle: Swizzle,
    ) -> Result<TensorMap> {
        let strides = &[cols * element.bytes()];
        Boxes { name, element, pointer, dims: &[cols, rows], strides, box_dims: &[box_cols, box_rows], swizzle }
            .encode()
    }

    /// The tensor map of these boxes, L2 fetching 256 bytes at a time.
    ///
    /// # Errors
    /// As [`Boxes::encode_fetching`].
    pub fn encode(&self) -> Result<TensorMap> {
        self.encode_fetching(Fetched::Bytes256)
    }

    /// The tensor map of these boxes.
    ///
    /// # Errors
    /// [`Kind::Shape`] naming the address, extent, stride or box that the hardware does not take; [`Kind::Device`] with a
    /// driver older than CUDA 12, which has no tensor maps, or when the driver refuses.
    pub fn encode_fetching(&self, fetched: Fetched) -> Result<TensorMap> {
        self.check()?;
        let (major, minor) = driver_version()?;
        if major < 12 {
            return Err(Error::new(
                Kind::Device,
                format!("the NVIDIA driver runs CUDA up to {major}.{minor}: tensor maps came with 12.0"),
            )
            .hint("update NVIDIA's driver; nvidia-smi shows its version"));
        }
        let wide = |values: &[usize]| values.iter().map(|&value| value as u64).collect::<Vec<u64>>();
        let (dims, strides) = (wide(self.dims), wide(self.strides));
        let box_dims: Vec<u32> = self.box_dims.iter().map(|&value| value as u32).collect();
        let steps = [1_u32; 5];
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        // SAFETY: the driver is new enough to have the function; each array is as long as the rank (strides one shorter),
        // all were checked, and the driver reads them before it returns. The address is not followed.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                &raw mut map,
                self.element.code(),
                self.dims.len() as u32,
                self.pointer as *mut std::ffi::c_void,
                dims.as_ptr(),
                strides.as_ptr(),
                box_dims.as_ptr(),
                steps.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                self.swizzle.code(),
                fetched.code(),
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .result()
        .map_err(|cause| {
            Error::new(Kind::Device, format!("the NVIDIA driver cannot encode the tensor map {self:?}")).because(cause)
        })?;
        Ok(TensorMap(map))
    }

    /// What the hardware asks for, told by name before the driver's "invalid value".
    fn check(&self) -> Result<()> {
        let refuse = |what: String| Err(Error::shape(format!("tensor map of {}: {what}", self.name)));
        let Boxes { dims, strides, box_dims, pointer, .. } = *self;
        let rank = dims.len();
        if !(1..=5).contains(&rank) || strides.len() + 1 != rank || box_dims.len() != rank {
            return refuse(format!(
                "{rank} dimensions, {} strides and {} box dimensions; of 1 to 5 dimensions there is a box dimension each and a \
                 stride each but the first",
                strides.len(),
                box_dims.len()
            ));
        }
        if pointer == 0 || !pointer.is_multiple_of(16) {
            return refuse(format!("the address {pointer:#x} is no multiple of 16"));
        }
        let wrong = |values: &[usize], right: &dyn Fn(usize) -> bool| values.iter().position(|&value| !right(value));
        let show =
            |what: &str, at: usize, value: &dyn Display, rule: &str| refuse(format!("{what} {at} is {value}; {rule}"));
        if let Some(at) = wrong(dims, &|value| (1..=1 << 32).contains(&value)) {
            return show("dimension", at, &dims[at], "1 to 2^32 are possible");
        }
        if let Some(at) = wrong(strides, &|value| value.is_multiple_of(16) && (16..1 << 40).contains(&value)) {
            return show(
                "the stride of dimension",
                at + 1,
                &strides[at],
                "multiples of 16 bytes below 2^40 are possible",
            );
        }
        if let Some(at) = wrong(box_dims, &|value| (1..=256).contains(&value)) {
            return show("box dimension", at, &box_dims[at], "1 to 256 are possible");
        }
        let inner = box_dims[0] * self.element.bytes();
        if !inner.is_multiple_of(16) {
            return refuse(format!("a box is {inner} bytes wide; multiples of 16 are possible"));
        }
        match self.swizzle.span() {
            Some(span) if inner > span => {
                refuse(format!("a box is {inner} bytes wide; a swizzle within {span} bytes takes {span} at most"))
            }
            _ => Ok(()),
        }
    }
}

/// What CUDA version the driver runs, asked once.
fn driver_version() -> Result<(i32, i32)> {
    static VERSION: OnceLock<(i32, i32)> = OnceLock::new();
    match VERSION.get() {
        Some(version) => Ok(*version),
        None => {
            let version = Driver::start()?.cuda_version()?;
            Ok(*VERSION.get_or_init(|| version))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Boxes<'static> = Boxes {
        name: "x",
        element: MapElement::Bf16,
        pointer: 0x7f00_0000_0100,
        dims: &[512, 64],
        strides: &[1024],
        box_dims: &[64, 128],
        swizzle: Swizzle::Bytes128,
    };

    #[test]
    fn the_map_is_what_a_kernel_parameter_holds() {
        assert_eq!(size_of::<TensorMap>(), 128);
        assert!(align_of::<TensorMap>() >= 64);
    }

    #[test]
    fn what_the_hardware_does_not_take_is_named() {
        assert!(GOOD.check().is_ok());
        assert!(Boxes { swizzle: Swizzle::None, box_dims: &[256, 2], ..GOOD }.check().is_ok());
        let cases = [
            (Boxes { pointer: 0x108, ..GOOD }, "tensor map of x: the address 0x108 is no multiple of 16"),
            (Boxes { pointer: 0, ..GOOD }, "the address 0x0"),
            (Boxes { strides: &[], ..GOOD }, "2 dimensions, 0 strides and 2 box dimensions"),
            (Boxes { dims: &[], strides: &[], box_dims: &[], ..GOOD }, "0 dimensions"),
            (Boxes { dims: &[512, 0], ..GOOD }, "dimension 1 is 0; 1 to 2^32"),
            (Boxes { strides: &[1020], ..GOOD }, "the stride of dimension 1 is 1020; multiples of 16"),
            (Boxes { box_dims: &[64, 257], ..GOOD }, "box dimension 1 is 257; 1 to 256"),
            (Boxes { box_dims: &[4, 64], ..GOOD }, "a box is 8 bytes wide"),
            (Boxes { element: MapElement::F32, ..GOOD }, "a box is 256 bytes wide; a swizzle within 128 bytes"),
            (Boxes { swizzle: Swizzle::Bytes64, ..GOOD }, "a swizzle within 64 bytes takes 64 at most"),
        ];
        for (boxes, message) in cases {
            let error = boxes.encode().unwrap_err();
            assert_eq!(error.kind(), Kind::Shape, "{error}");
            assert!(error.to_string().contains(message), "{error} does not say {message}");
        }
    }

    #[test]
    fn a_good_map_is_encoded_or_the_driver_is_missing() {
        match Boxes::of_matrix("x", MapElement::F32, 0x1000, (64, 512), (64, 32), Swizzle::Bytes128) {
            Ok(map) => assert_ne!(map.0.opaque, [0; 16]),
            Err(error) => assert_eq!(error.kind(), Kind::Device, "{error}"),
        }
    }
}
