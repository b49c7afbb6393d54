"""Every criterion against the contract, and the formulas against brute force in float64.

A new criterion is in the table by being in criterions/.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur import registry
from secateur.framework.network.layers import prunable_weights
from secateur.framework.network.masks import Masks
from secateur.framework.network.preserve import scoring
from secateur.framework.plugins.registry import build
from secateur.framework.pruning.channels.discovery import channel_groups
from secateur.framework.pruning.channels.groups import ChannelGroup, free_groups
from secateur.framework.pruning.scoring.criterion import Criterion, check_scores
from secateur.framework.pruning.scoring.gradients import mean_gradients
from secateur.framework.schedules.base import Schedule
from secateur.utils.errors import UsageError
from tests.networks import ConvNet, Net, ResNet, images, mlp, randomise, same, seeded, snapshot

NAMES = registry.names("criterions")
Batches = list[tuple[Tensor, Tensor]]
Groups = Mapping[str, ChannelGroup]


def batches_of(inputs: Tensor, sizes: tuple[int, ...] = (5, 3)) -> Batches:
    targets = torch.arange(len(inputs)) % 4
    return list(zip(inputs.split(sizes), targets.split(sizes), strict=True))


NETS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "convolutions": (ConvNet, images(8)),
    "residual": (ResNet, images(8)),
    "linear": (mlp, torch.randn(8, 12, generator=torch.Generator().manual_seed(0))),
}
every_criterion = pytest.mark.parametrize("name", NAMES)
every_net = pytest.mark.parametrize("net", NETS)


def needs_norms(name: str) -> bool:
    """Whether the criterion rejects a network without batch norms."""
    try:
        build("criterions", name).check(seeded(mlp))
    except UsageError as error:
        assert "batch norm" in str(error)
        return True
    return False


def normed_mlp() -> nn.Module:
    layers = list(mlp())  # type: ignore[call-overload]
    return nn.Sequential(layers[0], nn.BatchNorm1d(8), *layers[1:])


def make(net: str, criterion: str = "") -> tuple[nn.Module, Batches]:
    constructor, inputs = NETS[net]
    if net == "linear" and criterion and needs_norms(criterion):
        constructor = normed_mlp
    return randomise(seeded(constructor)), batches_of(inputs)


def score(criterion: Criterion, model: nn.Module, batches: Any, **options: Any) -> dict[str, Tensor]:
    return dict(criterion.score(model, batches, F.cross_entropy, **options))


@every_criterion
def test_the_class_attributes_are_those_of_the_contract(name: str) -> None:
    cls = registry.get("criterions", name)
    assert cls.granularity in ("weight", "channel", "both")
    assert cls.scope in ("global", "layer", "row")
    assert isinstance(cls.schedule, Schedule)
    assert cls.data.kind in ("none", "random", "balanced")
    assert (cls.data.batches is None) or (cls.data.samples is None)
    assert cls.paper == "" or cls.paper.startswith("arXiv:")
    assert cls.__doc__
    assert repr(build("criterions", name)).startswith(name + "(")


@every_criterion
@every_net
def test_scores_have_exactly_the_keys_and_shapes_of_the_contract(name: str, net: str) -> None:
    model, batches = make(net, name)
    criterion = build("criterions", name)
    groups = channel_groups(model, batches[0][0])
    scores = score(criterion, model, batches, groups=free_groups(groups))
    expected: dict[str, tuple[int, ...]] = {}
    if criterion.granularity in ("weight", "both"):
        expected |= {key: tuple(weight.shape) for key, weight in prunable_weights(model).items()}
    if criterion.granularity in ("channel", "both"):
        expected |= {key: (group.channels,) for key, group in groups.items() if group.protected is None}
    assert {key: tuple(tensor.shape) for key, tensor in scores.items()} == expected
    assert list(scores) == list(expected)
    assert all(tensor.dtype == torch.float32 and not tensor.requires_grad for tensor in scores.values())
    assert same(check_scores(scores, model, groups, criterion), scores)


@every_criterion
@every_net
def test_scoring_is_pure_and_repeatable(name: str, net: str) -> None:
    model, batches = make(net, name)
    list(model.children())[1].eval()
    parameters = list(model.parameters())
    parameters[0].requires_grad_(False)
    parameters[1].grad = torch.full_like(parameters[1], 2.0)
    grads = [parameter.grad for parameter in parameters]
    before, modes = snapshot(model), [module.training for module in model.modules()]
    inputs = [inputs.clone() for inputs, _ in batches]
    criterion = build("criterions", name)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = score(criterion, model, batches)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert same(score(criterion, model, batches), first)
    assert same(snapshot(model), before)
    assert [id(parameter) for parameter in model.parameters()] == [id(parameter) for parameter in parameters]
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in parameters] == [False] + [True] * (len(parameters) - 1)
    assert all(parameter.grad is grad for parameter, grad in zip(parameters, grads, strict=True))
    assert bool((parameters[1].grad == 2).all())
    assert all(torch.equal(one, other) for one, (other, _) in zip(inputs, batches, strict=True))
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())


@pytest.mark.parametrize(
    "name",
    [  # exact scores are those of sets of channels one by one, which takes a while
        pytest.param(name, marks=pytest.mark.slow if registry.get("criterions", name).exact else ())
        for name in NAMES
    ],
)
@pytest.mark.parametrize(
    "net", [pytest.param(net, marks=() if net == "residual" else pytest.mark.slow) for net in NETS]
)
def test_mode_gradients_groups_and_the_kind_of_iterable_change_nothing(name: str, net: str) -> None:
    model, batches = make(net, name)
    criterion = build("criterions", name)
    expected = score(criterion, model.eval(), batches)
    assert same(score(criterion, model.train(), batches), expected)
    with torch.no_grad():
        assert same(score(criterion, model, batches), expected)
    groups = channel_groups(model, batches[0][0])
    assert same(score(criterion, model, batches, groups=groups), expected)
    assert same(score(criterion, model, batches, groups=free_groups(groups)), expected)
    assert same(score(criterion, model, iter(batches), groups=groups), expected)
    assert same(score(criterion, model, (batch for batch in batches)), expected)
    assert same(score(criterion, model.requires_grad_(False), batches), expected)


@every_criterion
def test_every_batch_is_used_once(name: str) -> None:
    model, batches = make("convolutions")
    drawn: list[int] = []
    seen: list[int] = []

    def once() -> Iterator[tuple[Tensor, Tensor]]:
        for number, batch in enumerate(batches):
            drawn.append(number)
            yield batch

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append(len(targets))
        return F.cross_entropy(outputs, targets)

    groups = channel_groups(model, batches[0][0])
    criterion = build("criterions", name)
    criterion.score(model, once(), loss, groups)
    assert drawn in ([], [0, 1])
    if registry.get("criterions", name).exact:  # the loss of every network without something
        assert seen == sorted(seen, reverse=True) and set(seen) == {5, 3}
        return
    passes = 1 if criterion.cost(8) == 8 else 2  # a second pass is for what needs the whole gradient before it
    assert not seen or criterion.data.kind != "none" and seen == [5, 3] * passes


@every_criterion
def test_the_same_network_in_another_precision_is_scored_alike(name: str) -> None:
    model, batches = make("residual")
    criterion = build("criterions", name)
    single = score(criterion, model, batches)
    double = score(criterion, model.double(), [(inputs.double(), targets) for inputs, targets in batches])
    for key, tensor in double.items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(single[key], tensor, rtol=1e-3, atol=1e-5)


@every_criterion
def test_masked_weights_are_scored_and_nothing_is_revived(name: str) -> None:
    model, batches = make("linear", name)
    Masks(model).hold({"0.weight": torch.rand(8, 12, generator=torch.Generator().manual_seed(0)) < 0.5})
    before = snapshot(model)
    scores = score(build("criterions", name), model, batches)
    assert same(snapshot(model), before)
    assert not any(tensor.isnan().any() for tensor in scores.values())


def test_options_are_stored_unchanged_and_unknown_ones_refused() -> None:
    criterion = build("criterions", "ChannelNorm", p=2)
    assert (criterion.p, repr(criterion)) == (2, "ChannelNorm(p=2)")
    with pytest.raises(UsageError, match="p must be 1 or 2, got 3"):
        build("criterions", "ChannelNorm", p=3)
    with pytest.raises(UsageError, match="option"):
        build("criterions", "SNIP", q=1)


# brute force


def double(net: str) -> tuple[nn.Module, Batches]:
    model, batches = make(net)
    return model.double(), [(inputs.double(), targets) for inputs, targets in batches]


def samples(batches: Batches) -> Batches:
    return [(x, y) for inputs, targets in batches for x, y in zip(inputs.split(1), targets.split(1), strict=True)]


@every_net
@pytest.mark.parametrize("name", ["SNIP", "SNIPit", "SNIPitDuring"])
def test_snip_is_weight_times_gradient_over_the_loss(name: str, net: str) -> None:
    model, batches = double(net)
    found = score(build("criterions", name), model, batches)
    model.eval()
    weights = prunable_weights(model)
    each = samples(batches)
    losses, gradients = [], []
    for inputs, targets in each:
        loss = F.cross_entropy(model(inputs), targets)
        losses.append(loss.item())
        gradients.append(torch.autograd.grad(loss, list(weights.values())))
    mean_loss = sum(losses) / len(each)
    for number, (key, weight) in enumerate(weights.items()):
        gradient = sum(gradient[number] for gradient in gradients) / len(each)
        expected = (weight * gradient).abs() / (1e-8 + abs(mean_loss))
        torch.testing.assert_close(found[key], expected.float(), rtol=1e-5, atol=1e-9)


class Gates:
    """A multiplier c = 1 on each channel of each group, on every producer's output, before the norm."""

    def __init__(self, model: nn.Module, groups: Groups) -> None:
        self.values = {
            name: torch.ones(group.channels, dtype=torch.float64, requires_grad=True)
            for name, group in groups.items()
        }
        for name, group in groups.items():
            for producer in group.producers:
                model.get_submodule(producer).register_forward_hook(self.hook(name))

    def hook(self, name: str) -> Callable[..., Tensor]:
        def multiply(module: nn.Module, _: Any, output: Tensor) -> Tensor:
            shape = (1, -1, 1, 1) if output.dim() == 4 else (1, -1)
            return output * self.values[name].view(shape)

        return multiply


