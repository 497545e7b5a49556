"""Peak resident memory of one operator in a process of its own: measure_memory.py NAME[:OPERATOR].

Prints JSON: budget, predicted and measured peak in bytes beyond the model and its data.
"""

import ctypes
import itertools
import json
import sys
from pathlib import Path

import torch
from torch import nn

import catapult_ext as cx
from catapult_ext.models import resnet

MIB = 1 << 20


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.one, self.two = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.heads = heads

    def forward(self, x):
        n, s, w = x.shape
        qkv = self.qkv(self.one(x)).view(n, s, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        h = nn.functional.scaled_dot_product_attention(*qkv, is_causal=True)
        x = x + self.out(h.transpose(1, 2).reshape(n, s, w))
        return x + self.down(nn.functional.gelu(self.up(self.two(x))))


class GPT(nn.Module):
    def __init__(self, width, depth, words):
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.blocks = nn.Sequential(*[Block(width, 4) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)

    def forward(self, x):
        return self.norm(self.blocks(self.embed(x)))[:, -1] @ self.embed.weight[:1000].T


def conv_net(width, outputs):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(16 * width, outputs),
    )


def mlp(*widths):
    layers = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def images(n, size=32):
    return torch.randn(n, 3, size, size)


# name: model, inputs, outputs, budget in MiB; 1e5 to 5e7 parameters
CASES = {
    "conv": (lambda: conv_net(32, 10), lambda: images(256, 16), 10, 80),
    "cnn": (lambda: conv_net(64, 60), lambda: images(4096, 16), 60, 400),
    "mlp": (lambda: mlp(784, 1024, 1024, 1000), lambda: torch.randn(4096, 784), 1000, 500),
    "resnet": (lambda: resnet(20, 10), lambda: images(512), 10, 1000),
    "gpt": (lambda: GPT(320, 8, 2000), lambda: torch.randint(2000, (64, 64)), 1000, 800),
    "wide": (lambda: mlp(3072, 4096, 4096, 4096, 1000), lambda: torch.randn(512, 3072), 1000, 3000),
}


def status(field):
    text = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if field in line) * 1024


def reset_peak():
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def run(operator, model, x, y, budget):
    """The operator, and one product, its diagonal, or its kernel (of few samples: time)."""
    if operator in ("GGN", "Hessian"):
        loss = nn.CrossEntropyLoss()
        a = getattr(cx, operator)(model, loss, (x, y), memory_budget=budget)
        a @ torch.ones(a.shape[0])
        return a.plan
    few = {"trace": 512, "dense": 256}.get(operator, len(x))
    a = cx.NTK(model, x[:few], memory_budget=budget)
    if operator == "diagonal":
        a.diagonal()
    elif operator == "NTK":
        a @ torch.ones(a.shape[0])
    else:
        a.dense(outputs="trace" if operator == "trace" else "all")
    return a.plan


def main(name, operator="NTK"):
    """Warm up on a small model, then measure."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    make, inputs, outputs, budget = CASES[name]
    run("Hessian", conv_net(4, 3), images(4, 8), torch.zeros(4, dtype=torch.long), 64 * MIB)
    run("NTK", mlp(9, 8, 3), torch.randn(4, 9), None, 64 * MIB)
    model, x = make().eval(), inputs()
    y = torch.arange(len(x)) % outputs
    reset_peak()
    before = status("VmRSS")
    plan = run(operator, model, x, y, budget * MIB)
    peak = status("VmHWM") - before
    got = {"case": f"{name}:{operator}", "parameters": sum(p.numel() for p in model.parameters())}
    got |= {"budget": budget * MIB, "predicted": plan.peak, "peak": peak, "samples": plan.samples}
    print(json.dumps(got))


if __name__ == "__main__":
    main(*sys.argv[1].split(":"))
