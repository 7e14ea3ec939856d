//! What a run needs at least in main memory and on a GPU, so that one that cannot fit is refused before minutes go into drawing its
//! weights.

use crate::{
    Error, Kind, Result,
    data::PIXELS,
    device::{Device, Precision, cpu},
    model::checkpoint::names,
    swiglu,
    train::config::Config,
};

/// Bytes that a run cannot do without. What it takes is a little more: scratch, images, the program itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Main memory.
    pub host: u64,
    /// Memory of the GPU; 0 for a run on the CPU.
    pub gpu: u64,
}

impl Footprint {
    /// Of a new run.
    ///
    /// # Errors
    /// When there is no implementation of that name.
    pub fn of(config: &Config, on_gpu: bool) -> Result<Footprint> {
        let trains_layers = swiglu::find(&config.swiglu)?.trains_weight;
        let (width, hidden, depth) = (config.network.width, config.network.hidden, config.network.depth);
        let (mut weights, mut learned) = (0, 0);
        for (name, shape) in names::expected(width, hidden, depth) {
            let count = shape.iter().map(|&size| size as u64).product::<u64>();
            weights += count;
            learned += if trains_layers || !name.starts_with("layers.") { count } else { 0 };
        }
        // A checkpoint is made in main memory: weights, and the velocities of what learns.
        let velocities = if config.momentum > 0.0 { learned } else { 0 };
        let checkpoint = 4 * (weights + velocities);
        // Pixels, outputs and their gradients; of one layer the gradients of g and u.
        let row = PIXELS as u64 + 2 * (width + depth * hidden) as u64 + 2 * hidden as u64;
        let (state, activations) = (4 * (weights + learned), config.batch_size as u64 * row);
        Ok(match (on_gpu, config.precision) {
            (false, _) => Footprint { host: checkpoint + state + 4 * activations, gpu: 0 },
            // bf16 weights beside the fp32 ones, and activations of two bytes.
            (true, Precision::Bf16) => Footprint { host: checkpoint, gpu: state + 2 * weights + 2 * activations },
            (true, _) => Footprint { host: checkpoint, gpu: state + 4 * activations },
        })
    }

    /// Refuses a new run that does not fit what `device` and this machine have left.
    ///
    /// # Errors
    /// [`Kind::Device`] with what is needed and what there is.
    pub fn check(config: &Config, device: &Device) -> Result<()> {
        let gpu = match device {
            Device::Cpu(_) => None,
            Device::Cuda(cuda) => Some((cuda.context().memory()?.0 as u64, device.name())),
        };
        let need = Footprint::of(config, gpu.is_some())?;
        if let Some((free, name)) = gpu {
            need.fits(config, need.gpu, free, &name)?;
        }
        cpu::available_memory().map_or(Ok(()), |free| need.fits(config, need.host, free, "main memory"))
    }

    fn fits(self, config: &Config, need: u64, free: u64, place: &str) -> Result<()> {
        if need <= free {
            return Ok(());
        }
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        let network = &config.network;
        Err(Error::new(
            Kind::Device,
            format!(
                "training {} of width {}, hidden {}, depth {} in batches of {} takes at least {:.1} GiB of {place}; {:.1} GiB are free",
                config.swiglu, network.width, network.hidden, network.depth, config.batch_size, gib(need), gib(free)
            ),
        )
        .hint("make --width, --hidden, --depth or --batch-size smaller, or end what else uses the memory"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn config(width: usize, swiglu: &str) -> Config {
        let mut config = Config { swiglu: swiglu.into(), ..testing::config() };
        (config.network.width, config.network.hidden, config.network.depth) = (width, width, 1);
        (config.batch_size, config.momentum) = (64, 0.9);
        config
    }

    #[test]
    fn the_count_is_that_of_the_parameters_and_a_frozen_layer_has_no_velocity() {
        let parameters = |d: u64| 785 * d + 2 * d * d + 10 * (d + 1);
        let learning = Footprint::of(&config(512, "fused-triton-grad"), true).unwrap();
        assert_eq!(learning.host, 8 * parameters(512));
        let activations = 64 * (784 + 4 * 512 + 2 * 512);
        assert_eq!(learning.gpu, 8 * parameters(512) + 4 * activations);
        let frozen = Footprint::of(&config(512, "fused-frozen"), true).unwrap();
        assert_eq!(learning.host - frozen.host, 4 * 2 * 512 * 512);
        let on_cpu = Footprint::of(&config(512, "fused-triton-grad"), false).unwrap();
        assert_eq!(on_cpu, Footprint { host: 16 * parameters(512) + 4 * activations, gpu: 0 });
    }

    #[test]
    fn what_does_not_fit_is_told_with_both_sizes() {
        let config = config(60_000, "liger-style");
        let need = Footprint::of(&config, false).unwrap();
        let error = need.fits(&config, need.host, 8 << 30, "main memory").unwrap_err();
        let text = error.to_string();
        assert!(text.contains("width 60000") && text.contains("8.0 GiB are free"), "{text}");
        assert!(error.hint_text().is_some_and(|hint| hint.contains("--width")));
        assert!(need.fits(&config, need.host, 1 << 40, "main memory").is_ok());
    }
}