@every_net
@pytest.mark.parametrize("name", ["SNAP", "SNAPit", "SNAPitDuring"])
def test_snap_is_the_gradient_of_a_gate_before_the_norm(name: str, net: str) -> None:
    model, batches = double(net)
    groups = free_groups(channel_groups(model, batches[0][0]))
    found = score(build("criterions", name), model, batches)
    twin = copy.deepcopy(model).eval()
    gates = Gates(twin, groups)
    each = samples(batches)
    losses = [F.cross_entropy(twin(inputs), targets) for inputs, targets in each]
    mean = torch.stack(losses).mean()
    gradients = torch.autograd.grad(mean, list(gates.values.values()))
    assert list(found) == list(groups)
    for key, gradient in zip(groups, gradients, strict=True):
        expected = gradient.abs() / (1e-8 + mean.detach().abs())
        torch.testing.assert_close(found[key], expected.float(), rtol=1e-5, atol=1e-9)


def test_snap_gates_a_transposed_convolution_and_a_depthwise_chain() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        return s.d(F.relu(s.n(s.dw(s.up(F.relu(s.a(x)))))).mean((2, 3)))

    layers = {
        "a": nn.Conv2d(3, 5, 1),
        "up": nn.ConvTranspose2d(5, 4, 2, 2),
        "dw": nn.Conv2d(4, 4, 3, groups=4),
        "n": nn.BatchNorm2d(4),
        "d": nn.Linear(4, 4),
    }
    model = randomise(Net(run, **layers)).double()
    batches = batches_of(images(8, dtype=torch.float64))
    groups = free_groups(channel_groups(model, batches[0][0]))
    found = score(build("criterions", "SNAP"), model, batches)
    twin = copy.deepcopy(model).eval()
    gates = Gates(twin, groups)
    inputs, targets = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    mean = F.cross_entropy(twin(inputs), targets)
    for key, gradient in zip(groups, torch.autograd.grad(mean, list(gates.values.values())), strict=True):
        torch.testing.assert_close(found[key], (gradient.abs() / mean.abs()).float(), rtol=1e-5, atol=1e-9)


