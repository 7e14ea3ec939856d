//! The training loop, and what it leaves behind.

pub mod config;
pub mod footprint;
pub mod metrics;
pub mod metrics_log;
pub mod observer;
pub mod run_dir;
pub mod trainer;
