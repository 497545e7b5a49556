"""How often reported errors are too small: `python -m benchmarks.claimed_errors [PART ...]`.

``matrices``: explicit matrices, whose errors are proofs.  ``operators``: the same spectra known by
products alone, whose errors hold with probability ``confidence`` over the seed.  ``confidence``:
products and true errors of the GGN of a dense network for each confidence.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

import catapult_ext as cx

PARTS = ("matrices", "operators", "confidence")
_MANY = 40  # products
DTYPES = (torch.float32, torch.float64)
WHICH: tuple[Literal["LA", "SA", "LM"], ...] = ("LA", "LA", "SA", "LM")


def _uniform(n: int, g: torch.Generator) -> Tensor:
    return torch.rand(n, generator=g, dtype=torch.float64)


def _above_a_bulk(*tops: float) -> Callable[[int, torch.Generator], Tensor]:
    """These eigenvalues over a uniform bulk in [0, 1/2]."""

    def eigenvalues(n: int, g: torch.Generator) -> Tensor:
        return torch.cat([_uniform(n, g)[len(tops) :] / 2, torch.tensor(tops).double()])

    return eigenvalues


def _of_rank(rank: int) -> Callable[[int, torch.Generator], Tensor]:
    """Ranks 1, 2, ..., over zeros."""

    def eigenvalues(n: int, g: torch.Generator) -> Tensor:
        return (rank - torch.arange(n)).clamp_min(0).double() / rank

    return eigenvalues


def _clustered(width: float) -> Callable[[int, torch.Generator], Tensor]:
    """Twelve eigenvalues within ``width`` of 1."""

    def eigenvalues(n: int, g: torch.Generator) -> Tensor:
        return torch.cat([0.9 * _uniform(n - 12, g), 1 - width * _uniform(12, g)])

    return eigenvalues


def _decaying(factor: float) -> Callable[[int, torch.Generator], Tensor]:
    return lambda n, g: factor ** torch.arange(n).double()


SPECTRA: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "flat": _uniform,
    "indefinite": lambda n, g: torch.linspace(-1, 0.98, n).double(),
    "clustered 1e-2": _clustered(1e-2),
    "clustered 1e-4": _clustered(1e-4),
    "triple": _above_a_bulk(1.0, 1.0, 1.0),
    "pairs 1e-6 apart": _above_a_bulk(0.8, 0.8 + 1e-6, 1.0, 1.0 + 1e-6),
    "one outlier": _above_a_bulk(1.0),
    "decay 0.5": _decaying(0.5),
    "decay 0.9": _decaying(0.9),
    "tiny": lambda n, g: 1e-25 * _decaying(0.7)(n, g),
    "huge": lambda n, g: 1e25 * _decaying(0.7)(n, g),
    **{f"rank {rank}": _of_rank(rank) for rank in (1, 2, 3, 5, 8, 12)},
}


def exact(eigenvalues: Tensor, which: str, k: int) -> Tensor:
    """The wanted ones, in the order of ``eigsh``."""
    e = eigenvalues.double().sort(descending=True).values
    if which == "LM":
        return e[e.abs().argsort(descending=True, stable=True)][:k].abs()
    return e[:k] if which == "LA" else e[-k:]


def too_small(found: Any, eigenvalues: Tensor, which: str, oracle: float = 0.0) -> bool:
    """Whether a true error exceeds the reported one by more than ``oracle``."""
    got = found.eigenvalues.double()
    miss = ((got.abs() if which == "LM" else got) - exact(eigenvalues, which, len(got))).abs()
    return not bool((miss <= found.errors.double() + oracle).all())


class Diagonal:
    """An operator with these eigenvalues; a Gaussian start sees no difference to a rotated one."""

    def __init__(self, eigenvalues: Tensor) -> None:
        self.e = eigenvalues[:, None]
        self.shape, self.dtype = (len(eigenvalues),) * 2, eigenvalues.dtype

    def __matmul__(self, x: Tensor) -> Tensor:
        return self.e * x


def matrices(runs: int) -> dict[str, Any]:
    """Matrices with random eigenvectors, k up to 20: runs, and errors too small, by spectrum."""
    out = {}
    for number, (name, spectrum) in enumerate(SPECTRA.items()):
        draw, wrong, checks = random.Random(number), 0, set()
        count = -(-runs // len(SPECTRA))
        for run in range(count):
            g, dtype = torch.Generator().manual_seed(run), DTYPES[run % 2]
            n, which = draw.choice((40, 60, 120, 300)), draw.choice(WHICH)
            k = draw.choice((1, 1, draw.randint(2, 4), draw.randint(2, 20)))
            q = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64))[0]
            a = (q * spectrum(n, g)) @ q.T
            a = ((a + a.T) / 2).to(dtype)
            found = cx.eigsh(a, k, which=which, seed=run, tol=draw.choice((1e-2, 1e-3, 1e-6)))
            e = torch.linalg.eigvalsh(a.double())
            # LAPACK's drivers differ from each other by this much
            oracle = 10 * torch.finfo(torch.float64).eps * e.abs().max().item()
            wrong += too_small(found, e, which, oracle)
            checks.add(found.index_check)
        out[name] = {"runs": count, "wrong": wrong, "checks": sorted(checks)}
        print(f"matrices: {name}: {wrong} of {count} ({', '.join(sorted(checks))})", flush=True)
    return out


def at_most(wrong: int, runs: int) -> float:
    """The largest share that ``wrong`` of ``runs`` leave possible, at 95 % (Clopper, Pearson)."""
    from scipy.stats import beta

    return float(beta.ppf(0.95, wrong + 1, runs - wrong)) if wrong < runs else 1.0


def as_many(wrong: int, runs: int, share: float) -> float:
    """Probability of ``wrong`` or more of ``runs`` where the true share is ``share``."""
    from scipy.stats import binom

    return float(binom.sf(wrong - 1, runs, share))


def operators(runs: int) -> dict[str, Any]:
    """Operators: the share of errors too small by confidence, spectrum and k; ``runs`` of each.

    Of a row whose runs take many products a tenth is made.
    """
    out: dict[str, Any] = {}
    for p in (0.9, 0.99, 0.999):
        for k in (1, 2, 3, 5, 8):
            for name, spectrum in SPECTRA.items():
                wrong, products = 0, list[int]()
                while len(products) < (runs if max(products, default=0) < _MANY else runs // 10):
                    run = len(products)
                    g, dtype = torch.Generator().manual_seed(run % 7), DTYPES[run % 2]
                    e = spectrum(200, g).to(dtype)
                    found = cx.eigsh(Diagonal(e), k, confidence=p, seed=run)
                    assert found.index_check.startswith("random(")
                    wrong += too_small(found, e, "LA")
                    products.append(found.matvecs)
                out[f"{p}, {name}, k = {k}"] = {
                    "runs": len(products),
                    "wrong": wrong,
                    "at_most": at_most(wrong, len(products)),
                    "chance": as_many(wrong, len(products), 1 - p),
                    "products": statistics.median(products),
                }
        rows = [row for key, row in out.items() if key.startswith(f"{p},")]
        wrong, count = (sum(row[key] for row in rows) for key in ("wrong", "runs"))
        out[f"{p}, all"] = {"runs": count, "wrong": wrong, "at_most": at_most(wrong, count)}
        print(f"operators: {p}: {out[f'{p}, all']}", flush=True)
        rarest = min(rows, key=lambda row: row["chance"])
        print(f"operators: {p}: least likely of {len(rows)} rows: {rarest}", flush=True)
    return out


def by_confidence(models: int, seeds: int) -> dict[str, Any]:
    """The GGN of an MLP 784-512x3-10 at its start, 512 digits, squared loss: tol 1e-3."""
    x, y = cx.data.digits(size=28).train
    x, y = x[:512], y[:512]
    rows: dict[str, list[tuple[int, float, bool]]] = {}
    for model_seed in range(models):
        model = cx.models.fully_connected(
            784, 10, width=512, depth=3, parameterisation="standard", seed=model_seed
        )
        ggn = cx.GGN(model, "half_mse", (x, y))
        true = cx.eigsh(ggn, tol=1e-6, confidence=1 - 1e-9).eigenvalues[0].item()
        for p in (None, 0.5, 0.8, 0.9, 0.99):
            for seed in range(seeds):
                found = cx.eigsh(ggn, confidence=p, seed=seed)
                miss = abs(found.eigenvalues[0].item() - true) / true
                within = miss * true <= found.errors[0].item()
                rows.setdefault(str(p), []).append((found.matvecs, miss, within))
    out = {}
    for name, runs in rows.items():
        products, misses, held = zip(*runs, strict=True)
        out[name] = {
            "runs": len(runs),
            "products": [statistics.median(products), min(products), max(products)],
            "beyond_tol": sum(miss > 1e-3 for miss in misses),
            "beyond_error": sum(not within for within in held),
            "largest_miss": max(misses),
        }
        print(f"confidence {name}: {out[name]}", flush=True)
    return out


def main() -> None:
    """Measure the parts and merge them into the record."""
    name = "python -m benchmarks.claimed_errors"
    parser = argparse.ArgumentParser(prog=name, description=__doc__)
    parser.add_argument("parts", nargs="*", default=list(PARTS))
    parser.add_argument("--matrices", type=int, default=1000, help="runs, all spectra together")
    parser.add_argument("--operators", type=int, default=300, help="runs of each row")
    parser.add_argument("--seeds", type=int, default=10, help="of each network")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    record = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    for part in options.parts:
        if part == "matrices":
            record[part] = matrices(options.matrices)
        elif part == "operators":
            record[part] = operators(options.operators)
        else:
            record[part] = by_confidence(5, options.seeds)
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
