"""Weight masks: what they hold at zero, and what they leave alone."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from secateur.framework.network.masks import Masks
from secateur.framework.pruning.channels.discovery import channel_groups
from secateur.framework.pruning.surgery.cutting import cut
from secateur.utils.errors import UsageError
from tests.networks import ConvNet, images, mlp, random_keep, seeded


def half(model: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """Keep a random half of every weight with two dimensions or more."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(parameter.shape, generator=generator) < 0.5
        for name, parameter in model.named_parameters()
        if parameter.dim() > 1
    }


def off(model: nn.Module, keep: dict[str, Tensor]) -> list[Tensor]:
    """The values of the entries that should be zero."""
    return [dict(model.named_parameters())[name].detach()[~mask] for name, mask in keep.items()]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        inputs = torch.randn(8, 12, generator=torch.Generator().manual_seed(step))
        weight = next(model.parameters())
        model(inputs.to(weight)).float().square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_held_entries_are_zero_in_the_parameters_dtype(dtype: torch.dtype) -> None:
    model = seeded(mlp).to(dtype)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    keep = half(model)
    Masks(model).hold(keep)
    assert all(mask.dtype == dtype for mask in Masks(model).values())
    assert not any(values.any() for values in off(model, keep))
    for old, (name, new) in zip(before, model.named_parameters(), strict=True):
        assert torch.equal(new.detach(), old * keep.get(name, torch.ones_like(old)).to(dtype))


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop])
def test_momentum_and_weight_decay_do_not_revive_what_an_attached_mask_holds(make: type) -> None:
    model = seeded(mlp)
    options = {"momentum": 0.9, "weight_decay": 0.1} if make is torch.optim.SGD else {}
    optimizer = make(model.parameters(), lr=0.1, **options)
    train(model, optimizer)  # the moments of every entry are non-zero from here on
    keep = half(model)
    Masks(model).hold(keep)
    end = Masks(model).attach(optimizer)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    train(model, optimizer)
    assert not any(values.any() for values in off(model, keep))
    assert all(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    end()
    train(model, optimizer)
    assert all(values.any() for values in off(model, keep))


def test_without_a_hook_apply_zeroes_again() -> None:
    model = seeded(mlp)
    keep = half(model)
    Masks(model).hold(keep)
    train(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert all(values.any() for values in off(model, keep))
    Masks(model).apply()
    assert not any(values.any() for values in off(model, keep))


def test_only_gradients_of_masked_entries_are_zeroed() -> None:
    model = seeded(mlp)
    keep = half(model)
    Masks(model).hold(keep)
    Masks(model).apply_to_gradients()  # without gradients nothing happens
    model(torch.randn(8, 12, generator=torch.Generator().manual_seed(0))).square().sum().backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model[4].weight.grad = None  # a frozen layer
    Masks(model).apply_to_gradients()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            kept = keep.get(name, torch.ones_like(parameter, dtype=torch.bool))
            assert torch.equal(parameter.grad, before[name] * kept)
    assert model[4].weight.grad is None


def test_the_state_dict_is_that_of_the_dense_model() -> None:
    model = seeded(mlp)
    names = list(model.state_dict())
    Masks(model).hold(half(model))
    assert list(model.state_dict()) == names
    seeded(mlp).load_state_dict(model.state_dict())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_has_masks_of_its_own(copied: object) -> None:
    model = seeded(mlp)
    keep = half(model)
    Masks(model).hold(keep)
    twin = copied(model)  # type: ignore[operator]
    assert {name: (mask != 0).tolist() for name, mask in Masks(twin).items()} == {
        name: mask.tolist() for name, mask in keep.items()
    }
    Masks(model).hold({"0.weight": torch.zeros(8, 12, dtype=torch.bool)})
    assert Masks(twin)["0.weight"].any()
    train(twin, torch.optim.SGD(twin.parameters(), lr=0.1))
    Masks(twin).apply()
    assert not any(values.any() for values in off(twin, keep))


def test_masks_follow_the_model_to_another_dtype() -> None:
    model = seeded(mlp)
    keep = half(model)
    Masks(model).hold(keep)
    model.double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Masks(model).attach(optimizer)
    train(model, optimizer)
    assert not any(values.any() for values in off(model, keep))


def test_a_mask_is_laid_out_like_its_parameter() -> None:
    model = seeded(ConvNet).to(memory_format=torch.channels_last)
    Masks(model).hold({"a.weight": torch.rand(6, 3, 3, 3) < 0.5})
    assert Masks(model)["a.weight"].stride() == model.a.weight.stride()


def test_an_earlier_mask_stays_held() -> None:
    model = seeded(mlp)
    first, second = half(model, 1), half(model, 2)
    Masks(model).hold(first)
    Masks(model).hold({"0.weight": second["0.weight"]})
    assert torch.equal(Masks(model)["0.weight"] != 0, first["0.weight"] & second["0.weight"])
    assert torch.equal(Masks(model)["2.weight"] != 0, first["2.weight"])


def test_dropped_masks_hold_nothing() -> None:
    model = seeded(mlp)
    keep = half(model)
    Masks(model).hold(keep)
    Masks(model).drop()
    assert len(Masks(model)) == 0
    assert not any(values.any() for values in off(model, keep))
    train(model, torch.optim.SGD(model.parameters(), lr=0.1))
    Masks(model).apply()
    assert all(values.any() for values in off(model, keep))


def test_sparsity_counts_prunable_weights_alone() -> None:
    model = seeded(mlp)
    Masks(model).hold({"0.weight": torch.zeros(8, 12, dtype=torch.bool), "0.bias": torch.zeros(8)})
    assert Masks(model).sparsity == 96 / (96 + 48 + 24)
    assert "2 tensors, 57.14%" in repr(Masks(model))


def test_masks_are_cut_with_their_weights() -> None:
    model = seeded(ConvNet)
    keep = {name: mask for name, mask in half(model).items()}
    Masks(model).hold(keep)
    groups = channel_groups(model, images())
    channels = random_keep(groups)
    cut(model, channels, groups)
    for name, rows, columns in (
        ("a.weight", channels["a"], None),
        ("b.weight", channels["b"], channels["a"]),
        ("c.weight", channels["c"], channels["b"].repeat_interleave(4)),
        ("d.weight", None, channels["c"]),
    ):
        expected = keep[name] if rows is None else keep[name][rows]
        expected = expected if columns is None else expected[:, columns]
        assert torch.equal(Masks(model)[name] != 0, expected)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    Masks(model).attach(optimizer)
    for _ in range(2):
        model(images()).square().sum().backward()
        optimizer.step()
    assert not any((model.get_parameter(name)[mask == 0] != 0).any() for name, mask in Masks(model).items())


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        ({"5.weight": torch.ones(1)}, "no parameter '5.weight'"),
        ({"0.weight": torch.ones(8, 11)}, r"'0.weight' has shape \(8, 11\), expected \(8, 12\)"),
    ],
)
def test_a_mask_that_does_not_fit_is_named_and_nothing_is_held(keep: dict[str, Tensor], words: str) -> None:
    model = seeded(mlp)
    with pytest.raises(UsageError, match=words):
        Masks(model).hold({"2.weight": torch.zeros(6, 8), **keep})
    assert len(Masks(model)) == 0
    assert model[2].weight.all()


def test_an_attached_view_follows_masks_that_come_and_go_by_another() -> None:
    """A view remembers where the masks lie, and looks again whenever any came or went."""
    model = seeded(mlp)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Masks(model).attach(optimizer)
    train(model, optimizer)  # there are none yet
    keep = half(model)
    Masks(model).hold({"0.weight": keep["0.weight"]})
    train(model, optimizer)
    assert not model[0].weight[~keep["0.weight"]].any()
    Masks(model).hold({"2.weight": keep["2.weight"]})
    train(model, optimizer)
    assert not model[0].weight[~keep["0.weight"]].any() and not model[2].weight[~keep["2.weight"]].any()
    Masks(model).drop()
    train(model, optimizer)
    assert model[0].weight[~keep["0.weight"]].any() and model[2].weight[~keep["2.weight"]].any()
