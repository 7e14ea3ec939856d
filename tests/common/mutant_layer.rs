//! A layer that is wrong in one way of the user's choice, in plain loops.

use mnist_swiglu::{
    Result,
    device::SgdStep,
    swiglu::{Entry, GateUp, Launches, LayerConfig, Pass, SwiGlu, WeightGrad, WeightLayout, reference::sigmoid},
    tensor::{Param, Tensor},
};

/// One way to be wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mutation {
    /// Right: the checks must let it pass.
    None,
    /// Only the first tile of 32 inputs is visited.
    NoKLoop,
    /// dWf uses dz instead of dz times the gate's derivative.
    NoGateDerivative,
    /// dWf leaves the last tile of 32 images out.
    LostBatchTile,
    /// Gate and up are swapped.
    Swapped,
    /// Products are rounded to TF32 as Triton does by default.
    Tf32,
    /// The last column is not written.
    UnwrittenEdge,
    /// SGD forgets the momentum.
    NoMomentum,
}

struct Mutant {
    config: LayerConfig,
    mutation: Mutation,
    weights: GateUp,
    velocities: GateUp,
    gradients: Option<GateUp>,
    ready: bool,
}

/// fp32 with the mantissa of TF32.
fn tf32(x: f32) -> f32 {
    f32::from_bits((x.to_bits() + 0x1000) & !0x1fff)
}

impl Mutant {
    fn boxed(config: &LayerConfig, mutation: Mutation) -> Result<Box<dyn SwiGlu>> {
        let zeros = GateUp { gate: Vec::new(), up: Vec::new() };
        Ok(Box::new(Mutant {
            config: config.clone(),
            mutation,
            weights: zeros.clone(),
            velocities: zeros,
            gradients: None,
            ready: false,
        }))
    }

    fn product(&self, a: f32, b: f32) -> f64 {
        if self.mutation == Mutation::Tf32 {
            f64::from(tf32(a)) * f64::from(tf32(b))
        } else {
            f64::from(a) * f64::from(b)
        }
    }

    /// g and u of one image and one hidden row.
    fn gates(&self, x: &[f32], h: usize) -> (f64, f64) {
        let depth = if self.mutation == Mutation::NoKLoop { x.len().min(32) } else { x.len() };
        let dot = |w: &[f32]| (0..depth).map(|k| self.product(x[k], w[h * x.len() + k])).sum::<f64>();
        let (g, u) = (dot(&self.weights.gate), dot(&self.weights.up));
        if self.mutation == Mutation::Swapped { (u, g) } else { (g, u) }
    }
}

