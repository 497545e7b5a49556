"""The experiments by name, and how one is run, stored and reported."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from catapult_ext import _validate as v
from catapult_ext._by_path import fault, is_path_of_object, named_object
from catapult_ext._processes import Ranks
from catapult_ext._store import RunFolder, environment
from catapult_ext.experiments.reproduce.context import Context
from catapult_ext.experiments.reproduce.outcome import Experiment, Outcome, Reproduction, described
from catapult_ext.experiments.reproduce.report import write_report
from catapult_ext.experiments.reproduce.settings import check
from catapult_ext.experiments.workers import helped
from catapult_ext.figures.style import require_matplotlib

SCALES = ("smoke", "cpu", "real", "full")
VERSION = 1

# Module of each experiment; it holds TITLE, SOURCE, SETTINGS (by scale) and run().
MODULES = {
    "paper-fc": "paper_fc",
    "fc-phases": "fc_phases",
    "wrn-phases": "wrn_phases",
    "cnn-fixed-steps": "cnn_fixed_steps",
    "cnn-physical-time": "cnn_physical_time",
    "width-sharpening": "width_sharpening",
    "linearise-after-catapult": "linearise_after_catapult",
    "c-act-table": "c_act_table",
    "sgd-catapults": "sgd_catapults",
    "wrn-fixed-steps": "wrn_fixed_steps",
    "wrn-physical-time": "wrn_physical_time",
    "kalra-phase-diagram": "kalra_phase_diagram",
    "quadratic-models": "quadratic_models",
    "edge-of-stability": "edge_of_stability",
    "progressive-sharpening": "progressive_sharpening",
    "batch-sharpness": "batch_sharpness",
    "momentum-plateaus": "momentum_plateaus",
    "adam-spikes": "adam_spikes",
    "meltzer-sparsity": "meltzer_sparsity",
    "warmup": "warmup",
    "phase-plane": "phase_plane",
    "transformers": "transformers",
}


def names() -> list[str]:
    """Names of all experiments."""
    return list(MODULES)


def experiment(name: str) -> Experiment:
    """The experiment called ``name``, or yours as ``package.module:experiment``.

    Raises:
        ValueError: unknown name, or a module of yours that fails when it is imported.
        TypeError: the object named is no :class:`Experiment`.
    """
    if isinstance(name, str) and is_path_of_object(name):
        return _users(name)
    if name not in MODULES:
        held = f"{', '.join(MODULES)}, or package.module:experiment"
        v.fail("reproduce", f"name must be one of {held}", f"{name!r}{v.nearest(name, MODULES)}")
    module = importlib.import_module(f"{__package__}.{MODULES[name]}")
    usual = getattr(module, "USUAL", {})
    return Experiment(name, module.TITLE, module.SOURCE, module.SETTINGS, module.run, usual)


def _users(spec: str) -> Experiment:
    """The user's experiment, under the name by which it is run."""
    found = named_object("reproduce", "name", spec)
    if not isinstance(found, Experiment):
        kind = type(found).__name__
        v.fail("reproduce", f"{spec} must be a reproduce.Experiment", kind, TypeError)
    settings = found.settings
    if not isinstance(settings, Mapping):  # one set of settings is that of every scale
        settings = dict.fromkeys(SCALES, settings)
    for held in settings.values():
        if not dataclasses.is_dataclass(held) or isinstance(held, type):
            text = f"settings of {spec} must be dataclasses, one or by scale"
            v.fail("reproduce", text, type(held).__name__, TypeError)
    return dataclasses.replace(found, name=spec, settings=dict(settings))


