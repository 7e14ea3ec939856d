//! The operations of the network that every SwiGLU implementation shares: products, the stem, the head with its loss, SGD.

use super::{
    Device, Layout, SgdStep,
    cpu::{
        gemm::{View, gemm},
        linear::linear,
        ops,
        weight_grad::{Target, linear_step},
    },
    cuda::epoch::Place,
    cuda::head::HeadGradient,
    images::{Batch, Labels, Tally},
};
use crate::{
    Error, Result,
    data::CLASSES,
    tensor::{Param, Tensor},
};

impl Device {
    /// The library GEMM: c = op(a, b) + beta c.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn gemm(&self, layout: Layout, a: &Tensor, b: &Tensor, beta: f32, c: &mut Tensor) -> Result<()> {
        match self {
            Device::Cpu(cpu) => {
                let a = View::new(a.cpu()?, a.rows(), a.cols());
                let b = View::new(b.cpu()?, b.rows(), b.cols());
                let (a, b) = match layout {
                    Layout::Nt => (a, b.t()),
                    Layout::Nn => (a, b),
                    Layout::Tn => (a.t(), b),
                };
                c.expect("gemm", "c", a.rows, b.cols)?;
                gemm(cpu, a, b, beta, c.cpu_mut()?)
            }
            Device::Cuda(cuda) => {
                let (k, rows) = if layout == Layout::Tn { a.shape() } else { (a.cols(), a.rows()) };
                let (b_k, cols) = if layout == Layout::Nt { (b.cols(), b.rows()) } else { b.shape() };
                if k != b_k {
                    return Err(Error::shape(format!(
                        "gemm {layout:?}: a is {:?} and b is {:?}: they share no K",
                        a.shape(),
                        b.shape()
                    )));
                }
                c.expect("gemm", "c", rows, cols)?;
                cuda.gemm(layout, a, b, beta, c)
            }
        }
    }

    /// y = x W^T + b: (B, K) @ (K, N) + (N) -> (B, N).
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn linear(&self, x: &Tensor, w: &Param, b: &Param, y: &mut Tensor) -> Result<()> {
        let (outputs, inputs) = w.value.shape();
        x.expect("linear", "x", x.rows(), inputs)?;
        b.value.expect("linear", "bias", 1, outputs)?;
        y.expect("linear", "y", x.rows(), outputs)?;
        match self {
            Device::Cpu(cpu) => {
                linear(cpu, x.cpu()?, w.value.cpu()?, b.value.cpu()?, y.cpu_mut()?);
                Ok(())
            }
            Device::Cuda(cuda) => {
                self.gemm(Layout::Nt, x, w.operand(), 0.0, y)?;
                cuda.add_bias(&b.value, y)
            }
        }
    }

    /// The stem: [`Device::linear`] on the images of a batch, which a captured step may find elsewhere than in `batch.x`.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn stem(&self, batch: &Batch, (w, b): (&mut Param, &mut Param), y: &mut Tensor) -> Result<()> {
        let (outputs, inputs) = w.value.shape();
        match self {
            Device::Cuda(cuda) if cuda.passes_stem_once_at(batch.place, batch.x.rows(), inputs, outputs) => {
                y.expect("stem", "y", batch.x.rows(), outputs)?;
                cuda.stem_first(batch.place.unwrap_or_default(), (w, b), y)
            }
            Device::Cuda(cuda) if cuda.takes_linear(inputs, outputs) => {
                batch.x.expect("stem", "x", batch.x.rows(), inputs)?;
                b.value.expect("stem", "bias", 1, outputs)?;
                y.expect("stem", "y", batch.x.rows(), outputs)?;
                if cuda.is_planning() && cuda.passes_stem_once(batch.x.rows(), inputs, outputs) {
                    cuda.stem_first(Place::default(), (w, b), y)?; // what a captured step will take
                }
                cuda.linear(&batch.x, batch.place, (w, b), y)
            }
            Device::Cpu(_) | Device::Cuda(_) => self.linear(&batch.x, w, b, y),
        }
    }

    /// The stem's [`Device::linear_backward`]; with a step, on a CPU and on Hopper, by one kernel that keeps no gradient. `following`
    /// is where the stem's outputs for the next batch of a captured epoch may go already; true when they did.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn stem_backward(
        &self,
        dy: &Tensor,
        batch: &Batch,
        (w, b): (&mut Param, &mut Param),
        step: Option<&SgdStep>,
        following: Option<&mut Tensor>,
    ) -> Result<bool> {
        let (outputs, inputs) = w.value.shape();
        match (self, step) {
            (Device::Cpu(cpu), Some(step)) => {
                dy.expect("stem backward", "dy", batch.x.rows(), outputs)?;
                batch.x.expect("stem backward", "x", dy.rows(), inputs)?;
                let Param { value, velocity, decays, .. } = w;
                let velocity = self.velocity(velocity, value.shape())?;
                let target = Target::Step(step.for_param(*decays), value.cpu_mut()?, velocity.cpu_mut()?);
                linear_step(cpu, dy.cpu()?, dy.rows(), batch.x.cpu()?, target);
                let shape = b.value.shape();
                ops::column_sums(cpu, dy.cpu()?, self.velocity(&mut b.grad, shape)?.cpu_mut()?);
                self.sgd(step, b).map(|()| false)
            }
            (Device::Cuda(cuda), Some(step))
                if cuda.passes_stem_once_at(batch.place, batch.x.rows(), inputs, outputs) =>
            {
                dy.expect("stem backward", "dy", batch.x.rows(), outputs)?;
                let place = batch.place.unwrap_or_default();
                let following = following.filter(|_| place.moves);
                if let Some(y) = &following {
                    y.expect("stem", "y", batch.x.rows(), outputs)?;
                }
                cuda.stem_step((dy, place), (w, b), step, following.as_deref().map(|y| (place, y)))?;
                Ok(following.is_some())
            }
            (Device::Cuda(cuda), Some(step)) if cuda.takes_linear(inputs, outputs) => {
                dy.expect("stem backward", "dy", batch.x.rows(), outputs)?;
                batch.x.expect("stem backward", "x", dy.rows(), inputs)?;
                cuda.linear_step(dy, (&batch.x, batch.place), (w, b), step).map(|()| false)
            }
            _ => self.linear_backward(dy, &batch.x, (w, b), step).map(|()| false),
        }
    }

    /// dW = dy^T x: (N, B) @ (B, K) -> (N, K), and db = column sums of dy: into their buffers, and, when a step is given,
    /// from there into the weights.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn linear_backward(
        &self,
        dy: &Tensor,
        x: &Tensor,
        (w, b): (&mut Param, &mut Param),
        step: Option<&SgdStep>,
    ) -> Result<()> {
        dy.expect("linear backward", "dy", x.rows(), w.value.rows())?;
        x.expect("linear backward", "x", dy.rows(), w.value.cols())?;
        self.gemm(Layout::Tn, dy, x, 0.0, self.gradient(w)?)?;
        if let Device::Cuda(cuda) = self {
            cuda.bias_gradient(dy, b, step)?;
            return step.map_or(Ok(()), |step| cuda.sgd(step, w));
        }
        if let Device::Cpu(cpu) = self {
            let shape = b.value.shape();
            ops::column_sums(cpu, dy.cpu()?, self.velocity(&mut b.grad, shape)?.cpu_mut()?);
        }
        let Some(step) = step else { return Ok(()) };
        self.sgd(step, w)?;
        self.sgd(step, b)
    }

    /// logits = z W^T + b for ten classes: (B, H) @ (H, 10) -> (B, 10). A product would waste most of its tile.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn head(&self, z: &Tensor, w: &Param, b: &Param, logits: &mut Tensor) -> Result<()> {
        w.value.expect("head", "weight", CLASSES, z.cols())?;
        b.value.expect("head", "bias", 1, CLASSES)?;
        logits.expect("head", "logits", z.rows(), CLASSES)?;
        match self {
            Device::Cpu(cpu) => {
                ops::head_forward(cpu, z.cpu()?, w.value.cpu()?, b.value.cpu()?, logits.cpu_mut()?);
                Ok(())
            }
            Device::Cuda(cuda) => cuda.head_forward(z, &w.value, &b.value, logits),
        }
    }

    /// The head, softmax cross-entropy over its logits, and dlogits of the mean loss when wanted. Losses and hits are added
    /// to the tally; in a step that is being captured they go to its log instead, which a backward, where there is one, ends
    /// ([`Device::head_backward`]). A GPU writes no logits: it is one kernel.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn head_loss(
        &self,
        z: &Tensor,
        (w, b): (&Param, &Param),
        batch: &Batch,
        logits: &mut Tensor,
        dlogits: Option<&mut Tensor>,
        tally: &mut Tally,
    ) -> Result<()> {
        z.expect("head loss", "z", batch.x.rows(), w.value.cols())?;
        if let Some(dlogits) = &dlogits {
            dlogits.expect("head loss", "dlogits", z.rows(), CLASSES)?;
        }
        match (self, &batch.labels) {
            (Device::Cpu(_), Labels::Cpu(labels)) => {
                self.head(z, w, b, logits)?;
                let dlogits = dlogits.map(Tensor::cpu_mut).transpose()?;
                ops::softmax_cross_entropy(logits.cpu()?, labels, dlogits, &mut tally.loss_sum, &mut tally.correct);
                tally.count += labels.len() as u64;
                Ok(())
            }
            (Device::Cuda(cuda), Labels::Cuda(labels)) => {
                cuda.head_loss(z, (&w.value, &b.value), (labels, batch.place), dlogits, tally)
            }
            _ => Err(Error::shape("head loss: the batch is on another device")),
        }
    }

    /// Does `work`, in which a layer's step on its weights may wait for the stem's, so that one launch takes both.
    ///
    /// # Errors
    /// When `work` fails.
    pub fn join_steps<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        match self {
            Device::Cuda(cuda) => cuda.join_steps(work),
            Device::Cpu(_) => work(),
        }
    }

    /// Whether [`Device::head_loss_dz`] and [`Device::head_step`] are faster than a loss and a backward, where a step may be taken at once.
    pub fn joins_head(&self, batch: usize, hidden: usize) -> bool {
        match self {
            Device::Cpu(_) => false,
            Device::Cuda(cuda) => cuda.joins_head(batch, hidden),
        }
    }

    /// The head, softmax cross-entropy, and the gradient of what the head reads, or what the layer below makes of that: all that the
    /// layers' backward waits for. The step on the head, and the sum of the losses, are left to [`Device::head_step`].
    ///
    /// # Errors
    /// When the shapes do not fit, or the device has no such kernel.
    pub fn head_loss_dz(
        &self,
        z: &Tensor,
        (w, b): (&Param, &Param),
        batch: &Batch,
        gradient: HeadGradient<'_>,
    ) -> Result<()> {
        z.expect("head loss", "z", batch.x.rows(), w.value.cols())?;
        if let HeadGradient::Dz(dz) = &gradient {
            dz.expect("head loss", "dz", z.rows(), z.cols())?;
        }
        match (self, &batch.labels) {
            (Device::Cuda(cuda), Labels::Cuda(labels)) => {
                cuda.head_loss_dz(z, (&w.value, &b.value), (labels, batch.place), gradient)
            }
            _ => Err(Error::shape("head loss: a CPU takes the head's two directions apart")),
        }
    }

    /// The step on the head's weights after [`Device::head_loss_dz`] over `rows` rows. Losses and hits are added to the tally, or go to
    /// the log of a captured step, which ends here.
    ///
    /// # Errors
    /// When the device fails, or has no such kernel.
    pub fn head_step(
        &self,
        rows: usize,
        (w, b): (&mut Param, &mut Param),
        step: &SgdStep,
        tally: &mut Tally,
    ) -> Result<()> {
        match self {
            Device::Cuda(cuda) => cuda.head_step(rows, (w, b), step, tally),
            Device::Cpu(_) => Err(Error::shape("head step: a CPU takes it in the head's backward")),
        }
    }

    /// dz = dlogits W: (B, 10) @ (10, H) -> (B, H); dW = dlogits^T z: (10, B) @ (B, H) -> (10, H) and db: into their
    /// buffers or, when a step is given, into the weights.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn head_backward(
        &self,
        z: &Tensor,
        (w, b): (&mut Param, &mut Param),
        dlogits: &Tensor,
        dz: &mut Tensor,
        step: Option<&SgdStep>,
    ) -> Result<()> {
        dlogits.expect("head backward", "dlogits", z.rows(), CLASSES)?;
        dz.expect("head backward", "dz", z.rows(), z.cols())?;
        w.value.expect("head backward", "weight", CLASSES, z.cols())?;
        match self {
            Device::Cpu(cpu) => {
                ops::head_backward_dx(cpu, dlogits.cpu()?, w.value.cpu()?, dz.cpu_mut()?);
                let (w_shape, b_shape) = (w.value.shape(), b.value.shape());
                let dw = self.velocity(&mut w.grad, w_shape)?.cpu_mut()?;
                let db = self.velocity(&mut b.grad, b_shape)?.cpu_mut()?;
                ops::head_backward_dw(cpu, dlogits.cpu()?, z.cpu()?, dw, db);
                let Some(step) = step else { return Ok(()) };
                self.sgd(step, w)?;
                self.sgd(step, b)
            }
            Device::Cuda(cuda) => cuda.head_backward(z, (w, b), dlogits, dz, step),
        }
    }

    /// One step of SGD on a parameter that has a gradient; a parameter without one is left alone.
    ///
    /// # Errors
    /// When the velocity cannot be made.
    pub fn sgd(&self, step: &SgdStep, param: &mut Param) -> Result<()> {
        match self {
            Device::Cpu(cpu) => {
                let Param { value, velocity, grad: Some(grad), decays, .. } = param else { return Ok(()) };
                let velocity = self.velocity(velocity, value.shape())?;
                ops::sgd(cpu, step, *decays, value.cpu_mut()?, velocity.cpu_mut()?, grad.cpu()?);
                Ok(())
            }
            Device::Cuda(cuda) => cuda.sgd(step, param),
        }
    }

    /// The velocity of a parameter, made of zeros when it is not there yet.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn velocity<'a>(&self, slot: &'a mut Option<Tensor>, shape: (usize, usize)) -> Result<&'a mut Tensor> {
        if slot.is_none() {
            *slot = Some(self.zeros(shape.0, shape.1)?);
        }
        slot.as_mut().ok_or_else(|| Error::shape("velocity: no tensor"))
    }

    /// The gradient's buffer of a weight, made when it is first asked for: of the elements that products read the weight in,
    /// bf16 where it has a copy in bf16. The optimiser computes in fp32 all the same.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn gradient<'a>(&self, param: &'a mut Param) -> Result<&'a mut Tensor> {
        match self {
            Device::Cpu(_) => self.velocity(&mut param.grad, param.value.shape()),
            Device::Cuda(cuda) => cuda.weight_grad_of(param),
        }
    }

    /// Clips the norm of all gradients together to `bound`, as PyTorch does: `step` is changed to scale them. The norm,
    /// where it is known at once (a captured step leaves it on the device).
    ///
    /// # Errors
    /// When the device fails.
    pub fn clip(&self, grads: &[&Tensor], bound: f32, step: &mut SgdStep) -> Result<Option<f64>> {
        match self {
            Device::Cpu(cpu) => {
                let mut sum = 0.0;
                for grad in grads {
                    sum += ops::sum_of_squares(cpu, grad.cpu()?);
                }
                let norm = sum.sqrt();
                step.scale = (f64::from(bound) / (norm + 1e-6)).min(1.0) as f32;
                Ok(Some(norm))
            }
            Device::Cuda(cuda) => {
                step.device_scale = true;
                cuda.clip(grads, bound)
            }
        }
    }
}
