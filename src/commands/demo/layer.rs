//! Chapters 1 and 2: what the layer computes, and in which ways. Nothing here depends on time.

use super::page::{Page, bar, bytes, count};
use crate::{
    Result,
    device::Device,
    measure::{
        check::gates_of,
        work::{Pass, Work},
    },
    swiglu::{self, Entry, Gates, LayerConfig, Precision, WeightLayout, reference::Dims},
};

/// Chapter 1.
pub fn shapes(page: &mut Page, dims: Dims, precision: Precision) {
    let Dims { batch, inputs, hidden } = dims;
    let [stem, layer, head] = [784 * inputs + inputs, 2 * hidden * inputs, 10 * hidden + 10].map(count);
    page.text("A network that reads digits, trained from scratch. At its heart stands one SwiGLU layer:");
    page.blank();
    page.columns(&[
        ["", "digits", "stem", "SwiGLU", "head"],
        ["", "28 x 28 pixels", "Linear", "gate * up", "Linear"],
        [
            "shape",
            &format!("({batch}, 784)"),
            &format!("({batch}, {inputs})"),
            &format!("({batch}, {hidden})"),
            &format!("({batch}, 10)"),
        ],
        ["weights", "", &stem, &layer, &head],
    ]);
    page.blank();
    page.line(&format!("The layer: B = {batch} images a step, D = {inputs} inputs, H = {hidden} outputs"));
    page.blank();
    page.line("                 +-- Wg (H, D) --> g (B, H) --> silu(g) --+");
    page.line("   x (B, D) -----|                                        * --> z (B, H)");
    page.line("                 +-- Wu (H, D) --> u (B, H) --------------+");
    page.blank();
    page.line("   silu(g) = g * sigmoid(g): one product decides how far the other's gate opens");
    page.blank();
    let flop = |pass| Work::of(pass, dims, precision).flop;
    let (forward, dx) = (flop(Pass::Forward), flop(Pass::BackwardDx));
    let dwf = flop(Pass::Backward) - dx;
    page.text(&format!(
        "A training step multiplies three times, {} FLOP in all: forward x to z ({}), backward dz to dx ({}) for \
         the stem before it, and backward to dWf ({}) so that the layer itself learns.",
        count(flop(Pass::Step) as usize),
        count(forward as usize),
        count(dx as usize),
        count(dwf as usize)
    ));
}

/// What an implementation keeps from its forward for its backward, for each of its ways of keeping gates.
pub fn kept(entry: &Entry, device: &Device, dims: Dims, precision: Precision) -> Result<Vec<(Gates, usize)>> {
    let device = &device.with_precision(precision);
    let Dims { batch, inputs, hidden } = dims;
    let of = |gates| {
        let config = LayerConfig { device: device.clone(), inputs, hidden, gates, precision };
        let mut layer = (entry.new)(&config)?;
        let (x, mut z) = (device.activations(batch, inputs)?, device.activations(batch, hidden)?);
        layer.forward(&x, &mut z, swiglu::Pass::Training)?;
        Ok((gates, layer.saved_bytes()))
    };
    gates_of(entry).iter().map(|&gates| of(gates)).collect()
}

/// Chapter 2.
///
/// # Errors
/// When the device fails.
pub fn ways(page: &mut Page, device: &Device, dims: Dims, precision: Precision) -> Result<()> {
    page.text(
        "The same numbers from other launches: [L] is a product by the library, [k] a kernel of our own. g and u are kept \
         for the backward, or computed again.",
    );
    let again = Work::of(Pass::Forward, dims, precision).flop as usize;
    let all: Vec<_> =
        swiglu::ALL.iter().map(|entry| kept(entry, device, dims, precision)).collect::<Result<Vec<_>>>()?;
    let most = all.iter().flatten().map(|(_, kept)| *kept).max().unwrap_or(0);
    // A gate comes after the products of a forward, and before those of a backward.
    let boxes = |(own, library): (u32, u32), forward: bool| {
        let (own, library) = ("[k]".repeat(own as usize), "[L]".repeat(library as usize));
        match forward {
            _ if own.is_empty() && library.is_empty() => "none".into(),
            true => library + &own,
            false => own + &library,
        }
    };
    for (entry, kept) in swiglu::ALL.iter().zip(&all) {
        let weights = match entry.weights {
            WeightLayout::Apart => "Wg, Wu apart",
            WeightLayout::Packed => "Wf = [Wg ; Wu]",
        };
        let learns = if entry.trains_weight { "learns" } else { "does not learn" };
        let (pass, launches) = (if entry.trains_weight { Pass::Step } else { Pass::StepDx }, &entry.launches);
        page.blank();
        page.heading(&format!("{:<20} {weights}; {learns}; {} launches a step", entry.name, pass.launches(entry)));
        page.line(&format!(
            "  forward {:<12} dx {:<12} dWf {}",
            boxes(launches.forward, true),
            boxes(launches.backward_dx, false),
            boxes(launches.backward_dwf, false)
        ));
        for (gates, kept) in kept {
            let how = match gates {
                Gates::Save if entry.can_recompute => "g, u kept",
                Gates::Save => "g, u kept, always",
                _ => "computed again",
            };
            let extra =
                if *gates == Gates::Recompute { format!(" for {} FLOP more", count(again)) } else { String::new() };
            page.line(&format!("  {how:<18}{} {}{extra}", bar('#', *kept as f64, most as f64, 24), bytes(*kept)));
        }
    }
    Ok(())
}
