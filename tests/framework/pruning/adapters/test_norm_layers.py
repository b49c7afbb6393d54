"""Norms of all kinds: which have an exact cut, what `inexact` frees, and that their attributes follow."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur import load_model, save_model
from secateur.framework.pruning.channels.discovery import channel_groups
from secateur.framework.pruning.channels.groups import ChannelGroup, free_groups
from secateur.framework.pruning.surgery.cutting import cut
from tests.networks import Net, images, masked, random_keep, randomise

Make = Callable[[], nn.Module]


def over_images(norm: nn.Module) -> nn.Module:
    """Two convolutions with a norm of 8 channels between them."""
    net = Net(lambda s, x: s.b(s.n(s.a(x)).relu()), a=nn.Conv2d(3, 8, 3), n=norm, b=nn.Conv2d(8, 4, 1))
    return randomise(net).double().eval()


def over_vectors(norm: nn.Module) -> nn.Module:
    """Two linear layers with a norm of 8 channels between them."""
    return randomise(nn.Sequential(nn.Linear(5, 8), norm, nn.Linear(8, 3))).double().eval()


def cut_half(model: nn.Module, x: Tensor, inexact: bool = False) -> dict[str, ChannelGroup]:
    """Cut at random, twice; the network runs without a warning, and an exact cut is the mask."""
    first: dict[str, ChannelGroup] = {}
    for seed in range(2):
        groups = channel_groups(model, x, inexact=inexact)
        first = first or groups
        keep = random_keep(groups, seed, share=0.6)
        assert any(not bool(mask.all()) for mask in keep.values()) or not free_groups(groups) or seed
        expected = masked(model, keep, groups)(x)
        cut(model, keep, groups)
        with warnings.catch_warnings(), torch.no_grad():  # what a forward keeps can be copied then
            warnings.simplefilter("error")
            found = model(x)
        assert found.shape == expected.shape
        if not inexact:
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    return first


EACH_CHANNEL: dict[str, Make] = {
    "a group for each channel": lambda: nn.GroupNorm(8, 8),
    "a group for each channel, bare": lambda: nn.GroupNorm(8, 8, affine=False),
    "instance norm": lambda: nn.InstanceNorm2d(8),
    "instance norm with a scale": lambda: nn.InstanceNorm2d(8, affine=True),
    "instance norm with statistics": lambda: nn.InstanceNorm2d(8, track_running_stats=True),
    "batch norm of the batch alone": lambda: nn.BatchNorm2d(8, affine=False, track_running_stats=False),
}


@pytest.mark.parametrize("case", EACH_CHANNEL)
def test_what_norms_each_channel_by_itself_has_an_exact_cut(case: str) -> None:
    model, x = over_images(EACH_CHANNEL[case]()), images(3, dtype=torch.float64)
    group = cut_half(model, x)["a"]
    assert (group.channels, group.protected, group.exact) == (8, None, True)
    left = model.a.out_channels
    assert left < 8
    sizes = {
        name: getattr(model.n, name)
        for name in ("num_features", "num_channels", "num_groups")
        if hasattr(model.n, name)
    }
    assert sizes == dict.fromkeys(sizes, left)
    assert sizes


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("count", "channels"), [(1, 8), (2, 4), (4, 2)])
def test_inexact_cuts_the_same_channels_of_every_norm_group(count: int, channels: int, affine: bool) -> None:
    model, x = over_images(nn.GroupNorm(count, 8, affine=affine)), images(3, dtype=torch.float64)
    assert channel_groups(model, x)["a"].protected == "reduced over: GroupNorm at n"
    groups = channel_groups(model, x, inexact=True)
    group = groups["a"]
    assert (group.channels, group.protected, group.exact) == (channels, None, False)
    keep = {"a": torch.arange(channels) != 1}
    expected = torch.arange(8)[(torch.arange(8) % channels) != 1]
    weight = model.a.weight[expected].clone()
    cut(model, keep, groups)
    assert torch.equal(model.a.weight, weight)
    model(x)
    assert (model.n.num_groups, model.n.num_channels) == (count, len(expected))


@pytest.mark.parametrize(
    "norm",
    [
        lambda: nn.LayerNorm(8),
        lambda: nn.LayerNorm(8, elementwise_affine=False),
        lambda: nn.LayerNorm(8, bias=False),
        lambda: nn.RMSNorm(8),
        lambda: nn.RMSNorm(8, elementwise_affine=False),
    ],
)
def test_inexact_frees_what_norms_over_all_channels(norm: Make) -> None:
    model, x = over_vectors(norm()), torch.randn(4, 5, dtype=torch.float64)
    reason = channel_groups(model, x)["0"].protected
    assert reason is not None and reason.startswith("reduced over: ") and reason.endswith(" at 1")
    group = cut_half(model, x, inexact=True)["0"]
    assert (group.protected, group.exact) == (None, False)
    assert model[1].normalized_shape == (model[0].out_features,)
    assert model[0].out_features < 8


@pytest.mark.parametrize("case", EACH_CHANNEL)
def test_norms_of_a_cut_network_are_copied_saved_and_loaded(case: str, tmp_path: Any) -> None:
    model, x = over_images(EACH_CHANNEL[case]()), images(3, dtype=torch.float64)
    dense = copy.deepcopy(model)
    cut_half(model, x)
    expected = model(x)
    assert torch.equal(copy.deepcopy(model)(x), expected)
    save_model(model, tmp_path / "net.safetensors")
    loaded = load_model(tmp_path / "net.safetensors", dense).eval()
    assert torch.equal(loaded(x), expected)


def test_tracing_and_a_trial_leave_the_norms_of_a_dense_network_as_they_are() -> None:
    for make in EACH_CHANNEL.values():
        model = over_images(make())
        kind = type(model.n)
        channel_groups(model, images(3, dtype=torch.float64))
        assert type(model.n) is kind


DEAD: dict[str, Callable[[Any, Tensor], object]] = {
    "mean over channels": lambda s, h: h.mean(1),
    "one channel": lambda s, h: h[:, 0],
    "kept for a log": lambda s, h: setattr(s, "last", h.std()),
    "softmax, shifted in place": lambda s, h: h.softmax(1).add_(1),
    "picked": lambda s, h: h[:, torch.tensor([2, 1])].sum(),
}


@pytest.mark.parametrize("case", DEAD)
def test_what_nobody_reads_protects_nothing(case: str) -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        h = s.a(x)
        DEAD[case](s, h)
        return s.b(h.relu())

    model = randomise(Net(run, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 4, 1))).double().eval()
    group = cut_half(model, images(3, dtype=torch.float64))["a"]
    assert (group.channels, group.protected) == (8, None)


def into_a_view(s: Net, x: Tensor) -> Tensor:
    h = s.a(x)
    out = s.b(h)
    out[:, 0].copy_(h.amax(1))
    return out


def into_the_input(s: Net, x: Tensor) -> Tensor:
    h = s.a(x)
    x[:, 0].add_(h.amax(1))
    return s.b(h) + x.mean((1, 2, 3), keepdim=True)


USED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "added to the output": lambda s, x: (lambda h: s.b(h) + h.amax(1, keepdim=True))(s.a(x)),
    "written into a view of the output": into_a_view,
    "written into the input, which is read": into_the_input,
    "a number for the code": lambda s, x: (lambda h: s.b(h) * h.amax(1).mean().item())(s.a(x)),
}


@pytest.mark.parametrize("case", USED)
def test_what_the_output_depends_on_protects(case: str) -> None:
    model = randomise(Net(USED[case], a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 4, 1)))
    assert "reduced over: amax" in str(channel_groups(model, images(3))["a"].protected)