def reproduce(
    name: str,
    scale: str = "cpu",
    *,
    out: Path | str | None = None,
    data_dir: Path | str | None = None,
    standardise: str | None = None,
    fresh: bool = False,
    tell: Callable[[str], None] | None = None,
    device: str = "cpu",
    workers: int = 1,
    **changes: Any,
) -> Reproduction:
    """Run one experiment of the paper and say claim by claim what was found.

    Args:
        name: one of :func:`names`, or ``package.module:experiment``, an :class:`Experiment` of
            yours.
        scale: ``"smoke"`` (seconds: shows that it works, decides little), ``"cpu"`` (two cores,
            built-in data), ``"real"`` (two cores, within 20 minutes, some thousand real images;
            of some experiments) or ``"full"`` (the paper's setting: a GPU and a data folder).
        out: run folder: every part is stored when done, a killed run resumes where it was, and
            claims.json, tables, pictures and report.html are written. None keeps it in memory.
        data_dir: folder of data files; default CATAPULT_DATA. A run resumes with the data it was
            begun with only, whose digest data.json keeps.
        standardise: how inputs are shifted and scaled (``data.standardise``), instead of the
            experiment's own way; part of the run's identity.
        fresh: start again in a folder that holds an earlier run.
        tell: called with a line of text whenever a part is done.
        device: where to train, such as ``"cuda"``; part of the run's identity.
        workers: processes that share the parts and the processor's cores; more than one needs
            ``out`` and, in a script, ``if __name__ == "__main__":`` around the call.
        **changes: settings of the experiment to change, by name.

    Raises:
        TypeError: a setting that the experiment does not have, or a value of another type.
        ValueError: an unknown name or scale, a setting out of range, or a device that torch cannot
            use here.
        RuntimeError: a run folder or data file that cannot be used; ``out`` without matplotlib.
    """
    chosen = experiment(name)
    if scale not in chosen.settings:
        held = f"scale of {name} must be one of {', '.join(chosen.settings)}"
        v.fail("reproduce", held, repr(scale))
    settings = chosen.settings[scale]
    unknown = set(changes) - {f.name for f in dataclasses.fields(settings)}
    if unknown:
        held = ", ".join(f.name for f in dataclasses.fields(settings))
        v.fail("reproduce", f"settings of {name} are {held}", ", ".join(sorted(unknown)), TypeError)
    tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()}
    settings = dataclasses.replace(settings, **tuples)
    check(name, settings)
    v.integers("reproduce", workers=workers)
    v.require(workers >= 1, "reproduce", "workers must be >= 1", workers)
    v.require(workers == 1 or out is not None, "reproduce", "workers > 1 needs out", out)
    _require_device(device)
    if out is None:
        context = Context(None, data_dir, tell, device, standardise)
        outcome = _outcome(chosen, settings, context)
        read = context.data_folder
        return Reproduction(chosen, scale, settings, outcome, None, device, read, standardise)
    require_matplotlib()
    identity = {
        "experiment": name,
        "version": VERSION,
        "device": device,
        **({} if standardise is None else {"standardise": standardise}),
        **dataclasses.asdict(settings),
    }
    noted = environment() | {"workers": workers}
    with RunFolder(out, identity, environment=noted, fresh=fresh) as folder:
        given = (name, settings, identity, folder.path, data_dir, device, standardise)
        ranks = None if workers == 1 else helped(workers, "reproduce", _share, given)
        with Context(folder, data_dir, tell, device, standardise, ranks) as context:
            outcome = _outcome(chosen, settings, context)
        read = context.data_folder
        made = (outcome, folder.path, device, read, standardise)
        done = Reproduction(chosen, scale, settings, *made)
        write_report(folder, done)
    return done


def _outcome(chosen: Experiment, settings: Any, context: Context) -> Outcome:
    """Run the experiment; each of its claims states the data, net and loss it was tested with."""
    outcome = _run(chosen, settings, context)
    on = described(chosen, settings)
    claims = [dataclasses.replace(claim, on=on) for claim in outcome.claims]
    return dataclasses.replace(outcome, claims=claims)


def _run(chosen: Experiment, settings: Any, context: Context) -> Outcome:
    """The experiment's own code; an error in that of a user is told in one line."""
    if chosen.name in MODULES:
        return chosen.run(settings, context)
    wanted = f"experiment {chosen.name} must run"
    try:
        outcome = chosen.run(settings, context)
    except Exception as error:  # whatever the user's module does
        if str(error).startswith("catapult_ext"):
            raise  # it says itself what is wrong
        raise ValueError(f"catapult_ext.reproduce: {wanted}, got {fault(error)}") from error
    if not isinstance(outcome, Outcome):
        kind = type(outcome).__name__
        v.fail("reproduce", f"experiment {chosen.name} must return an Outcome", kind, TypeError)
    return outcome


def _require_device(device: str) -> None:
    """Fail before a run folder is made where nothing could be computed."""
    if not isinstance(device, str):
        v.fail("reproduce", "device must be a string", repr(device), TypeError)
    try:
        torch.ones(1, device=device).item()
    except Exception as error:  # torch answers with errors of half a dozen types
        why = str(error).splitlines()[0].split(". ")[0]
        v.fail("reproduce", f"device must be one that torch can use here ({why})", repr(device))


def _share(
    ranks: Ranks,
    name: str,
    settings: Any,
    identity: dict[str, Any],
    out: Path,
    data_dir: Path | str | None,
    device: str,
    standardise: str | None,
) -> None:
    """Work of an extra process: the same experiment, on the parts it can claim."""
    with RunFolder(out, identity, joined=True) as folder:
        context = Context(folder, data_dir, None, device, standardise, ranks)
        _run(experiment(name), settings, context)
