#!/usr/bin/env python3
"""The peers of `mnist-swiglu bench`: the SwiGLU layer alone, in PyTorch, on a CUDA GPU or the CPU.

  torch          two F.linear and Liger-Kernel's gate kernel (on a CPU, where that does not run, F.silu(g) * u)
  torch-compile  torch.compile of one packed F.linear, silu(gate) * up
  gemm           the packed product alone, no gate: what a gate that costs nothing would leave (forward only)
  quack          QuACK's product with the gate in its epilogue (forward only; bf16 on Hopper or Blackwell), tuned by its own
                 autotuner; its packed weight has gate and up rows in turn

Passes: forward (x to z), step-dx (forward and dx: frozen weights), step (forward, dx and the weights' gradients).
Random normal inputs, weights scaled by D^-1/2. Every case is compared with float64 before it is timed; a wrong one has an
error and no time.

On a GPU, device time: 10 calls captured in a CUDA graph, 3 replays between two events a sample. On a CPU, wall time; calls
shorter than 0.2 ms several at a time. Caches stay warm.
"""
import math
import time

import common


ROUNDS = 3  # turns that each peer gets, so that what else the machine does hits all of them alike


def within(sample, at_least=4, at_most=40, seconds=0.07):
    """The samples of a turn, as many as our own cases take: a chip that is busy for longer gets hot and clocks lower."""
    begin, found = time.perf_counter(), []
    while len(found) < at_least or (len(found) < at_most and time.perf_counter() - begin < seconds):
        found.append(sample())
    return found


