//! Train MNIST from scratch, and swap the SwiGLU layer at its heart to see what each implementation costs and buys.
//!
//! A map of the crate; dependencies point downwards:
//!
//! | module | what it holds |
//! |---|---|
//! | [`cli`], [`commands`] | flags, and one thin file a subcommand: the only code that prints |
//! | [`train`], [`measure`], [`report`] | the loop with its run folder, timers and records, charts |
//! | [`model`] | the MLP, its loss, SGD and its schedule, checkpoints |
//! | [`swiglu`] | the layer: the maths, the trait, [`swiglu::ALL`], the f64 reference and the implementations |
//! | [`device`] | the operations a device offers, the CPU and NVIDIA GPUs |
//! | [`tensor`] | shape and storage on a device |
//! | [`data`] | find, fetch and verify MNIST; parse IDX; shuffle |
//! | [`rng`] | seeded streams of random numbers |
//! | [`atomic`] | files that are there whole or not at all |
//! | [`error`] | what every fallible function returns |

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod atomic;
pub mod cli;
pub mod clock;
pub mod commands;
pub mod data;
pub mod device;
pub mod error;
pub mod measure;
pub mod model;
pub mod report;
pub mod rng;
pub mod swiglu;
pub mod tensor;
#[cfg(test)]
mod testing;
pub mod train;

pub use error::{Error, Kind, Result};
