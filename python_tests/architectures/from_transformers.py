"""Text networks of `transformers`: classifiers, causal language models, encoder-decoders."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from architectures.catalogue import (
    Case,
    add,
    declare_torchvision_operators,
    installed,
    tokens,
    words,
)

SHARED: dict[str, Any] = dict(
    vocab_size=30, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
    intermediate_size=12, max_position_embeddings=16, num_labels=3,
    pad_token_id=0, bos_token_id=1, eos_token_id=2, type_vocab_size=2,
    n_embd=8, n_layer=2, n_head=2, n_positions=16, n_inner=12,
    d_model=8, num_layers=2, num_heads=2, attention_types=[[["global"], 2]], rotary_dim=2,
    dim=8, n_heads=2, n_layers=2, hidden_dim=12, ffn_dim=12, word_embed_proj_dim=8,
    embedding_size=8, num_key_value_heads=1, head_dim=4, d_ff=12, d_kv=4,
    encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
    encoder_ffn_dim=12, decoder_ffn_dim=12, attn_implementation="eager",
    experts_implementation="eager", attention_type="original_full",
)  # fmt: skip
CLASSIFIERS = words(
    """
    Bert Roberta Albert Electra DistilBert Deberta DebertaV2 MPNet ConvBert MobileBert
    SqueezeBert RemBert Camembert BigBird Longformer Nystromformer FNet LayoutLM Ernie Esm
    MegatronBert RoFormer XLM XLMRoberta XLMRobertaXL Flaubert ModernBert NomicBert EuroBert
    IBert
    """
)
CAUSAL = words(
    """
    GPT2 GPTNeo GPTNeoX GPTNeoXJapanese GPTJ GPTBigCode OPT Bloom CodeGen Llama Mistral
    Mixtral Qwen2 Qwen3 Gemma Gemma2 Phi Phi3 Phimoe StableLm Cohere Cohere2 Olmo Olmo2
    Starcoder2 Mpt Persimmon BioGpt CTRL Rwkv Mamba FalconMamba Granite GraniteMoe JetMoe
    Nemotron Glm Glm4 Helium Ernie4_5 SmolLM3 HunYuanDenseV1 Arcee Exaone4 Lfm2 Apertus
    MiniMax GptOss Doge Ministral VaultGemma FlexOlmo BitNet
    """
)
PAIRED = words(
    """
    T5 MT5 UMT5 LongT5 Bart MBart Marian Pegasus PegasusX BigBirdPegasus M2M100 Blenderbot
    BlenderbotSmall NllbMoe
    """
)
DEFAULT = {"Bert", "GPT2", "Llama", "T5", "Albert", "Mixtral", "Mamba"}


def _built(config: str, head: str) -> Any:
    declare_torchvision_operators()
    import transformers

    transformers.logging.set_verbosity_error()
    made = getattr(transformers, f"{config}Config")(**SHARED)
    torch.manual_seed(0)
    return getattr(transformers, head)(made).eval()


def _classifier(name: str) -> Case:
    model = _built(name, f"{name}ForSequenceClassification")
    inputs = {"input_ids": tokens(6)}
    return Case(model, inputs, lambda m, x: m(**x).logits)


def _causal(name: str) -> Case:
    head = f"{name}LMHeadModel" if name in ("GPT2", "CTRL") else f"{name}ForCausalLM"
    return Case(
        _built(name, head),
        {"input_ids": tokens(6)},
        lambda m, x: m(**x, use_cache=False).logits[:, -1, :3],
    )


def _paired(name: str) -> Case:
    return Case(
        _built(name, f"{name}Model"),
        {"input_ids": tokens(5), "decoder_input_ids": tokens(4)},
        lambda m, x: m(**x, use_cache=False).last_hidden_state[:, -1, :3],
        labelled=partial(_translating, name),
    )


def _translating(name: str) -> Any:
    """With a head, and a batch as for training."""
    head = f"{name}MTModel" if name == "Marian" else f"{name}ForConditionalGeneration"
    model = _built(name, head)
    model.config.decoder_start_token_id = 1
    return model, {"input_ids": tokens(5), "labels": tokens(4)}


if installed("transformers"):
    for kind, build in ((CLASSIFIERS, _classifier), (CAUSAL, _causal), (PAIRED, _paired)):
        for each in kind:
            add("transformers", each, partial(build, each), default=each in DEFAULT)
