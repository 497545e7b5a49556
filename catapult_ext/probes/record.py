"""A tracker's run folder: summary, table, times and picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from catapult_ext.runs import RunFolder

if TYPE_CHECKING:
    from catapult_ext.probes.tracker import CurvatureTracker

_COLUMNS = ("step", "index_check", "products", "eta", "eta_lambda", "weight_norm", "inactive")


def write_run(tracker: CurvatureTracker) -> None:
    """Write ``summary.json``, ``summary.csv`` (a row a probe), ``timing.json`` and the picture.

    The picture is left out where matplotlib is missing.

    Raises:
        RunFolderError: the folder is in use or holds another run.
    """
    assert tracker.out is not None
    config = {
        "kind": "curvature",
        "model": type(tracker.model).__name__,
        "parameters": sum(p.numel() for p in tracker.model.parameters()),
        "loss": tracker.loss.name,
        "quantity": tracker.quantity,
        "every": tracker.every,
        "budget": tracker.overhead.budget,
        "tol": tracker.tol,
        "seed": tracker.seed,
    }
    with RunFolder(tracker.out, config, fresh=tracker.fresh) as folder:
        folder.write_json("summary.json", {"probes": tracker.probes, "steps": tracker.steps_seen})
        folder.write_csv("summary.csv", [_row(probe) for probe in tracker.probes])
        seconds = {"training": tracker.overhead.training, "probing": tracker.overhead.probing}
        folder.write_json("timing.json", {**seconds, "report": tracker.report()})
        try:
            from catapult_ext.figures.curvature import curvature_png

            picture = curvature_png(tracker.probes, tracker.steps_seen, tracker.quantity)
        except RuntimeError:
            return
        folder.write_bytes("fig_curvature.png", picture)


def _row(probe: dict[str, Any]) -> dict[str, Any]:
    row = {name: probe[name] for name in _COLUMNS}
    row["lambda"], row["error"] = probe["values"][0], probe["errors"][0]
    return row | {"flags": " ".join(probe["flags"])}
