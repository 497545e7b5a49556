"""Fixtures of the benchmarks: `measure(Case(...))` checks, times and records one of them."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if not list((ROOT / "catapult_ext").glob("_C.*so")):
    sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != ROOT]
sys.path.insert(0, str(ROOT / "benchmarks"))

import pytest  # noqa: E402

TABLE: list[tuple[str, dict]] = []


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="two rounds of small cases: a smoke test")


@pytest.fixture
def quick(request):
    return request.config.getoption("--quick")


@pytest.fixture
def measure(request, benchmark, quick):
    import harness

    def run(case, device="cpu"):
        info = harness.run(benchmark, case, quick=quick, device=device)
        TABLE.append((request.node.name, info))
        return info

    return run


def pytest_terminal_summary(terminalreporter, config):
    """Print the ratios: what this run measured, against what it was compared with."""
    if not TABLE:
        return
    import harness

    machine = harness.machine()
    write = terminalreporter.write_line
    terminalreporter.section("benchmarks")
    write(
        f"{machine['processor']}, {machine['threads']} threads, ISA {machine['active_isa']}, "
        f"torch {machine['torch']} ({machine['torch_capability']}); sgemm "
        f"{machine['sgemm_gflops']:.0f} GF/s, copy {machine['copy_gbytes_per_second']:.1f} GB/s"
    )
    width = max(len(name) for name, _ in TABLE)
    for name, info in TABLE:
        cells = [f"{info['seconds']['ours'] * 1e3:10.3f} ms"]
        if "gflops" in info:
            cells.append(f"{info['gflops']:.1f} GF/s")
        if "gbytes_per_second" in info:
            cells.append(f"{info['gbytes_per_second']:.1f} GB/s")
        cells += [
            f"{value:.3g} {key.removesuffix('_per_second')}/s"
            for key, value in info.items()
            if key.endswith("_per_second") and key != "gbytes_per_second"
        ]
        for baseline, ratio in info["speedup"].items():
            target = info["target"].get(baseline)
            asked = f" (asked {target:g}x)" if target else ""
            cells.append(f"{ratio:.2f}x {baseline}{asked}")
        write(f"{name:<{width}} " + "  ".join(cells))


def pytest_benchmark_update_machine_info(config, machine_info):
    import harness

    machine_info["catapult_ext"] = harness.machine()
