"""A model held still: copies of its parameters, buffers and inputs, and its checked forward pass.

The model itself is never touched: no gradients, hooks, buffers or modes change, and training it
afterwards does not change an operator built before.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from catapult_ext import _validate as v
from catapult_ext._batches import count_samples, map_tensors, tensors_of
from catapult_ext._model_call import FORWARD, loss_in, output_tensor
from catapult_ext._module_copy import unwrapped
from catapult_ext.linops.model.channels_last import (
    OtherLayout,
    same_in_either_layout,
    set_channels_last,
    set_plain_layout,
)
from catapult_ext.linops.model.composed import Composed, Composition
from catapult_ext.linops.model.fixed_model import FixedModel, Probe
from catapult_ext.linops.model.habits import (
    Habits,
    WrittenParameters,
    later_random_numbers,
    other_generators,
)
from catapult_ext.linops.model.inputs import (
    Inputs,
    copied_inputs,
    finite,
    fresh_inputs,
)
from catapult_ext.linops.model.leaves import tensors_in
from catapult_ext.linops.model.memory_meter import LIMITS, Meter
from catapult_ext.linops.model.observed import Observed
from catapult_ext.linops.model.pass_context import Note, policed
from catapult_ext.linops.model.pass_tree import Template, Tree
from catapult_ext.linops.model.policy import Policy, check_modules, check_repeats, repeats
from catapult_ext.linops.model.proof import Proof
from catapult_ext.linops.model.state import Chosen, copied_state

Hook = Callable[[nn.Module, Any], Tensor]
_CHECKED = 8  # number of samples, or one in that many, that show whether a pass repeats
_CHECKED_LATER = 2  # samples that do so for a model that was seen to repeat


class Snapshot(FixedModel):
    """A module at fixed parameters and inputs.

    Args:
        model: any module; its trainable floating-point parameters (``requires_grad``) are the P
            parameters, in ``named_parameters`` order; tied ones count once.  Frozen and integer
            parameters and all buffers are constants.  Half-precision models are held in float32.
        x: a tensor, a tuple (positional) or mapping (keyword arguments) of inputs, or a batch in
            another form that :func:`~catapult_ext._model_call.call_model` takes.
        where: the public function named in errors.
        params: names or patterns (``fnmatch``) of the parameters to take, names of modules, or
            parameters themselves; None takes all.
        forward: ``forward(model, x)`` returns the outputs (N, ...); None calls the model.
        policy: see :class:`~catapult_ext.linops.model.policy.Policy`.
        loss: one that may refer to the model; that of :meth:`own_loss` refers to the tree of the
            last pass instead.
        probe: the product that the operator makes and a plan measures: ``"kernel"`` J J' u,
            ``"parameter"`` J' J t, or ``"hessian"`` H t.
        check: :meth:`check_repeats` will follow, so that the proof of the layout may serve it.
        y: labels, which tell N where inputs differ in their leading size.
        pick: the tensor of outputs in what the model returns.
        copy: False shares the parameters with the module, which must not change them.

    Attributes:
        returned_loss: the loss that the model returned with its outputs in the last pass, and of
            which samples; None where it returned none.

    Raises:
        TypeError: not a module, parameters of another or of mixed dtype, outputs of another dtype.
        ValueError: batch statistics, active dropout, any random op (unless the policy allows them),
            non-finite or empty inputs, no trainable parameter, outputs that are empty, depend on no
            parameter, or differ between two forward passes.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Inputs,
        where: str,
        *,
        params: Chosen = None,
        forward: Hook | None = None,
        policy: Policy | None = None,
        loss: Any = None,
        probe: Probe = "kernel",
        check: bool = True,
        y: Any = None,
        pick: Callable[[Any, str], Tensor] = output_tensor,
        copy: bool = True,
    ) -> None:
        self.where, self.probe = where, probe
        inside = torch._C._functorch.peek_interpreter_stack() is not None
        needs = "must be built outside torch.func transforms (it is not differentiable)"
        v.require(not inside, where, needs, "a call inside one")
        self.policy: Policy = policy or Policy()
        self.policy.check(where)
        # names are those of the module inside; a compiled one traces badly under the modes here
        model = unwrapped(check_modules(model, where, self.policy))
        v.require(
            forward is None or callable(forward),
            where,
            "forward must be a function (model, x)",
            forward,
        )
        with torch.inference_mode(False):
            state = copied_state(model, params, where, copy)
            self.params, self.constants = state.params, state.constants
            self._buffers, self._complex = state.buffers, state.complex_params
            self.dtype, self.device, names = state.dtype, state.device, state.originals
            self._shared = state.shared
            self.x = copied_inputs(x, where, self.device)
            self._template = Template(model, forward, loss, names)
        self._n = count_samples(self.x, y)
        self._several = self._n > 1  # so that rows may be some of each sample, in parts too
        self._sampled = [t.dim() > 0 and t.shape[0] == self._n for t in tensors_of(self.x)]
        self._pick = pick
        self.returned_loss: tuple[float, slice] | None = None
        self._proof = Proof(model, forward, names)
        self.habits = self._proof.recalled(self) or Habits()
        self._written_parameters = WrittenParameters()
        self.tree: Tree | None = None  # of the last pass, while a loss may refer to it
        self.names = tuple(self.params)
        self.shapes = tuple(p.shape for p in self.params.values())
        self.sizes = tuple(p.numel() for p in self.params.values())
        self.n_params = sum(self.sizes)
        self._raw: Any = None
        self._check = check
        self._repeated = False  # the last pass with graph was seen to repeat
        self._ran = False  # set by the first forward pass that succeeds
        self.meter: Meter | None = None  # counts forward passes, and stops one that grows too large
        self.coarse = False  # forward passes in bfloat16 (autocast)
        self.proofs: dict[tuple[str, bool, int], str] = {}
        self._composition = Composition()
        self.observed = Observed(self.dtype)  # of the last forward pass with graph
        self.channels_last = False  # images and filters run so
        self.output_shape: tuple[int, ...] = ()  # set by the forward pass: as the model returns
        images = self.device.type == "cpu" and any(len(s) == 4 for s in self.shapes)
        if images and self.habits.takes_channels_last is not False:
            set_channels_last(self)

    def _tensors(self, params: Mapping[str, Tensor]) -> Callable[[str], Tensor]:
        """By name, what a pass at ``params`` is given."""
        own = self.writes_parameters

        def tensor(name: str) -> Tensor:
            # what a pass writes in place must not change the next one
            known = params.get(name)
            if known is None:
                known = self.constants[name]
                return known.clone() if name in self._buffers or own else known
            known = known.clone() if own else known
            return torch.view_as_complex(known) if name in self._complex else known

        return tensor

    def call(self, params: Mapping[str, Tensor]) -> Any:
        """Raw outputs at ``params``; constants and inputs as frozen, in a tree of its own."""
        tree = self._template.tree(self._tensors(params))
        self.tree = tree if tree.loss is not None else None
        held = tensors_in(self.x)
        written = self.habits.writes_inputs
        # parts are views of the inputs of all samples
        apart = written or (written is None and any(t._base is not None for t in held))
        backup = self.x
        if written is None and not apart:
            backup = map_tensors(self.x, Tensor.clone)
        given: list[Tensor] = []

        def taken(value: Tensor) -> Tensor:
            given.append(value.clone() if apart else value)
            return given[-1]

        x = fresh_inputs(self.x, taken)
        before = [t._version for t in given]
        composed = Composed() if self._composition.on else nullcontext()
        versions = self._versions()
        with other_generators(self.habits), composed:
            out = tree.run(x)
        if [t._version for t in given] != before:
            if written is False:
                v.fail(
                    self.where,
                    "the model must write its inputs in place in every pass or in none",
                    "a pass that did after one that did not",
                )
            self.habits.writes_inputs, self.x = True, backup
        elif written is None:
            self.habits.writes_inputs = False
        changed = [k for k, n in self._versions().items() if n != versions[k]]
        if self._written_parameters.see(changed, self.where):
            self._proof.restore(self, changed)
            return self.call(params)
        return out

    def _versions(self) -> dict[str, int]:
        """How many times each parameter was written in place."""
        held = {k: t for k, t in self.constants.items() if k not in self._buffers}
        return {k: t._version for k, t in (*self.params.items(), *held.items())}

    def require_unchanged(self) -> None:
        """Raise RuntimeError where a parameter that is shared with the user's module changed."""
        self._shared.check()

    @property
    def writes_parameters(self) -> bool:
        """Whether the model writes its parameters in place, so that every pass takes copies."""
        return bool(self._written_parameters.known)

    def composes(self) -> bool:
        """Whether the last pass with graph has to run again: composed, from now on."""
        seen = self.observed
        needed = seen.third or (seen.second and self.probe == "hessian")
        if self._composition.on or not needed:
            return False
        self._composition.on = True
        return True

    @property
    def facts(self) -> set[Any]:
        """Proofs of engines that hold for every pass of this kind: model, shapes, modes, hooks."""
        return self._proof.facts

    @property
    def model(self) -> nn.Module:
        """The structure of the model; slots stand for its parameters and buffers."""
        return self._template.model

    def description(self) -> str:
        """The model as it prints itself."""
        state = {**self.constants, **self.params}
        return repr(self._template.tree(state.__getitem__).model)

    def own_loss(self, loss: Any) -> Any:
        """The loss in its first state, referring to the modules that the last pass ran on.

        One that the model was not frozen with (:meth:`GGN.of`) is returned as it is.
        """
        if self._template.loss is None:
            return loss
        if self.tree is None:  # passes were made over parts of the samples
            self.tree = self._template.tree(self._tensors(self.params))
        return self.tree.own_loss()

    def own_names(self, tensors: Sequence[Tensor]) -> list[str]:
        """Names of the user's own parameters among ``tensors``."""
        return self._proof.own_names(tensors)

    def _called(self, params: Mapping[str, Tensor]) -> Any:
        """:meth:`call`, whose first failure names the operator and what the model was given."""
        if self._ran:
            return self.call(params)
        try:
            out = self.call(params)
        except Exception as error:
            if str(error).startswith("catapult_ext.") or isinstance(error, LIMITS):
                raise
            named = self.x.values() if isinstance(self.x, dict) else (self.x,)
            given = self.x if isinstance(self.x, (tuple, list)) else named
            shown = ", ".join(
                f"{tuple(t.shape)} {t.dtype}" if isinstance(t, Tensor) else type(t).__name__
                for t in given
            )
            kind = (
                TypeError if isinstance(error, TypeError) or "dtype" in str(error) else ValueError
            )
            raise kind(
                f"catapult_ext.{self.where}: the model (parameters {self.dtype}) must accept the "
                f"inputs (or pass forward=), got {shown}, on which its forward pass fails: {error}"
            ) from error
        self._ran = True
        return out

    def outputs_in(self, returned: Any) -> Tensor:
        """The tensor of outputs in what the model returned."""
        return self._pick(returned, self.where)

    def outputs(
        self, params: Mapping[str, Tensor], tracer: AbstractContextManager[Any] | None = None
    ) -> Tensor:
        """Outputs (N, d1, ..., dk) as (N, O), O = d1 * ... * dk, in C order.

        Rows that are some of each sample, (N*T, V), count as outputs of their samples: (N, T*V).
        """
        self.require_unchanged()
        low: AbstractContextManager[Any] = nullcontext()
        if self.coarse:
            # the cache would hand a cast made without a graph to a pass that needs one
            low = torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False)
        with tracer or nullcontext(), low:
            returned = self._called(params)
        out = self.outputs_in(returned)
        if torch._C._functorch.peek_interpreter_stack() is None:
            loss = None if out is returned else loss_in(returned)
            self.returned_loss = None if loss is None else (float(loss.detach()), slice(None))
        self._raw = out if tracer else None
        if out.is_floating_point() and out.dtype != self.dtype:
            out = out.to(self.dtype)  # of a layer or a loss that computes in float32, say
        shape = tuple(out.shape)
        needs = f"model outputs must not be empty ({FORWARD})"
        v.require(out.numel() > 0, self.where, needs, shape)
        if out.dtype != self.dtype:
            v.fail(
                self.where,
                f"model output must have the parameters' dtype {self.dtype} ({FORWARD})",
                out.dtype,
                TypeError,
            )
        self.output_shape = shape
        rows = shape[0] if shape else 1
        grouped = self._several and rows % self.n_samples == 0
        return out.reshape(self.n_samples if grouped else rows, -1)

    def forward(self, tracer: AbstractContextManager[Any] | None = None) -> Tensor:
        """One policed forward pass with graph; outputs (N, O), finite, depending on parameters.

        The first one also proves on which tensors the outputs depend, and that channels last serve.
        """
        self._repeated = False
        observed = Observed(self.dtype)
        notes = (observed.take,) if self.meter is None else (self.meter.note, observed.take)
        with self._policed(notes=notes), observed.hooks():
            out = self.outputs(self.params, tracer)
        self.observed = observed
        v.finite(finite(out.detach()), self.where, "model outputs")
        v.require(
            out.requires_grad,
            self.where,
            "model outputs must depend on a trainable parameter",
            "outputs without a graph (is there a torch.no_grad() or detach() in forward?)",
        )
        self._proof.check(self, out, self._template.has_derived, self.habits)
        self._template.forget_graphs()
        if self.channels_last and not self.habits.takes_channels_last:
            self._repeated = self._prove_layout(out.detach())
        return out

    def _policed(self, refuse: bool = True, notes: Sequence[Note] = ()) -> Any:
        return policed(self.policy, self.where, self.device, refuse=refuse, notes=notes)

    def _prove_layout(self, outputs: Tensor) -> bool:
        """Compare ``outputs`` of channels last with those of some samples in the plain layout.

        Where these differ, samples may depend on each other: two are compared in both layouts.  Of
        one sample, every view of channels last exists, so that two are needed.

        Returns:
            Whether the outputs agree so well that the pass is seen to repeat.

        Raises:
            OtherLayout: the layout changes the outputs.
        """
        two = slice(0, min(2, self.n_samples))
        some = self._some_samples() if self._check else two
        plain = copy.copy(self.part(some))
        set_plain_layout(plain)
        last = self.part(two)
        other = copy.copy(last)
        set_plain_layout(other)
        # the caller may measure what its own passes take
        with _disable_current_modes():
            right = plain._again(refuse=False)
            good = same_in_either_layout(right, outputs[some]) or same_in_either_layout(
                other._again(refuse=False), last._again(refuse=False)
            )
        self.habits.takes_channels_last = good
        if not good:
            raise OtherLayout("catapult_ext: channels last change the outputs")
        # another pass of a model that draws numbers is to draw others
        return not self.habits.draws and repeats(outputs[some], right)

    def check_repeats(self, outputs: Tensor) -> None:
        """Raise ValueError unless a second forward pass gives ``outputs`` again.

        The second pass takes up to eight samples, or an eighth of more, spread evenly; two of a
        model that was seen to repeat before.  Where they give other outputs on their own, samples
        may depend on each other: a pass of all decides.
        """
        if not self._repeated:
            self._repeat(outputs.detach())
        self.habits.repeats = True

    def _repeat(self, outputs: Tensor) -> None:
        with later_random_numbers(self.habits):
            if self._some_repeat(outputs):
                return
            # the first pass has refused what is refused: without a watcher, this one is faster
            again = self._again(refuse=False)
        check_repeats(outputs, again, self.where)

    def _some_samples(self) -> slice:
        n = self.n_samples
        if self.habits.repeats:
            return slice(0, n, max(1, -(-n // _CHECKED_LATER)))
        return slice(0, n, max(1, n // max(_CHECKED, n // _CHECKED)))

    def _some_repeat(self, outputs: Tensor) -> bool:
        some = self._some_samples()
        if some.step == 1 or self.policy.batch_stats is not None or self.policy.dropout is not None:
            return False
        try:
            return repeats(outputs[some], self.part(some)._again(refuse=False))
        except LIMITS:
            raise
        except Exception:  # the model needs all samples
            return False

    @contextmanager
    def aside(self, refuse: bool = False) -> Iterator[None]:
        """Around passes that no product belongs to; :attr:`tree` is afterwards as it was."""
        kept = self.tree
        try:
            with torch.inference_mode(False), self._policed(refuse):
                yield
        finally:
            self.tree = kept

    def _again(self, refuse: bool = True) -> Tensor:
        """Outputs of one more pass."""
        try:
            with self.aside(refuse), torch.no_grad():
                return self.outputs(self.params)
        except LIMITS:
            raise
        except Exception:  # it may need a graph: derivatives by the inputs, hooks of gradients
            pass
        with self.aside(refuse):
            return self.outputs(self.params).detach()

    def part(self, samples: slice) -> Snapshot:
        """The same model on some of the samples; parameters and constants are shared."""
        sampled = iter(self._sampled)
        part = copy.copy(self)
        part.x = map_tensors(self.x, lambda t: t[samples] if next(sampled) else t)
        part._n = len(range(*samples.indices(self._n)))
        return part

    @property
    def n_samples(self) -> int:
        """N of the inputs."""
        return self._n

    def in_bfloat16(self) -> Snapshot:
        """The same snapshot with forward passes in bfloat16, where torch's autocast has it."""
        out = copy.copy(self)
        out.coarse = True
        return out

    @contextmanager
    def metered(self, limit: float) -> Iterator[Meter]:
        """Counts what forward passes make, and stops one that exceeds ``limit`` bytes.

        Raises:
            OverBudget: a forward pass inside exceeds it.
        """
        self.meter = Meter(self.tensors(), limit)
        try:
            yield self.meter
        finally:
            self.meter = None

    def plain_outputs(self, samples: slice) -> Tensor:
        """Outputs of some of the samples without a graph, checked to be of them alone."""
        part = self.part(samples)
        out = part._again()
        rows = (
            f"{part.n_samples} samples must give as many rows of outputs, or some for each, to be "
            f"taken in chunks ({FORWARD})"
        )
        v.require(out.shape[0] == part.n_samples, self.where, rows, part.output_shape)
        self.output_shape = part.output_shape
        self.returned_loss = (
            None if part.returned_loss is None else (part.returned_loss[0], samples)
        )
        return out

    def take_raw_output(self) -> Any:
        """Outputs of the model in the last traced forward pass; returned once."""
        out, self._raw = self._raw, None
        return out
