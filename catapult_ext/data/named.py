"""Any data set by name, with the samples, targets and shape that are asked for."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from catapult_ext import _validate as v
from catapult_ext._by_path import fault, is_path_of_object, named_function
from catapult_ext.data.dataset import Dataset, as_dataset
from catapult_ext.data.digits import digits
from catapult_ext.data.gaussian import gaussian, synthetic_images
from catapult_ext.data.prepare import (
    Standardisation,
    Targets,
    check_classes,
    make_targets,
    standardise,
)
from catapult_ext.data.standard import FROM_FILES, load, npz
from catapult_ext.data.sums import sums
from catapult_ext.data.teacher import teacher

BUILT_IN: dict[str, Any] = {
    "digits": digits,
    "teacher": teacher,
    "gaussian": gaussian,
    "synthetic-images": synthetic_images,
    "sums": sums,
    "digits28": functools.partial(digits, 28),
}
SYNTHETIC = ("teacher", "gaussian", "synthetic-images", "sums")
NAMES = (*BUILT_IN, *FROM_FILES, "a path ending in .npz", "package.module:function")
_RAW = 20.0  # inputs beyond it are no standardised pixels


def named(
    name: str,
    *,
    data_dir: Path | str | None = None,
    train: int | None = None,
    test: int | None = None,
    classes: Any = None,
    targets: Targets = "one-hot",
    standardisation: Standardisation | None = None,
    flatten: bool | None = None,
    where: str = "data.named",
    **own: Any,
) -> Dataset:
    """Load a data set by its name, with the same arguments for all data sets.

    Args:
        name: ``"digits"``, ``"digits28"``, ``"teacher"``, ``"gaussian"``, ``"synthetic-images"``,
            ``"sums"`` (tokens), a name that :func:`load` takes, the path of an .npz file, or your
            own ``package.module:function``, which returns a :class:`Dataset`, ``(x, y)`` or ``(x,
            y, x_test, y_test)``, with targets (N, O), or integer labels (N,) that become one-hot.
        data_dir: folder of data files; see :func:`load`.
        train: size of a random training subset; None for all samples, or for a built-in set's
            default.
        test: the same for the test set.
        classes: keep only these labels; for generated data it is passed on to the set's own
            function.
        targets: ``"one-hot"``, or ``"signed"`` for two classes.
        standardisation: as in :func:`standardise`. None means ``"global"`` for digits and the data
            sets of :func:`load`. Other data are not scaled, with a warning if an archive's or
            function's inputs look like raw pixels.
        flatten: make vectors of images too; None for the default of the set's own function.
        where: the public function named in errors.
        **own: arguments of the set's own function.

    Returns:
        The data set; its ``source`` is the digest of its files' contents, None for built-in sets.

    Raises:
        TypeError: a setting that this data set does not have.
        ValueError: an unknown name, more samples than the set has, or ``classes`` for a set that
            has none.
        DataFileError: a missing or damaged file.

    Examples:
        >>> cx.data.named("gaussian", train=16).x_train.shape
        torch.Size([16, 50])
    """
    if not isinstance(name, str):
        v.fail("data.named", "name must be a string", type(name).__name__, TypeError)
    own_function = is_path_of_object(name)
    known = name in (*BUILT_IN, *FROM_FILES) or name.endswith(".npz") or own_function
    shown = f"{name!r}{v.nearest(name, NAMES)}"
    v.require(known, "data.named", f"name must be one of {', '.join(NAMES)}", shown)
    chosen = isinstance(classes, Sequence) or targets != "one-hot"
    shape: dict[str, Any] = {} if flatten is None else {"flatten": flatten}
    labels: dict[str, Any] = {"classes": classes, "targets": targets}
    counts: dict[str, Any] = {k: n for k, n in (("train", train), ("test", test)) if n is not None}
    if name.startswith("digits"):
        how = standardisation or "global"
        return BUILT_IN[name](**counts, **labels, **shape, **own, standardisation=how)
    if name in FROM_FILES:
        # The last bits of standardised values depend on the number of threads; a digest must not.
        data = load(name, data_dir=data_dir, **counts, **labels, **own, standardisation="none")
        data = replace(data, source=data.fingerprint())
        standardisation = standardisation or "global"
    elif name in BUILT_IN:
        takes = f"{', '.join(('digits', *FROM_FILES))} or an .npz file, whose classes can be chosen"
        v.require(not chosen, where, f"data must be one of {takes}", repr(name))
        own |= {} if classes is None else {"classes": classes}
        data = BUILT_IN[name](**counts, **own)
    else:
        data = _of_function(where, name, own) if own_function else npz(name, **own)
        data = replace(data, source=data.fingerprint())
        if standardisation is None:
            _warn_of_raw(where, name, data)
        if chosen:
            data = _choose(where, name, data, classes, targets)
        data = _draw(where, data, train, test)

    if standardisation is not None and not data.x_train.is_floating_point():
        way = f"tokens of {name} cannot be shifted or scaled: leave standardise out"
        v.fail(where, way, repr(standardisation))

    def shaped(x: Tensor) -> Tensor:
        if standardisation is not None and len(x):
            x = standardise(x, data.x_train, standardisation)
        return x.flatten(1) if flatten else x

    return replace(data, x_train=shaped(data.x_train), x_test=shaped(data.x_test))


def _of_function(where: str, spec: str, own: dict[str, Any]) -> Dataset:
    """Result of the user's function ``package.module:function``."""
    made = named_function(where, "data", spec)
    try:
        found = made(**own)
    except Exception as error:  # the user's own code
        wanted = f"data {spec} must return a Dataset or tensors"
        raise ValueError(f"catapult_ext.{where}: {wanted}, got {fault(error)}") from error
    return as_dataset(_one_hot(found), where)


