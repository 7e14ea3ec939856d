//! What a launch is: the values that a kernel is given, and its blocks, clusters and shared memory.

use std::ffi::c_void;

use cudarc::driver::sys;

use super::tensor_map::TensorMap;
use crate::{Error, Result};

/// A value that a kernel is given.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arg {
    /// An address on the device; 0 for none.
    Pointer(u64),
    /// `int`.
    Int(i32),
    /// `float`.
    Float(f32),
    /// `u64`.
    Count(u64),
    /// `const __grid_constant__ TensorMap`: how TMA finds the boxes of a matrix.
    Map(TensorMap),
}

impl Arg {
    /// Where its bytes are. The driver copies as many as the kernel declares, and writes none.
    pub(super) fn address(&self) -> *mut c_void {
        match self {
            Arg::Pointer(value) | Arg::Count(value) => std::ptr::from_ref(value).cast_mut().cast(),
            Arg::Int(value) => std::ptr::from_ref(value).cast_mut().cast(),
            Arg::Float(value) => std::ptr::from_ref(value).cast_mut().cast(),
            Arg::Map(map) => std::ptr::from_ref(map).cast_mut().cast(),
        }
    }
}

/// Blocks of a cluster at most: what every GPU that has clusters promises.
const LARGEST_CLUSTER: usize = 8;

/// How a kernel is launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Blocks.
    pub blocks: usize,
    /// Threads of each.
    pub threads: usize,
    /// Bytes of dynamic shared memory of each.
    pub shared: usize,
    /// Neighbouring blocks that run at once and see each other's shared memory (compute capability 9.0): 1, 2, 4 or 8.
    pub cluster: usize,
    /// Programmatic dependent launch (9.0): blocks may start while the kernel before still runs. Such a kernel calls
    /// `griddepcontrol.wait` before it touches what kernels before it wrote, or write over what they read.
    pub early: bool,
}

impl Grid {
    /// Plain blocks, each on its own.
    pub const fn new(blocks: usize, threads: usize, shared: usize) -> Grid {
        Grid { blocks, threads, shared, cluster: 1, early: false }
    }

    /// The same in clusters of `cluster` blocks.
    #[must_use]
    pub const fn in_clusters(self, cluster: usize) -> Grid {
        Grid { cluster, ..self }
    }

    /// The same, started before the kernel before has ended.
    #[must_use]
    pub const fn started_early(self) -> Grid {
        Grid { early: true, ..self }
    }

    /// That the driver can be asked for it.
    pub(super) fn check(&self, name: &str) -> Result<()> {
        let Grid { blocks, cluster, .. } = *self;
        if !(1..=i32::MAX as usize).contains(&blocks) {
            return Err(Error::shape(format!("{name}: {blocks} blocks are not a grid")));
        }
        if !cluster.is_power_of_two() || cluster > LARGEST_CLUSTER || !blocks.is_multiple_of(cluster) {
            return Err(Error::shape(format!(
                "{name}: {blocks} blocks in clusters of {cluster}; a cluster is 1, 2, 4 or {LARGEST_CLUSTER} blocks, and a \
                 grid whole clusters"
            )));
        }
        Ok(())
    }

    /// What is asked for beside the sizes.
    pub(super) fn attributes(&self) -> Vec<sys::CUlaunchAttribute> {
        use sys::{CUlaunchAttributeID as Id, CUlaunchAttributeValue as Value};
        let attribute = |id, value| sys::CUlaunchAttribute { id, pad: [0; 4], value };
        let mut attributes = Vec::new();
        if self.cluster > 1 {
            // Written over zeros: the driver may look at all 64 bytes.
            let mut value = Value { pad: [0; 64] };
            value.clusterDim = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: self.cluster as u32, y: 1, z: 1 };
            attributes.push(attribute(Id::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, value));
        }
        if self.early {
            let mut value = Value { pad: [0; 64] };
            value.programmaticStreamSerializationAllowed = 1;
            attributes.push(attribute(Id::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, value));
        }
        attributes
    }

    /// What cuLaunchKernelEx is given. `attributes` must live as long as the result is used.
    pub(super) fn config(
        &self,
        stream: sys::CUstream,
        attributes: &mut [sys::CUlaunchAttribute],
    ) -> sys::CUlaunchConfig {
        sys::CUlaunchConfig {
            gridDimX: self.blocks as u32,
            gridDimY: 1,
            gridDimZ: 1,
            blockDimX: self.threads as u32,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: self.shared as u32,
            hStream: stream,
            attrs: attributes.as_mut_ptr(),
            numAttrs: attributes.len() as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_grid_asks_for_nothing_special_and_a_cluster_must_divide_the_blocks() {
        let grid = Grid::new(12, 128, 0);
        assert!(grid.check("k").is_ok() && grid.attributes().is_empty());
        let special = grid.in_clusters(4).started_early();
        assert!(special.check("k").is_ok());
        let mut attributes = special.attributes();
        let config = special.config(std::ptr::null_mut(), &mut attributes);
        assert_eq!((config.gridDimX, config.blockDimX, config.numAttrs), (12, 128, 2));
        for (cluster, blocks) in [(8, 12), (3, 12), (16, 32), (0, 12), (1, 0)] {
            let error = Grid::new(blocks, 128, 0).in_clusters(cluster).check("swiglu").unwrap_err();
            assert!(error.to_string().starts_with("swiglu: "), "{error}");
        }
    }

    #[test]
    fn the_address_of_an_argument_is_that_of_its_bytes() {
        let args = [Arg::Int(-2), Arg::Float(1.5), Arg::Count(1 << 40), Arg::Pointer(16)];
        // SAFETY: each address is that of a value of the type that is read.
        unsafe {
            assert_eq!(*args[0].address().cast::<i32>(), -2);
            assert_eq!(*args[1].address().cast::<f32>(), 1.5);
            assert_eq!(*args[2].address().cast::<u64>(), 1 << 40);
            assert_eq!(*args[3].address().cast::<u64>(), 16);
        }
    }
}
