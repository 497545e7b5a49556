"""The empirical neural tangent kernel Theta = J J' as an operator (sum convention, no 1/N)."""

from __future__ import annotations

import os
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from catapult_ext import _validate as v
from catapult_ext._autocast import no_autocast
from catapult_ext._batches import inputs_of
from catapult_ext._deprecated import warn_renamed
from catapult_ext._progress import Progress, check_progress, counted, shared
from catapult_ext.linops.engines.base import Linearization
from catapult_ext.linops.engines.choose import Options, coarse, freeze
from catapult_ext.linops.explicit.tiles import Tiles
from catapult_ext.linops.model.several import TakesSeveral
from catapult_ext.linops.model.snapshot import Inputs
from catapult_ext.linops.model_operator import ModelOperator
from catapult_ext.linops.tracing.parameter_kernel import gram
from catapult_ext.linops.tracing.pieces import add_product

if TYPE_CHECKING:
    from typing_extensions import Unpack


class NTK(ModelOperator, TakesSeveral):
    """Theta[(n,o),(m,q)] = sum over parameters of df_no/dtheta * df_mq/dtheta.

    Flat index n*O + o; shape (N*O, N*O), or (N1*O, N2*O) for the cross kernel of ``x`` and ``x2``.
    The forward pass runs once, however many products follow; the model is not modified.

    Args:
        model: any module with outputs (N,) or (N, d1, ..., dk), O = d1 * ... * dk in C order; of a
            list of modules, :class:`~catapult_ext.StackedNTK` is made.
        x: inputs: a tensor, a tuple (positional arguments), a mapping (keyword arguments), another
            batch that :func:`~catapult_ext._model_call.call_model` takes, or a DataLoader of these.
        x2: inputs of the columns of a cross kernel.
        **options: engine, params, forward, batch_stats, ...: see
            :class:`~catapult_ext.linops.engines.choose.Options`.

    Raises:
        TypeError, ValueError: see :class:`~catapult_ext.linops.model.snapshot.Snapshot`.

    Examples:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        >>> x = torch.randn(8, 3)
        >>> K = cx.NTK(net, x)
        >>> K.shape, K.dense().shape
        ((16, 16), torch.Size([16, 16]))
        >>> cx.NTK(net, torch.randn(5, 3), x).shape  # cross kernel, for predictions
        (10, 16)
    """

    name = "NTK"
    probe = "kernel"

    @no_autocast()
    def __init__(
        self, model: nn.Module, x: Inputs, x2: Inputs | None = None, **options: Unpack[Options]
    ) -> None:
        x = inputs_of(x, self.name)
        first = freeze(model, x, where=self.name, probe=self.probe, **options)
        other = None
        if x2 is not None:
            x2 = inputs_of(x2, self.name)
            other = freeze(model, x2, where=self.name, probe=self.probe, **options)
        self._set_up(first, other)

    @classmethod
    def of(cls, linearization: Linearization) -> NTK:
        """The kernel of a model that is linearized already."""
        return cls._of(linearization)

    def _set_up(self, linearization: Linearization, other: Linearization | None = None) -> None:
        self._use(linearization)
        self.linearization2 = linearization if other is None else other
        self.symmetric = other is None
        if other is not None:
            one, two = (part.snapshot.output_shape[1:] for part in (linearization, other))
            v.require(one == two, self.name, f"x2 must give outputs (N, ...) as x, {one}", two)
        self.shape = (linearization.rows, self.linearization2.rows)
        self.n_outputs = prod(linearization.snapshot.output_shape[1:])

    def _matmat(self, vectors: Tensor) -> Tensor:
        if self.symmetric:
            return self.linearization.ntk(vectors)
        return self.linearization.jvp(self.linearization2.vjp(vectors))

    def _rmatmat(self, vectors: Tensor) -> Tensor:
        return self.linearization2.jvp(self.linearization.vjp(vectors))

    def half_product(self, vectors: Tensor) -> Tensor | None:
        """J' u: (N*O, K) to (P, K), by backward passes alone; None for a kernel with ``x2``."""
        self.linearization.snapshot.require_unchanged()
        return self.linearization.vjp(vectors) if self.symmetric else None

    def written_out(self) -> Tensor | None:
        """The kernel where a solve with it is cheaper than products; else None."""
        if not self.symmetric or self.rounding_unit > torch.finfo(self.dtype).eps:
            return None
        self.linearization.snapshot.require_unchanged()
        return self.linearization.written_out(None)

    @property
    def lower_bound(self) -> float | None:
        """0: J J' is positive semi-definite; None for a kernel with ``x2``."""
        return 0.0 if self.symmetric else None

    @property
    def frozen2(self) -> Linearization:
        """Deprecated: the old name of ``linearization2``."""
        warn_renamed(f"{self.name}.frozen2", f"{self.name}.linearization2")
        return self.linearization2

    def coarse(self) -> NTK:
        """The same kernel in the numbers of ``mixed``; where it has none, in bfloat16."""
        v.require(self.symmetric, f"{self.name}.coarse", "needs a symmetric kernel", "x2")
        return NTK._of(coarse(self.linearization))

    @no_autocast()
    def dense(
        self,
        layout: Literal["flat", "blocks"] = "flat",
        outputs: Literal["all", "trace"] = "all",
        *,
        file: Path | str | None = None,
        storage: torch.dtype | None = None,
        progress: Progress = None,
    ) -> Tensor:
        """The kernel itself, in memory or in a file that may be larger than the memory.

        A file is written tile by tile; a call that was interrupted, however that happened, goes on
        where it stopped when it is made again, and a finished file is only opened.  It is read
        back by ``numpy.load(file, mmap_mode="r")``; ``file + ".json"`` beside it says whose kernel
        it is and how much of it is there.

        Args:
            layout: ``"flat"`` (N1*O, N2*O) or ``"blocks"`` (N1, N2, O, O) as in neural-tangents.
            outputs: ``"all"``, or ``"trace"``: sum over o, (N1, N2), in either layout.
            file: where to write the kernel, as ``.npy``; None keeps it in memory.
            storage: dtype of the file: that of the kernel, or ``torch.bfloat16`` (half of the bytes
                of float32, entries to 0.4 %; NumPy reads them as ``uint16``).
            progress: True for a bar, or a function of (tiles done, tiles), of a kernel that is
                computed as a whole of (parameters done, parameters).

        Returns:
            The kernel; from a file a tensor on the CPU that maps it (changes stay in memory).

        Raises:
            ValueError: a kernel larger than the memory budget, and no ``file``.
            KernelFileError: a file that holds another kernel or something else, is truncated,
                damaged, in use or cannot be written; it is left as it is.
        """
        where = f"{self.name}.dense"
        v.require(layout in ("flat", "blocks"), where, "layout must be 'flat' or 'blocks'", layout)
        v.require(outputs in ("all", "trace"), where, "outputs must be 'all' or 'trace'", outputs)
        check_progress(where, progress)
        same = storage is None or storage == self.dtype
        ok = same or (storage == torch.bfloat16 and file is not None)
        needs = f"storage must be {self.dtype}, or torch.bfloat16 with a file"
        v.require(ok, where, needs, storage)
        tiles = Tiles(self, layout, outputs, storage)
        if file is not None:
            if not isinstance(file, (str, os.PathLike)):
                v.fail(where, "file must be a path or None", type(file).__name__, TypeError)
            return tiles.in_file(file, progress)
        whole = None
        if tiles.check_budget():
            with counted(progress, where, self.n_params, "parameters") as counter, shared(counter):
                whole = self._whole(outputs)
                counter.at(self.n_params if whole is not None else 0)
        if whole is None:
            return tiles.in_memory(progress)
        if layout == "flat" or outputs == "trace":
            return whole
        o = self.n_outputs
        return whole.view(-1, o, self.shape[1] // o, o).permute(0, 2, 1, 3).contiguous()

    def _whole(self, outputs: str) -> Tensor | None:
        """The flat kernel, all samples at once; None where those do not fit and parts may."""
        o = self.n_outputs
        # a sum over the outputs of a row is none over those of a sample of several rows
        asked = outputs if o == self.linearization.n_outputs else "all"
        known = self.linearization.kernel(None if self.symmetric else self.linearization2, asked)
        size = sum(set(self.shape)) * self.linearization.n_params * self.dtype.itemsize
        linearization = self.linearization
        too_large = linearization.kernel_too_large or size > linearization.workspace
        if too_large or (known is not None and asked == outputs):
            return known
        flat = known
        if flat is None:
            rows = linearization.jacobian()
            flat = gram(rows) if self.symmetric else self._across(rows)
        if outputs == "all":
            return flat
        return flat.view(-1, o, self.shape[1] // o, o).diagonal(dim1=1, dim2=3).sum(-1)

    def _across(self, rows: Tensor) -> Tensor:
        """J J2' for the rows of J."""
        return add_product(rows.new_zeros(self.shape), rows, self.linearization2.jacobian().T)

    @no_autocast()
    def diagonal(self) -> Tensor:
        """|df_no/dtheta|^2, (N*O,), one backward pass per entry."""
        v.require(self.symmetric, f"{self.name}.diagonal", "needs a symmetric kernel", "x2")
        known = Tiles(self, "flat", "diagonal").diagonal() if self.linearization.streamed else None
        return self.linearization.diagonal() if known is None else known
