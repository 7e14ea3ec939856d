//! What a run is: everything that decides its losses, kept in the run's folder so that `--resume` needs nothing else.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    Result,
    device::Device,
    model::{MlpConfig, persistent::Steps, schedule::Schedule},
    swiglu::{self, Gates, LayerConfig, Precision},
};

/// Shapes of the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkConfig {
    /// D: outputs of the stem.
    pub width: usize,
    /// H: outputs of each SwiGLU layer.
    pub hidden: usize,
    /// SwiGLU layers.
    pub depth: usize,
}

/// Everything that decides the losses of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Name of the implementation in [`crate::swiglu::ALL`].
    pub swiglu: String,
    /// When g and u are kept.
    pub gates: Gates,
    /// The numbers of the products.
    pub precision: Precision,
    /// `cpu`, or `cuda:N`: where the run was started.
    pub device: String,
    /// `mnist`, `fashion`, or a directory.
    pub dataset: String,
    /// Shapes.
    pub network: NetworkConfig,
    /// Passes over the training images.
    pub epochs: u32,
    /// Images a step.
    pub batch_size: usize,
    /// Peak learning rate.
    pub lr: f32,
    /// Momentum.
    pub momentum: f32,
    /// Nesterov's momentum.
    pub nesterov: bool,
    /// L2 penalty on weights.
    pub weight_decay: f32,
    /// How the learning rate moves.
    pub schedule: Schedule,
    /// Steps of warm-up.
    pub warmup: u32,
    /// Epochs between drops of the step schedule.
    pub lr_step: u32,
    /// Factor of each drop.
    pub lr_gamma: f32,
    /// Bound of the global gradient norm.
    pub clip_norm: Option<f32>,
    /// Seed of everything random.
    pub seed: u64,
    /// Training images held out.
    pub validation: usize,
    /// How steps are run on a GPU: `launches` or `persistent`, once the run has begun.
    #[serde(default = "Steps::of_old")]
    pub steps: Steps,
    /// The tiles of the fused kernels on a GPU, by problem, once the run has been given some: they decide the order of sums.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tiles: BTreeMap<String, String>,
}

impl Config {
    /// The network that it describes, on `device`.
    ///
    /// # Errors
    /// When there is no implementation of that name.
    pub fn mlp(&self, device: &Device) -> Result<MlpConfig> {
        let layer = LayerConfig {
            device: device.clone(),
            inputs: self.network.width,
            hidden: self.network.hidden,
            gates: self.gates,
            precision: self.precision,
        };
        Ok(MlpConfig { entry: swiglu::find(&self.swiglu)?, layer, depth: self.network.depth })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_come_back_as_they_were_and_a_configuration_of_old_has_none() {
        let config = Config { tiles: BTreeMap::from([("forward".into(), "64x64".into())]), ..crate::testing::config() };
        let written = serde_json::to_value(&config).unwrap();
        assert_eq!(serde_json::from_value::<Config>(written).unwrap(), config);
        let mut old = serde_json::to_value(crate::testing::config()).unwrap();
        assert!(old.get("tiles").is_none(), "what has no tiles does not speak of them");
        old.as_object_mut().unwrap().remove("steps");
        let old: Config = serde_json::from_value(old).unwrap();
        assert_eq!((old.steps, old.tiles.len()), (Steps::Launches, 0));
    }
}