@every_net
@pytest.mark.parametrize("p", [1, 2])
def test_channel_norm_by_loops(net: str, p: int) -> None:
    model, batches = double(net)
    groups = free_groups(channel_groups(model, batches[0][0]))
    found = score(build("criterions", "ChannelNorm", p=p), model, batches)
    for key, group in groups.items():
        for channel in range(group.channels):
            total = 0.0
            for producer in group.producers:  # the stages of these nets have one row a channel and producer
                row = model.get_submodule(producer).weight[channel]
                total += sum(abs(value) ** p for value in row.flatten().tolist())
            assert found[key][channel].item() == pytest.approx(total ** (1 / p), rel=1e-6)


@every_net
def test_magnitude_is_the_absolute_weight(net: str) -> None:
    model, batches = make(net)
    found = score(build("criterions", "Magnitude"), model, [])
    assert same(found, {key: weight.detach().abs() for key, weight in prunable_weights(model).items()})


def test_the_empty_criterion_spares_everything() -> None:
    model, batches = make("linear")
    scores = score(build("criterions", "EmptyCrit"), model, [])
    assert all(bool((tensor == torch.inf).all()) for tensor in scores.values())


@pytest.mark.parametrize("name", ["UnstructuredRandom", "StructuredRandom"])
def test_random_scores_are_uniform_and_depend_on_seed_and_step_alone(name: str) -> None:
    model = nn.Sequential(nn.Linear(8, 4000), nn.ReLU(), nn.Linear(4000, 4))
    batches = [(torch.randn(2, 8), torch.zeros(2, dtype=torch.int64))]
    criterion = build("criterions", name)
    values = score(criterion, model, batches)
    flat = torch.cat([tensor.flatten() for tensor in values.values()])
    assert bool((flat >= 0).all()) and bool((flat < 1).all())
    assert flat.mean().item() == pytest.approx(0.5, abs=0.02)
    assert (flat < 0.1).float().mean().item() == pytest.approx(0.1, abs=0.02)
    assert len(flat.unique()) > 0.99 * len(flat)
    found = []
    for seed, step in ((0, 0), (0, 1), (1, 0), (2**62, 5)):
        criterion.seed, criterion.step = seed, step
        found.append(torch.cat([tensor.flatten() for tensor in score(criterion, model, batches).values()]))
    assert torch.equal(found[0], flat)
    assert not any(torch.equal(found[0], other) for other in found[1:])


