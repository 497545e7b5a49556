"""Adapters of `peft` on a small language model: only the adapter is trained."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from architectures.catalogue import Case, add, declare_torchvision_operators, installed, tokens

# config class: options
ADAPTERS: dict[str, dict[str, Any]] = {
    "LoraConfig": dict(
        r=2, target_modules=["c_attn"], init_lora_weights=False, fan_in_fan_out=True
    ),
    "IA3Config": dict(
        target_modules=["c_attn", "c_proj"],
        feedforward_modules=["c_proj"],
        fan_in_fan_out=True,
        init_ia3_weights=False,
    ),
    "PrefixTuningConfig": dict(num_virtual_tokens=2),
    "PromptTuningConfig": dict(num_virtual_tokens=2),
    "PromptEncoderConfig": dict(num_virtual_tokens=2, encoder_hidden_size=4),
    "LoHaConfig": dict(r=2, target_modules=["q_proj"], init_weights=False),
    "LoKrConfig": dict(r=2, target_modules=["q_proj"], init_weights=False),
    "VeraConfig": dict(r=2, target_modules=["q_proj"], init_weights=False),
}
ON_OPT = {"LoHaConfig", "LoKrConfig", "VeraConfig"}


def _built(name: str) -> Case:
    declare_torchvision_operators()
    import peft
    import transformers

    torch.manual_seed(0)
    if name in ON_OPT:
        config: Any = transformers.OPTConfig(
            vocab_size=30,
            hidden_size=8,
            num_hidden_layers=2,
            num_attention_heads=2,
            ffn_dim=12,
            max_position_embeddings=16,
            word_embed_proj_dim=8,
            attn_implementation="eager",
        )
        base: Any = transformers.OPTForCausalLM(config)
    else:
        config = transformers.GPT2Config(
            vocab_size=30,
            n_embd=8,
            n_layer=2,
            n_head=2,
            n_positions=16,
            attn_implementation="eager",
        )
        base = transformers.GPT2LMHeadModel(config)
    adapter = getattr(peft, name)(task_type="CAUSAL_LM", **ADAPTERS[name])
    model = peft.get_peft_model(base, adapter).eval()
    return Case(
        model,
        {"input_ids": tokens(5), "attention_mask": torch.ones(2, 5, dtype=torch.long)},
        lambda m, x: m(**x, use_cache=name.startswith("Prefix")).logits[:, -1, :3],
    )


if installed("peft") and installed("transformers"):
    for each in ADAPTERS:
        add("peft", each, partial(_built, each), default=each == "LoraConfig")
