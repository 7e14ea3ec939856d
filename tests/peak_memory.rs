//! g and u of the fused forward never exist whole: the memory that a forward takes shows it.
//!
//! This file has one test only, because it counts the allocations of the whole process.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use mnist_swiglu::{
    device::Device,
    swiglu::{self, GateUp, Gates, LayerConfig, Pass, Precision, reference::Dims, reference::Operands},
};

struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        PEAK.fetch_max(NOW.fetch_add(layout.size(), Relaxed) + layout.size(), Relaxed);
        // SAFETY: as the caller vouches.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as the caller vouches.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_fused_forward_needs_a_fraction_of_what_g_and_u_would() {
    let Dims { batch, inputs, hidden } = Dims { batch: 4096, inputs: 2048, hidden: 2048 };
    let gates = 2 * batch * hidden * size_of::<f32>();
    let device = Device::open("cpu", Some(2)).expect("a CPU").0;
    // Operands of a few images, repeated: what is measured is memory.
    let operands = Operands::random(Dims { batch: 8, inputs, hidden }, 1);
    let weights = GateUp::unpack(&operands.wf);
    let x = device.upload(batch, inputs, &operands.x.repeat(batch / 8)).expect("x");
    let mut z = device.zeros(batch, hidden).expect("z");
    let mut extra = |name: &str, gates: Gates, pass: Pass| {
        let config = LayerConfig { device: device.clone(), inputs, hidden, gates, precision: Precision::Fp32 };
        let mut layer = (swiglu::find(name).expect("an entry").new)(&config).expect("a layer");
        layer.set_weights(&weights).expect("weights");
        let before = NOW.load(Relaxed);
        PEAK.store(before, Relaxed);
        layer.forward(&x, &mut z, pass).expect("forward");
        (PEAK.load(Relaxed) - before, layer.saved_bytes())
    };
    for name in ["fused-frozen", "fused-python-grad", "fused-triton-grad"] {
        let (bytes, saved) = extra(name, Gates::Recompute, Pass::Training);
        assert!(bytes * 10 < gates, "{name}: {bytes} bytes beyond x, Wf and z, where g and u are {gates}");
        assert_eq!(saved, 0, "{name}");
        let (bytes, _) = extra(name, Gates::Save, Pass::Inference);
        assert!(bytes * 10 < gates, "{name}, inference: {bytes} bytes");
    }
    let (bytes, saved) = extra("fused-triton-grad", Gates::Save, Pass::Training);
    assert!(bytes >= gates, "g and u are kept when that is asked for: {bytes}");
    assert_eq!(saved, gates);
    let (bytes, saved) = extra("liger-style", Gates::Auto, Pass::Training);
    assert!(bytes >= gates, "liger-style writes g and u: {bytes}");
    assert_eq!(saved, gates);
}
