"""Networks that people have, in training steps: `python -m benchmarks.real_networks [NET ...]`.

A ResNet-20, a ViT, a GPT-like net and an MLP, cross entropy: what a freeze, a product, an answer,
the part of an answer that is neither freeze nor products, and a tracked probe cost, in units of one
training step (forward and backward pass) of the same model and batch.  ``CATAPULT_EARLIER=FOLDER``
names a folder with an earlier build of the package, which is measured in turns with this one, each
in a process of its own.  Times are processor times; ``again`` is the ratio of the even rounds to
the odd ones.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KINDS = ("GGN", "Hessian")
EVERY = 10  # training steps between tracked probes
_WHATS = ("freeze", "product", "solve", "overhead", "probe")
CALLS = [f"{what} {kind}" for kind in KINDS for what in _WHATS]
_WORKER = "--worker"


class Attention(nn.Module):
    """Self-attention of several heads."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, W) to the same."""
        q, k, v = self.mix(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(seen.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and a perceptron, each behind a layer norm and beside a shortcut."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.one, self.two = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, causal)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, W) to the same."""
        x = x + self.attention(self.one(x))
        return x + self.mlp(self.two(x))


class ViT(nn.Module):
    """Patches of 4 x 4, six blocks of width 192."""

    def __init__(self, width: int = 192, depth: int = 6) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.place = nn.Parameter(0.02 * torch.randn(1, 65, width))
        self.blocks = nn.Sequential(*[Block(width, 3, False) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 32, 32) to (N, 10)."""
        patches = self.patch(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), patches], 1) + self.place
        return self.head(self.norm(self.blocks(tokens))[:, 0])


class GPT(nn.Module):
    """Four blocks of width 128, 512 words, the head tied to the embedding, weights as in GPT-2."""

    def __init__(self, width: int = 128, depth: int = 4, words: int = 512) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(64, width)
        self.blocks = nn.Sequential(*[Block(width, 4, True) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, T) to (N * T, words)."""
        h = self.norm(self.blocks(self.words(tokens) + self.places.weight))
        return (h @ self.words.weight.T).flatten(0, 1)


def problem(net: str) -> tuple[nn.Module, Tensor, Tensor]:
    """Model, inputs and labels; random data, but for the digits of the MLP."""
    import catapult_ext as cx

    torch.manual_seed(0)
    last = torch.channels_last
    if net == "resnet":
        model = cx.models.resnet(20, 10).eval().to(memory_format=last)
        x = torch.randn(128, 3, 32, 32).contiguous(memory_format=last)
        return model, x, torch.randint(10, (128,))
    if net == "vit":
        return ViT().eval(), torch.randn(32, 3, 32, 32), torch.randint(10, (32,))
    if net == "gpt":
        return GPT().eval(), torch.randint(512, (16, 64)), torch.randint(512, (1024,))
    layers = [nn.Linear(784, 512), nn.ReLU()]
    layers += [layer for _ in range(2) for layer in (nn.Linear(512, 512), nn.ReLU())]
    return (
        nn.Sequential(*layers, nn.Linear(512, 10)),
        torch.randn(512, 784),
        torch.randint(10, (512,)),
    )


class Bench:
    """One net in one build: calls by name, each giving processor seconds and products."""

    def __init__(self, net: str) -> None:
        self.model, self.x, self.y = problem(net)
        self.trained = problem(net)[0]
        self.held: dict[str, Any] = {}
        self.tops: dict[str, Any] = {}
        self.rates: dict[str, float] = {}

    def __call__(self, name: str) -> dict[str, Any]:
        """Measure ``name``."""
        what, _, kind = name.partition(" ")
        if what == "probe":
            return self._probe(kind)
        if what == "overhead":
            return self._overhead(kind)
        calls: dict[str, Callable[[], Any]] = {
            "step": self._step,
            "freeze": lambda: self._operator(kind, self.model),
            "product": lambda: self._of(kind) @ self._vector(kind),
            "solve": lambda: self._solved(kind),
        }
        seconds, out = self._timed(calls[what])
        return {"seconds": seconds, "products": getattr(out, "matvecs", None)}

    def _timed(self, call: Callable[[], Any]) -> tuple[float, Any]:
        began = time.process_time()
        out = call()
        return time.process_time() - began, out

    def _step(self, model: nn.Module | None = None) -> None:
        model = self.model if model is None else model
        model.zero_grad()
        F.cross_entropy(model(self.x), self.y).backward()

    def _operator(self, kind: str, model: nn.Module) -> Any:
        import catapult_ext as cx

        return getattr(cx, kind)(model, "cross_entropy", (self.x, self.y))

    def _of(self, kind: str) -> Any:
        if kind not in self.held:
            self.held = {kind: self._operator(kind, self.model)}
        return self.held[kind]

    def _vector(self, kind: str) -> Tensor:
        g = torch.Generator().manual_seed(0)
        return torch.randn(self._of(kind).shape[0], 1, generator=g)

    def _solved(self, kind: str) -> Any:
        import catapult_ext as cx

        return cx.eigsh(self._operator(kind, self.model))

    def _overhead(self, kind: str) -> dict[str, Any]:
        """Seconds of a solve of a frozen operator outside of its products, and their share."""
        import catapult_ext as cx
        from catapult_ext.linops.base import LinearOperator

        operator, product, inside = self._of(kind), LinearOperator.__matmul__, 0.0

        def timed(a: Any, v: Tensor) -> Tensor:
            nonlocal inside
            seconds, out = self._timed(lambda: product(a, v))
            inside += seconds
            return out

        LinearOperator.__matmul__ = timed  # type: ignore[method-assign]
        try:
            seconds, found = self._timed(lambda: cx.eigsh(operator))
        finally:
            LinearOperator.__matmul__ = product  # type: ignore[method-assign]
        share = (seconds - inside) / seconds
        return {"seconds": seconds - inside, "products": found.matvecs, "share": share}

    def _probe(self, kind: str) -> dict[str, Any]:
        """Ten steps of gradient descent at 1.9 / lambda, then a tracked probe, which is timed."""
        import catapult_ext as cx

        if kind not in self.tops:
            self.trained = problem_like(self.trained, self.model)
            known = cx.TopTracker.__init__.__kwdefaults__ or {}
            options = {"between": 1e-2} if "between" in known else {}  # as CurvatureTracker has it
            self.tops = {kind: cx.TopTracker(1, guards=2, **options)}
            first = self.tops[kind].update(self._operator(kind, self.trained))
            self.rates[kind] = 1.9 / first.eigenvalues[0].item()
        for _ in range(EVERY):
            self._step(self.trained)
            with torch.no_grad():
                for p in self.trained.parameters():
                    if p.grad is not None:
                        p -= self.rates[kind] * p.grad
        seconds, found = self._timed(
            lambda: self.tops[kind].update(self._operator(kind, self.trained))
        )
        error = (found.errors / found.eigenvalues.abs())[0].item()
        return {"seconds": seconds, "products": found.matvecs, "error": error}


def problem_like(model: nn.Module, start: nn.Module) -> nn.Module:
    """``model`` at the parameters of ``start``."""
    model.load_state_dict(start.state_dict())
    return model


class Worker:
    """A process that runs ``script`` with one build of the package: that in ``folder``, or this."""

    def __init__(self, script: str, arguments: list[str], folder: str | None) -> None:
        root = str(Path(__file__).resolve().parent.parent)
        env = {**os.environ, "PYTHONPATH": folder or root}
        self.process = subprocess.Popen(
            [sys.executable, script, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
            cwd=folder or root,
        )

    def __call__(self, name: str) -> Any:
        """Its answer to a line."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(name, file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def serve(net: str) -> None:
    """Answer names on the standard input until it ends."""
    sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).parent]
    bench = Bench(net)
    for line in sys.stdin:
        print(json.dumps(bench(line.strip())), flush=True)


def summary(found: list[dict[str, Any]], steps: list[float]) -> dict[str, float]:
    """Medians of one call in one build."""
    times, unit = [one["seconds"] for one in found], statistics.median(steps)
    out = {"steps": statistics.median(times) / unit}
    if len(times) > 3:
        out["again"] = statistics.median(times[::2]) / statistics.median(times[1::2])
    for key in ("products", "error", "share"):
        if found[0].get(key) is not None:
            out[key] = statistics.median(one[key] for one in found)
    return out


def measured(net: str, repeats: int, calls: list[str]) -> dict[str, Any]:
    """Medians in steps, and products, by build and call."""
    builds = {"ours": Worker(__file__, [_WORKER, net], None)}
    if os.environ.get("CATAPULT_EARLIER"):
        builds["earlier"] = Worker(__file__, [_WORKER, net], os.environ["CATAPULT_EARLIER"])
    out: dict[str, Any] = {}
    for name in calls:
        found: dict[str, list[dict[str, Any]]] = {build: [] for build in builds}
        steps: dict[str, list[float]] = {build: [] for build in builds}
        for round_ in range(repeats + 1):
            for build, worker in builds.items():
                step, answer = worker("step"), worker(name)
                if round_:  # the first one warms up, and makes the proofs
                    steps[build].append(step["seconds"])
                    found[build].append(answer)
        out[name] = {build: summary(found[build], steps[build]) for build in builds}
        print(net, name, json.dumps(out[name]), flush=True)
    for worker in builds.values():
        worker.close()
    return out


def main() -> None:
    """Measure the nets and write the record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_networks", description=__doc__)
    parser.add_argument("nets", nargs="*", default=["resnet", "vit", "gpt", "mlp"])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--calls", nargs="+", choices=CALLS, default=CALLS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = {net: measured(net, options.repeats, options.calls) for net in options.nets}
    if options.json:
        from benchmarks.harness import machine

        record = json.loads(options.json.read_text()) if options.json.exists() else {}
        threads = os.environ.get("OMP_NUM_THREADS", "")
        record = {
            "command": f"OMP_NUM_THREADS={threads} CATAPULT_EARLIER=BUILD_OF_e769a22 "
            f"python -m benchmarks.real_networks NET --repeats {options.repeats} --calls CALLS "
            "--json FILE",
            "machine": machine(),
            "benchmarks": {
                net: {**record.get("benchmarks", {}).get(net, {}), **found.get(net, {})}
                for net in {**record.get("benchmarks", {}), **found}
            },
        }
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == [_WORKER]:
        serve(sys.argv[2])
    else:
        main()
