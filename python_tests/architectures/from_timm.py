"""Networks of `timm`: its own small test variants, and narrow ones of further families."""

from __future__ import annotations

from functools import partial

import torch
from architectures.catalogue import Case, add, declare_torchvision_operators, images, installed

# name: image size
NETWORKS = {
    "test_byobnet": 32, "test_convnext": 32, "test_convnext2": 32, "test_convnext3": 32,
    "test_efficientnet": 32, "test_efficientnet_evos": 32, "test_efficientnet_gn": 32,
    "test_efficientnet_ln": 32, "test_mambaout": 32, "test_nfnet": 32, "test_resnet": 32,
    "test_vit": 32, "test_vit2": 32, "test_vit3": 160, "test_vit4": 32, "test_vit_relpos": 160,
    "test_coatnet": 160, "test_maxvit": 160,
}  # fmt: skip


def _built(name: str) -> Case:
    declare_torchvision_operators()
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3).eval()
    return Case(model, images(NETWORKS[name]), lambda m, x: m(x))


if installed("timm"):
    for each in NETWORKS:
        add("timm", each, partial(_built, each), default=each in ("test_resnet", "test_vit"))
