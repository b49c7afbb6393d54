"""Faults of older pruning code that must not come back, where no other test is about them."""

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur import channel_groups, cut, prune
from secateur.framework.network.layers import prunable_layers
from secateur.framework.plugins.registry import build
from secateur.framework.pruning.channels.discovery import node_sparsity
from secateur.framework.pruning.channels.groups import free_groups
from secateur.framework.schedules.base import During, targets
from secateur.framework.storage.checkpoint import load_model, save_model
from tests import ROOT
from tests.networks import ConvNet, images, masked, pruning_step, randomise, same, seeded, shipped


class Numbered(nn.Module):
    """Names whose last digit is 9, so that one more would be another layer's; one convolution has no norm, and
    the norm that its name points to belongs to another one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer9 = nn.Conv2d(3, 6, 3, padding=1)
        self.layer19 = nn.Conv2d(6, 5, 3, padding=1, bias=False)
        self.layer20 = nn.BatchNorm2d(6)  # of layer9
        self.layer29 = nn.Conv2d(5, 7, 3, padding=1)
        self.layer10 = nn.BatchNorm2d(7)  # of layer29
        self.layer30 = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.layer20(self.layer9(x)))
        x = F.relu(self.layer19(x))
        found: Tensor = self.layer30(F.relu(self.layer10(self.layer29(x))).mean((2, 3)))
        return found


def batch(count: int = 8) -> list[tuple[Tensor, Tensor]]:
    return [(images(count), torch.arange(count) % 4)]


def test_norms_are_found_by_what_the_network_does_and_not_by_their_names() -> None:
    model = randomise(seeded(Numbered))
    groups = channel_groups(model, images(1))
    assert list(free_groups(groups)) == ["layer9", "layer19", "layer29"]
    for layer, norm in (("layer9", "layer20"), ("layer29", "layer10")):
        assert f"{norm}.weight" in {part.tensor for part in groups[layer].slices}
    assert not any("layer20" in part.tensor for part in groups["layer19"].slices)
    keep = {name: torch.arange(group.channels) % 2 == 0 for name, group in free_groups(groups).items()}
    twin = masked(model, keep, groups)
    cut(model, keep, groups)
    assert (model.layer20.num_features, model.layer10.num_features) == (3, 4)
    torch.testing.assert_close(model.eval()(images(4)), twin.eval()(images(4)), rtol=1e-5, atol=1e-6)


def test_numbers_of_features_stay_whole_numbers() -> None:
    model = seeded(ConvNet)
    prune(model, criterion="SNAP", sparsity=0.5, batches=[(images(8), torch.arange(8) % 5)])
    counted = 0
    for module in model.modules():
        for name in ("in_features", "out_features", "in_channels", "out_channels", "num_features"):
            if hasattr(module, name):
                assert type(getattr(module, name)) is int
                counted += 1
    assert counted == 11


@pytest.mark.parametrize("criterion", ["SNAP", "ChannelNorm"])
def test_an_exact_hit_reads_as_the_target_itself(criterion: str) -> None:
    model = shipped("LeNet300")
    data = [(torch.randn(8, 1, 28, 28), torch.arange(8))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = prune(model, criterion=criterion, sparsity=0.5, batches=data)
    assert report.reached == 0.5 == node_sparsity(model, data[0][0])


@pytest.mark.parametrize("criterion", ["EfficientConvNets", "StructuredRandom", "SNAP", "FPGM"])
@pytest.mark.parametrize("sparsity", [0.01, 0.99])
def test_layers_too_small_for_the_share_are_left_and_never_emptied(criterion: str, sparsity: float) -> None:
    model = seeded(Numbered)
    assert all(parameter.grad is None for parameter in model.parameters())  # nothing has filled them before
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a target that whole channels cannot meet
        prune(model, criterion=criterion, sparsity=sparsity, batches=batch())
    left = [layer.weight.shape[0] for layer in prunable_layers(model).values()][:-1]
    assert left == ([6, 5, 7] if sparsity == 0.01 else [1, 1, 1])


def test_the_channel_that_stays_in_an_emptied_layer_is_the_best_one() -> None:
    model = seeded(Numbered)
    with torch.no_grad():
        for number, layer in enumerate(list(prunable_layers(model).values())[:-1]):
            layer.weight.fill_(1e-6)
            layer.weight[number + 2] = 5e-4  # below the threshold too
    step = pruning_step(model, build("criterions", "GroupHoyerSquare"), images(1))
    event = step(0.5, batch(), F.cross_entropy)  # the threshold decides
    assert [mask.nonzero().flatten().tolist() for mask in event.keep.values()] == [[2], [3], [4]]


def test_after_the_limit_nothing_more_is_pruned_although_norms_have_no_zeros() -> None:
    """Counting the scales of norms as weights kept the limit out of reach, and events went on."""
    model = seeded(ConvNet)
    step = pruning_step(model, build("criterions", "IMP"), images(1))
    events = [step(target, [], F.cross_entropy) for target in (*targets(0.9, 3), 0.9, 0.9)]
    assert [event.removed > 0 for event in events] == [True, True, True, False, False]
    assert events[-1].reached == pytest.approx(0.9, abs=1e-3)
    assert sum(During(0, 1, steps=3).plan(0.9, 20).values(), []) == targets(0.9, 3)  # and no event is planned


def test_both_ways_to_rank_weights_and_channels_in_steps_mean_the_same_share() -> None:
    reached = []
    for name in ("CNIP", "CNIPit", "CNIPitDuring"):
        model = seeded(ConvNet)
        reached.append(
            prune(model, criterion=name, sparsity=0.8, batches=[(images(8), torch.arange(8) % 5)]).reached
        )
    assert reached == pytest.approx([0.8] * 3, abs=5e-3)


@pytest.mark.parametrize("name", ["CrossEntropy", "HoyerSquare", "GroupHoyerSquare", "L0CrossEntropy"])
def test_the_loss_that_is_scored_and_evaluated_has_no_penalty(name: str) -> None:
    outputs, classes = torch.randn(6, 4), torch.arange(6) % 4
    loss = build("losses", name, l1_reg=0.5, lp_reg=0.5)
    assert torch.equal(loss(outputs, classes), F.cross_entropy(outputs, classes))
    assert float(loss.penalty(seeded(ConvNet))) > 1


def test_a_checkpoint_has_the_masks_and_the_shapes(tmp_path: Path) -> None:
    model: Any = build("models", "LeNet300", in_channels=1, num_classes=10, image_size=28)
    data = [(torch.randn(8, 1, 28, 28), torch.arange(8))]
    prune(model, criterion="SNAP", sparsity=0.5, batches=data)
    prune(model, criterion="SNIP", sparsity=0.9, batches=data)
    save_model(model, tmp_path / "one.safetensors")
    loaded = load_model(tmp_path / "one.safetensors")
    assert same(dict(loaded.state_dict()), dict(model.state_dict()))
    assert any("mask" in key for key in dict(loaded.named_buffers()))
    assert sum(parameter.numel() for parameter in loaded.parameters()) < 266_610


def test_a_batch_of_one_has_outputs_for_every_class() -> None:
    for name in ("LeNet5", "LogisticRegression", "ConvOnly"):
        model: Any = build("models", name, in_channels=1, num_classes=10, image_size=32)
        assert model.eval()(torch.randn(1, 1, 32, 32)).shape == (1, 10)


def test_importing_makes_nothing_and_changes_no_warning_filter(tmp_path: Path) -> None:
    script = (
        "import sys, warnings; before = list(warnings.filters); "
        f"sys.path.insert(0, {str(ROOT)!r}); sys.dont_write_bytecode = True; "
        "import secateur.main, secateur.framework.commands.train; from secateur import prune; "
        "simple = [one for one in warnings.filters if one not in before and one[1:] == (None, Warning, None, 0)]; "
        "assert not simple, simple"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())
