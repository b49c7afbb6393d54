"""`prune` in one call: what is asked, what is reached, and what an error leaves behind."""

import warnings
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur import Before, Criterion, Masks, channel_groups, measure, prune
from secateur.framework.network.lineage import lineage_of
from secateur.framework.plugins.registry import build
from secateur.framework.pruning.channels.groups import free_groups
from secateur.framework.pruning.selection.options import PruneOptions
from secateur.framework.schedules.base import targets
from secateur.utils.errors import UsageError
from tests.networks import (
    ConvNet,
    ResNet,
    images,
    masked,
    mlp,
    pruning_step,
    randomise,
    same,
    seeded,
    shipped,
    snapshot,
)

Batches = list[tuple[Tensor, Tensor]]
# on tiny networks one channel is more than what is worth a warning
pytestmark = pytest.mark.filterwarnings("ignore:.*asked for sparsity")


def data(inputs: Tensor | None = None) -> Batches:
    inputs = images(8) if inputs is None else inputs
    return [(inputs[:5], torch.arange(5) % 4), (inputs[5:], torch.arange(len(inputs) - 5) % 4)]


def widths(model: nn.Module) -> list[int]:
    return [layer.weight.shape[0] for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]


CHANNEL = ["SNAP", "SNAPit", "SNAPitDuring", "ChannelNorm", "StructuredRandom"]
WEIGHT = ["SNIP", "SNIPit", "SNIPitDuring", "Magnitude", "UnstructuredRandom"]


@pytest.mark.parametrize("criterion", CHANNEL)
@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.5, 0.75])
def test_channels_of_a_chain_go_to_the_exact_count(criterion: str, sparsity: float) -> None:
    model = seeded(ConvNet)
    report = prune(model, criterion, sparsity, batches=data())
    assert (report.asked, report.budget) == (sparsity, "nodes")
    left = sum(widths(model)[:3])
    if criterion != "StructuredRandom":  # which rounds in each layer
        assert left == 24 - round(24 * sparsity)
    assert report.reached == 1 - left / 24 == measure(model, images(), latency=False)["node_sparsity"]
    assert abs(report.reached - sparsity) <= 1.5 / 24
    assert widths(model)[3] == 5
    assert model(images()).shape == (4, 5)


@pytest.mark.parametrize("criterion", WEIGHT)
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.98])
def test_weights_go_to_the_exact_count(criterion: str, sparsity: float) -> None:
    model = randomise(seeded(ConvNet))
    report = prune(model, criterion, sparsity, batches=data())
    zeros = sum(int((layer.weight == 0).sum()) for layer in (model.a, model.b, model.c, model.d))
    assert zeros == round(sparsity * 964)
    assert report.reached == pytest.approx(zeros / 964, abs=1e-12)
    assert report.budget == "weights"
    assert widths(model) == [6, 8, 10, 5]
    assert ("call Masks(model).apply()" in report.note) == (len(Masks(model)) > 0) == (sparsity > 0)
    assert report.before["weight_sparsity"] == 0
    assert report.after["weight_sparsity"] == report.reached
    assert report.after["macs"] == report.before["macs"] >= report.after["effective_macs"]


def test_the_lowest_scores_go() -> None:
    model = seeded(mlp)
    weights = {f"{i}.weight": model[i].weight.detach().clone() for i in (0, 2, 4)}
    flat = torch.cat([weight.abs().flatten() for weight in weights.values()])
    threshold = flat.sort().values[83]
    prune(model, "Magnitude", 0.5, example_input=torch.randn(2, 12))
    for name, weight in weights.items():
        assert torch.equal(model.get_parameter(name), weight * (weight.abs() > threshold))


def test_the_same_share_of_every_layer_for_the_random_control() -> None:
    model = nn.Sequential(nn.Linear(9, 40), nn.ReLU(), nn.Linear(40, 20), nn.ReLU(), nn.Linear(20, 10))
    prune(model, "StructuredRandom", 0.3, batches=data(torch.randn(8, 9)))
    assert widths(model) == [28, 14, 10]
    model = seeded(ResNet)
    groups = channel_groups(model, images())
    before = {name: group.channels for name, group in free_groups(groups).items()}
    prune(model, "StructuredRandom", 0.4, batches=data())
    after = {name: group.channels for name, group in free_groups(channel_groups(model, images())).items()}
    assert after == {name: count - round(0.4 * count) for name, count in before.items()}


