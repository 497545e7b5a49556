"""Block Krylov basis with thick restart: V, A V and the projection T = V A V'.

Rows are vectors.  The invariant is ``A V' = V' T + Q' C E'``: only the last block of rows has a
residual, spanned by the ``next`` block Q with coefficients C.  Storing A V too costs memory
but no products: residuals are formed from it, never guessed, and restarts only rotate rows.  Where
memory is short, A V is not kept, and the pairs that are looked at are multiplied once more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from catapult_ext import _validate as v
from catapult_ext.eig.operand import Operand
from catapult_ext.eig.sums import combine, inner, row_norms
from catapult_ext.ops.routes import serves

# Rounding units of |A|: what is left of a product and smaller is taken for nothing.  It may hide
# one of two eigenvalues that differ by a few of them, but normalised it would not be orthogonal.
NOTHING = 4.0
_NOISE_SHARE = 20.0  # noise shows in <u, A v> by at most 20 times what one vector shows of it
_PIECE = 1 << 21  # entries of the basis that a restart rotates at a time
_MOST_NOISE = 0.05  # of |A|: products with more noise say nothing


@dataclass(frozen=True, eq=False)
class Cycle:
    """Ritz data of one cycle: values (m,), start rows (b0, m) and residual rows (m, b) of S."""

    theta: Tensor
    start: Tensor
    residual: Tensor


class Krylov:
    """The growing basis.  ``t`` is float64 on the CPU; vectors stay in the operator's dtype."""

    def __init__(
        self,
        a: Operand,
        capacity: int,
        seed: int,
        where: str,
        at_once: int = 1 << 30,
        keep: bool = True,
    ) -> None:
        self.a, self.where, self.capacity = a, where, capacity
        self.keep = keep  # A V in addition to V
        self.at_once = at_once  # columns multiplied by one call of the operator
        # one row more, where a fused step leaves the next vector
        self.v = torch.empty(capacity + 1, a.n, dtype=a.dtype, device=a.device)
        self.w = self.v.new_empty(capacity if keep else 0, a.n)
        self.t = torch.zeros(capacity, capacity, dtype=torch.float64, device="cpu")
        self.m = 0
        self.scale = 0.0  # products are divided by it, so that any magnitude behaves alike
        self.lift = 1.0  # vectors are multiplied by it, so that products of tiny A keep their bits
        self.norm = 0.0  # largest |A q| met, after scaling
        self.noise = 0.0  # largest |<u, A v> - <A u, v>| met, after scaling
        self._nonlinear = 0.0  # by how much products were seen not to be linear
        self.matvecs = 0
        self.eps = a.eps
        self._alpha, self._beta = self.v.new_zeros(2, 1, capacity + 1)  # of the native steps
        self.start = slice(0, 0)
        self.last = slice(0, 0)
        self.cycles: list[Cycle] = []
        self._random = torch.Generator().manual_seed(seed)
        self.next = self.v[:0]
        self.coupling = torch.zeros(0, 0, dtype=torch.float64, device="cpu")

    def random(self, count: int) -> Tensor:
        """Gaussian rows (count, n), the same for the same seed on every device."""
        rows = torch.randn(
            count, self.a.n, dtype=self.a.dtype, generator=self._random, device="cpu"
        )
        return rows.to(self.a.device)

    def begin(self, block: Tensor) -> None:
        """Take rows of ``block`` (b, n) as a fresh start block, orthogonal to what is there."""
        self.next = self._started(block)
        if not len(self.next) and self.m < self.a.n:
            # a given start and the random part cancelled; in one dimension half of them do
            self.next = self._started(self.random(len(block)))
        self.coupling = self.t.new_zeros(len(self.next), self.last.stop - self.last.start)
        self.start = slice(self.m, self.m + len(self.next))
        self.cycles = []

    def _started(self, block: Tensor) -> Tensor:
        """Orthonormal rows for a ``block``, orthogonal to the basis."""
        basis = self.v[: self.m]
        for _ in range(2):
            block = block - (block @ basis.T) @ basis
        return self._orthonormal(block, basis, 0.0)[0]

    def extend(self) -> None:
        """Multiply the next block, project, and orthogonalise what is left: one Krylov step."""
        q, m = self.next, self.m
        b = len(q)
        rows = slice(m, m + b)
        # first: it refuses values that torch.func wraps
        w = self._product(q, self.w[rows] if self.keep else torch.empty_like(q))
        if q.data_ptr() != self.v[m].data_ptr():  # the fused step has left it in its place
            self.v[rows] = q
        mirrored = self._products_with(q) if m <= 8 else None
        t, mirrored = self._step(w, m + b, mirrored)
        if mirrored is not None:
            self._check_symmetry(t, mirrored)
        t[m:] = (t[m:] + t[m:].T) / 2
        self.t[: m + b, rows] = t
        self.t[rows, : m + b] = t.T
        self.m, self.last = m + b, rows

    def _products_with(self, q: Tensor) -> Tensor:
        """<A v_i, q_j> (m, b): of A V where it is kept, else by the invariant."""
        if self.keep:
            return inner(self.w[: self.m], q)
        out = self.t.new_zeros(self.m, len(q))
        out[self.last] = self.coupling.T
        return out

    def append(self, directions: Tensor) -> None:
        """Multiply the part of ``directions`` (b, n) outside the basis, and project.

        For loops that choose their own directions: the Krylov invariant is given up, residuals come
        from A V alone.
        """
        m = self.m
        sizes = directions.double().norm(dim=1, keepdim=True).clamp_min(1e-300)
        q = self._outside((directions.double() / sizes).to(self.v))
        if not len(q):
            return
        rows = slice(m, m + len(q))
        self._product(q, self.w[rows])
        t = self._projected(rows)
        mirrored = self._products_with(self.v[rows]).cpu()
        skew = torch.cat([t[:m] - mirrored, t[m:] - t[m:].T])
        self.noise = max(self.noise, skew.abs().max().item())
        t[m:] = (t[m:] + t[m:].T) / 2
        self.t[: rows.stop, rows] = t
        self.t[rows, : rows.stop] = t.T
        self.m = rows.stop

    def _outside(self, block: Tensor) -> Tensor:
        """Rows of the basis, from here on, for the part of unit rows that lies outside it."""
        m, basis = self.m, self.v[: self.m]
        for _ in range(2):
            block = block - (block @ basis.T) @ basis
        q, _ = self._orthonormal(block, basis, 8 * self.eps)
        q = q - (q @ basis.T) @ basis  # what normalising has blown up
        q = (q / q.double().norm(dim=1, keepdim=True).to(q))[: self.capacity - m]
        self.v[m : m + len(q)] = q
        return self.v[m : m + len(q)]

    def _seen(self, norms: Tensor) -> None:
        """Take note of the norms of scaled products, which are not finite where a product is."""
        self._seen_length(norms.max().item())

    def _seen_length(self, largest: float) -> None:
        v.finite(math.isfinite(largest), self.where, "products with A")
        self.norm = max(self.norm, largest)

    def _projected(self, rows: slice) -> Tensor:
        """The new columns of T for new ``rows`` of V and A V."""
        return inner(self.v[: rows.stop], self.w[rows])

    def _step(self, w: Tensor, rows: int, mirrored: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """New columns of T for products ``w`` with the last of ``rows`` rows; sets the next block.

        ``mirrored`` comes back on the host.
        """
        fused = serves("lanczos_step", self.a.device, len(w))
        return (self._fused_step if fused else self._block_step)(w, rows), mirrored

    def _fused_step(self, w: Tensor, rows: int) -> Tensor:
        """One vector: the native recurrence.  Returns the new column of T, sets the next block."""
        column = self.v.new_empty(1, rows)
        # the op's own checks would take longer than its work on a short vector
        torch.ops.catapult.lanczos_step(
            self.v.unsqueeze(0),
            self._alpha,
            self._beta,
            w,
            rows - 1,
            rows,
            column,
            NOTHING * self.eps,
        )
        rest = self._beta[0, rows - 1].item()
        t = column.double().T.contiguous()
        # a product is as long as its projections and what is left of it together
        self._seen_length(math.hypot(torch.linalg.vector_norm(t).item(), rest))
        self.next = self.v[rows : rows + int(rest > 0 and rows < self.a.n)]
        self.coupling = torch.full((len(self.next), 1), rest, dtype=torch.float64, device="cpu")
        return t

    def _block_step(self, w: Tensor, rows: int) -> Tensor:
        """A block of vectors, by GEMMs.  Returns new columns of T, sets the next block."""
        basis = self.v[:rows]
        rest = w
        h = torch.zeros(rows, len(w), dtype=self.a.dtype, device=self.a.device)
        for _ in range(2):  # twice is enough
            step = basis @ rest.T
            rest = rest - step.T @ basis
            h += step
        self.next, self.coupling = self._orthonormal(rest, basis, NOTHING * self.eps * self.norm)
        return h.double().cpu()

    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ritz values ascending (m,), their vectors (m, m) in the basis, residual rows (m, b)."""
        t = self.t[: self.m, : self.m]
        theta, s = torch.linalg.eigh(t)
        return theta, s, s[self.last].T @ self.coupling.T

    @property
    def room(self) -> int:
        """Rows that the basis can still take."""
        return min(self.capacity, self.a.n) - self.m

    def remainder(self, s: Tensor) -> Tensor:
        """Residual rows (m, b), as :meth:`ritz` has them, that may have been taken for nothing."""
        ended = not len(self.next) and self.m < self.a.n
        return s[self.last].T * (NOTHING * self.eps * self.norm if ended else 0.0)

    def restart(self, s: Tensor, theta: Tensor, residual: Tensor, keep: Tensor) -> None:
        """Thick restart on the Ritz vectors ``keep``; the next block stays unchanged."""
        self.cycles.append(Cycle(theta, s[self.start], residual))
        rotate = s[:, keep].to(self.v)
        kept = len(keep)
        self.next = self.next.clone()  # rows move below it
        step = max(1, _PIECE // self.m)
        for rows in (self.v, self.w)[: 1 + self.keep]:  # in pieces: no second basis in memory
            for start in range(0, self.a.n, step):
                piece = slice(start, start + step)
                rows[:kept, piece] = rotate.T @ rows[: self.m, piece]
        self.t.zero_()
        self.t[range(kept), range(kept)] = theta[keep]
        self.m = kept
        # every kept vector's residual lies in the next block
        self.last, self.coupling = slice(0, kept), residual[keep].T.contiguous()
        self.start = slice(kept, kept + len(self.next))

    def unit_vectors(self, s: Tensor) -> Tensor:
        """Unit vectors with coefficients ``s`` (m, k), (k, n), float64."""
        x = combine(s.double().T.to(self.a.device), self.v[: self.m])
        return x / x.norm(dim=1, keepdim=True)

    def vectors(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """Unit vectors with coefficients ``s`` (m, k) and scaled products, (k, n), float64."""
        self._require_bits()
        rotate = s.double().to(self.a.device)
        x, ax = (combine(rotate.T, rows[: self.m]) for rows in (self.v, self.w))
        norms = x.norm(dim=1, keepdim=True)
        return x / norms, ax / norms

    def pairs(self, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rayleigh quotients (k,) of coefficients ``s`` (m, k), unit vectors, Gram of residuals.

        All is computed in float64, a piece of the vectors at a time, and the vectors (k, n) are
        kept in the operator's dtype: whole float64 copies would exceed the basis itself.  Without
        A V this costs k products.
        """
        self._require_bits()
        weights = s.double().T.to(self.a.device)
        rows, products = self.v[: self.m], self.w[: self.m]
        out = self.v.new_empty(len(weights), self.a.n)
        if not self.keep:
            for (x,), piece in self._pieces(weights, rows):
                out[:, piece] = x
            out /= row_norms(out).to(out)[:, None]
            rows, products = out, self._product(out, torch.empty_like(out))
            weights = torch.eye(len(out), dtype=torch.float64, device=self.a.device)
        # in one pass: residuals by the values of T, to be corrected by the quotients x'Ax
        theta = torch.einsum("ik,ij,jk->k", s, self.t[: self.m, : self.m], s).to(weights.device)
        gram, cross, inside = torch.zeros(
            3, len(out), len(out), dtype=torch.float64, device=self.a.device
        )
        for (x, ax), piece in self._pieces(weights, rows, products):
            out[:, piece] = x
            rest = ax - theta[:, None] * x
            gram += rest @ rest.T
            cross += x @ rest.T
            inside += x @ x.T
        squares = inside.diagonal()
        shift, norms = cross.diagonal() / squares, squares.sqrt()
        cross = shift[:, None] * cross
        gram += shift[:, None] * shift * inside - cross - cross.T
        out /= norms.to(out)[:, None]
        return theta + shift, out, gram / (norms[:, None] * norms)

    def _pieces(self, weights: Tensor, *rows: Tensor) -> Iterator[tuple[list[Tensor], slice]]:
        """Combinations of each of ``rows`` in float64, over pieces of the columns."""
        step = max(1, (1 << 19) // max(1, weights.shape[1]))
        for start in range(0, self.a.n, step):
            piece = slice(start, start + step)
            yield [weights @ some[:, piece].double() for some in rows], piece

    def _product(self, q: Tensor, out: Tensor) -> Tensor:
        """Scaled products with the rows q (b, n), written to ``out`` (b, n)."""
        step = min(self.at_once, len(q))
        for i in range(0, len(q), step):
            some = slice(i, i + step)
            found = self._multiplied(q[some])
            torch.div(found, (self.scale or 1.0) * self.lift, out=out[some])
        self._measure(out)
        return out

    def _multiplied(self, q: Tensor) -> Tensor:
        """A times the rows q (b, n), times ``lift``; once more where the first was too small."""
        while True:
            found = self.a.product((q if self.lift == 1.0 else q * self.lift).T).T
            self.matvecs += len(found)
            if self._sized(found):
                return found

    def _measure(self, products: Tensor) -> None:
        """Take note of the norms of scaled products; of one vector the native step tells them."""
        if not serves("lanczos_step", self.a.device, len(products)):
            self._seen(row_norms(products))

    def _sized(self, found: Tensor) -> bool:
        """Check a product; the first that is not zero sets the scale.

        Returns False where it has set ``lift`` as well, so that the product has to be made again: a
        start vector may hold little of the only eigenvector whose eigenvalue is not zero.
        """
        largest = max(abs(bound) for bound in torch.stack(found.aminmax()).tolist())
        v.finite(largest < float("inf"), self.where, "products with A")
        if self.scale == 0.0 and largest > 0:
            exponent = round(math.log2(largest))
            if largest < self._least and self.lift == 1.0:
                most = math.log2(torch.finfo(self.a.dtype).max) - 1
                self.lift = 2.0 ** min(-exponent, int(most))
                return False
            self.scale = 2.0**exponent / self.lift
        return True

    @property
    def _least(self) -> float:
        """Smallest vector norm at which entries near the largest one keep all their bits."""
        kind = torch.finfo(self.a.dtype)
        return kind.tiny / kind.eps

    def _require_bits(self) -> None:
        """Raise ValueError where all of A is so small that its own entries have lost bits."""
        largest = self.norm * self.scale
        needs = f"products with A must be well above {torch.finfo(self.a.dtype).tiny:.2g}"
        kept = self.lift == 1.0 or largest >= self._least
        v.require(kept, self.where, f"{needs}, or lose bits (scale A)", f"{largest:.2g}")

    def _orthonormal(self, block: Tensor, basis: Tensor, drop: float) -> tuple[Tensor, Tensor]:
        """Orthonormal rows Q with block' = Q' C, for a block orthogonal to the basis already.

        Rows whose remainder is at most ``drop`` are left out: they lie in the space already.
        """
        accepted = self.v.new_empty(block.shape)
        count, room = 0, self.a.n - len(basis)
        coefficients = torch.zeros(len(block), len(block), dtype=torch.float64, device="cpu")
        for i, row in enumerate(block):
            before = row_norms(row).item()
            done = accepted[:count]
            h = torch.zeros(count, dtype=torch.float64, device="cpu")
            for _ in range(2):
                step = done @ row
                row = row - step @ done
                h += step.double().cpu()
            coefficients[:count, i] = h
            after = row_norms(row).item()
            lost = after <= max(drop, 4 * self.eps * before) or count >= room
            if lost:
                continue
            row = row / after
            if after < 0.1 * self.norm:  # rounding has been blown up: clean once more
                row = row - (done @ row) @ done - (basis @ row) @ basis
            accepted[count] = row / row_norms(row).to(row.dtype)
            coefficients[count, i] = after
            count += 1
        full = count == len(accepted)
        return accepted if full else accepted[:count].clone(), coefficients[:count]

    def _check_symmetry(self, h: Tensor, mirrored: Tensor) -> None:
        """Measure <u, A v> - <A u, v>: noise of the products, or a matrix that is not symmetric.

        The linear part of A decides where the difference is larger than rounding: noise is what a
        product with a sum of vectors does not share with the sum of their products.  An operator
        that is known to be symmetric is never refused.
        """
        m = len(mirrored)
        skew = (h[:m] - mirrored).abs().max().item() if m else 0.0
        own = h[m:]  # of the new block with itself
        self._met(max(skew, (own - own.T).abs().max().item()), len(h))

    def _met(self, skew: float, rows: int) -> None:
        self.noise = max(self.noise, skew)
        if skew <= self.eps**0.5 * self.norm or skew <= _NOISE_SHARE * self._nonlinear:
            return
        if self.a.symmetric:
            return
        if skew <= _MOST_NOISE * self.norm:
            self._nonlinear = max(self._nonlinear, self._linearity_defect(rows))
            if skew <= _NOISE_SHARE * self._nonlinear:
                return
        v.fail(
            self.where,
            "A must be symmetric and repeatable (of a model: likely causes are a wrong or missing "
            "derivative behind an autograd Function or a gradient hook, and a loss or model that "
            "draws random numbers or keeps state)",
            f"<u, A v> - <A u, v> = {skew / max(self.norm, 1e-300):.2g} |A|, "
            + ("which is no rounding" if self._nonlinear else "too much for rounding"),
        )

    def _linearity_defect(self, count: int) -> float:
        """|A x - sum(c_i A v_i)| for a unit x = sum(c_i v_i) of ``count`` rows, by one product."""
        generator = torch.Generator().manual_seed(0)
        mixed = torch.randn(count, 1, generator=generator, dtype=torch.float64, device="cpu")
        mixed = (mixed / mixed.norm()).to(self.a.device)
        x = combine(mixed.T, self.v[:count]).to(self.v)
        if self.keep:
            ax = combine(mixed.T, self.w[:count])
        else:
            ax = torch.zeros_like(x, dtype=torch.float64)
            for c, row in zip(mixed, self.v[:count, None], strict=True):
                ax += c * self._product(row, torch.empty_like(row)).double()
        return row_norms(self._product(x, torch.empty_like(x)).double() - ax).item()
