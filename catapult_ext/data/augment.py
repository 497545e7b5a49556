"""Random crops and flips of image batches, drawn from a given generator."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from catapult_ext import _validate as v


@dataclass(frozen=True)
class Augment:
    """Shift every image by up to ``crop`` pixels with zeros coming in, and mirror every second one.

    Attributes:
        crop: largest shift in pixels, in both directions; 0 for none.
        flip: mirror left-right with chance 1/2.

    Raises:
        ValueError: for a negative crop.

    Examples:
        >>> cx.data.Augment(crop=2).crop
        2
    """

    crop: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        v.require(self.crop >= 0, "data.Augment", "crop must be >= 0", self.crop)

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """(N, C, H, W) images to new ones; ``x`` is not changed.

        Raises:
            ValueError: for inputs that are not images.
        """
        v.require(x.dim() == 4, "data.Augment", "x must be (N, C, H, W)", tuple(x.shape))
        n, _, height, width = x.shape
        device = generator.device
        if self.flip:
            mirrored = torch.rand(n, generator=generator, device=device) < 0.5
            x = torch.where(mirrored.to(x.device)[:, None, None, None], x.flip(3), x)
        if self.crop == 0:
            return x
        padded = F.pad(x, [self.crop] * 4)
        span = 2 * self.crop + 1
        moves = torch.randint(0, span, (2, n), generator=generator, device=device).to(x.device)
        rows = moves[0][:, None] + torch.arange(height, device=x.device)
        columns = moves[1][:, None] + torch.arange(width, device=x.device)
        sample = torch.arange(n, device=x.device)[:, None, None]
        # Advanced indices around the slice put the channels last.
        picked = padded[sample, :, rows[:, :, None], columns[:, None, :]]
        return picked.permute(0, 3, 1, 2).contiguous()
