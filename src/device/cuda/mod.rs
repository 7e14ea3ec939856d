//! What an NVIDIA GPU needs before anything runs on it: its driver and libraries found, the kernels compiled and kept.
//!
//! | module | what it holds |
//! |---|---|
//! | [`sources`] | the texts of kernels/, embedded |
//! | [`library`] | finds and loads NVRTC and cuBLAS |
//! | [`nvrtc`] | NVIDIA's run-time compiler, loaded |
//! | [`compile`] | a kernel file and its defines, to a cubin |
//! | [`cache`] | cubins kept on disk |
//! | [`driver`] | the driver and the devices that it shows |
//!
//! Nothing here panics when a library is not there, and nothing of CUDA is needed to build it.

pub mod cache;
pub mod compile;
pub mod driver;
pub mod library;
pub mod nvrtc;
mod places;
pub mod sources;
