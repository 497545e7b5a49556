"""Variants of `x-transformers`: one small decoder or encoder an option."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from architectures.catalogue import Case, add, installed, tokens

# Options of the attention layers, one network each.
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rotary": dict(rotary_pos_emb=True, rotary_emb_dim=4),
    "alibi": dict(alibi_pos_bias=True, alibi_num_heads=2),
    "t5_bias": dict(rel_pos_bias=True),
    "rmsnorm": dict(use_rmsnorm=True),
    "swiglu": dict(ff_glu=True, ff_swish=True),
    "macaron": dict(macaron=True),
    "sandwich": dict(sandwich_coef=1),
    "gated_residual": dict(gate_residual=True),
    "talking_heads": dict(attn_pre_talking_heads=True, attn_post_talking_heads=True),
    "qk_norm": dict(attn_qk_norm=True),
    "memory_tokens": {},
    "one_kv_head": dict(attn_one_kv_head=True),
    "shared_layers": dict(weight_tie_layers=True),
}


def _built(name: str) -> Case:
    from x_transformers import Decoder, TransformerWrapper

    torch.manual_seed(0)
    memory = dict(num_memory_tokens=2) if name == "memory_tokens" else {}
    layers = Decoder(dim=8, depth=2, heads=2, attn_dim_head=4, ff_mult=2, **VARIANTS[name])
    model = TransformerWrapper(num_tokens=30, max_seq_len=8, attn_layers=layers, **memory).eval()
    return Case(model, tokens(5), lambda m, x: m(x)[:, -1, :3])


if installed("x_transformers"):
    for each in VARIANTS:
        add("x_transformers", each, partial(_built, each), default=each == "shared_layers")
