"""What one rank of the distributed tests does: `python ranks.py MODE RANK SIZE STORE_FILE`."""

import os
import sys
from functools import partial
from itertools import pairwise

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import catapult_ext as cx
from catapult_ext.models import resnet
from catapult_ext.testing.tolerances import assert_close

CUTS = {1: [0, 23], 2: [0, 16, 23], 3: [0, 5, 5, 23], 4: [0, 11, 12, 23, 23]}


def net(scale=1.0, dtype=torch.float64):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 3)).to(dtype)
    with torch.no_grad():
        model[0].weight.mul_(scale)
    return model


def data():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(23, 1, 6, 6, generator=generator, dtype=torch.float64)
    return (
        x,
        torch.randint(3, (23,), generator=generator),
        torch.randn(23, 3, generator=generator, dtype=torch.float64),
    )


close = partial(assert_close, tolerance=1e-12)


def shard(value, rank, cuts):
    return value[cuts[rank] : cuts[rank + 1]]


def same_everywhere(value):
    parts = [None] * dist.get_world_size()
    dist.all_gather_object(parts, value)
    assert all(torch.equal(part, parts[0]) for part in parts)


def check_products(rank, cuts):
    """Ragged (and empty) shards, in memory and streamed, against the whole data."""
    model, (x, labels, y) = net(), data()
    p = sum(q.numel() for q in model.parameters())
    generator = torch.Generator().manual_seed(3)
    v = torch.randn(p, 2, generator=generator, dtype=torch.float64)
    mine = shard(x, rank, cuts)
    for loss, target in (("half_mse", y), (nn.CrossEntropyLoss(), labels)):
        pair = (mine, shard(target, rank, cuts))
        batches = list(zip(pair[0].split(4), pair[1].split(4), strict=True)) if len(mine) else []
        for local in (pair, batches):
            ggn = cx.StreamedGGN(model, loss, local, group="world")
            close(ggn @ v, cx.GGN(model, loss, (x, target)) @ v)
            hessian = cx.StreamedHessian(model, loss, local, group="world")
            close(hessian @ v, cx.Hessian(model, loss, (x, target)) @ v)
            same_everywhere(ggn @ v)
    kernel = cx.StreamedNTK(model, mine, group="world")
    u = torch.randn(69, 2, generator=generator, dtype=torch.float64)
    close(kernel @ u, cx.NTK(model, x) @ u)
    # The volume: P K values summed per product; N O K (padded to the longest shard) gathered.
    longest = max(b - a for a, b in pairwise(cuts))
    before = dict(kernel.group.bytes)
    kernel @ u
    if dist.get_world_size() > 1:
        sent = {name: kernel.group.bytes[name] - before[name] for name in before}
        assert sent == {"all_reduce": p * 2 * 8, "all_gather": longest * 3 * 2 * 8}, sent


def check_eigenvalues(rank, cuts):
    """The same eigenvalues and errors as on one process, in parameter and in sample space."""
    model, (x, _, y) = net(), data()
    pair = (shard(x, rank, cuts), shard(y, rank, cuts))
    whole = cx.eigsh(cx.GGN(model, "half_mse", (x, y)), k=2, tol=1e-8)
    mine = cx.StreamedGGN(model, "half_mse", pair, group="world")
    assert mine.dual() is not None
    streamed = [tuple(t.split(5)[0] for t in pair), tuple(t[5:] for t in pair)]
    for operator in (mine, cx.StreamedGGN(model, "half_mse", streamed, group="world")):
        found = cx.eigsh(operator, k=2, tol=1e-8)
        assert ((found.eigenvalues - whole.eigenvalues).abs() <= 1e-7 * whole.eigenvalues).all()
        assert (found.errors <= 1e-6 * whole.eigenvalues).all()
        same_everywhere(found.eigenvectors)


