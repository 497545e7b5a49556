"""Checkpoints of a model: files and folders of them, in order, loaded or refused in one error."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
_OF_A_FOLDER = ("model.safetensors", "pytorch_model.bin")  # what trainers put into a folder a step
_INSIDE = ("state_dict", "model_state_dict", "model", "module")  # where a state dict may lie
_PREFIXES = ("module.", "_orig_mod.", "model.")  # of wrapped models
_SHOWN = 3  # keys of each kind that an error names


class CheckpointError(ValueError):
    """A file that is no checkpoint of the model, or one of a run that diverged.

    Attributes:
        found: results of the checkpoints before it, a :class:`~catapult_ext.Track`; or None.
    """

    found: Any = None


def checkpoint_files(where: str, path: Path | str) -> list[Path]:
    """The checkpoints that a path names, in the natural order of their names (9 before 10).

    Args:
        where: the public function named in errors.
        path: a file; a folder of files or of folders that hold ``model.safetensors`` or
            ``pytorch_model.bin``; or such a folder itself, which is one checkpoint.

    Raises:
        CheckpointError: nothing there.
    """
    path = Path(path)
    own = _single(path)
    if own is not None:
        return [own]
    inside = sorted(path.iterdir(), key=natural) if path.is_dir() else []
    found = [file for file in map(_single, inside) if file is not None]
    if not found:
        ends = ", ".join(SUFFIXES)
        text = f"catapult_ext.{where}: --checkpoint or checkpoints must be a file or a folder of"
        raise CheckpointError(f"{text} files that end in {ends}, got {path}")
    return found


def natural(path: Path) -> list[tuple[int, str]]:
    """A key that sorts numbers in names by their size."""
    parts = re.split(r"(\d+)", path.name)
    return [(int(p), "") if p.isdigit() else (-1, p) for p in parts]


def name_of(file: Path) -> str:
    """Name of a checkpoint: its file, or its folder if trainers give all files the same name."""
    return file.parent.name if file.name in _OF_A_FOLDER else file.stem


def load_checkpoint(model: nn.Module, source: Path | str | Mapping[str, Any], where: str) -> None:
    """Load a checkpoint into a model; all of its keys must be the model's, and none be left out.

    Args:
        model: takes the values, on its own device.
        source: a file of ``torch.save`` or safetensors, or a state dict.
        where: the public function named in errors.

    Raises:
        CheckpointError: an unreadable file, or keys and shapes of another model: missing,
            unexpected and of another shape are named.  The model is left as it was.
    """
    name = "the state dict" if isinstance(source, Mapping) else str(source)
    given = source if isinstance(source, Mapping) else _read(Path(source), where)
    own = model.state_dict()
    state = _fitted(_tensors(given, name, where), own)
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    shapes = [
        f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    faults = [
        f"{len(keys)} {what} ({', '.join(keys[:_SHOWN])}{', ...' if len(keys) > _SHOWN else ''})"
        for what, keys in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", shapes),
        )
        if keys
    ]
    if faults:
        text = f"catapult_ext.{where}: {name} must be a checkpoint of this model, got keys"
        raise CheckpointError(f"{text} {', '.join(faults)}")
    model.load_state_dict(state)


def _single(path: Path) -> Path | None:
    """The file of one checkpoint at ``path``."""
    if path.is_file():
        return path if path.suffix in SUFFIXES else None
    inside = (path / name for name in _OF_A_FOLDER)
    return next((file for file in inside if file.is_file()), None)


def _read(path: Path, where: str) -> Any:
    text = f"catapult_ext.{where}: {path} must be"
    if not path.is_file():
        raise CheckpointError(f"{text} a file, got none")
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path, where)
        return torch.load(path, weights_only=True, map_location="cpu")
    except (CheckpointError, ImportError):
        raise
    except Exception as error:  # damaged bytes and foreign objects end in errors of many types
        reason = f"{type(error).__name__}: {error}".splitlines()[0].partition(". ")[0]
        raise CheckpointError(
            f"{text} tensors written by torch.save or safetensors (save model.state_dict() alone), "
            f"got {reason}"
        ) from error


def _read_safetensors(path: Path, where: str) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise CheckpointError(
            f"catapult_ext.{where}: {path} needs the package safetensors: pip install safetensors"
        ) from error
    return dict(load_file(path))


def _tensors(given: Any, name: str, where: str) -> dict[str, Tensor]:
    """The state dict that a checkpoint is or holds."""
    held = given
    if isinstance(given, Mapping) and not all(isinstance(v, Tensor) for v in given.values()):
        held = next((given[key] for key in _INSIDE if isinstance(given.get(key), Mapping)), None)
    ok = isinstance(held, Mapping) and all(isinstance(t, Tensor) for t in held.values())
    if not ok:
        kind = sorted(map(str, given))[:5] if isinstance(given, Mapping) else type(given).__name__
        text = f"catapult_ext.{where}: {name} must hold a state dict of tensors, got {kind}"
        raise CheckpointError(text)
    assert isinstance(held, Mapping)
    return dict(held)


def _fitted(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys without the prefix of a wrapper, where all have it and the model's have not."""
    for prefix in _PREFIXES:
        wrapped = bool(state) and all(key.startswith(prefix) for key in state)
        if wrapped and not any(key.startswith(prefix) for key in own):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state
