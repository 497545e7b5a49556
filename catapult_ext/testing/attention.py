"""Small transformers for tests: a vision one and a language model with tied embeddings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ViT(nn.Module):
    """Patches, a class token, learned positions, pre-norm nn.MultiheadAttention: (N, classes)."""

    def __init__(
        self, size: int = 8, patch: int = 4, width: int = 8, depth: int = 2, classes: int = 3
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.5)
        self.positions = nn.Parameter(torch.randn(1, 1 + (size // patch) ** 2, width) * 0.5)
        self.blocks = nn.ModuleList([_ViTBlock(width) for _ in range(depth)])
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Logits from the class token."""
        h = self.patches(x).flatten(2).transpose(1, 2)
        h = torch.cat([self.token.expand(len(h), -1, -1), h], 1) + self.positions
        for block in self.blocks:
            h = block(h)
        return self.head(h[:, 0])


class _ViTBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.two = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, h: Tensor) -> Tensor:
        a = self.one(h)
        h = h + self.attention(a, a, a, need_weights=False)[0]
        return h + self.mlp(self.two(h))


class GPT(nn.Module):
    """GPT-2 in small: causal F.scaled_dot_product_attention, output weights tied to the embedding.

    Tokens (N, S) to the logits of the next one, (N, words).
    """

    def __init__(self, words: int = 7, length: int = 5, width: int = 8, depth: int = 2) -> None:
        super().__init__()
        self.embed, self.positions = nn.Embedding(words, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList([_GPTBlock(width) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits after the last token."""
        h = self.embed(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h)[:, -1])


class _GPTBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.two = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, h: Tensor) -> Tensor:
        n, s, width = h.shape
        q, k, v = self.qkv(self.one(h)).view(n, s, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + self.out(a.transpose(1, 2).reshape(n, s, width))
        return h + self.down(F.gelu(self.up(self.two(h)), approximate="tanh"))
