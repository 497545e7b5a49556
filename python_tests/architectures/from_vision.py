"""Vision and audio networks of `transformers`."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from architectures.catalogue import Case, add, declare_torchvision_operators, images, installed

SHARED: dict[str, Any] = dict(
    hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12,
    image_size=16, patch_size=8, num_channels=3, num_labels=3, depths=[1, 1],
    hidden_sizes=[8, 16], embed_dim=8, num_heads=[1, 2], window_size=2, embedding_size=8,
    num_stages=2, depth=2, attn_implementation="eager",
)  # fmt: skip
FOUR: dict[str, Any] = dict(
    image_size=32, hidden_sizes=[4, 8, 8, 8], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 1, 1]
)
OPTIONS: dict[str, dict[str, Any]] = {
    "ViT": {}, "DeiT": {}, "Beit": {}, "Data2VecVision": {}, "Dinov2": {},
    "Dinov2WithRegisters": {}, "ViTMSN": {},
    "ConvNext": dict(hidden_sizes=[4, 8]), "ConvNextV2": dict(hidden_sizes=[4, 8]),
    "ResNet": dict(hidden_sizes=[8, 8], layer_type="basic"),
    "Levit": dict(
        image_size=32, hidden_sizes=[16] * 3, num_attention_heads=[1] * 3, depths=[1] * 3,
        key_dim=[4] * 3, mlp_ratio=[2] * 3, attention_ratio=[2] * 3, patch_size=16,
    ),
    "MobileNetV1": dict(depth_multiplier=0.125, image_size=32),
    "MobileNetV2": dict(depth_multiplier=0.125, image_size=32),
    "MobileViT": dict(
        hidden_sizes=[8, 8, 8], neck_hidden_sizes=[4, 4, 4, 4, 4, 8, 8], image_size=32, patch_size=2
    ),
    "PoolFormer": dict(hidden_sizes=[4, 8, 8, 8], depths=[1] * 4), "Pvt": FOUR, "PvtV2": FOUR,
    "Segformer": FOUR | dict(decoder_hidden_size=8),
    "FocalNet": dict(
        patch_size=2, embed_dim=4, hidden_sizes=[4, 8], focal_levels=[1, 1], focal_windows=[3, 3]
    ),
    "SwiftFormer": dict(embed_dims=[4, 8, 8, 8], depths=[1] * 4, image_size=32),
    "Hiera": dict(
        image_size=[16, 16], patch_size=[3, 3], patch_stride=[2, 2], patch_padding=[1, 1],
        embed_dim=4, query_stride=[2, 2], masked_unit_size=[4, 4], num_query_pool=1,
    ),
}  # fmt: skip


def _image_classifier(name: str) -> Case:
    declare_torchvision_operators()
    import transformers

    transformers.logging.set_verbosity_error()
    config = getattr(transformers, f"{name}Config")(**{**SHARED, **OPTIONS[name]})
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForImageClassification")(config).eval()
    size = config.image_size if hasattr(config, "image_size") else 16
    size = size[0] if isinstance(size, (list, tuple)) else size
    return Case(model, {"pixel_values": images(size)}, lambda m, x: m(**x).logits)


if installed("transformers"):
    for each in OPTIONS:
        build = partial(_image_classifier, each)
        add("transformers", each, build, default=each in ("ViT", "Levit", "ConvNext"))
