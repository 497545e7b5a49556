"""Everything of a model, an optimizer and data that a call might change, in comparable form."""

import random

import numpy as np
import torch
import torch.nn.utils.parametrize as parametrize
from torch import nn


def fingerprint(*values):
    """Values, identities and attributes of what is given, and the state of the process."""
    seen = {}
    found = {}
    for k, value in enumerate(values):
        _note(found, f"[{k}]", value, seen)
    found["random"] = (
        torch.get_rng_state().numpy().tobytes(),
        repr(random.getstate()),
        repr(np.random.get_state()),
    )
    found["settings"] = (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.backends.mha.get_fastpath_enabled(),
        torch.backends.cuda.math_sdp_enabled(),
        torch.backends.cuda.flash_sdp_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_default_dtype(),
        torch.utils.checkpoint.CheckpointFunction,
        torch._weight_norm,
        parametrize._cache_enabled,
        {key: id(t) for key, t in parametrize._cache.items()},
    )
    return found


def _note(found, path, value, seen):
    if id(value) in seen:
        found[path] = ("same as", seen[id(value)])
        return
    if isinstance(value, torch.Tensor):
        seen[id(value)] = path
        held = value.detach()
        found[path] = (
            id(value),
            type(value),
            value._version,
            value.requires_grad,
            id(value.grad_fn) if value.grad_fn is not None else None,
            tuple(value.shape),
            (held.to_dense() if held.layout != torch.strided else held)
            .contiguous()
            .view(-1)
            .view(torch.uint8)
            .numpy()
            .tobytes(),
            None if value._backward_hooks is None else list(value._backward_hooks),
        )
        if value.is_leaf:
            _note(found, f"{path}.grad", value.grad, seen)
        _note(found, f"{path}.__dict__", dict(vars(value)), {})
    elif isinstance(value, nn.Module):
        seen[id(value)] = path
        found[path] = (id(value), type(value))
        for name, item in vars(value).items():
            _note(found, f"{path}.{name}", item, seen)
        if isinstance(value, torch.jit.ScriptModule):
            for name, item in value.named_parameters():
                _note(found, f"{path}.{name}", item, seen)
    elif isinstance(value, torch.optim.Optimizer):
        _note(found, f"{path}.param_groups", value.param_groups, seen)
        _note(found, f"{path}.state", dict(value.state), seen)
    elif isinstance(value, dict):
        found[path] = (type(value), [k if isinstance(k, (str, int)) else id(k) for k in value])
        for key, item in value.items():
            _note(found, f"{path}[{key if isinstance(key, (str, int)) else id(key)}]", item, seen)
    elif isinstance(value, (list, tuple, set)) or type(value).__name__ == "deque":
        items = [item for item in value]  # classes made of tuples may refuse len(), as list() asks
        found[path] = (type(value), len(items))
        for k, item in enumerate(items):
            _note(found, f"{path}[{k}]", item, seen)
    elif isinstance(value, torch.Generator):
        found[path] = value.get_state().numpy().tobytes()
    elif isinstance(value, (str, int, float, bool, type(None))):
        found[path] = value
    else:
        found[path] = id(value)


def changes(before, after):
    """Paths at which two fingerprints differ."""
    return [p for p in {**before, **after} if before.get(p) != after.get(p)]
