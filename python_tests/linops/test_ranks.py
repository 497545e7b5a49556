"""Operators shared out over gloo ranks; what each rank does stands in ranks.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

WORKER = Path(__file__).with_name("ranks.py")
HANG = 1800  # seconds: for ranks that wait for each other, not for slow ones
pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch without gloo"
)


def start(mode, size, tmp_path):
    """(exit code, output) of every rank."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(WORKER), mode, str(rank), str(size), str(tmp_path / "store")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]
    out = [process.communicate(timeout=HANG)[0] for process in ranks]
    return [(process.returncode, text) for process, text in zip(ranks, out, strict=True)]


@pytest.mark.parametrize(
    "size", [2, *(pytest.param(n, marks=pytest.mark.nightly) for n in (1, 3, 4))]
)
def test_ranks_agree_with_one_process(size, tmp_path):
    """Products to 1e-12, eigenvalues, wrappers, bytes sent, mismatches; see ranks.py."""
    for rank, (code, text) in enumerate(start("check", size, tmp_path)):
        assert code == 0, f"rank {rank}:\n{text}"
        assert "ok" in text


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.nightly)])
def test_a_lost_rank_is_named(size, tmp_path):
    results = start("lost", size, tmp_path)
    assert results[-1][0] == 9
    for rank, (code, text) in enumerate(results[:-1]):
        assert code == 3, f"rank {rank}:\n{text}"