@pytest.mark.parametrize("criterion", CHANNEL)
@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.7])
def test_the_nearest_count_of_nodes_on_a_residual_network(criterion: str, sparsity: float) -> None:
    model = seeded(ResNet)
    report = prune(model, criterion, sparsity, batches=data())
    assert abs(report.reached - sparsity) <= 1 / 42 + 1e-12  # a channel of a stage is two nodes of 42
    assert model(images()).shape == (4, 5)
    assert model.stem.out_channels == model.b.out_channels == model.c.in_channels


def test_snapit_takes_the_published_steps_on_the_network_each_one_leaves() -> None:
    model = nn.Sequential(nn.Linear(9, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 4))
    report = prune(model, "SNAPit", 0.93, batches=data(torch.randn(8, 9)))
    assert [event.asked for event in report.events] == targets(0.93, 7)
    left = [sum(len(score) for score in event.scores.values()) for event in report.events]
    removed = [round(200 * event.reached) for event in report.events]
    assert left == [200] + [200 - count for count in removed[:-1]]
    assert all(abs(count - 200 * target) <= 0.5 for count, target in zip(removed, targets(0.93, 7), strict=True))
    assert report.reached == pytest.approx(0.93)


def test_pruning_again_counts_from_the_dense_network() -> None:
    model = seeded(ConvNet)
    assert prune(model, "SNAP", 0.25, batches=data()).reached == 0.25
    report = prune(model, "ChannelNorm", 0.5, batches=data())
    assert (report.reached, report.before["node_sparsity"]) == (0.5, 0.25)
    assert sum(widths(model)[:3]) == 12
    assert prune(model, "SNAP", 0.3, batches=data()).reached == 0.5  # more is gone already
    assert lineage_of(model).dense["a.weight"] == (6, 3, 3, 3)


def test_masking_twice_and_masking_a_cut_network_count_from_the_dense_network() -> None:
    model = randomise(seeded(ConvNet))
    prune(model, "SNIP", 0.3, batches=data())
    first = {name: mask.clone() for name, mask in Masks(model).items()}
    report = prune(model, "Magnitude", 0.5, batches=data())
    assert report.reached == pytest.approx(round(0.5 * 964) / 964)
    assert all(bool((mask <= first[name]).all()) for name, mask in Masks(model).items())
    model = randomise(seeded(ConvNet))
    prune(model, "SNAP", 0.25, batches=data())
    left = sum(layer.weight.numel() for layer in (model.a, model.b, model.c, model.d))
    report = prune(model, "SNIP", 0.8, batches=data())
    assert report.before["weight_sparsity"] == pytest.approx(1 - left / 964)
    assert report.reached == pytest.approx(round(0.8 * 964) / 964)


def test_channels_of_a_masked_network_are_cut_with_their_masks() -> None:
    model = randomise(seeded(ConvNet))
    prune(model, "Magnitude", 0.5, batches=data())
    prune(model, "SNAP", 0.5, batches=data())
    assert {name: mask.shape for name, mask in Masks(model).items()} == {
        name: model.get_parameter(name).shape for name in Masks(model)
    }


def test_protected_layers_keep_their_units_and_are_reported() -> None:
    model = seeded(ConvNet)
    report = prune(model, "SNAP", 0.5, batches=data(), protect=["b"])
    assert widths(model)[1] == 8
    assert report.reached == 0.5
    assert report.protected == {"b": "protected by name: b", "d": "model output"}
    model = seeded(ConvNet)
    prune(model, "Magnitude", 0.5, batches=data(), protect=["b"])
    assert model.b.weight.all()
    with pytest.raises(UsageError, match="did you mean 'b'|module to protect 'bb'"):
        prune(model, "SNAP", 0.6, batches=data(), protect=["bb"])


@pytest.mark.parametrize(("criterion", "reached"), [("SNAP", 21 / 24), ("StructuredRandom", 21 / 24)])
def test_out_of_reach_goes_as_far_as_possible_and_warns(criterion: str, reached: float) -> None:
    model = seeded(ConvNet)
    with pytest.warns(UserWarning, match=rf"{criterion}: asked for sparsity 0.9900, reached {reached:.4f}"):
        report = prune(model, criterion, 0.99, batches=data())
    assert widths(model) == [1, 1, 1, 5]
    assert (report.asked, report.reached) == (0.99, reached)
    assert model(images()).shape == (4, 5)


