"""One sweep shared out over gloo ranks; what each rank does stands in sweep_ranks.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import catapult_ext as cx

pytest.importorskip("matplotlib")
WORKER = Path(__file__).with_name("sweep_ranks.py")
HANG = 1800  # seconds: for ranks that wait for each other, not for slow ones
pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch without gloo"
)
FEW = [2, pytest.param(4, marks=pytest.mark.nightly)]


def start(mode, size, folder):
    """(exit code, output) of every rank."""
    store = folder / f"store-{mode}-{len(list(folder.iterdir()))}"
    ranks = [
        subprocess.Popen(
            [sys.executable, str(WORKER), mode, str(rank), str(size), str(store), folder / "run"],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]
    out = [process.communicate(timeout=HANG)[0] for process in ranks]
    return [(process.returncode, text) for process, text in zip(ranks, out, strict=True)]


def parts(run):
    return {p.name: p.read_bytes() for p in sorted((run / "parts").glob("*.json"))}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The parts of the sweep on one process."""
    sys.path.insert(0, str(WORKER.parent))
    import sweep_ranks

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("alone")
    cx.sweep(*sweep_ranks.problem(), out=folder / "run", **sweep_ranks.SETTINGS)
    torch.set_num_threads(threads)
    return parts(folder / "run")


def check_whole(folder, size, alone):
    results = start("whole", size, folder)
    assert all(code == 0 for code, _ in results), results
    assert len({text for _, text in results}) == 1, results
    assert parts(folder / "run") == alone
    assert (folder / "run" / "report.html").exists()
    assert not list((folder / "run" / "parts").glob(".*.tmp"))


@pytest.mark.parametrize("size", [2, *(pytest.param(n, marks=pytest.mark.nightly) for n in (1, 4))])
def test_ranks_store_what_one_process_stores(size, tmp_path, alone):
    check_whole(tmp_path, size, alone)


def test_ranks_share_out_chunks_of_stacked_rates(tmp_path, alone):
    """``alone`` has made the module importable; each chunk has the bits of one process."""
    import sweep_ranks

    results = start("stacked", 2, tmp_path)
    assert all(code == 0 for code, _ in results), results
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    settings = {**sweep_ranks.SETTINGS, "c": sweep_ranks.MANY}
    cx.sweep(*sweep_ranks.problem(torch.nn.Sequential), out=tmp_path / "one", **settings)
    torch.set_num_threads(threads)
    assert parts(tmp_path / "run") == parts(tmp_path / "one")


@pytest.mark.parametrize("mode", ["lost", pytest.param("failed", marks=pytest.mark.nightly)])
@pytest.mark.parametrize("size", FEW)
def test_a_rank_that_ends_is_named_and_a_restart_goes_on(mode, size, tmp_path, alone):
    results = start(mode, size, tmp_path)
    assert results[-1][0] == (9 if mode == "lost" else 3), results
    told = "was lost" if mode == "lost" else "failed: no such luck"
    for code, text in results[:-1]:
        assert code == 3, text
        assert f"rank {size - 1} {told}" in text, text
        assert "restart all ranks" in text
    kept = parts(tmp_path / "run")
    assert kept
    assert all(alone[name] == text for name, text in kept.items())
    check_whole(tmp_path, size, alone)


def test_ranks_with_other_models_are_told_apart(tmp_path):
    results = start("differs", 2, tmp_path)
    assert [code for code, _ in results] == [3, 3], results
    assert "holds a run with another configuration (differing in weights)" in results[1][1]
    assert "rank 1 failed" in results[0][1], results


def test_a_group_needs_a_folder_and_a_process_group(tmp_path):
    model = torch.nn.Linear(3, 1)
    data = (torch.randn(4, 3), torch.randn(4, 1))
    with pytest.raises(ValueError, match="group needs out"):
        cx.sweep(model, data, c=[1.0], group="world")
    if not dist.is_initialized():
        with pytest.raises(RuntimeError, match="init_process_group first"):
            cx.sweep(model, data, c=[1.0], group="world", out=tmp_path / "run")


@pytest.mark.nightly
def test_torchrun(tmp_path):
    """The command of docs/scaling.md: one result, printed once."""
    options = "--c 0.5,2.2,3 --steps 20 --samples 32 --width 32 --depth 1".split()  # noqa: SIM905
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    done = subprocess.run(
        [*command, "2", "-m", "catapult_ext", "sweep", *options, "--out", str(tmp_path / "run")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(cx.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report.html") == 1, done.stdout
    assert len(parts(tmp_path / "run")) == 4
