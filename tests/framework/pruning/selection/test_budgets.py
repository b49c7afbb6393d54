"""Budgets are met in what a cut network really has; scopes, floors and multiples hold."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur import Masks, build, channel_groups, cut, measure, prune
from secateur.framework.network.layers import prunable_weights
from secateur.framework.network.size import count_macs, macs_by_tensor, weight_sparsity
from secateur.framework.pruning.channels.discovery import node_sparsity
from secateur.framework.pruning.channels.groups import free_groups
from secateur.framework.pruning.selection.budgets import Entries, Macs, make_budget
from secateur.framework.pruning.selection.channel_ranking import ChannelRanking, competing
from secateur.framework.pruning.selection.options import PruneOptions
from secateur.utils.errors import UsageError
from secateur.utils.vision import torchvision
from tests.networks import ConvNet, Net, ResNet, images, randomise, seeded


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return build("models", "ResNet18", in_channels=3, num_classes=10, image_size=32)  # type: ignore[no-any-return]


def params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def weights(model: nn.Module) -> int:
    return sum(weight.numel() for weight in prunable_weights(model).values())


def macs(model: nn.Module) -> int:
    return count_macs(model, torch.randn(1, 3, 32, 32))[0]


@pytest.mark.parametrize("scope", ["global", "layer", "isomorphic"])
@pytest.mark.parametrize("sparsity", [pytest.param(0.3, marks=pytest.mark.slow), 0.7])
@pytest.mark.parametrize(("budget", "count"), [("params", params), ("weights", weights), ("macs", macs)])
def test_a_budget_is_met_within_one_percent_of_what_the_network_had(
    budget: str, count: Any, sparsity: float, scope: str
) -> None:
    model = resnet()
    before = count(model)
    report = prune(
        model, "ChannelNorm", sparsity, example_input=torch.randn(2, 3, 32, 32), budget=budget, scope=scope
    )
    reached = 1 - count(model) / before
    assert reached == pytest.approx(sparsity, abs=0.01)
    assert (report.budget, report.asked) == (budget, sparsity)
    assert report.reached == pytest.approx(reached, abs=1e-9)


def wide() -> nn.Module:
    first, second = nn.Conv2d(3, 24, 3, padding=1), nn.Conv2d(24, 32, 3, padding=1)
    body = nn.Sequential(first, nn.BatchNorm2d(24), nn.ReLU(), second, nn.ReLU(), nn.AdaptiveAvgPool2d(2))
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(128, 40), nn.ReLU(), nn.Linear(40, 5))


def halved(model: nn.Module, x: Tensor) -> nn.Module:
    prune(model, "UnstructuredRandom", 0.5, example_input=x)
    return model


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize(("budget", "measured"), [("weights", "weight_sparsity"), ("nodes", "node_sparsity")])
def test_weights_that_masks_hold_at_zero_are_gone_for_a_budget_too(budget: str, measured: str, scope: str) -> None:
    x = images()
    model = halved(seeded(wide), x)
    for sparsity in (0.6, 0.8):
        report = prune(model, "ChannelNorm", sparsity, example_input=x, budget=budget, scope=scope)
        assert report.reached == pytest.approx(sparsity, abs=0.01 if budget == "weights" else 0.02)
        assert report.reached == pytest.approx(measure(model, x, latency=False)[measured], abs=1e-12)


def test_of_a_masked_network_no_channel_goes_where_the_masks_meet_the_budget() -> None:
    x = images()
    model = halved(seeded(wide), x)
    before = params(model)
    report = prune(model, "ChannelNorm", 0.4, example_input=x, budget="weights")
    assert params(model) == before
    assert report.reached == pytest.approx(0.5, abs=1e-3)


def test_a_unit_without_a_weight_left_is_a_node_that_is_gone() -> None:
    x = images()
    model = seeded(wide)
    weight = prunable_weights(model)["0.weight"]
    keep = torch.ones_like(weight, dtype=torch.bool)
    keep[:9] = False
    Masks(model).hold({"0.weight": keep})
    report = prune(model, "ChannelNorm", 0.5, example_input=x)
    assert report.reached == pytest.approx(0.5, abs=0.02)
    assert report.reached == measure(model, x, latency=False)["node_sparsity"]


@given(st.integers(0, 1000), st.floats(0.0, 0.9), st.floats(0.1, 0.9))
@settings(max_examples=20, deadline=None)
def test_what_a_budget_predicts_of_a_masked_network_is_what_the_cut_one_has(
    seed: int, masked: float, share: float
) -> None:
    x = images()
    model = seeded(ResNet)
    generator = torch.Generator().manual_seed(seed)
    Masks(model).hold(
        {n: torch.rand(w.shape, generator=generator) > masked for n, w in prunable_weights(model).items()}
    )
    groups = free_groups(channel_groups(model, x))
    keep = {name: torch.rand(group.channels, generator=generator) < share for name, group in groups.items()}
    for mask in keep.values():
        mask[0] = True
    budgets = [make_budget(name, model, groups, x, None) for name in ("weights", "nodes")]
    predicted = [budget.predicted(keep) for budget in budgets]
    cut(model, keep, groups)
    assert predicted == pytest.approx([weight_sparsity(model), node_sparsity(model, x)], abs=1e-12)


def test_attention_between_activations_is_counted_in_the_budget() -> None:
    vit = torchvision().models.VisionTransformer(
        image_size=32, patch_size=4, num_layers=2, num_heads=2, hidden_dim=64, mlp_dim=96, num_classes=5
    )
    x = torch.randn(1, 3, 32, 32)
    before, (_, rest) = count_macs(vit, x)[0], macs_by_tensor(vit, x)
    assert rest > 0.1 * before
    report = prune(vit, "ChannelNorm", 0.4, example_input=x, budget="macs")
    assert report.reached == pytest.approx(0.4, abs=0.01)
    assert report.reached == 1 - count_macs(vit, x)[0] / before


def test_latency_is_measured_on_the_batch_that_was_given() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 96, 3, padding=1), nn.ReLU(), nn.Conv2d(96, 96, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Conv2d(96, 8, 3, padding=1))
    x = torch.randn(4, 3, 32, 32)
    try:
        report = prune(model, "ChannelNorm", 0.5, example_input=x, budget="latency")
    except UsageError as error:  # a busy machine: then it says so, and has cut nothing
        assert "budget latency: asked for sparsity 0.5000" in str(error)
        assert model.get_submodule("0").out_channels == 96
    else:
        assert report.budget == "latency"
        assert 8 < model.get_submodule("0").out_channels < 90  # type: ignore[operator]


def test_what_cannot_be_met_is_an_error_that_says_why_and_cuts_nothing() -> None:
    model = resnet()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        UsageError, match=r"budget macs: asked for sparsity 0\.9900, at most 0\.\d+ can be reached"
    ):
        prune(model, "ChannelNorm", 0.99, example_input=torch.randn(1, 3, 32, 32), budget="macs", min_channels=16)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    small = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(72, 4))
    with pytest.raises(UsageError, match=r"whole channels has 0\.\d+, more than 0\.01"):
        prune(small, "ChannelNorm", 0.25, example_input=torch.randn(1, 3, 8, 8), budget="params")
    assert small[0].out_channels == 2


@pytest.mark.parametrize("budget", ["nodes", "macs"])
def test_numbers_of_channels_left_are_multiples_and_the_floor_holds(budget: str) -> None:
    model = resnet()
    report = prune(
        model, "ChannelNorm", 0.6, example_input=torch.randn(1, 3, 32, 32), budget=budget, round_to=8,
        min_channels=16,
    )  # fmt: skip
    groups = channel_groups(model, torch.randn(1, 3, 32, 32))
    free = [group.channels for group in groups.values() if group.protected is None]
    assert all(channels % 8 == 0 and channels >= 16 for channels in free)
    assert report.reached == pytest.approx(0.6, abs=0.02 if budget == "nodes" else 0.01)


def test_the_multiple_of_auto_is_one_that_is_tried() -> None:
    model = resnet()
    prune(model, "ChannelNorm", 0.5, example_input=torch.randn(1, 3, 32, 32), round_to="auto")
    from secateur.framework.network.memory_format import MULTIPLES, fast_multiple

    multiple = fast_multiple(torch.device("cpu"))
    assert multiple in MULTIPLES
    groups = channel_groups(model, torch.randn(1, 3, 32, 32))
    assert all(group.channels % multiple == 0 for group in groups.values() if group.protected is None)


def test_isomorphic_groups_lose_the_same_share_together() -> None:
    model = randomise(seeded(ResNet))
    groups = {k: g for k, g in channel_groups(model, images(1)).items() if g.protected is None}
    generator = torch.Generator().manual_seed(0)
    scores = {name: torch.rand(group.channels, generator=generator) for name, group in groups.items()}
    ranking = ChannelRanking(model, groups, scores, PruneOptions(scope="isomorphic"))
    parts = competing(model, groups, "isomorphic")
    sizes = [sum(groups[name].channels for name in names) for names in parts]
    pruned = [min(round(size / 2), size - len(names)) for size, names in zip(sizes, parts, strict=True)]
    keep = ranking.first(sum(pruned))
    assert [sum(int((~keep[name]).sum()) for name in names) for names in parts] == pruned
    assert sum(pruned) in ranking.ends
    assert 1 < len(parts) < len(groups) or len(groups) <= 2


def test_predictions_are_what_a_cut_network_has() -> None:
    from secateur import cut

    for make in (ConvNet, ResNet):
        model = randomise(seeded(make))
        groups = {k: g for k, g in channel_groups(model, images(1)).items() if g.protected is None}
        keep = {}
        for name, group in groups.items():
            keep[name] = torch.ones(group.channels, dtype=torch.bool)
            keep[name][: group.channels // 2] = False
        x = images(1)
        budgets = [Entries(model, groups, "params"), Entries(model, groups, "weights"), Macs(model, groups, x)]
        assert budgets[2].exact
        expected = [budget.predicted(keep) for budget in budgets]
        smaller = copy.deepcopy(model)
        cut(smaller, keep, groups)
        found = [
            1 - params(smaller) / params(model),
            1 - weights(smaller) / weights(model),
            1 - count_macs(smaller, x)[0] / count_macs(model, x)[0],
        ]
        assert expected == pytest.approx(found, abs=1e-12)
        assert budgets[2].actual(keep) == pytest.approx(found[2], abs=1e-12)


def test_a_second_call_counts_from_the_dense_network() -> None:
    model, x = resnet(), torch.randn(1, 3, 32, 32)
    dense = measure(model, x, latency=False)
    prune(model, "ChannelNorm", 0.3, example_input=x, budget="macs")
    report = prune(model, "ChannelNorm", 0.6, example_input=x, budget="macs")
    assert 1 - measure(model, x, latency=False)["macs"] / dense["macs"] == pytest.approx(0.6, abs=0.01)
    assert report.reached == pytest.approx(0.6, abs=0.01)


def test_iterative_criterions_meet_the_budget_in_their_last_step() -> None:
    model, x = resnet(), torch.randn(8, 3, 32, 32)
    report = prune(model, "SNAPit", 0.7, batches=[(x, torch.arange(8))], budget="params")
    assert len(report.events) > 1
    assert 1 - params(model) / report.before["params"] == pytest.approx(0.7, abs=0.01)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"budget": "flops"}, "unknown budget 'flops'"),
        ({"round_to": 0}, "round_to must be a whole number >= 1, got 0"),
        ({"round_to": "fast"}, "round_to .*'auto', got 'fast'"),
        ({"min_channels": -1}, "min_channels must be a whole number >= 0, got -1"),
        ({"scope": "isomorph"}, "did you mean 'isomorphic'"),
        ({"criterion": "Magnitude", "budget": "macs"}, "is for channels"),
        ({"criterion": "Magnitude", "round_to": 8}, "round_to cannot be combined with Magnitude"),
    ],
)
def test_wrong_limits_are_one_line(options: dict[str, Any], words: str) -> None:
    model = seeded(ConvNet)
    given: dict[str, Any] = {"criterion": "ChannelNorm", **options}
    with pytest.raises(UsageError, match=words):
        prune(model, sparsity=0.5, example_input=images(1), **given)


def test_a_net_whose_only_free_channels_are_no_nodes_says_what_to_ask_for() -> None:
    def run(net: Net, x: Tensor) -> Tensor:
        return net.attention(x, x, x, need_weights=False)[0]  # type: ignore[no-any-return]

    model = Net(run, attention=nn.MultiheadAttention(8, 2, batch_first=True))
    with pytest.raises(UsageError, match="use budget macs"):
        prune(model, "ChannelNorm", 0.5, example_input=torch.randn(1, 3, 8))
    prune(model, "ChannelNorm", 0.2431, example_input=torch.randn(1, 3, 8), budget="params")
    assert model.get_submodule("attention").in_proj_weight.shape[0] < 24  # type: ignore[operator, union-attr, index]


def test_widths_are_rounded_and_not_numbers_of_channels() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 64, 1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1, groups=8), nn.ReLU(), nn.Conv2d(64, 5, 1)
    )
    report = prune(model, "ChannelNorm", 0.5, example_input=images(2), round_to=8)
    assert report.reached == pytest.approx(0.5, abs=0.03)
    assert model[0].out_channels % 8 == model[2].out_channels % 8 == 0 and model[2].out_channels < 64


def test_a_share_of_each_layer_stays_counted_in_the_dense_network() -> None:
    """After several prunings too, and whatever the ranking says."""
    model = nn.Sequential(*[
        layer for width in ((3, 40), (40, 60), (60, 21)) for layer in (nn.Conv2d(*width, 3), nn.ReLU())
    ], nn.Flatten(), nn.LazyLinear(4))  # fmt: skip
    x = torch.randn(1, 3, 9, 9)
    model(x)
    with torch.no_grad():
        model[0].weight.mul_(1e-3)
    for sparsity in (0.5, 0.8):
        prune(model, "ChannelNorm", sparsity, example_input=x, keep_share=0.1)
    widths = [module.weight.shape[0] for module in model if isinstance(module, nn.Conv2d)]
    assert widths[0] == 4 and widths[1] >= 6 and widths[2] >= 3 and sum(widths) == round(0.2 * 121)
    with pytest.raises(UsageError, match="keep_share must be a number >= 0 and < 1, got 1"):
        prune(model, "ChannelNorm", 0.5, example_input=x, keep_share=1)
    with pytest.raises(UsageError, match="keep_share cannot be combined with Magnitude, which prunes weights"):
        prune(model, "Magnitude", 0.5, example_input=x, keep_share=0.1)


@pytest.mark.parametrize("kind", [nn.utils.parametrizations.weight_norm, lambda layer: layer])
def test_nodes_of_parametrised_and_of_shared_weights_count_as_they_are_measured(kind: Any) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), kind(nn.Linear(4, 6)), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    model[2].weight = model[0].weight
    with torch.no_grad():
        model[0].weight[0] = 0  # one unit of each of the two layers
    x = torch.randn(3, 4)
    report = prune(model, "ChannelNorm", 0.25, example_input=x)
    measured = measure(model, x, latency=False)["node_sparsity"]
    assert report.reached == pytest.approx(measured)
    assert measured == pytest.approx(0.25, abs=0.03)