def device_sampler(torch, call, calls=10, replays=3):
    """Makes a function that gives milliseconds of a call on the GPU, without what a launch costs the host."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            call()

    def one():
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(replays):
            graph.replay()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / (calls * replays)

    def turn():
        one()  # the first replays after another peer's turn warm up
        return within(one)

    return turn


def wall_sampler(call):
    """Makes a function that gives milliseconds of a call on the CPU."""
    def once(repeat):
        begin = time.perf_counter()
        for _ in range(repeat):
            call()
        return (time.perf_counter() - begin) / repeat * 1e3
    shortest = min(once(1) for _ in range(3))
    repeat = max(1, min(1000, int(0.2 / max(shortest, 1e-6))))

    def turn():
        once(1)
        return within(lambda: once(repeat))

    return turn


def reference(F, torch, x, w, dz):
    """z, dx, dWf in float64."""
    x, w = x.double().requires_grad_(True), w.double().requires_grad_(True)
    gate, up = F.linear(x, w).chunk(2, dim=1)
    z = F.silu(gate) * up
    dx, dwf = torch.autograd.grad(z, [x, w], dz.double())
    return z.detach(), dx, dwf


def main():
    parser = common.arguments(__doc__)
    parser.add_argument("--pass", dest="passes", default="forward,step-dx,step")
    args = parser.parse_args()
    try:
        import torch
        import torch.nn.functional as F
    except Exception as error:  # a package that is there and does not load is as good as missing
        common.missing("torch", error)
    cuda = args.device.startswith("cuda")
    common.warn_when_busy(args)
    versions = {"torch": torch.__version__}
    if cuda and not torch.cuda.is_available():
        common.missing("torch with CUDA", "torch.cuda.is_available() is False")
    wanted = [name for name in (args.peer or "torch,torch-compile,gemm,quack").split(",") if name]
    gate_of = lambda g, u: F.silu(g) * u
    name = "PyTorch " + torch.__version__.split("+")[0]
    liger_name = name
    if cuda:
        torch.cuda.set_device(args.device)
        versions["cuda"] = torch.version.cuda
        if "torch" in wanted:
            try:
                import importlib.metadata
                from liger_kernel.ops.swiglu import LigerSiLUMulFunction
                gate_of = LigerSiLUMulFunction.apply
                versions["liger-kernel"] = importlib.metadata.version("liger-kernel")
                versions["triton"] = importlib.metadata.version("triton")
                liger_name = f"{name} + Liger-Kernel {versions['liger-kernel']}"
            except Exception as error:
                common.say(missing="liger-kernel", why=" ".join(str(error).split())[:300])
                wanted.remove("torch")
        if "quack" in wanted:
            try:
                import importlib.metadata
                from quack.gemm_interface import gemm_gated
                versions["quack-kernels"] = importlib.metadata.version("quack-kernels")
            except Exception as error:
                common.say(missing="quack-kernels", why=" ".join(str(error).split())[:300])
                wanted.remove("quack")
    else:
        if "quack" in wanted:
            common.say(skipped="QuACK has no kernels for a CPU")
            wanted.remove("quack")
        if args.threads:
            torch.set_num_threads(args.threads)
    sampler = (lambda call: device_sampler(torch, call)) if cuda else wall_sampler
    gpu = torch.cuda.get_device_name(args.device) if cuda else None
    titles = {"torch": liger_name, "torch-compile": name + ", torch.compile", "gemm": name + ", packed product alone",
              "quack": "QuACK " + versions.get("quack-kernels", "")}

    def packed(x, w):
        gate, up = F.linear(x, w).chunk(2, dim=1)
        return F.silu(gate) * up

    def error(got, want):
        return float((got.double() - want).norm() / want.norm())

    def case(peer, work, x, w, dz, want):
        """The call to be timed, and its largest error."""
        trains = work == "step"
        if peer == "gemm":
            call = lambda: F.linear(x, w)
            return call, error(call(), F.linear(x.double(), w.double()))
        half = len(w) // 2
        if peer == "quack":
            in_turn = torch.stack([w[:half], w[half:]], dim=1).flatten(0, 1)  # gate row 0, up row 0, gate row 1, ...
            z = torch.empty(len(x), half, dtype=x.dtype, device=x.device)
            call = lambda: gemm_gated(x, in_turn.t(), activation="swiglu", store_preact=False, postact_out=z)
            call()  # tunes
            return call, error(z, want[0])
        weights = [w] if peer == "torch-compile" else [w[:half].contiguous(), w[half:].contiguous()]
        if peer == "torch-compile":
            torch._dynamo.reset()  # each shape compiled for itself
            layer = torch.compile(packed, dynamic=False)
        else:
            layer = lambda x, wg, wu: gate_of(F.linear(x, wg), F.linear(x, wu))
        if work == "forward":
            call = lambda: layer(x, *weights)
            return call, error(call(), want[0])
        x = x.clone().requires_grad_(True)
        weights = [part.clone().requires_grad_(trains) for part in weights]
        leaves = [x] + (weights if trains else [])

        def step():
            z = layer(x, *weights)
            return z, torch.autograd.grad(z, leaves, dz)

        z, (dx, *dw) = step()
        errors = [error(z.detach(), want[0]), error(dx, want[1])]
        if trains:
            errors.append(error(torch.cat(dw), want[2]))
        return step, max(errors)

    torch.manual_seed(args.seed)
    for precision, bound in common.precisions(args, "PyTorch"):
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        for batch, inputs, hidden in common.shapes(args):
            x = torch.randn(batch, inputs, device=args.device).to(dtype)
            w = (torch.randn(2 * hidden, inputs, device=args.device) * inputs**-0.5).to(dtype)
            dz = torch.randn(batch, hidden, device=args.device).to(dtype)
            want = reference(F, torch, x, w, dz)
            for work in args.passes.split(","):
                shape = f"{work}, {precision}, B,D,H = {batch},{inputs},{hidden}"
                ready = []
                for peer in wanted:
                    if peer in ("gemm", "quack") and work != "forward":
                        continue
                    if peer == "quack" and precision != "bf16":
                        continue
                    try:
                        with torch.set_grad_enabled(work != "forward"):
                            call, rel_err = case(peer, work, x, w, dz, want)
                            right = rel_err <= bound  # never of NaN
                            ready.append((peer, rel_err, right, sampler(call) if right else None, []))
                    except Exception as problem:  # one case must not cost the others
                        common.failed(f"{peer}, {shape}", problem)
                for _ in range(ROUNDS):
                    for _, _, right, turn, samples in ready:
                        if right:
                            with torch.set_grad_enabled(work != "forward"):
                                samples.extend(turn())
                for peer, rel_err, right, _, samples in ready:
                    common.say(
                        peer=peer, name=titles[peer], versions=versions, device=args.device, gpu=gpu,
                        precision=precision, B=batch, D=inputs, H=hidden, cache="warm",
                        rel_err=rel_err if math.isfinite(rel_err) else None, bound=bound, ok=right,
                        trains_wf=work == "step", seed=args.seed, **{"pass": work},
                        **(common.times(samples) if right else {"samples": 0}))


if __name__ == "__main__":
    common.run(main)
