"""Slots of tensors that live, and of none that died."""

import torch

from catapult_ext.linops.tracing.slots import Places, Slots


def test_a_tensor_in_the_place_of_a_dead_one_has_no_slot():
    slots, a = Slots(), torch.ones(3)
    slots.put(a, 5)
    assert slots.get(a) == 5
    assert slots.get(a.detach()) is None
    entry = slots._held[id(a)]
    del a
    b = torch.ones(3)
    slots._held[id(b)] = entry  # as if it had the id of the first
    assert slots.get(b) is None


def test_places_are_those_of_memory_that_lives():
    places, a = Places(), torch.ones(4, 3)
    places.put(a, 1)
    places.put(a.T, 2)
    places.put(a[1:], 3)
    assert [places.get(t) for t in (a.detach(), a.T, a[1:].detach())] == [1, 2, 3]
    assert places.get(a[2:]) is None
    assert places.get(a.view(torch.int32)) is None
    kept = a.view(12)
    del a
    assert places.get(kept.view(4, 3)) == 1
    del kept
    assert places._held == {}
    assert places._watches == {}
