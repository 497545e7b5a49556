"""StackedCurvatureTracker: the top of the spectrum of R models that train together."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, get_args

import torch
from torch import Tensor, nn

from catapult_ext import _validate as v
from catapult_ext._autocast import no_autocast
from catapult_ext._shown import Shown, first
from catapult_ext._state import attributes, check_state, put
from catapult_ext.linops import GGN, NTK, Hessian
from catapult_ext.losses import resolve
from catapult_ext.probes.curvature_probe import QUANTITIES, Quantity
from catapult_ext.probes.jumps import Jumps
from catapult_ext.probes.record import BoundedRecord
from catapult_ext.probes.tracker_options import probe_tracker

_WHERE = "StackedCurvatureTracker"
_STATE = ("count", "_last_probe", "_jumped", "_warned", "_made")
_PARTS = ("_top", "_record")

Models = Sequence[nn.Module] | tuple[Any, Any, nn.Module]


class StackedRow(TypedDict):
    """One probe of R models; lists have R entries.

    Attributes:
        step: number of steps made.
        values: the k top eigenvalues of each model, descending; NaN where there are none.
        errors: their error bounds.
        index_check: see :class:`~catapult_ext.BatchedEigshResult`.
        products: number of products with each operator.
        flags: flags of each model: ``checked``, ``missed``, ``diverged`` or ``failed``, as in
            :class:`~catapult_ext.probes.record.Row`.
        eta_lambda: each learning rate times the top eigenvalue; None without rates.
        reason: why the probe failed, or None.
    """

    step: int
    values: list[list[float]]
    errors: list[list[float]]
    index_check: list[str]
    products: list[int]
    flags: list[list[str]]
    eta_lambda: list[float] | None
    reason: str | None


class StackedCurvatureTracker(Shown):
    """Top-k eigenvalues of R models of one architecture while they train together.

    The counterpart of :class:`~catapult_ext.CurvatureTracker` for seeds, rates or other replicas:
    each probe builds one batched operator, which a :class:`~catapult_ext.TopTracker` follows.  Call
    :meth:`step` once after every step of all models.  A model with non-finite values has NaN in its
    rows and does not affect the others.  A probe that fails gives a row of NaN with the reason, and
    a RuntimeWarning.

    Args:
        models: a list of modules, equal in all but the values of their tensors, or ``(params,
            buffers, module)`` with the dictionaries of ``torch.func.stack_module_state``.  They are
            read at every probe.  If a step makes new dictionaries, pass them to :meth:`step`.
        loss: the loss trained (:func:`catapult_ext.losses.resolve`).
        data: fixed probe set ``(x, y)`` for all models, or a list of R such sets of equal shapes.
        quantity: ``"ggn"``, ``"hessian"`` or ``"ntk"`` (sum convention).
        k: number of eigenvalues.
        every: number of steps between probes.
        tol: requested relative error of checked probes.
        between: requested relative error of the probes between them; None for ten times ``tol``.
        rates: R learning rates, for ``eta_lambda``, or None.
        check_every: see :class:`~catapult_ext.TopTracker`.  If the loss of a model exceeds twice
            its largest value since the probe before the last one, all models are probed and checked
            at once.
        seed: seed of the random vectors.
        **options: options of the operators: ``forward``, ``params``, ``batch_stats``, ``dropout``,
            ``memory_budget``.

    Attributes:
        probes: one :class:`StackedRow` per probe: the first 4096 and at most 4096 later ones.

    Raises:
        ValueError: bad options, models that differ (named by index and parameter).
        TypeError: arguments of other types.

    Cost:
        Per model and probe: about 3 forward passes and, for slow drift, k + guards + 1 products.
        Every ``check_every``-th probe is a checked solve.  Models whose products cannot be batched
        are multiplied one by one (``plan`` of :class:`~catapult_ext.linops.StackedGGN`).

    Examples:
        >>> nets = [nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)) for _ in range(4)]
        >>> x, y = torch.randn(16, 3), torch.randn(16, 1)
        >>> with cx.StackedCurvatureTracker(nets, "half_mse", (x, y), every=5) as tracker:
        ...     for _ in range(10):
        ...         for net in nets:
        ...             loss = (net(x) - y).square().sum() / 32
        ...             grads = torch.autograd.grad(loss, list(net.parameters()))
        ...             with torch.no_grad():
        ...                 for p, g in zip(net.parameters(), grads):
        ...                     p -= 0.1 * g
        ...         made = tracker.step()
        >>> [row["step"] for row in tracker.probes], len(tracker.probes[-1]["values"])
        ([0, 5, 10], 4)
    """

    def __init__(
        self,
        models: Models,
        loss: object,
        data: Any,
        *,
        quantity: Quantity = "ggn",
        k: int = 1,
        every: int = 10,
        tol: float = 1e-3,
        between: float | None = None,
        rates: Sequence[float] | Tensor | None = None,
        check_every: int = 10,
        seed: int = 0,
        **options: Any,
    ) -> None:
        known = quantity in get_args(Quantity)
        v.require(known, _WHERE, f"quantity must be one of {QUANTITIES}", repr(quantity))
        v.integers(_WHERE, k=k, every=every)
        v.require(every >= 1, _WHERE, "every must be >= 1", every)
        self._top = probe_tracker(k, tol, between, check_every, seed)
        self.models, self.loss, self.data = models, resolve(loss), data
        self.quantity, self.every = quantity, every
        self.options = options
        self.rates = None if rates is None else _numbers("rates", rates)
        v.finite(all(map(math.isfinite, self.rates or ())), _WHERE, "rates")
        self._record: BoundedRecord[StackedRow] = BoundedRecord()
        self._jumps: list[Jumps] = []
        self.count = self._last_probe = self._made = 0
        self._jumped = self._warned = False

    @property
    def probes(self) -> list[StackedRow]:
        """One :class:`StackedRow` per probe."""
        return self._record.rows

    @property
    def k(self) -> int:
        """Eigenvalues followed."""
        return self._top.k

    def __enter__(self) -> StackedCurvatureTracker:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def start(self) -> None:
        """Probe the start."""
        if not self._made:
            self._probe()

    def step(
        self, losses: Tensor | Sequence[float] | None = None, *, models: Models | None = None
    ) -> StackedRow | None:
        """Count a step of all models, and return the row if a probe was made.

        Args:
            losses: (R,) losses of this step; a jump in any of them triggers a checked probe.
            models: the models after this step, in the form of the argument ``models``.
        """
        if models is not None:
            self.models = models
        self.start()
        self.count += 1
        if losses is not None:
            values = _numbers("losses", losses)
            self._jumps = self._jumps or [Jumps() for _ in values]
            same = len(values) == len(self._jumps)
            v.require(same, f"{_WHERE}.step", f"losses must be {len(self._jumps)}", len(values))
            found = [jumps.follow(loss=x) for jumps, x in zip(self._jumps, values, strict=True)]
            self._jumped |= any(found)
        if self._jumped or self.count - self._last_probe >= self.every:
            return self._probe()
        return None

    __call__ = step

    def keep(self, replicas: Sequence[int]) -> None:
        """Follow only these models from now on; pass their ``models`` to the next :meth:`step`.

        Args:
            replicas: indices of the models in the last probe, in their new order.
        """
        self._top.keep(replicas)
        self._jumps = [self._jumps[r] for r in replicas] if self._jumps else []
        self.rates = None if self.rates is None else [self.rates[r] for r in replicas]
        held: Any = self.models
        if _is_state(held):
            params, buffers, module = held
            some = [{n: t[list(replicas)] for n, t in p.items()} for p in (params, buffers)]
            self.models = (some[0], some[1], module)
        else:
            self.models = [held[r] for r in replicas]
        if isinstance(self.data, list):
            self.data = [self.data[r] for r in replicas]

    @no_autocast()
    def _probe(self) -> StackedRow:
        with torch.no_grad():
            try:
                row = self._measured()
            except v.NotFinite:
                row = self._lost("diverged", None)
            except Exception as error:
                if not self._made:  # models, loss and data do not fit the probe
                    raise
                row = self._lost("failed", f"{type(error).__name__}: {error}")
                self._warn(row["reason"])
        self._made += 1
        self._last_probe, self._jumped = self.count, False
        for jumps in self._jumps:
            jumps.probed()
        self._record.append(row)
        return row

    def _measured(self) -> StackedRow:
        found: Any = self._top.update(self._operator(), check=self._jumped)
        values, errors = found.eigenvalues.tolist(), found.errors.tolist()
        flags = []
        for own, check, converged in zip(
            values, found.index_check, found.converged.tolist(), strict=True
        ):
            if not math.isfinite(own[0]):
                flags.append(["diverged"])
                continue
            checked = [] if check == "inherited" else ["checked"]
            flags.append(checked if converged else [*checked, "missed"])
        return {
            "step": self.count,
            "values": values,
            "errors": errors,
            "index_check": list(found.index_check),
            "products": found.matvecs.tolist(),
            "flags": flags,
            "eta_lambda": self._eta_lambda(values),
            "reason": None,
        }

    def _operator(self) -> Any:
        models: Any = self.models
        if self.quantity == "ntk":
            data = self.data
            x: Any = [one[0] for one in data] if isinstance(data, list) else data[0]
            return NTK(models, x, **self.options)
        kind: Any = GGN if self.quantity == "ggn" else Hessian
        return kind(models, self.loss, self.data, **self.options)

    def _eta_lambda(self, values: list[list[float]]) -> list[float] | None:
        if self.rates is None:
            return None
        same = len(self.rates) == len(values)
        v.require(same, _WHERE, f"rates must be {len(values)} numbers", len(self.rates))
        return [rate * own[0] for rate, own in zip(self.rates, values, strict=True)]

    def _lost(self, flag: str, reason: str | None) -> StackedRow:
        """A row of NaN for a probe that could not be made."""
        count = _count(self.models)
        nothing = [[math.nan] * self.k for _ in range(count)]
        return {
            "step": self.count,
            "values": nothing,
            "errors": nothing,
            "index_check": ["none"] * count,
            "products": [0] * count,
            "flags": [[flag] for _ in range(count)],
            "eta_lambda": None if self.rates is None else [math.nan] * count,
            "reason": reason,
        }

    def _warn(self, reason: str | None) -> None:
        """Once: rows say the rest."""
        if not self._warned:
            text = f"catapult_ext.{_WHERE}: the probe after step {self.count} failed ({reason})"
            warnings.warn(text, RuntimeWarning, stacklevel=4)
        self._warned = True

    def _identity(self) -> dict[str, Any]:
        """Facts that a loaded state must share with this tracker."""
        own = {"quantity": self.quantity, "models": _count(self.models), "k": self.k}
        return {"format": f"catapult_ext {_WHERE} 1", **own}

    def state_dict(self) -> dict[str, Any]:
        """State carried from probe to probe, including rows, for ``torch.save``."""
        parts = {name.lstrip("_"): getattr(self, name).state_dict() for name in _PARTS}
        jumps = [one.state_dict() for one in self._jumps]
        return {**self._identity(), **attributes(self, _STATE), **parts, "jumps": jumps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a :meth:`state_dict`; call it after loading the models and before any step.

        Raises:
            TypeError, ValueError: the state of something else, of another quantity, or of another
                number of models or eigenvalues.
        """
        where = f"{_WHERE}.load_state_dict"
        check_state(where, state, self._identity(), (*_STATE, *_PARTS, "jumps"))
        put(self, _STATE, state)
        for name in _PARTS:
            getattr(self, name).load_state_dict(state[name.lstrip("_")])
        self._jumps = [Jumps() for _ in state["jumps"]]
        for jumps, own in zip(self._jumps, state["jumps"], strict=True):
            jumps.load_state_dict(own)

    def _line(self) -> str:
        if not self.probes:
            return f"{_WHERE} of the {self.quantity}: no probe yet"
        row = self.probes[-1]
        tops = first([own[0] for own in row["values"]])
        made = f"{self._made} probes of {len(row['values'])} models in {self.count} steps"
        return f"{_WHERE} of the {self.quantity}: {made}, last at {row['step']}: {tops}"

    def _table(self) -> list[dict[str, Any]]:
        """A row a probe and model."""
        return [
            {
                "step": row["step"],
                "replica": r,
                "value": own[0],
                "error": row["errors"][r][0],
                "eta_lambda": None if row["eta_lambda"] is None else row["eta_lambda"][r],
                "index_check": row["index_check"][r],
                "products": row["products"][r],
                "flags": " ".join(row["flags"][r]),
            }
            for row in self.probes
            for r, own in enumerate(row["values"])
        ]


def _is_state(models: Any) -> bool:
    """Whether these are ``(params, buffers, module)``."""
    return len(models) == 3 and isinstance(models[0], Mapping)


def _count(models: Any) -> int:
    """R."""
    return len(next(iter(models[0].values()))) if _is_state(models) else len(models)


def _numbers(name: str, values: Any) -> list[float]:
    """(R,) numbers as a list."""
    held = values.detach() if isinstance(values, Tensor) else values
    held = v.array(_WHERE, name, held, torch.float64)
    v.require(held.dim() == 1, _WHERE, f"{name} must be a list of numbers", tuple(held.shape))
    return held.tolist()
