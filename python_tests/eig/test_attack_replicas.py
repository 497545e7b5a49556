"""The attack on the errors of eigsh, of R matrices or operators at once; see ``test_attack``."""

import random

import pytest
import torch
from eig.test_attack import SIZES, SPECTRA, TOLERANCES, Tally, _rotated
from eig.test_replicas import Several

import catapult_ext as cx

FULL, SLICE = 6000, 300  # solves of the nightly run and of the default one


class SeveralNoisy(Several):
    """Products good to ``noise`` of each matrix's norm only, fresh at every product."""

    noise, random = 1e-10, None

    def __matmul__(self, x):
        sizes = torch.linalg.matrix_norm(self._a.double().nan_to_num(), 2)[:, None, None]
        error = torch.randn(x.shape, generator=type(self).random, dtype=torch.float64)
        exact = super().__matmul__(x).double()
        return (exact + error * sizes * self.noise / x.shape[1] ** 0.5).to(x.dtype)


def strike(tally, seed):
    """One batch of up to eight spectra of one size; a replica in ten is not finite."""
    draw, g = random.Random(seed), torch.Generator().manual_seed(seed)
    kind = draw.choices(("matrices", "operators", "noisy operators"), (10, 10, 2))[0]
    n = draw.choice(SIZES[5:] if kind == "noisy operators" else SIZES)
    dtype = draw.choice((torch.float32, torch.float64))
    replicas, exponents = [], []
    for _ in range(draw.choice((1, 2, 5, 8))):
        exponent = draw.choice((0, 0, 0, -18, 18, -28, 28))
        exponents.append(exponent * (5 if dtype == torch.float64 else 1))
        e = SPECTRA[draw.choice(list(SPECTRA))](n, g) * 10.0 ** exponents[-1]
        replicas.append(_rotated(e, g, dtype))
    a = torch.stack(replicas)
    broken = [r for r in range(len(a)) if draw.random() < 0.1]
    a[broken, 0, 0] = float("nan")
    k = min(n, draw.choice((1, 1, 1, 2, 3, 5, n)))
    options = {
        "which": draw.choice(("LA", "LA", "SA", "LM", "BE")),
        "tol": draw.choice(TOLERANCES),
        "seed": draw.randrange(1000),
        "maxiter": draw.choice((None, None, draw.randrange(1, 40))),
    }
    given = {"matrices": a, "operators": Several(a), "noisy operators": SeveralNoisy(a)}[kind]
    SeveralNoisy.random = torch.Generator().manual_seed(seed)
    found = cx.eigsh(given, k, **options)
    for r, single in enumerate(a):
        if r in broken:
            assert found.eigenvalues[r].isnan().all()
            continue
        noisy = kind == "noisy operators"
        tally.add(single, found[r], options["which"], noisy, seed, options["seed"])


def attack(first, solves):
    tally = Tally()
    while tally.solves < solves:
        strike(tally, first)
        first += 1
    print(f"\n{tally.solves} solves\n\n{tally.table()}")
    return tally


def test_a_slice_of_the_attack():
    attack(300_000, SLICE).verify()


@pytest.mark.nightly
def test_the_attack():
    attack(0, FULL).verify()