def check_wrappers(rank, cuts):
    """DDP and FSDP2 modules give the plain module's products."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    (x, _, y) = data()
    pair = (shard(x, rank, cuts), shard(y, rank, cuts))
    v = torch.ones(sum(q.numel() for q in net().parameters()), 1, dtype=torch.float64)
    exact = cx.GGN(net(), "half_mse", (x, y)) @ v
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    sharded = net()
    fully_shard(sharded[3], mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    for model in (DistributedDataParallel(net()), sharded):
        close(cx.StreamedGGN(model, "half_mse", pair, group="world") @ v, exact)
    check_wrapped_resnet(rank, cuts, mesh)


def check_wrapped_resnet(rank, cuts, mesh):
    """lambda_max of ResNet-20, plain on one process and wrapped over the ranks."""
    from torch.distributed.fsdp import fully_shard

    def resnet20():
        torch.manual_seed(0)
        return resnet(20, 10).to(torch.float64).eval()

    generator = torch.Generator().manual_seed(4)
    x = torch.randn(cuts[-1], 3, 8, 8, generator=generator, dtype=torch.float64)
    y = torch.randint(10, (cuts[-1],), generator=generator)
    exact = cx.eigsh(cx.GGN(resnet20(), nn.CrossEntropyLoss(), (x, y)), k=1, tol=1e-6).eigenvalues
    sharded = resnet20()
    for block in sharded.children():
        if any(True for _ in block.parameters()):
            fully_shard(block, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    pair = (shard(x, rank, cuts), shard(y, rank, cuts))
    for model in (DistributedDataParallel(resnet20()), sharded):
        operator = cx.StreamedGGN(model, nn.CrossEntropyLoss(), pair, group="world")
        found = cx.eigsh(operator, k=1, tol=1e-6)
        close(found.eigenvalues, exact, tolerance=1e-6)


def refused(error, text, call):
    with pytest.raises(error) as found:
        call()
    assert text in str(found.value), found.value


def check_mismatches(rank, cuts):
    """Every rank hears of what differs or fails on one of them, before the first product."""
    x, _, y = data()
    last = dist.get_world_size() - 1
    odd = rank == last
    pair = (x, y)
    refused(
        ValueError,
        "values must be the same on all ranks, got",
        lambda: cx.StreamedGGN(net(1.5 if odd else 1.0), "half_mse", pair, group="world"),
    )
    narrow = torch.float32 if odd else torch.float64
    refused(
        ValueError,
        "dtype must be the same on all ranks, got torch.float64 on rank 0",
        lambda: cx.StreamedGGN(
            net(dtype=narrow), "half_mse", (x.to(narrow), y.to(narrow)), group="world"
        ),
    )
    refused(
        RuntimeError,
        f"rank {last}: catapult_ext.losses.half_mse: targets must have the shape",
        lambda: cx.StreamedGGN(net(), "half_mse", (x, y[:-1] if odd else y), group="world"),
    )
    refused(
        ValueError,
        "loss must be the same on all ranks",
        lambda: cx.StreamedGGN(net(), nn.MSELoss() if odd else "half_mse", pair, group="world"),
    )


def lose_a_rank(rank, cuts):
    """The last rank dies in the middle of a solve; the others say which one it was."""
    x, _, y = data()
    pair = (shard(x, rank, cuts), shard(y, rank, cuts))
    operator = cx.StreamedGGN(net(), "half_mse", pair, group="world")
    v = torch.ones(operator.shape[0], 1, dtype=torch.float64)
    last = dist.get_world_size() - 1
    for _ in range(7):
        operator @ v
    # Slow survivors are waited for, so that the lost rank alone is named.
    sys.modules[type(operator.group).__module__].PATIENCE = 600.0
    if rank == last:
        os._exit(9)
    with pytest.raises(RuntimeError, match=f"rank {last} did not answer in all_reduce"):
        operator @ v
    os._exit(3)


def main():
    mode = sys.argv[1]
    rank = int(sys.argv[2])
    size = int(sys.argv[3])
    store = sys.argv[4]
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=size,
    )
    cuts = CUTS[size]
    if mode == "lost":
        lose_a_rank(rank, cuts)
    else:
        for check in (check_products, check_eigenvalues, check_wrappers):
            check(rank, cuts)
        if size > 1:
            check_mismatches(rank, cuts)
        if size == 2:
            check_products(rank, [0, 23, 23])
    dist.barrier()
    dist.destroy_process_group()
    print("ok")


if __name__ == "__main__":
    main()