impl SwiGlu for Mutant {
    fn entry(&self) -> &'static Entry {
        &ENTRIES[self.mutation as usize]
    }

    fn forward(&mut self, x: &Tensor, z: &mut Tensor, _: Pass) -> Result<()> {
        let (inputs, hidden) = (self.config.inputs, self.config.hidden);
        for (x, z) in x.cpu()?.chunks(inputs).zip(z.cpu_mut()?.chunks_mut(hidden)) {
            let written = if self.mutation == Mutation::UnwrittenEdge { hidden - 1 } else { hidden };
            for (h, z) in z.iter_mut().enumerate().take(written) {
                let (g, u) = self.gates(x, h);
                *z = (g * sigmoid(g) * u) as f32;
            }
        }
        self.ready = true;
        Ok(())
    }

    fn backward(&mut self, x: &Tensor, dz: &Tensor, dx: Option<&mut Tensor>, dwf: WeightGrad<'_>) -> Result<()> {
        let (inputs, hidden) = (self.config.inputs, self.config.hidden);
        let mut dx = dx;
        let (mut gate, mut up) = (vec![0.0_f64; hidden * inputs], vec![0.0_f64; hidden * inputs]);
        let batch = x.rows();
        let lost = if batch > 32 { (batch - 1) / 32 * 32 } else { batch };
        for (b, x) in x.cpu()?.chunks(inputs).enumerate() {
            let mut row = vec![0.0_f64; inputs];
            for h in 0..hidden {
                let (g, u) = self.gates(x, h);
                let (s, dz) = (sigmoid(g), dz.cpu()?[b * hidden + h]);
                let (dg, du) = (f64::from(dz) * u * s * (1.0 + g * (1.0 - s)), f64::from(dz) * g * s);
                for (k, row) in row.iter_mut().enumerate() {
                    *row += self.product(dg as f32, self.weights.gate[h * inputs + k])
                        + self.product(du as f32, self.weights.up[h * inputs + k]);
                }
                let (dg, du) =
                    if self.mutation == Mutation::NoGateDerivative { (f64::from(dz), f64::from(dz)) } else { (dg, du) };
                if self.mutation != Mutation::LostBatchTile || b < lost {
                    for k in 0..inputs {
                        gate[h * inputs + k] += self.product(dg as f32, x[k]);
                        up[h * inputs + k] += self.product(du as f32, x[k]);
                    }
                }
            }
            if let Some(dx) = dx.as_deref_mut() {
                for (to, from) in dx.cpu_mut()?[b * inputs..].iter_mut().zip(&row) {
                    *to = *from as f32;
                }
            }
        }
        let narrow = |values: &[f64]| values.iter().map(|&v| v as f32).collect::<Vec<f32>>();
        let gradients = GateUp { gate: narrow(&gate), up: narrow(&up) };
        if let WeightGrad::Step(step) = dwf {
            let step =
                SgdStep { momentum: if self.mutation == Mutation::NoMomentum { 0.0 } else { step.momentum }, ..*step };
            let (w, v) = (&mut self.weights, &mut self.velocities);
            for (w, v, g) in [(&mut w.gate, &mut v.gate, &gradients.gate), (&mut w.up, &mut v.up, &gradients.up)] {
                w.iter_mut().zip(v).zip(g).for_each(|((w, v), g)| step.apply(w, v, *g));
            }
        }
        self.gradients = Some(gradients);
        Ok(())
    }

    fn params(&mut self) -> Vec<&mut Param> {
        Vec::new()
    }
    fn weights(&self) -> Result<GateUp> {
        Ok(self.weights.clone())
    }
    fn set_weights(&mut self, weights: &GateUp) -> Result<()> {
        self.weights = weights.clone();
        Ok(())
    }
    fn velocities(&self) -> Result<Option<GateUp>> {
        Ok(Some(self.velocities.clone()))
    }
    fn set_velocities(&mut self, velocities: &GateUp) -> Result<()> {
        self.velocities = velocities.clone();
        Ok(())
    }
    fn gradients(&self) -> Result<Option<GateUp>> {
        Ok(self.gradients.clone())
    }
    fn saved_bytes(&self) -> usize {
        0
    }
    fn workspace_bytes(&self) -> usize {
        0
    }
}

const fn entry(new: fn(&LayerConfig) -> Result<Box<dyn SwiGlu>>) -> Entry {
    Entry {
        name: "mutant",
        aliases: &[],
        summary: "wrong in one way",
        weights: WeightLayout::Packed,
        trains_weight: true,
        can_recompute: false,
        launches: Launches { forward: (1, 0), backward_dx: (1, 0), backward_dwf: (1, 0) },
        new,
    }
}

/// In the order of `Mutation`.
pub static ENTRIES: [Entry; 8] = [
    entry(|c| Mutant::boxed(c, Mutation::None)),
    entry(|c| Mutant::boxed(c, Mutation::NoKLoop)),
    entry(|c| Mutant::boxed(c, Mutation::NoGateDerivative)),
    entry(|c| Mutant::boxed(c, Mutation::LostBatchTile)),
    entry(|c| Mutant::boxed(c, Mutation::Swapped)),
    entry(|c| Mutant::boxed(c, Mutation::Tf32)),
    entry(|c| Mutant::boxed(c, Mutation::UnwrittenEdge)),
    entry(|c| Mutant::boxed(c, Mutation::NoMomentum)),
];
