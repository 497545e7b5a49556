"""A large vocabulary: `python -m benchmarks.vocabulary [--untied] [--store NAME]`.

The top eigenvalue of the GGN of a transformer of GPT-2 small's shape with random weights (50,257
words, width 768, 12 layers, 4 x 128 tokens) beside training steps of the same model, each in a
process of its own.  Prints peak memory (VmHWM) and processor time of both, and their ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import benchmarks.installed_first  # noqa: F401

RESULTS = Path(__file__).resolve().parent / "results"
SHAPE = {"words": 50257, "width": 768, "layers": 12, "heads": 12, "places": 1024}
QUICK = {"words": 501, "width": 32, "layers": 2, "heads": 2, "places": 64}
MOST_MEMORY, MOST_STEPS = 1.5, 60  # peak and time of the solve, in training steps


class Block(nn.Module):
    """Pre-norm attention and a perceptron with GELU, as in GPT-2, without dropout."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, T, width) to (N, T, width)."""
        n, t, w = x.shape
        q, k, v = (
            a.view(n, t, self.heads, w // self.heads).transpose(1, 2)
            for a in self.qkv(self.first(x)).split(w, 2)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(n, t, w))
        return x + self.down(nn.functional.gelu(self.up(self.second(x)), approximate="tanh"))


class Transformer(nn.Module):
    """Logits (N * T, words) of tokens (N, T)."""

    def __init__(
        self, words: int, width: int, layers: int, heads: int, places: int, tied: bool
    ) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(places, width)
        self.blocks = nn.Sequential(*[Block(width, heads) for _ in range(layers)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)
        if tied:
            self.head.weight = self.words.weight
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, 0, 0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of every token."""
        h = self.words(x) + self.places(torch.arange(x.shape[1]))
        return self.head(self.norm(self.blocks(h))).flatten(0, 1)


def problem(tied: bool, quick: bool) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """The model, tokens and labels, the same in every process."""
    torch.manual_seed(0)
    shape = QUICK if quick else SHAPE
    model = Transformer(**shape, tied=tied)
    size = (4, 8) if quick else (4, 128)
    x = torch.randint(shape["words"], size)
    return model, x, torch.randint(shape["words"], (x.numel(),))


def peak() -> float:
    """Peak resident memory of this process, GiB."""
    text = Path("/proc/self/status").read_text()
    return next(int(r.split()[1]) for r in text.splitlines() if r.startswith("VmHWM")) / (1 << 20)


def step_main(tied: bool, quick: bool) -> dict[str, Any]:
    """Three steps of gradient descent; the time is that of the last two."""
    model, x, y = problem(tied, quick)
    times, walls = [], []
    for _ in range(3):
        began, wall = time.process_time(), time.perf_counter()
        model.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        with torch.no_grad():
            for p in model.parameters():
                p.sub_(p.grad, alpha=1e-3)
        times.append(time.process_time() - began)
        walls.append(time.perf_counter() - wall)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": sum(times[1:]) / 2,
        "wall": sum(walls[1:]) / 2,
        "peak": peak(),
    }


def solve_main(tied: bool, quick: bool) -> dict[str, Any]:
    """The operator and its top eigenvalue."""
    import catapult_ext as cx

    model, x, y = problem(tied, quick)
    began, wall = time.process_time(), time.perf_counter()
    ggn = cx.GGN(model, nn.CrossEntropyLoss(), (x, y), copy=False)
    built = time.process_time() - began
    found = cx.eigsh(ggn)
    return {
        "rows": len(y),
        "outputs": ggn.linearization.rows,
        "seconds": time.process_time() - began,
        "wall": time.perf_counter() - wall,
        "built": built,
        "peak": peak(),
        "eigenvalue": found.eigenvalues.item(),
        "error": found.errors.item(),
        "matvecs": found.matvecs,
        "converged": found.converged,
        "index_check": found.index_check,
    }


def measured(role: str, tied: bool, quick: bool, threads: int) -> dict[str, Any]:
    """What one process of that role measured."""
    flags = [f for f, on in (("--untied", not tied), ("--quick", quick)) if on]
    command = [sys.executable, "-m", "benchmarks.vocabulary", "--role", role, *flags]
    # threads that wait for the other one spin otherwise, which would count as processor time
    waiting = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
    environment = {**os.environ, **waiting, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"benchmarks.vocabulary: {role} failed\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure both processes and print one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vocabulary", description=__doc__)
    parser.add_argument("--role", choices=("step", "solve"))
    parser.add_argument("--untied", action="store_true", help="a head of its own")
    parser.add_argument("--quick", action="store_true", help="a small model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--store", metavar="NAME", help="write benchmarks/results/NAME.json")
    options = parser.parse_args()
    tied, quick = not options.untied, options.quick
    if options.role:
        role = step_main if options.role == "step" else solve_main
        print(json.dumps(role(tied, quick)), flush=True)
        return
    step, solve = (measured(r, tied, quick, options.threads) for r in ("step", "solve"))
    ratios = {
        "memory": solve["peak"] / step["peak"],
        "steps": solve["seconds"] / step["seconds"],
    }
    facts = {
        "command": "python -m benchmarks.vocabulary" + ("" if tied else " --untied"),
        "shape": QUICK if quick else SHAPE,
        "tied": tied,
        "threads": options.threads,
        "load": os.getloadavg()[0],
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "torch": torch.__version__,
        "step": step,
        "solve": solve,
        "ratios": ratios,
        "allowed": {"memory": MOST_MEMORY, "steps": MOST_STEPS},
    }
    text = json.dumps(facts, indent=1)
    print(text)
    if options.store:
        (RESULTS / f"{options.store}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
