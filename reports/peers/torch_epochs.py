#!/usr/bin/env python3
"""The peers of `mnist-swiglu compare`: epochs of the same network in PyTorch, on a CUDA GPU or the CPU.

  Linear 784 -> D, SwiGLU D -> H, Linear H -> 10; softmax cross-entropy; SGD with momentum, fused; data on the device

  torch          Liger-Kernel's gate kernel; the whole step in a CUDA graph (on a CPU: eager, F.silu(g) * u)
  torch-compile  torch.compile of the network; the step in a CUDA graph on a GPU

The images of a batch are gathered inside the step, from an order shuffled on the device before each epoch. The last,
ragged batch is left out. PyTorch's own initial weights, a constant learning rate. Compilation and capture are not timed.
An epoch's time is wall time from its shuffle to the end of its last step; inference is 10,000 test images, 1,000 at a time.
"""
import time

import common


def main():
    parser = common.arguments(__doc__)
    parser.add_argument("--data", default="data", help="folder with the four MNIST files, plain or .gz")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--weights", default="learn", help="learn,frozen: whether the layer's weights do")
    parser.add_argument("--lr", type=float, default=0.003)
    parser.add_argument("--momentum", type=float, default=0.95)
    parser.add_argument("--weight-decay", type=float, default=0.0005)
    args = parser.parse_args()
    try:
        import numpy
        import torch
        import torch.nn.functional as F
        from torch import nn
    except Exception as error:
        common.missing("torch", error)
    cuda = args.device.startswith("cuda")
    if cuda and not torch.cuda.is_available():
        common.missing("torch with CUDA", "torch.cuda.is_available() is False")
    common.warn_when_busy(args)
    versions = {"torch": torch.__version__}
    wanted = [name for name in (args.peer or "torch,torch-compile").split(",") if name]
    gate_of = lambda g, u: F.silu(g) * u
    name = "PyTorch " + torch.__version__.split("+")[0]
    titles = {"torch": name, "torch-compile": name + ", torch.compile"}
    if cuda:
        torch.cuda.set_device(args.device)
        versions["cuda"] = torch.version.cuda
        if "torch" in wanted:
            try:
                import importlib.metadata
                from liger_kernel.ops.swiglu import LigerSiLUMulFunction
                gate_of = LigerSiLUMulFunction.apply
                versions["liger-kernel"] = importlib.metadata.version("liger-kernel")
                titles["torch"] = f"{name} + Liger-Kernel {versions['liger-kernel']}"
            except Exception as error:
                common.say(missing="liger-kernel", why=" ".join(str(error).split())[:300])
                wanted.remove("torch")
    elif args.threads:
        torch.set_num_threads(args.threads)

    class Net(nn.Module):
        def __init__(self, inputs, hidden, frozen, gate):
            super().__init__()
            self.stem, self.head = nn.Linear(784, inputs), nn.Linear(hidden, 10)
            self.gate, self.up = (nn.Linear(inputs, hidden, bias=False).requires_grad_(not frozen) for _ in range(2))
            self.mul = gate

        def forward(self, x):
            h = self.stem(x)
            return self.head(self.mul(self.gate(h), self.up(h)))

    def tensors(split):
        images, labels = common.mnist(args.data, split, numpy)
        return torch.from_numpy(images).to(args.device), torch.from_numpy(labels).long().to(args.device)

    (x, y), (test_x, test_y) = tensors("train"), tensors("t10k")
    sync = torch.cuda.synchronize if cuda else (lambda: None)

    def measure(peer, precision, batch, inputs, hidden, frozen):
        torch.manual_seed(args.seed)
        torch._dynamo.reset()
        own = peer == "torch"
        net = Net(inputs, hidden, frozen, gate_of if own else lambda g, u: F.silu(g) * u).to(args.device)
        run = net if own else torch.compile(net, dynamic=False)
        rule = dict(lr=args.lr, momentum=args.momentum, weight_decay=args.weight_decay, fused=True)
        optimiser = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], **rule)
        amp = lambda: torch.autocast("cuda" if cuda else "cpu", torch.bfloat16, enabled=precision == "bf16")
        order = torch.randperm(len(x), device=args.device)
        at, lane = torch.zeros(1, dtype=torch.long, device=args.device), torch.arange(batch, device=args.device)

        def step():
            rows = order[at + lane]
            optimiser.zero_grad(set_to_none=False)
            with amp():
                loss = F.cross_entropy(run(x[rows]).float(), y[rows])
            loss.backward()
            optimiser.step()
            at.add_(batch)

        one = step
        if cuda:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):
                    step()
            torch.cuda.current_stream().wait_stream(side)
            sync()
            at.zero_()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step()
            one = graph.replay
        else:
            step()
        epochs = []
        for _ in range(args.epochs):
            sync()
            begin = time.perf_counter()
            order.copy_(torch.randperm(len(x), device=args.device))
            at.zero_()
            for _ in range(len(x) // batch):
                one()
            sync()
            epochs.append((time.perf_counter() - begin) * 1e3)
        inferences = []
        with torch.no_grad(), amp():
            for _ in range(4):
                sync()
                begin = time.perf_counter()
                said = torch.cat([run(part).argmax(1) for part in test_x.split(1000)])
                sync()
                inferences.append((time.perf_counter() - begin) * 1e3)
        accuracy = float((said == test_y).double().mean())
        # The first pass over the test images compiles.
        return common.times(epochs) | {"infer_ms": common.quantile(inferences[1:], 0.5), "accuracy": accuracy}

    for precision, bound in common.precisions(args, "PyTorch"):
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        for batch, inputs, hidden in common.shapes(args):
            for peer in wanted:
                for weights in args.weights.split(","):
                    try:
                        measured = measure(peer, precision, batch, inputs, hidden, weights == "frozen")
                    except Exception as problem:
                        common.failed(f"{peer}, epochs, {precision}, B,D,H = {batch},{inputs},{hidden}", problem)
                        continue
                    common.say(
                        peer=peer, name=titles[peer], versions=versions, device=args.device, precision=precision,
                        gpu=torch.cuda.get_device_name(args.device) if cuda else None, B=batch, D=inputs, H=hidden,
                        cache="warm", rel_err=None, bound=bound, ok=True, trains_wf=weights != "frozen", seed=args.seed,
                        **{"pass": "epoch"}, **measured)


if __name__ == "__main__":
    common.run(main)
