"""The base class of the engines: each one says what it can do, what it costs and when it serves.

An engine is one way to multiply by the Jacobian J (N*O, P) of a model at fixed parameters.  Its
class answers every question that the choice, the plan and the operators have about it, so that
nothing outside compares its name or its type.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor

from catapult_ext._progress import report_share
from catapult_ext.linops.engines.plan import Plan
from catapult_ext.linops.model.captured import CapturedProducts
from catapult_ext.linops.model.fixed_model import FixedModel
from catapult_ext.losses import Loss

if TYPE_CHECKING:
    from typing_extensions import Self

WORKSPACE = 1 << 30  # bytes that a dense kernel takes besides its result where no plan limits it
GRAPHS = 6  # memory of a product, at most, in multiples of the bytes that the forward pass keeps


def _no_plan() -> Plan:
    raise RuntimeError("catapult_ext.Linearization: only what freeze() returns has a plan")


@dataclass(frozen=True)
class Allowance:
    """Memory and columns that the products of a linearization may take.

    Attributes:
        columns: right-hand sides multiplied at once; None leaves that to the engine.
        workspace: bytes that a dense kernel or a diagonal may use besides its result.
        room: bytes of the budget that are left while no product runs.
        budget: the budget as the caller wrote it; None where there was none.
        plan: makes the :class:`~catapult_ext.linops.engines.plan.Plan`.
        graphs: captures the products of an operator; None: they are made one kernel at a time.
    """

    columns: int | None = None
    workspace: int = WORKSPACE
    room: int = 1 << 62
    budget: int | str | None = None
    plan: Callable[[], Plan] = _no_plan
    graphs: CapturedProducts | None = None


class KernelPart(Protocol):
    """Some samples of a linearized model, as far as dense kernels need them."""

    outputs: Tensor  # (n, O)

    def kernel(self, other: Any, outputs: str) -> Tensor | None:
        """J J2' with another part of the same kind (None: this one).

        ``outputs`` as in :meth:`Linearization.kernel`, or ``"diagonal"``; None where the workspace
        does not suffice.
        """

    def gradient_bytes(self, outputs: str) -> int:
        """Least bytes of derivatives, for each sample, that :meth:`kernel` makes."""


class HessianProducts(ABC):
    """Products with the Hessian of a loss at fixed parameters.

    Attributes:
        value: the loss.
        columns: right-hand sides multiplied at once; None leaves that to the plan.
    """

    value: Tensor
    columns: int | None = None

    @property
    @abstractmethod
    def gradient(self) -> Tensor:
        """Gradient of the loss, (P,)."""

    @abstractmethod
    def product(self, vectors: Tensor) -> Tensor:
        """H V for V (P, K)."""

    def check(self) -> None:
        """Compare with central differences where Python code brings derivatives of its own.

        Raises:
            RuntimeError: another second derivative; names the code.
        """
        return  # nothing to compare, unless an engine knows better


class Recorder(Protocol):
    """Watches one forward pass for an engine that wants to be chosen by it."""

    @property
    def why(self) -> str:
        """Reason why the engine does not apply; empty where it does."""

    @property
    def altered(self) -> bool:
        """Whether the pass was changed for this recorder: other engines need another one."""

    @property
    def cheap(self) -> bool:
        """Whether recording costs next to nothing compared with the pass."""

    @property
    def likely(self) -> bool:
        """Whether the model looks like one for this engine: expensive recorders then wait."""

    def mode(self) -> AbstractContextManager[Any]:
        """The context in which the forward pass runs."""


@dataclass(frozen=True)
class ForwardPass:
    """A recorded forward pass.

    Attributes:
        outputs: (N, O) with graph.
        raw: the object that the model returned.
        why: what spoke against the engines before this one, for the plan; empty if nothing did.
    """

    outputs: Tensor
    raw: Any
    why: str = ""


class Linearization(ABC):
    """Products with the Jacobian J (N*O, P) at fixed parameters.  Subclasses are the engines.

    ``outputs`` (N, O); flat output index n*O + o; parameters in ``named_parameters`` order.

    Attributes:
        engine: the name, as in ``cx.NTK(..., engine=name)``.
        why: what decided the engine, for the plan.
        proven: the products are right by proof: a second forward pass would show nothing.
        gains_from_columns: several right-hand sides at once cost less than one by one.
        memory_margin: resident bytes over counted ones, of what grows with the samples.
        hvp_modes: values of ``Hessian(hvp=)`` besides None; None where the engine has no Hessian.
        second_of_chunks: the engine has :meth:`second`, which Hessians over chunks need.
        splits_half: J J' u comes without J' u as one vector, for speed or for memory.
        kernel_too_large: the last :meth:`kernel` gave None for want of workspace alone.
        streamed: every product linearizes the model again, chunk by chunk.
    """

    engine: str
    proven: ClassVar[bool] = False
    gains_from_columns: ClassVar[bool] = False
    memory_margin: ClassVar[float] = 1.5  # measured on ten models: fragments, library scratch
    hvp_modes: ClassVar[tuple[str, ...] | None] = None
    second_of_chunks: ClassVar[bool] = False
    streamed: ClassVar[bool] = False
    splits_half: bool = True
    why: str = "chosen"
    kernel_too_large: bool = False

    def __init__(
        self, snapshot: FixedModel, outputs: Tensor, allowance: Allowance | None = None
    ) -> None:
        self.snapshot = snapshot
        self.outputs = outputs.detach()
        self.n_samples, self.n_outputs = outputs.shape
        self.n_params = snapshot.n_params
        self.dtype, self.device = snapshot.dtype, snapshot.device
        self.allowance = Allowance() if allowance is None else allowance

    # How an engine is made and chosen.

    @classmethod
    def build(cls, snapshot: FixedModel) -> Linearization:
        """Build this engine for a snapshot, with a single forward pass if that is enough.

        Raises:
            ValueError: the engine cannot handle the model.
        """
        return cls(snapshot, snapshot.forward())

    @classmethod
    def build_to_measure(cls, snapshot: FixedModel) -> Linearization:
        """Substitute for this engine where a plan measures a few samples."""
        return cls.build(snapshot)

    @classmethod
    def recorder(cls, snapshot: FixedModel) -> Recorder | None:
        """A watcher of the forward pass of ``engine=None``; None: served by name alone."""
        return None

    @classmethod
    def from_pass(
        cls, snapshot: FixedModel, recorder: Any, forward: ForwardPass
    ) -> Linearization | None:
        """This engine of a pass that its ``recorder`` watched; None where ``recorder.why``."""
        return None

    @classmethod
    def part_of(cls, snapshot: FixedModel, workspace: int) -> KernelPart | None:
        """A part with all samples of ``snapshot``; None where they cannot be taken apart."""
        whole = cls.build(snapshot).allowed(Allowance(workspace=workspace))
        return whole.part(slice(0, whole.n_samples))

    # What it may take and what it costs.

    def allowed(self, allowance: Allowance) -> Self:
        """The same linearization under another allowance; tensors are shared."""
        out = copy.copy(self)
        out.allowance = allowance
        return out

    @property
    def columns(self) -> int:
        """Number of right-hand sides multiplied at once."""
        return self.allowance.columns or (64 if self.gains_from_columns else 1)

    @property
    def workspace(self) -> int:
        """Bytes that a dense kernel or a diagonal may use besides its result."""
        return self.allowance.workspace

    @property
    def plan(self) -> Plan:
        """Engine, chunks and predicted costs; a few samples are run to find them."""
        return self.allowance.plan()

    @property
    def rows(self) -> int:
        """N*O."""
        return self.n_samples * self.n_outputs

    def native_bytes(self, n: int) -> float:
        """Bytes that native code takes for n samples and one column, unseen by a meter."""
        return 0.0

    def kernel_flops(self, n: int, product: float) -> float:
        """Flops of the kernel J J' of n samples, at most; ``product``: of one column."""
        # rows by a backward pass for each output of a sample, and the inner products of a triangle
        rows = float(self.rows // self.n_samples * n)
        return self.n_outputs * product / 2 + rows * rows * self.n_params

    def native_flops(self, n: int) -> float | None:
        """Flops of native code for n samples and one column; None: the meter counts them all."""
        return None

    def product_bytes(self, graph: int) -> float:
        """Upper bound on the bytes of a product, where the forward pass keeps ``graph``."""
        return float(GRAPHS * graph + 8 * self.snapshot.bytes)

    # Proofs.

    def check_derivatives(self) -> None:
        """Compare J' with central differences where Python code brings derivatives of its own.

        Raises:
            ValueError: J' is not the derivative of the outputs; names the code.
        """
        return  # nothing to compare, unless an engine knows better

    def check_second(self, seed: Tensor) -> None:
        """Compare :meth:`second` with central differences under the same condition.

        Raises:
            RuntimeError: another second derivative; names the code.
        """
        return  # nothing to compare, unless an engine knows better

    # Products.

    @abstractmethod
    def vjp(self, u: Tensor) -> Tensor:
        """J' u: (N*O, K) to (P, K)."""

    @abstractmethod
    def jvp(self, t: Tensor) -> Tensor:
        """J t: (P, K) to (N*O, K)."""

    def ntk(self, u: Tensor) -> Tensor:
        """J J' u: (N*O, K) to (N*O, K)."""
        return self.jvp(self.vjp(u))

    def ntk_and_half(self, u: Tensor) -> tuple[Tensor, Tensor | None]:
        """J J' u, and J' u (P, K) unless :attr:`splits_half`; both are the caller's."""
        if self.splits_half:
            return self.ntk(u), None
        half = self.vjp(u)
        return self.jvp(half), half

    def second(self, seed: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """J t and the second derivative of <seed, f> times t, for t (P, K); seed (N, O).

        Engines with ``second_of_chunks`` have it.
        """
        raise NotImplementedError(f"catapult_ext.{type(self).__name__}: no second derivatives")

    def hessian(self, loss: Loss, y: Any, hvp: str | None) -> HessianProducts:
        """Products with the Hessian of ``loss`` at ``y``; ``hvp`` is one of ``hvp_modes``."""
        raise NotImplementedError(f"catapult_ext.{type(self).__name__}: no Hessian")

    def kernel_in_int16(self) -> Callable[[Tensor], Tensor] | None:
        """:meth:`ntk` in 16-bit integers; None: of the products that torch makes for it."""
        return None

    def coarse(self) -> Linearization | None:
        """The same products in bfloat16 where autocast has them; None: the engine has none."""
        return None

    def diagonal(self) -> Tensor:
        """Diagonal of J J', (N*O,), one backward pass per entry."""
        unit = torch.zeros(self.rows, 1, dtype=self.dtype, device=self.device)
        out = torch.empty(self.rows, dtype=self.dtype, device=self.device)
        for r in range(self.rows):
            unit[r] = 1
            out[r] = self.vjp(unit).square().sum()
            unit[r] = 0
        return out

    def weighted_diagonal(self, product: Callable[[Tensor], Tensor]) -> Tensor | None:
        """Diagonal of J' H J, (P,), from rows of J; None where they are not at hand.

        Args:
            product: H u for u (N, O, K).
        """
        return None

    def jacobian(self) -> Tensor:
        """J (N*O, P), one backward pass per row."""
        out = torch.empty(self.rows, self.n_params, dtype=self.dtype, device=self.device)
        unit = torch.zeros(self.rows, 1, dtype=self.dtype, device=self.device)
        for r in range(self.rows):
            unit[r] = 1
            out[r] = self.vjp(unit)[:, 0]
            unit[r] = 0
            report_share(r + 1, self.rows)
        return out

    def kernel(self, other: Linearization | None, outputs: str) -> Tensor | None:
        """J J2' as ``ops.gram`` lays it out, where the engine knows layer factors; else None."""
        return None

    def kernel_room(self, n: int) -> int:
        """Bytes that the kernel of n samples takes besides its result, at most."""
        return self.workspace

    def written_out(self, seed: Tensor | None) -> Tensor | None:
        """S' J J' S (N*O, N*O) where a solve with it is cheaper than products; else None.

        Args:
            seed: S' of each sample, (N, O, O); None: the identity.
        """
        return None

    def kernel_bytes(self, outputs: str) -> int:
        """Bytes that :meth:`kernel` takes besides its result."""
        return self.workspace

    def part(self, samples: slice) -> KernelPart | None:
        """Some of the samples for tiles of a kernel; None where they cannot be taken apart."""
        return None