def test_a_target_that_is_met_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prune(seeded(ConvNet), "SNAP", 0.5, batches=data())


def test_the_scope_is_overridden() -> None:
    model = randomise(seeded(ConvNet))
    prune(model, "SNAP", 0.5, batches=data(), scope="layer")
    assert widths(model) == [3, 4, 5, 5]
    model = randomise(seeded(ConvNet))
    prune(model, "Magnitude", 0.5, batches=data(), scope="row")
    assert bool(((model.c.weight == 0).sum(1) == 16).all())


def test_an_optimizer_goes_along() -> None:
    model = randomise(seeded(ConvNet))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    average = torch.optim.swa_utils.AveragedModel(model)
    for _ in range(2):
        F.cross_entropy(model(images()), torch.arange(4)).backward()
        optimizer.step()
    report = prune(model, "SNAP", 0.5, batches=data(), optimizer=optimizer, companions=[average])
    assert report.note == ""
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in model.parameters()}
    assert all(optimizer.state[p]["momentum_buffer"].shape == p.shape for p in model.parameters())
    average.update_parameters(model)
    report = prune(model, "SNIP", 0.9, batches=data(), optimizer=optimizer)
    assert report.note == "masked: the masks are re-applied after each step of the optimizer"
    zeros = {name: (mask == 0) for name, mask in Masks(model).items()}
    assert any(zero.any() for zero in zeros.values())
    for _ in range(2):
        F.cross_entropy(model(images()), torch.arange(4)).backward()
        optimizer.step()
    assert not any(model.get_parameter(name)[zero].any() for name, zero in zeros.items())


def test_pruning_often_attaches_the_masks_once() -> None:
    model = randomise(seeded(ConvNet))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for sparsity in (0.2, 0.4, 0.6):
        prune(model, "Magnitude", sparsity, batches=data(), optimizer=optimizer)
    assert len(optimizer._optimizer_step_post_hooks) == 1


def test_the_same_call_gives_the_same_network_whatever_the_global_random_state() -> None:
    found = []
    criterion = build("criterions", "StructuredRandom")
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        model = seeded(ConvNet)
        prune(model, criterion, 0.5, batches=data(), seed=7)
        assert torch.equal(torch.get_rng_state(), state)
        found.append(snapshot(model))
    assert same(*found)
    model = seeded(ConvNet)
    prune(model, criterion, 0.5, batches=data(), seed=8)
    assert not same(found[0], snapshot(model)) or widths(model) != [3, 4, 5, 5]


def test_batches_may_be_a_generator_and_the_example_the_first_of_them() -> None:
    one, other = seeded(ConvNet), seeded(ConvNet)
    prune(one, "SNAPit", 0.5, batches=(batch for batch in data()))
    prune(other, "SNAPit", 0.5, batches=data(), example_input=images(1))
    assert same(snapshot(one), snapshot(other))


def test_latency_is_measured_on_request() -> None:
    report = prune(seeded(mlp), "Magnitude", 0.5, example_input=torch.randn(1, 12), latency=True)
    assert list(report.before["latency_ms"]) == list(report.after["latency_ms"]) == ["1", "64"]


def test_a_model_without_classes_uses_its_own_loss() -> None:
    model = seeded(mlp)
    batches = [(torch.randn(6, 12), torch.randn(6, 4))]
    assert prune(model, "SNAP", 0.5, batches=batches, loss=F.mse_loss).reached == 0.5


def test_a_network_of_torchvision() -> None:
    from secateur.utils.vision import torchvision

    torch.manual_seed(0)
    model = torchvision().models.resnet18(weights=None, num_classes=5)
    inputs = images(4, size=32)
    batches = [(inputs, torch.arange(4))]
    report = prune(model, "SNAPit", 0.6, batches=batches)
    assert report.reached == pytest.approx(0.6, abs=0.002)
    assert report.protected == {"fc": "model output"}
    assert report.after["params"] < 0.5 * report.before["params"]
    randomise(model).eval()
    groups = channel_groups(model, inputs)
    assert all(group.protected is None for name, group in groups.items() if name != "fc")
    assert model(inputs).shape == (4, 5)


