"""Gates on batch norms compute the same, and go back into the norms without a trace."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from secateur.framework.network.lineage import lineage_of
from secateur.framework.plugins.registry import build
from secateur.framework.pruning.channels.discovery import channel_groups
from secateur.framework.pruning.gated_layers.gated_batch_norm import add_gates, fold_gates, gated_norms
from secateur.framework.pruning.surgery.cutting import cut
from secateur.framework.storage.checkpoint import load_model, save_model
from tests.networks import ConvNet, ResNet, images, mask_channels, randomise, seeded, shipped


def gated(model: nn.Module, **options: float) -> nn.Module:
    add_gates(model, **options)
    return model


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), training=st.booleans(), clamp=st.sampled_from([0.0, 0.5, 10.0]))
def test_a_gated_network_computes_the_same_and_so_does_the_folded_one(
    seed: int, training: bool, clamp: float
) -> None:
    model = randomise(seeded(ConvNet, seed), seed).double().train(training)
    with torch.no_grad():  # a scale of zero, a shift far beyond the clamp, and signs
        model.na.weight[0], model.na.bias[0] = 0.0, 0.7
        model.nb.weight[1], model.nb.bias[1] = 1e-3, -2.0
        model.nc.weight.neg_()
    x = images(6, dtype=torch.float64, seed=seed)
    plain, twin = copy.deepcopy(model), copy.deepcopy(model)
    assert add_gates(twin, clamp) == 3
    folded = copy.deepcopy(twin)
    assert fold_gates(folded) == 3
    expected = plain(x)
    torch.testing.assert_close(twin(x), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(folded(x), expected, rtol=1e-10, atol=1e-10)


def test_a_gate_starts_as_the_scale_and_the_scale_becomes_one_and_rests() -> None:
    model = randomise(seeded(ConvNet))
    scales, shifts = model.na.weight.detach().clone(), model.na.bias.detach().clone()
    gated(model)
    assert torch.equal(model.na.gate, scales) and bool((model.na.weight == 1).all())
    assert not model.na.weight.requires_grad and model.na.gate.requires_grad
    torch.testing.assert_close(model.na.bias, shifts / scales)
    assert not model.na.rest.any()


def test_the_ratio_of_shift_and_scale_is_clamped() -> None:
    model = randomise(seeded(ConvNet))
    with torch.no_grad():
        model.na.weight[:2], model.na.bias[:2] = torch.tensor([0.01, -0.01]), 1.0
    gated(model)
    assert model.na.bias[:2].tolist() == [10.0, -10.0]
    torch.testing.assert_close(model.na.rest[:2], torch.tensor([0.9, 0.9]))


def test_folding_leaves_the_names_types_and_flags_of_a_plain_network() -> None:
    model = randomise(seeded(ResNet))
    state = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    fold_gates(gated(model))
    assert not gated_norms(model)
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == state
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert all(type(module) is nn.BatchNorm2d for name, module in model.named_modules() if name.startswith("n"))


def test_norms_without_a_scale_and_of_other_classes_are_left_alone() -> None:
    class Own(nn.BatchNorm2d):
        pass

    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False), nn.Conv2d(4, 4, 1), Own(4))
    assert add_gates(model) == 0


def test_a_gated_network_is_still_the_architecture_it_was_built_as(tmp_path: object) -> None:
    model = build("models", "LeNet5", in_channels=1, num_classes=10, image_size=28)
    gated(model)
    assert lineage_of(model).name == "LeNet5"
    fold_gates(model)
    assert lineage_of(model).name == "LeNet5"
    assert not any("gate" in name or "rest" in name for name in lineage_of(model).dense)


@pytest.mark.parametrize("name", ["LeNet5", "ResNet18"])
def test_a_gated_network_is_cut_folded_saved_and_loaded(name: str, tmp_path: object) -> None:
    from pathlib import Path

    model = shipped(name).eval()
    x = images(2, channels=1, size=28)
    gated(model)
    with torch.no_grad():
        for norm in gated_norms(model).values():
            norm.rest.normal_()
    groups = channel_groups(model, x)
    keep = {
        group: torch.arange(groups[group].channels) % 3 > 0 for group in groups if groups[group].protected is None
    }
    masked = copy.deepcopy(model)
    for norm in gated_norms(masked).values():  # a mask knows no buffers
        norm.rest.zero_()
    mask_channels(masked, keep, groups)
    with torch.no_grad():
        for part in (part for group in keep for part in groups[group].slices if part.tensor.endswith(".rest")):
            holder = masked.get_submodule(part.tensor.rpartition(".")[0])
            holder.rest.copy_(model.get_submodule(part.tensor.rpartition(".")[0]).rest)
        for group, mask in keep.items():
            for part in groups[group].slices:
                if part.tensor.endswith(".rest"):
                    masked.get_submodule(part.tensor.rpartition(".")[0]).rest[part.index[~mask].flatten()] = 0
    expected = masked(x)
    cut(model, keep, groups)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
    fold_gates(model)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
    file = save_model(model, Path(str(tmp_path)) / "a.safetensors")
    torch.testing.assert_close(load_model(file).eval()(x), model(x), rtol=0, atol=0)