# the helpers


def test_a_batch_weighs_by_its_size() -> None:
    model, batches = double("linear")
    weights = prunable_weights(model)
    with scoring(model):
        unequal, one_loss = mean_gradients(model, batches, F.cross_entropy, weights)
        unequal = {key: tensor.clone() for key, tensor in unequal.items()}
    with scoring(model):
        whole = [(torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches]))]
        together, other_loss = mean_gradients(model, whole, F.cross_entropy, weights)
    assert one_loss == pytest.approx(other_loss, rel=1e-12)
    for key in weights:
        torch.testing.assert_close(unequal[key], together[key], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("track", [True, False])
def test_later_batches_pass_in_halves_where_samples_do_not_see_each_other(track: bool) -> None:
    """The accumulated gradients are alive while they pass: whole ones would need more memory than training."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 6), nn.BatchNorm1d(6, track_running_stats=track), nn.Linear(6, 4))
    model = model.double().eval()
    batches = batches_of(torch.randn(75, 12, dtype=torch.float64), (32, 31, 12))
    sizes: list[int] = []
    handle = model.register_forward_hook(lambda _module, inputs, _out: sizes.append(len(inputs[0])))
    weights = prunable_weights(model)
    with scoring(model):
        found, _ = mean_gradients(model, batches, F.cross_entropy, weights)
        found = {key: tensor.clone() for key, tensor in found.items()}
    handle.remove()
    assert sizes == ([32, 16, 15, 6, 6] if track else [32, 31, 12])
    total = sum(F.cross_entropy(model(inputs), targets, reduction="sum") for inputs, targets in batches)
    for key, expected in zip(weights, torch.autograd.grad(total / 75, list(weights.values())), strict=True):
        torch.testing.assert_close(found[key], expected, rtol=1e-10, atol=1e-14)


def test_a_loss_that_compares_samples_gets_whole_batches() -> None:
    model = nn.Linear(12, 4).double()
    batches = batches_of(torch.randn(64, 12, dtype=torch.float64), (32, 32))
    sizes: list[int] = []
    model.register_forward_hook(lambda _module, inputs, _out: sizes.append(len(inputs[0])))

    def spread(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.var(dim=0).sum()

    with scoring(model):
        mean_gradients(model, batches, spread, prunable_weights(model))
    assert sizes == [32, 32]


def test_a_layer_the_loss_does_not_reach_has_gradient_zero() -> None:
    model = Net(lambda s, x: s.b(s.a(x)), a=nn.Linear(12, 5), b=nn.Linear(5, 4), unused=nn.Linear(3, 3))
    scores = score(build("criterions", "SNIP"), model, batches_of(torch.randn(8, 12)))
    assert not scores["unused.weight"].any()
    assert scores["a.weight"].any()


def test_scoring_without_data_or_without_a_gradient_is_refused() -> None:
    model, batches = make("linear")
    with pytest.raises(UsageError, match="needs data and got no batch"):
        score(build("criterions", "SNIP"), model, [])
    with pytest.raises(UsageError, match="pass groups or batches"):
        score(build("criterions", "SNAP"), model, [])
    with pytest.raises(UsageError, match="does not depend on the weights"):
        build("criterions", "SNIP").score(model, batches, lambda outputs, targets: outputs.detach().sum())


@pytest.mark.parametrize("failing", ["loss", "model"])
def test_everything_comes_back_when_scoring_fails(failing: str) -> None:
    model, batches = make("convolutions")
    model.na.eval()
    model.a.bias.requires_grad_(False)
    model.b.weight.grad = torch.ones_like(model.b.weight)
    before, modes = snapshot(model), [module.training for module in model.modules()]
    grads = [parameter.grad for parameter in model.parameters()]
    wanted = [parameter.requires_grad for parameter in model.parameters()]

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        raise ZeroDivisionError

    if failing == "model":
        batches = [*batches, (torch.randn(2, 9, 8, 8), torch.zeros(2))]
    with pytest.raises((ZeroDivisionError, RuntimeError)):
        build("criterions", "SNIP").score(model, batches, loss if failing == "loss" else F.cross_entropy)
    assert same(snapshot(model), before)
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert all(parameter.grad is grad for parameter, grad in zip(model.parameters(), grads, strict=True))
    assert torch.is_grad_enabled()


def bad(change: Callable[[dict[str, Any]], Any]) -> tuple[Criterion, nn.Module, Groups, Any]:
    model, batches = make("linear")
    criterion = build("criterions", "SNAP")
    groups = channel_groups(model, batches[0][0])
    scores: dict[str, Any] = score(criterion, model, batches, groups=groups)
    return criterion, model, groups, change(scores) or scores


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("2") * 0, "SNAP.score lacks '2'"),
        (lambda s: s.update(extra=s["0"]), "SNAP.score has unknown 'extra'"),
        (lambda s: s.update({"4": torch.ones(4)}), "has unknown '4'"),  # the protected output
        (lambda s: s.update({"0": torch.ones(7)}), r"'0' has shape \(7,\), expected \(8,\)"),
        (lambda s: s.update({"0": torch.ones(8, 1)}), r"'0' has shape \(8, 1\), expected \(8,\)"),
        (lambda s: s.update({"2": torch.full((6,), torch.nan)}), "'2' contains NaN"),
        (lambda s: s.update({"2": [1.0] * 6}), "'2' is list, expected a tensor"),
        (lambda s: [1, 2], "returned list, expected a mapping"),
    ],
)
def test_wrong_scores_are_named(change: Callable[[dict[str, Any]], Any], words: str) -> None:
    def changed(scores: dict[str, Any]) -> Any:
        result = change(scores)
        return result if isinstance(result, list) else None

    criterion, model, groups, scores = bad(changed)
    with pytest.raises(UsageError, match=words) as raised:
        check_scores(scores, model, groups, criterion)
    assert "\n" not in str(raised.value)


def test_scores_of_any_floating_point_type_become_float32_in_the_contracts_order() -> None:
    model, batches = make("linear")
    groups = channel_groups(model, batches[0][0])
    given = {
        "2": torch.arange(6.0, dtype=torch.bfloat16),
        "0": torch.arange(8.0, dtype=torch.float64, requires_grad=True),
    }
    found = check_scores(given, model, groups, build("criterions", "SNAP"))
    assert list(found) == ["0", "2"]
    assert all(tensor.dtype == torch.float32 and not tensor.requires_grad for tensor in found.values())
