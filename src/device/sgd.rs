//! The rule of the optimiser: SGD with momentum, as PyTorch has it.

/// One step of SGD: v <- momentum v + g, w <- w - lr v, where g = scale grad + weight_decay w (and with Nesterov's
/// momentum w <- w - lr (g + momentum v)), as PyTorch has it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SgdStep {
    /// Learning rate of this step.
    pub lr: f32,
    /// Momentum.
    pub momentum: f32,
    /// L2 penalty.
    pub weight_decay: f32,
    /// Nesterov's momentum.
    pub nesterov: bool,
    /// Factor of the gradient: below 1 when the global norm is clipped.
    pub scale: f32,
    /// The factor is the one that [`super::Device::clip`] left on the device, and `scale` is not read.
    pub device_scale: bool,
}

impl SgdStep {
    /// The step for a parameter that decays, or does not.
    #[must_use]
    pub fn for_param(mut self, decays: bool) -> Self {
        if !decays {
            self.weight_decay = 0.0;
        }
        self
    }

    /// The rule on one element.
    pub fn apply(&self, w: &mut f32, v: &mut f32, grad: f32) {
        let g = self.weight_decay.mul_add(*w, grad * self.scale);
        *v = self.momentum.mul_add(*v, g);
        let update = if self.nesterov { self.momentum.mul_add(*v, g) } else { *v };
        *w = (-self.lr).mul_add(update, *w);
    }
}
