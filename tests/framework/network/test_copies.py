"""A twin has modules and attributes of its own, and the tensors of the network."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from secateur.framework.network.copies import twin_of
from tests.networks import ConvNet, ResNet, images


class Odd(nn.Module):
    """Modules known twice, attributes that change, tensors that are no parameters, a way back to the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 1)
        self.same = self.a
        self.seen: list[Any] = [self.a, {"calls": 0}]
        self.scale = torch.tensor([2.0])
        self.table: dict[str, nn.Module] = {"a": self.a}
        object.__setattr__(self, "whole", [self])
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        self.seen[1]["calls"] += 1
        out: Tensor = self.same(images) * self.scale
        return out


def test_everything_but_the_tensors_is_its_own() -> None:
    model = Odd()
    twin = twin_of(model)
    assert isinstance(twin, Odd) and twin is not model
    assert twin.a is twin.same is twin.seen[0] is twin.table["a"] is not model.a
    assert twin.whole[0] is twin  # type: ignore[attr-defined]
    assert twin.a.weight is model.a.weight and twin.calls is model.calls
    assert twin.scale is not model.scale and torch.equal(twin.scale, model.scale)  # a forward may write to it
    twin(images(2))
    assert (twin.seen[1], model.seen[1]) == ({"calls": 1}, {"calls": 0})
    twin.a._parameters["weight"] = nn.Parameter(torch.zeros(4, 3, 1, 1))
    twin.a.stride = (2, 2)
    twin.a.extra = nn.ReLU()
    assert model.a.weight.any() and model.a.stride == (1, 1) and not list(model.a.children())
    assert twin._non_persistent_buffers_set == {"calls"}
    assert twin._non_persistent_buffers_set is not model._non_persistent_buffers_set


@pytest.mark.parametrize("make", [ConvNet, ResNet, lambda: parametrizations.weight_norm(nn.Conv2d(3, 4, 1))])
def test_it_computes_the_same_and_has_the_same_tables_as_a_deep_copy(make: Any) -> None:
    model = make().eval()
    twin, deep = twin_of(model), copy.deepcopy(model)
    assert torch.equal(twin(images(2)), model(images(2)))
    for one, other in zip(twin.modules(), deep.modules(), strict=True):
        assert type(one).__name__ == type(other).__name__ and vars(one).keys() == vars(other).keys()
        assert repr(one) == repr(other)


def test_a_module_that_says_how_it_is_copied_is_asked() -> None:
    class Careful(nn.Linear):
        def __deepcopy__(self, memo: dict[int, Any]) -> Careful:
            asked.append(self)
            return Careful(2, 2)

    asked: list[nn.Module] = []
    model = nn.Sequential(Careful(2, 2))
    twin_of(model)
    assert asked == [model[0]]


def test_activations_that_a_module_has_stored_are_shared() -> None:
    model = ConvNet()
    model.last = model(images(2))
    model.seen = [model.last * 2, torch.ones(1)]
    twin: Any = twin_of(model)
    assert twin.last is model.last and twin.seen[0] is model.seen[0]
    assert twin.seen is not model.seen and twin.seen[1] is not model.seen[1]
