"""catapult-ext toy diagram | bifurcation | noise | figure: planes and pictures of docs/toy.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, cast

from catapult_ext import _validate as v
from catapult_ext.cli.console import console, load, picture_path, resumable
from catapult_ext.cli.options import Argument, Option

RUNS = Path("catapult-runs")


@contextmanager
def row_progress() -> Iterator[Callable[[int, int], None]]:
    """A bar over the rows on stderr; see :func:`resumable`."""
    rich = load("rich.progress")
    bars = rich.Progress(
        rich.TextColumn("rows"),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TimeRemainingColumn(),
        console=console(stderr=True),
    )
    with resumable("rows"), bars:
        task = bars.add_task("rows", visible=False)  # no bar above a refusal
        yield lambda done, rows: bars.update(task, completed=done, total=rows, visible=True)


def diagram(
    axis: Annotated[str, Option("Against c: width, f0, b (label) or momentum.")] = "f0",
    c_low: Annotated[float, Option("Smallest eta * lambda_0.")] = 0.02,
    c_high: Annotated[float, Option("Largest eta * lambda_0.")] = 5.0,
    low: Annotated[float | None, Option("Smallest value of the axis.")] = None,
    high: Annotated[float | None, Option("Largest value of the axis.")] = None,
    resolution: Annotated[int, Option("Points per axis.")] = 1000,
    steps: Annotated[int, Option("Gradient steps per point.")] = 1000,
    width: Annotated[float, Option("Hidden units, where they do not vary.")] = 1e6,
    f0: Annotated[float, Option("Output at the start, where it does not vary.")] = 1.0,
    b: Annotated[float, Option("Label eta y / sqrt(W), where it does not vary.")] = 0.0,
    momentum: Annotated[float, Option("Heavy-ball momentum, where it does not vary.")] = 0.0,
    out: Annotated[
        Path | None, Option("Run folder; default catapult-runs/toy-diagram-AXIS.")
    ] = None,
    fresh: Annotated[bool, Option("Start again in an existing run folder.", "--fresh")] = False,
) -> None:
    """Phase diagram of the one-sample model: final curvature, peak loss, phase."""
    from catapult_ext.toy import phase_diagram
    from catapult_ext.toy.phase_diagram import default_range

    bottom, top = default_range(axis)
    bounds = (bottom if low is None else low, top if high is None else high)
    folder = out or RUNS / f"toy-diagram-{axis}"
    with row_progress() as progress:
        result = phase_diagram(
            axis,
            c=(c_low, c_high),
            values=bounds,
            resolution=resolution,
            steps=steps,
            width=width,
            f0=f0,
            b=b,
            momentum=momentum,
            out=folder,
            fresh=fresh,
            progress=progress,
        )
    picture = result.plot(folder / "fig_diagram.png")
    shares = ", ".join(f"{name} {share:.1%}" for name, share in result.fractions().items())
    print(f"{shares}\nPicture: {picture}\nArrays:  {folder / 'diagram.npz'}")


def bifurcation(
    low: Annotated[float, Option("Smallest label b = eta y / sqrt(W).")] = 0.9,
    high: Annotated[float, Option("Largest label.")] = 2.02,
    resolution: Annotated[int, Option("Labels.")] = 3000,
    burn_in: Annotated[int, Option("Steps before the first one kept.")] = 20000,
    keep: Annotated[int, Option("Steps kept.")] = 256,
    out: Annotated[Path, Option("Run folder.")] = RUNS / "toy-bifurcation",
    fresh: Annotated[bool, Option("Start again in an existing run folder.", "--fresh")] = False,
) -> None:
    """Long-time behaviour of the labelled model: period doubling, chaos, divergence."""
    import torch

    from catapult_ext import toy

    v.require(resolution >= 1, "toy.bifurcation", "--resolution must be >= 1", resolution)
    labels = torch.linspace(low, high, resolution, dtype=torch.float64, device="cpu")
    with row_progress() as progress:
        result = toy.bifurcation(
            labels, burn_in=burn_in, keep=keep, out=out, fresh=fresh, progress=progress
        )
    picture = result.plot(out / "fig_bifurcation.png")
    diverged = float((result.diverged_at >= 0).double().mean())
    print(f"diverged {diverged:.1%}\nPicture: {picture}\nArrays:  {out / 'bifurcation.npz'}")


def noise(
    beta_low: Annotated[float, Option("Smallest momentum.")] = 0.0,
    beta_high: Annotated[float, Option("Largest momentum, below 1.")] = 0.99,
    low: Annotated[
        float, Option("Smallest variance of the curvature over its squared mean.")
    ] = 0.01,
    high: Annotated[float, Option("Largest.")] = 100.0,
    resolution: Annotated[int, Option("Points per axis.")] = 64,
    distribution: Annotated[
        str, Option("Of the curvature: normal, uniform, two-point.")
    ] = "normal",
    tolerance: Annotated[float, Option("Largest relative bar of the Lyapunov edge.")] = 0.02,
    paths: Annotated[int, Option("Sampled paths per point.")] = 64,
    seed: Annotated[int, Option("Of the draws.")] = 0,
    out: Annotated[Path, Option("Run folder.")] = RUNS / "toy-noise",
    fresh: Annotated[bool, Option("Start again in an existing run folder.", "--fresh")] = False,
) -> None:
    """Largest learning rate of heavy ball under noise: in mean square, and of typical paths."""
    from catapult_ext import toy

    with row_progress() as progress:
        result = toy.noise_plane(
            beta=(beta_low, beta_high),
            variance=(low, high),
            resolution=resolution,
            noise=cast(Any, distribution),  # checked there
            tolerance=tolerance,
            paths=paths,
            seed=seed,
            out=out,
            fresh=fresh,
            progress=progress,
        )
    picture = result.plot(out / "fig_noise.png")
    ratio, bars = result.lyapunov / result.mean_square, result.error / result.lyapunov
    print(
        f"Lyapunov edge {ratio.min():.2f} to {ratio.max():.2f} times the mean-square edge; bars up "
        f"to {bars.max():.1%}\nPicture: {picture}\nArrays:  {out / 'plane.npz'}"
    )


def figure(
    name: Annotated[str, Argument("plane, phases, curvature, quadratic, regression")],
    out: Annotated[Path | None, Option("PNG file; default catapult-runs/toy-NAME.png.")] = None,
) -> None:
    """Draw one picture of docs/toy.md."""
    from catapult_ext.toy.gallery import named

    draw = named(name)
    path = picture_path("toy.figure", out or RUNS / f"toy-{name}.png")
    print(f"Picture: {draw(path)}")
