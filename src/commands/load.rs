//! A trained network from a run's folder or a checkpoint, for the commands that use one.

use std::path::Path;

use crate::{
    Result,
    device::Device,
    model::{
        Mlp, MlpConfig,
        checkpoint::{self, names},
    },
    swiglu::{self, Entry, Gates, LayerConfig, Precision},
    train::config::Config,
};

/// A network, and what is known of the run that trained it.
pub struct Loaded {
    /// The network with its weights.
    pub model: Mlp,
    /// What its products are computed in.
    pub precision: Precision,
    /// The run's configuration; none for a file that another program wrote.
    pub config: Option<Config>,
    /// The checkpoint's file.
    pub path: std::path::PathBuf,
}

/// Loads the network in `path`, to run with the implementation `swiglu`, or with the one that trained it; and in
/// `precision`, or in the one that it was trained in if the device has it, else in fp32.
///
/// # Errors
/// When there is no usable checkpoint, or the device lacks the precision asked for.
pub fn network(path: &Path, swiglu: Option<&str>, precision: Option<Precision>, device: &Device) -> Result<Loaded> {
    let loaded = checkpoint::load_weights_only(path)?;
    let (width, hidden, depth) = names::infer_network(&loaded.weights, &loaded.path)?;
    let config: Option<Config> =
        loaded.config.as_ref().map(|config| checkpoint::parse_config(config, &loaded.path)).transpose()?;
    let trained_with = config.as_ref().map_or(swiglu::fused::FUSED_TRITON_GRAD.name, |config| &config.swiglu);
    let entry: &'static Entry = swiglu::find(swiglu.unwrap_or(trained_with))?;
    let trained_in = config.as_ref().map_or(Precision::Fp32, |config| config.precision);
    let precision = match precision {
        Some(asked) => asked,
        None if Precision::of_device(device).contains(&trained_in) => trained_in,
        None => Precision::Fp32,
    };
    let layer = LayerConfig { device: device.clone(), inputs: width, hidden, gates: Gates::Auto, precision };
    let mut model = Mlp::zeros(MlpConfig { entry, layer, depth })?;
    model.set_weights(&loaded.weights)?;
    Ok(Loaded { model, precision, config, path: loaded.path })
}
