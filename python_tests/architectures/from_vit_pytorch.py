"""Vision transformers of `vit-pytorch`."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

import torch
from architectures.catalogue import Case, add, declare_torchvision_operators, images, installed

PLAIN: dict[str, Any] = dict(
    image_size=16, patch_size=8, num_classes=3, dim=8, depth=2, heads=2, mlp_dim=12
)
HEADS: dict[str, Any] = dict(dim_head=4)
# module: (class, options, image size)
NETWORKS: dict[str, tuple[str, dict[str, Any], int]] = {
    "vit": ("ViT", PLAIN | HEADS, 16),
    "simple_vit": ("SimpleViT", PLAIN | HEADS, 16),
    "deepvit": ("DeepViT", PLAIN | HEADS, 16),
    "cait": ("CaiT", PLAIN | HEADS | dict(cls_depth=1), 16),
    "cct": (
        "CCT",
        dict(
            img_size=16,
            embedding_dim=8,
            num_layers=1,
            num_heads=2,
            mlp_ratio=2,
            num_classes=3,
            n_conv_layers=1,
        ),
        16,
    ),
    "cross_vit": (
        "CrossViT",
        dict(
            image_size=16,
            num_classes=3,
            depth=1,
            sm_dim=8,
            sm_patch_size=4,
            sm_enc_depth=1,
            sm_enc_heads=2,
            sm_enc_mlp_dim=8,
            sm_enc_dim_head=4,
            lg_dim=8,
            lg_patch_size=8,
            lg_enc_depth=1,
            lg_enc_heads=2,
            lg_enc_mlp_dim=8,
            lg_enc_dim_head=4,
            cross_attn_depth=1,
            cross_attn_heads=2,
            cross_attn_dim_head=4,
        ),
        16,
    ),
    "parallel_vit": ("ViT", PLAIN | HEADS | dict(num_parallel_branches=2), 16),
    "vit_for_small_dataset": ("ViT", PLAIN | HEADS, 16),
    "vit_with_patch_merger": (
        "ViT",
        PLAIN | HEADS | dict(patch_merge_layer=1, patch_merge_num_tokens=2),
        16,
    ),
    "vit_with_patch_dropout": ("ViT", PLAIN | HEADS | dict(patch_dropout=0.25), 16),
    "learnable_memory_vit": ("ViT", PLAIN | HEADS, 16),
    "simple_vit_with_register_tokens": ("SimpleViT", PLAIN | HEADS, 16),
    "simple_vit_with_value_residual": ("SimpleViT", PLAIN | HEADS, 16),
    "simple_vit_with_qk_norm": ("SimpleViT", PLAIN | HEADS, 16),
    "simple_vit_with_fft": ("SimpleViT", PLAIN | HEADS | dict(freq_patch_size=8), 16),
    "simple_vit_with_hyper_connections": (
        "SimpleViT",
        PLAIN | HEADS | dict(num_residual_streams=2),
        16,
    ),
    "simple_vit_attn_residual": ("SimpleViTAttnResidual", PLAIN | HEADS, 16),
    "simple_vit_with_patch_dropout": ("SimpleViT", PLAIN | HEADS, 16),
    "rvt": ("RvT", PLAIN, 16),
    "nest": (
        "NesT",
        dict(
            image_size=16,
            patch_size=4,
            dim=8,
            heads=2,
            num_hierarchies=2,
            block_repeats=(1, 1),
            num_classes=3,
            dim_head=4,
        ),
        16,
    ),
    "pit": (
        "PiT",
        dict(
            image_size=16,
            patch_size=8,
            dim=8,
            num_classes=3,
            depth=(1, 1),
            heads=2,
            mlp_dim=8,
            dim_head=4,
        ),
        16,
    ),
    "levit": (
        "LeViT",
        dict(
            image_size=32,
            num_classes=3,
            stages=2,
            dim=(8, 8),
            depth=1,
            heads=(1, 1),
            mlp_mult=2,
            dim_key=4,
            dim_value=4,
        ),
        32,
    ),
    "mobile_vit": (
        "MobileViT",
        dict(
            image_size=(64, 64),
            dims=[8, 8, 8],
            channels=[4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 8],
            num_classes=3,
        ),
        64,
    ),
    "max_vit": (
        "MaxViT",
        dict(num_classes=3, dim_conv_stem=4, dim=4, dim_head=4, depth=(1,), window_size=2),
        16,
    ),
    "regionvit": (
        "RegionViT",
        dict(
            dim=(4, 4, 8, 8), depth=(1, 1, 1, 1), window_size=2, num_classes=3, local_patch_size=2
        ),
        64,
    ),
    "scalable_vit": (
        "ScalableViT",
        dict(
            num_classes=3,
            dim=4,
            heads=(1, 1, 1, 1),
            depth=(1, 1, 1, 1),
            ssa_dim_key=(2, 2, 2, 2),
            reduction_factor=(2, 2, 1, 1),
            window_size=(2, 2, None, None),
        ),
        32,
    ),
    "sep_vit": ("SepViT", dict(num_classes=3, dim=4, dim_head=4, heads=(1,), depth=(1,)), 28),
    "twins_svt": (
        "TwinsSVT",
        dict(
            num_classes=3,
            s1_emb_dim=4,
            s1_patch_size=4,
            s1_local_patch_size=2,
            s1_global_k=2,
            s1_depth=1,
            s2_emb_dim=4,
            s2_patch_size=2,
            s2_local_patch_size=1,
            s2_global_k=2,
            s2_depth=1,
            s3_emb_dim=4,
            s3_patch_size=1,
            s3_local_patch_size=1,
            s3_global_k=1,
            s3_depth=1,
            s4_emb_dim=4,
            s4_patch_size=1,
            s4_local_patch_size=1,
            s4_global_k=1,
            s4_depth=1,
        ),
        16,
    ),
    "xcit": ("XCiT", PLAIN | HEADS | dict(cls_depth=1), 16),
    "look_vit": (
        "LookViT",
        dict(
            dim=8,
            image_size=32,
            num_classes=3,
            depth=1,
            patch_size=8,
            heads=2,
            dim_head=4,
            highres_patch_size=4,
            cross_attn_heads=2,
            cross_attn_dim_head=4,
        ),
        32,
    ),
    "jumbo_vit": ("JumboViT", PLAIN | HEADS | dict(jumbo_cls_k=2), 16),
    "normalized_vit": ("nViT", PLAIN | HEADS, 16),
    "vit_detpool": ("ViTDetPool", PLAIN | HEADS, 16),
}


def _built(module: str) -> Case:
    declare_torchvision_operators()
    kind, options, size = NETWORKS[module]
    torch.manual_seed(0)
    model = getattr(importlib.import_module(f"vit_pytorch.{module}"), kind)(**options).eval()
    return Case(model, images(size), lambda m, x: m(x))


if installed("vit_pytorch"):
    for each in NETWORKS:
        add("vit_pytorch", each, partial(_built, each), default=each in ("vit", "cct", "nest"))
