"""The plane (c, f0) of the one-sample model at 1000 x 1000 points, 1000 steps, float64."""

import resource

import torch
from harness import Case

import catapult_ext as cx

MEBI = 1 << 20


def _peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_phase_diagram(measure, quick):
    points, steps = (100, 100) if quick else (1000, 1000)
    before = _peak_bytes()
    first = cx.toy.phase_diagram("f0", resolution=points, steps=steps)
    used = _peak_bytes() - before

    def check():
        if not quick:  # where nothing but the package was loaded before: run this file alone
            assert used <= 200 * MEBI, f"{used / MEBI:.0f} MiB"
        edges = torch.from_numpy(first.phase == cx.toy.PHASE_NAMES.index("divergent"))
        c = torch.from_numpy(first.c)
        assert bool(edges[:, c > 4.02].all())
        assert not bool(edges[:, c < 3.98].any())

    measure(
        Case(
            ours=lambda: cx.toy.phase_diagram("f0", resolution=points, steps=steps),
            check=check,
            unit=("point-steps", points * points * steps),
        )
    )