# a criterion of one's own


class Longest(Criterion):
    """Keeps the first channels, in two steps; remembers what it was told."""

    granularity = "channel"
    schedule: ClassVar[Any] = Before(steps=2)

    def __init__(self, *, sign: float = 1.0) -> None:
        super().__init__(sign=sign)
        self.calls: list[tuple[str, int]] = []

    def start(self, model: nn.Module) -> None:
        self.calls.append(("start", self.seed))

    def score(self, model: nn.Module, batches: Iterable[Any], loss: Any, groups: Any = None) -> dict[str, Tensor]:
        self.calls.append(("score", self.step))
        return {name: -self.sign * group.origin.float() for name, group in groups.items()}


def test_a_criterion_defined_here_prunes_and_sees_seed_step_and_origins() -> None:
    criterion, model = Longest(sign=-1.0), seeded(ConvNet)
    report = prune(model, criterion, 0.5, example_input=images(1), seed=3, scope="layer")
    assert report.criterion == "Longest(sign=-1.0)"
    assert criterion.calls == [("start", 3), ("score", 0), ("score", 1)]
    assert lineage_of(model).kept["a.weight", 0].tolist() == [3, 4, 5]
    assert lineage_of(model).kept["b.weight", 0].tolist() == [4, 5, 6, 7]


class Half(Criterion):
    """Prunes what scores 0.5 or less: every other entry."""

    threshold = 0.5

    def __init__(self, granularity: str) -> None:
        super().__init__()
        self.granularity = granularity  # type: ignore[misc]

    def score(self, model: nn.Module, batches: Iterable[Any], loss: Any, groups: Any = None) -> dict[str, Tensor]:
        if groups is not None:
            return {name: torch.arange(group.channels) % 2.0 for name, group in groups.items()}
        return {
            name: (torch.arange(parameter.numel()) % 2.0).view(parameter.shape)
            for name, parameter in model.named_parameters()
            if name.endswith("weight") and parameter.dim() > 1
        }


def test_a_threshold_takes_the_place_of_the_target() -> None:
    model = seeded(ConvNet)
    report = prune(model, Half("channel"), 0.9, example_input=images(1))
    assert widths(model) == [3, 4, 5, 5]
    assert (report.asked, report.reached) == (0.9, 0.5)
    model = randomise(seeded(ConvNet))
    report = prune(model, Half("weight"), 0.1, example_input=images(1), protect=["d"])
    assert model.d.weight.all()
    assert report.reached == pytest.approx((162 + 432 + 320) / 2 / 964)


def test_a_threshold_above_everything_keeps_the_best_of_each_group() -> None:
    criterion = Longest()
    criterion.threshold = 100.0
    model = seeded(ConvNet)
    prune(model, criterion, 0.5, example_input=images(1))
    assert widths(model) == [1, 1, 1, 5]
    assert lineage_of(model).kept["a.weight", 0].tolist() == [0]


class Broken(Criterion):
    """Scores what it is told to."""

    granularity = "channel"

    def __init__(self, result: Callable[[Any], Any]) -> None:
        super().__init__()
        self.result = result

    def score(self, model: nn.Module, batches: Iterable[Any], loss: Any, groups: Any = None) -> Any:
        return self.result({name: torch.ones(group.channels) for name, group in groups.items()})


