"""A kernel by tiles of samples: within a memory budget, or into a file that can be resumed later.

A tile is the kernel of some samples with some others, made of two parts of the frozen model; where
a model cannot be taken apart, it is a band of columns, by products with the identity.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import replace
from math import isqrt, prod
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from catapult_ext import _validate as v
from catapult_ext._free_memory import show_bytes
from catapult_ext._progress import Progress, counted
from catapult_ext._store import update_digest
from catapult_ext.linops.engines.base import KernelPart, Linearization
from catapult_ext.linops.engines.plan import parse_budget, same
from catapult_ext.linops.explicit.kernel_file import KernelFile, checksum
from catapult_ext.linops.model.fixed_model import FixedModel
from catapult_ext.linops.model.memory_meter import Meter

_SMALL = 256 << 20
_ROOM = 1 << 29  # bytes that tiles use at most
Tile = tuple[slice, slice]  # samples of the rows, samples of the columns


class Kernel(Protocol):
    """A kernel as far as its tiles need it: an NTK of one or two linearizations."""

    linearization: Linearization
    linearization2: Linearization  # of the columns; the same for a symmetric kernel
    symmetric: bool
    shape: tuple[int, int]
    n_outputs: int

    def __matmul__(self, vectors: Tensor) -> Tensor: ...

    def _unit_columns(self, start: int, stop: int) -> Tensor: ...


class Tiles:
    """The kernel of an operator in one layout, tile by tile.

    Args:
        operator: the kernel.
        layout: ``"flat"`` or ``"blocks"``.
        outputs: ``"all"`` or ``"trace"``, or ``"diagonal"`` for :meth:`diagonal`.
        storage: dtype of a file, where it is not that of the kernel.
    """

    def __init__(
        self, operator: Kernel, layout: str, outputs: str, storage: torch.dtype | None = None
    ) -> None:
        self.operator, self.layout, self.outputs = operator, layout, outputs
        self.one, self.two = operator.linearization, operator.linearization2
        self.symmetric = operator.symmetric
        self.n1, self.n2 = self.one.n_samples, self.two.n_samples
        self.o = o = operator.n_outputs
        self.rows = self.one.n_outputs // o  # of one sample, where a model returns several
        # a sum over the outputs of a row is none over those of a sample of several rows
        self.asked = "all" if outputs == "trace" and self.rows > 1 else outputs
        self.width = self.rows * (1 if outputs == "trace" else o)
        self.shape: tuple[int, ...] = (self.n1 * self.width, self.n2 * self.width)
        if layout == "blocks" and outputs == "all":
            self.shape = (self.n1 * self.rows, self.n2 * self.rows, o, o)
        self.item = self.one.snapshot.itemsize
        self.bytes = prod(self.shape) * self.item
        self.storage = self.one.dtype if storage is None else storage
        self.room = min(self.one.allowance.room, self.two.allowance.room, _ROOM)

    def check_budget(self) -> bool:
        """Whether the kernel can be computed as a whole; the one error where it is too large."""
        small = self.bytes + self.one.kernel_bytes(self.asked) <= _SMALL
        given = self.one.allowance.budget
        if small and given is None:
            return not self.one.streamed  # without asking the system for what is free
        budget = parse_budget(given, self.one.device, "NTK.dense")
        v.require(
            self.bytes <= budget,
            "NTK.dense",
            f"the kernel, {show_bytes(self.bytes)}, must fit the memory budget; give "
            "file='kernel.npy' to have it written to disk, block by block",
            show_bytes(budget),
        )
        copies = 1 if (self.layout, self.outputs) == ("flat", "all") else 2
        needed = copies * self.bytes + self.one.kernel_bytes(self.asked)
        if not self.symmetric:
            needed += self.two.kernel_bytes(self.asked)
        return not self.one.streamed and needed <= budget

    def diagonal(self) -> Tensor | None:
        """The diagonal, part by part; None where the model cannot be taken apart."""
        edge = self._edge_of_parts()
        if edge == 0:
            return None
        blocks = []
        for at in range(0, self.n1, edge):
            part = self._part(self.one, slice(at, min(at + edge, self.n1)))
            block = None if part is None else part.kernel(None, "diagonal")
            if block is None:
                return None
            blocks.append(block)
        return torch.cat(blocks)

    def in_memory(self, progress: Progress = None) -> Tensor:
        """The kernel as a tensor."""
        left = min(self.one.allowance.room, self.two.allowance.room) - self.bytes
        self.room = max(min(left, _ROOM), 0)
        cut = self._cut()
        out = torch.empty(self.shape, dtype=self.one.dtype, device=self.one.device)
        tiles = self._tiles(cut)
        with counted(progress, "NTK.dense", len(tiles), "tiles") as counter:
            for tile, block in self._blocks(tiles, cut):
                self._put(out, tile, block)
                counter.add()
        return out

    def in_file(self, path: Path | str, progress: Progress = None) -> Tensor:
        """The kernel in a ``.npy`` file, mapped; only the tiles that it lacks are computed."""
        facts, probe = self._identity()
        with KernelFile(path, self.shape, self.storage, facts, probe, self._cut) as file:
            tiles = self._tiles(file.cut)
            with counted(progress, "NTK.dense", len(tiles), "tiles") as counter:
                if file.done:
                    counter.at(file.done)
                if not file.complete:
                    out = file.writable()
                    left = tiles[file.done :]
                    for at, (tile, block) in enumerate(self._blocks(left, file.cut), file.done + 1):
                        block = block.to(self.storage).contiguous()
                        self._put(out, tile, block)
                        even = self.symmetric and tile[0] == tile[1]
                        # a product reads one triangle, and can check no more
                        check = checksum(block.tril() if even else block)
                        file.finish(at, at == len(tiles), check)
                        counter.at(at)
            return file.result()

    def _cut(self) -> dict[str, Any]:
        """How the kernel is cut: ``by`` parts or products, and the samples of a tile's edge."""
        edge = self._edge_of_parts()
        if edge:
            return {"by": "parts", "edge": edge, "width": self.width}
        columns = self.operator.shape[0] * self.one.n_outputs * self.item  # of one sample
        band = self.room // 8 // max(1, columns)
        return {"by": "products", "edge": max(1, min(band, self.n2))}

    def _edge_of_parts(self) -> int:
        """Largest edge within the room; 0 where the model cannot be taken apart.

        Half of the room is the workspace of two parts, a quarter holds them, a quarter the block.
        """
        few = slice(0, min(2, self.n1))
        one, _ = self._probe(slice(0, 1))
        two, part = self._probe(few)
        if part is None or not same(part.outputs, self.one.outputs[few]):
            return 0
        room = self.room
        held = max(1, two - one)  # of a further sample: what both hold was there before
        width = self.width if self.asked == self.outputs else self.one.n_outputs
        block = isqrt(max(room // 8 // self.item, 1)) // width
        edge = min(
            self.n1 if self.outputs == "diagonal" else block,
            room // 8 // held,
            room // 8 // max(1, part.gradient_bytes(self.asked)),
            max(self.n1, self.n2),
        )
        if edge == 0:  # one sample is more than its share: it may still fit
            edge = 1
        return edge if part.kernel(None, self.asked) is not None else 0

    def _probe(self, samples: slice) -> tuple[int, KernelPart | None]:
        """Bytes that a part holds, and the part."""
        with Meter(self.one.snapshot.tensors()) as meter:
            part = self._limited(self.one).part(samples)
        return int(meter.live), part

    def _limited(self, linearization: Linearization) -> Linearization:
        """The linearization with half of the room as workspace."""
        allowance = replace(linearization.allowance, workspace=self.room // 2)
        return linearization.allowed(allowance)

    def _tiles(self, cut: dict[str, Any]) -> list[Tile]:
        edge = cut["edge"]
        columns = [slice(at, min(at + edge, self.n2)) for at in range(0, self.n2, edge)]
        if cut["by"] == "products":
            return [(slice(c.start if self.symmetric else 0, self.n1), c) for c in columns]
        rows = [slice(at, min(at + edge, self.n1)) for at in range(0, self.n1, edge)]
        return [(r, c) for r in rows for c in columns if not self.symmetric or c.start <= r.start]

    def _blocks(self, tiles: list[Tile], cut: dict[str, Any]) -> Iterator[tuple[Tile, Tensor]]:
        by = self._by_parts if cut["by"] == "parts" else self._by_products
        yield from by(tiles)

    def _by_parts(self, tiles: list[Tile]) -> Iterator[tuple[Tile, Tensor]]:
        held: tuple[slice, KernelPart | None] | None = None
        for rows, columns in tiles:
            if held is None or held[0] != rows:
                held = None
                held = rows, self._part(self.one, rows)
            itself = self.symmetric and rows == columns
            part, other = held[1], None
            if part is not None and not itself:
                other = self._part(self.two, columns)
            if part is None or (other is None and not itself):
                yield (rows, columns), self._product(rows, columns)
                continue
            block = part.kernel(other, self.asked)
            if block is None:
                v.fail(
                    "NTK.dense",
                    "the tiles of a kernel that was begun with a larger memory_budget need as much",
                    show_bytes(self.room),
                )
            yield (rows, columns), block if self.asked == self.outputs else self._traced(block)

    def _part(self, linearization: Linearization, samples: slice) -> KernelPart | None:
        """Some samples; None where these cannot be taken apart although the first ones could."""
        part = self._limited(linearization).part(samples)
        if part is None or not same(part.outputs, linearization.outputs[samples]):
            return None
        return part

    def _by_products(self, tiles: list[Tile]) -> Iterator[tuple[Tile, Tensor]]:
        for rows, columns in tiles:
            yield (rows, columns), self._product(rows, columns)

    def _product(self, rows: slice, columns: slice) -> Tensor:
        """One block by products with columns of the identity, as many as the room holds."""
        o = self.one.n_outputs
        step = max(1, self.room // 8 // (self.operator.shape[0] * o * self.item))
        bands = []
        for at in range(columns.start, columns.stop, step):
            units = self.operator._unit_columns(at * o, min(at + step, columns.stop) * o)
            bands.append((self.operator @ units)[rows.start * o : rows.stop * o])
        block = bands[0] if len(bands) == 1 else torch.cat(bands, 1)
        if self.symmetric and rows.start == columns.start:
            square = block[: block.shape[1]]
            square.copy_((square + square.T) / 2)
        return self._traced(block) if self.outputs == "trace" else block

    def _traced(self, block: Tensor) -> Tensor:
        """The sum over the outputs of each row."""
        o = self.o
        return block.view(-1, o, block.shape[1] // o, o).diagonal(dim1=1, dim2=3).sum(-1)

    def _put(self, out: Tensor, tile: Tile, block: Tensor) -> None:
        """A block and, of a symmetric kernel, its mirror image."""
        w, r = self.width // self.rows, self.rows
        shape = (self.n1, r, w, self.n2, r, w)
        whole = out.view(shape)
        if out.dim() == 4:
            whole = out.view(self.n1, r, self.n2, r, w, w).permute(0, 1, 4, 2, 3, 5)
        rows, columns = tile
        block = block.view(rows.stop - rows.start, r, w, columns.stop - columns.start, r, w)
        whole[rows, :, :, columns] = block
        if self.symmetric and rows != columns:
            whole[columns, :, :, rows] = block.permute(3, 4, 5, 0, 1, 2)

    def _identity(self) -> tuple[dict[str, Any], list[float]]:
        """Facts that tell this kernel from every other one, and projected outputs."""
        snapshots = [f.snapshot for f in dict.fromkeys((self.one, self.two))]
        facts = {
            "layout": [self.layout, self.outputs, list(self.shape), str(self.storage)],
            "data": [_digest_of_inputs(s) for s in snapshots],
            **_facts(snapshots[0]),
        }
        generator = torch.Generator().manual_seed(0)
        probe = []
        for linearization in dict.fromkeys((self.one, self.two)):
            f = linearization.outputs.double().cpu()
            u = torch.randn(f.shape, generator=generator, dtype=torch.float64, device="cpu")
            probe += [float(f.norm()), float((u * f).sum() / u.norm())]
        return facts, probe


def _facts(snapshot: FixedModel) -> dict[str, Any]:
    """The model's structure, weights and the options that change its derivatives."""
    weights = hashlib.sha256()
    for name, value in (*snapshot.params.items(), *snapshot.constants.items()):
        update_digest(weights, name, value)
    policy = snapshot.policy
    return {
        # a printed function has an address, which is another one in every process
        "model": hashlib.sha256(
            re.sub(r" at 0x\w+", "", snapshot.description()).encode()
        ).hexdigest(),
        "parameters": list(snapshot.params),
        "weights": weights.hexdigest(),
        "options": [policy.batch_stats, policy.dropout, policy.seed, snapshot.coarse],
    }


def _digest_of_inputs(snapshot: FixedModel) -> str:
    leaves, structure = tree_flatten(snapshot.x)
    digest = hashlib.sha256(str(structure).encode())
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            update_digest(digest, "", leaf)
        else:
            digest.update(repr(leaf).encode())
    return digest.hexdigest()
