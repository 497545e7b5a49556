#!/usr/bin/env bash
# vit-pytorch 1.26.14: SepViT's argument window_size has no effect; its attention always uses 7.
#
# The constructor makes one window size for each stage and passes none of them on, so that a network
# built with window_size=4 refuses 32 x 32 images (8 x 8 patches), which windows of 4 divide, and takes
# 28 x 28 images (7 x 7 patches), which they do not.
# Seen: window_size 2, 4 and 7 alike: 32 x 32 AssertionError "height 8 and width 8 must be divisible by
# window size 7", 28 x 28 works.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'torch==2.13.0' numpy einops==0.8.1
"$folder/venv/bin/pip" install -q --no-deps 'vit-pytorch==1.26.14'
"$folder/venv/bin/python" - <<'PY'
import importlib.util
from pathlib import Path

import torch

# The file alone: the package's __init__ imports torchvision, which SepViT does not use.
found = next(p for p in map(Path, __import__("site").getsitepackages()) if (p / "vit_pytorch").is_dir())
spec = importlib.util.spec_from_file_location("sep_vit", found / "vit_pytorch" / "sep_vit.py")
sep_vit = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sep_vit)

for window in (2, 4, 7):
    net = sep_vit.SepViT(num_classes=3, dim=4, dim_head=4, heads=(1,), depth=(1,), window_size=window)
    assert net(torch.randn(1, 3, 28, 28)).shape == (1, 3)
    try:
        net(torch.randn(1, 3, 32, 32))
        raise SystemExit(f"window_size={window} takes 32 x 32 images now")
    except AssertionError as error:
        print(window, error)
        assert str(error) == "height 8 and width 8 must be divisible by window size 7"
PY
echo "as described"