def nan(scores: dict[str, Tensor]) -> dict[str, Tensor]:
    scores["b"][2] = torch.nan
    return scores


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sparsity": 1.2}, r"sparsity 1.2 is outside \[0, 1\)"),
        ({"sparsity": 1.0}, r"sparsity 1.0 is outside \[0, 1\)"),
        ({"sparsity": -0.1}, r"sparsity -0.1 is outside \[0, 1\)"),
        ({"sparsity": float("nan")}, "sparsity nan is outside"),
        ({"criterion": "SNAPP"}, "unknown criterion 'SNAPP': did you mean 'SNAP'"),
        ({"criterion": Longest}, "criterion .* instance of Criterion"),
        ({"criterion": "SNAP", "batches": ()}, "example_input or batches"),
        ({"criterion": "SNAP", "batches": (), "example_input": images(1)}, "needs data and got no batch"),
        ({"criterion": "SNIP", "batches": (), "example_input": images(1)}, "needs data and got no batch"),
        ({"budget": "node"}, "unknown budget 'node': did you mean 'nodes'"),
        ({"criterion": "SNIP", "budget": "nodes"}, "is for channels"),
        ({"scope": "globally"}, "unknown scope 'globally': did you mean 'global'"),
        ({"scope": "row"}, "unknown scope 'row'"),
        ({"criterion": "SNIP", "scope": "rows"}, "unknown scope 'rows': did you mean 'row'"),
        ({"optimizer": "SGD"}, "str .* torch optimizer"),
        ({"criterion": "SNIP", "optimizer": {}}, "dict .* torch optimizer"),
        ({"example_input": images(1, size=20)}, "rejects an input of shape"),
        ({"protect": ["zzz"]}, "unknown module to protect 'zzz'"),
        ({"criterion": Broken(nan)}, "Broken.score: 'b' contains NaN"),
        ({"criterion": Broken(lambda s: s | {"a": torch.ones(5)})}, r"'a' has shape \(5,\), expected \(6,\)"),
        ({"criterion": Broken(lambda s: {"a": s["a"]})}, "lacks 'b', 'c'"),
        ({"criterion": Broken(lambda s: None)}, "returned NoneType"),
        ({"companions": [nn.Linear(2, 2)]}, "companion Linear: 'a.weight' is missing|'b.weight' is missing"),
    ],
)
def test_an_error_is_one_line_and_leaves_the_model_alone(options: dict[str, Any], words: str) -> None:
    model = seeded(ConvNet)
    before, modes = snapshot(model), [module.training for module in model.modules()]
    with pytest.raises(UsageError, match=words) as raised:
        prune(model, **{"criterion": "SNAP", "sparsity": 0.5, "batches": data(), **options})
    assert "\n" not in str(raised.value)
    assert same(snapshot(model), before)
    assert [module.training for module in model.modules()] == modes
    assert (len(Masks(model)), lineage_of(model).kept) == (0, {})


def test_a_network_with_nothing_to_cut_says_why() -> None:
    with pytest.raises(UsageError, match="no channel to prune: model output"):
        prune(nn.Linear(12, 4), "SNAP", 0.5, batches=data(torch.randn(8, 12)))
    with pytest.raises(UsageError, match="has no prunable layer"):
        prune(nn.ReLU(), "Magnitude", 0.5, example_input=torch.randn(1, 12))


def test_a_criterion_of_unknown_granularity_is_refused() -> None:
    with pytest.raises(UsageError, match="granularity"):
        prune(seeded(ConvNet), Half("layers"), 0.5, example_input=images(1))


def test_outer_layers_are_spared_unless_asked_for() -> None:
    model = randomise(seeded(ConvNet))
    step = pruning_step(model, build("criterions", "Magnitude"), images(1), PruneOptions(outer_layers=False))
    assert step.spared() == {"a.weight", "d.weight"}
    event = step(0.5, [], F.cross_entropy)
    assert model.a.weight.all() and model.d.weight.all()
    assert event.reached == pytest.approx(482 / 964)
    model = randomise(seeded(ResNet))
    step = pruning_step(model, build("criterions", "Magnitude"), images(1), PruneOptions(outer_layers=False))
    assert step.spared() == {"stem.weight", "d.weight"}


def test_the_cut_network_computes_what_masking_its_channels_would() -> None:
    model = randomise(shipped("LeNet5")).eval()
    inputs = images(4, channels=1, size=28)
    groups = channel_groups(model, inputs)
    twin = randomise(shipped("LeNet5")).eval()
    prune(model, "SNAP", 0.6, batches=[(inputs, torch.arange(4))])
    kept, keep = lineage_of(model).kept, {}
    for name, group in free_groups(groups).items():
        index = kept.get((f"{name}.weight", 0), torch.arange(group.channels))
        keep[name] = torch.zeros(group.channels, dtype=torch.bool).index_fill(0, index, True)
    assert sum(int((~mask).sum()) for mask in keep.values()) == round(0.6 * 226)
    torch.testing.assert_close(model(inputs), masked(twin, keep, groups)(inputs), rtol=1e-5, atol=1e-5)