def _one_hot(made: Any) -> Any:
    """``(x, y)`` or ``(x, y, x_test, y_test)`` with integer labels (N,) one-hot."""
    if type(made) not in (tuple, list) or not all(isinstance(t, Tensor) for t in made):
        return made
    labels = made[1::2]
    whole = all(y.dim() == 1 and not y.is_floating_point() and not y.is_complex() for y in labels)
    if not whole or not any(len(y) for y in labels):
        return made
    count = max(int(y.max()) for y in labels if len(y)) + 1
    held = list(made)
    held[1::2] = [functional.one_hot(y.long(), count).to(made[0].dtype) for y in labels]
    return tuple(held)


def _warn_of_raw(where: str, name: str, data: Dataset) -> None:
    largest = float(data.x_train.abs().max()) if data.x_train.numel() else 0.0
    if largest > _RAW:
        way = "standardise='global', or --standardise global, scales them by the training set"
        said = f"inputs of {name} reach {largest:.4g} and are taken as they are: {way}"
        warnings.warn(f"catapult_ext.{where}: {said}", RuntimeWarning, stacklevel=3)


def _choose(
    where: str, name: str, data: Dataset, classes: Sequence[int] | None, targets: str
) -> Dataset:
    """The samples of some classes, with new targets."""
    wanted = "data must have integer class labels to choose from"
    v.require(data.classes, where, wanted, repr(name))
    chosen = check_classes(where, classes, data.outputs, targets)

    def part(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        label = y.argmax(dim=1)
        kept = torch.isin(label, torch.tensor(chosen, device="cpu"))
        return x[kept], make_targets(label[kept], chosen, targets, y.dtype)

    parts = *part(*data.train), *part(*data.test)
    return Dataset(data.name, *parts, classes=targets == "one-hot", source=data.source)


def _draw(where: str, data: Dataset, train: int | None, test: int | None) -> Dataset:
    """Random subsets, in the file's order where all samples are taken."""
    rng = np.random.RandomState(0)

    def part(kind: str, x: Tensor, y: Tensor, count: int | None) -> tuple[Tensor, Tensor]:
        least = 1 if kind == "train" else 0
        ok = count is None or least <= count <= len(x)
        if kind == "test" and not ok and len(x) == 0:
            way = "this data has no test set (x_test, y_test): choose test = 0"
            v.fail(where, way, f"test = {count}")
        v.require(ok, where, f"{kind} must be in {least}..{len(x)} for this data", count)
        if count is None:
            return x, y
        index = torch.from_numpy(rng.permutation(len(x))[:count])
        return x[index], y[index]

    parts = *part("train", *data.train, train), *part("test", *data.test, test)
    return Dataset(data.name, *parts, classes=data.classes, source=data.source)
