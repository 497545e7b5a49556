"""catapult-ext toy diagram | figure: phase diagrams and the pictures of docs/toy.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from catapult_ext import _validate as v
from catapult_ext.cli.console import load, picture_path, resumable

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
        console=load("rich.console").Console(stderr=True),
    )
    with resumable("rows"), bars:
        task = bars.add_task("rows", visible=False)  # no bar above a refusal
        yield lambda done, rows: bars.update(task, completed=done, total=rows, visible=True)


def register(group: Any, typer: Any) -> None:
    """Add the subcommands to the group ``toy``."""
    option = typer.Option

    @group.command()
    def diagram(
        axis: str = option("f0", help="Against c: width, f0, b (label) or momentum."),
        c_low: float = option(0.02, help="Smallest eta * lambda_0."),
        c_high: float = option(5.0, help="Largest eta * lambda_0."),
        low: float = option(None, help="Smallest value of the axis."),
        high: float = option(None, help="Largest value of the axis."),
        resolution: int = option(1000, help="Points per axis."),
        steps: int = option(1000, help="Gradient steps per point."),
        width: float = option(1e6, help="Hidden units, where they do not vary."),
        f0: float = option(1.0, help="Output at the start, where it does not vary."),
        b: float = option(0.0, help="Label eta y / sqrt(W), where it does not vary."),
        momentum: float = option(0.0, help="Heavy-ball momentum, where it does not vary."),
        out: Path = option(None, help="Run folder; default catapult-runs/toy-diagram-AXIS."),  # noqa: B008
        fresh: bool = option(False, "--fresh", help="Start anew in an existing run folder."),
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

    @group.command()
    def bifurcation(
        low: float = option(0.9, help="Smallest label b = eta y / sqrt(W)."),
        high: float = option(2.02, help="Largest label."),
        resolution: int = option(3000, help="Labels."),
        burn_in: int = option(20000, help="Steps before the first one kept."),
        keep: int = option(256, help="Steps kept."),
        out: Path = option(RUNS / "toy-bifurcation", help="Run folder."),  # noqa: B008
        fresh: bool = option(False, "--fresh", help="Start anew in an existing run folder."),
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

    @group.command()
    def figure(
        name: str = typer.Argument(help="plane, phases, curvature, quadratic, regression"),
        out: Path = option(None, help="PNG file; default catapult-runs/toy-NAME.png."),  # noqa: B008
    ) -> None:
        """Draw one picture of docs/toy.md."""
        from catapult_ext.toy.gallery import named

        draw = named(name)
        path = picture_path("toy.figure", out or RUNS / f"toy-{name}.png")
        print(f"Picture: {draw(path)}")
