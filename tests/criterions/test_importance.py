"""Taylor and gradient-flow importance against brute force in float64: explicit gates, Hessians, loops."""

import copy
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from secateur.framework.plugins.registry import build
from secateur.framework.pruning.channels.discovery import channel_groups
from secateur.framework.pruning.channels.groups import ChannelGroup, free_groups
from secateur.utils.errors import UsageError
from tests.networks import ConvNet, Net, ResNet, close, images, mlp, randomise, same, score, seeded, shipped

Batches = list[tuple[Tensor, Tensor]]
Groups = Mapping[str, ChannelGroup]


def plain() -> nn.Module:
    """Convolutions and a linear layer without norms: images (3, 8, 8)."""
    layers = {
        "a": nn.Conv2d(3, 5, 3),
        "b": nn.Conv2d(5, 6, 3, bias=False),
        "c": nn.Linear(6, 7),
        "d": nn.Linear(7, 5),
    }
    return Net(lambda s, x: s.d(F.relu(s.c(F.relu(s.b(F.relu(s.a(x)))).mean((2, 3))))), **layers)


def grouped() -> nn.Module:
    """Grouped, depthwise and concatenated convolutions, changed in place by activations."""

    def run(s: Net, x: Tensor) -> Tensor:
        y = F.relu_(s.na(s.a(x)))
        z = F.leaky_relu_(s.dw(y), 0.1)
        y = torch.cat([F.leaky_relu_(s.nb(s.b(z)), 0.2), F.relu_(s.c(z))], 1)
        return s.d(F.relu(s.e(y)).mean((2, 3)))

    layers = {
        "a": nn.Conv2d(3, 6, 3), "na": nn.BatchNorm2d(6), "dw": nn.Conv2d(6, 6, 3, groups=6),
        "b": nn.Conv2d(6, 4, 1, groups=2, bias=False), "nb": nn.BatchNorm2d(4), "c": nn.Conv2d(6, 3, 1),
        "e": nn.Conv2d(7, 6, 1), "d": nn.Linear(6, 5),
    }  # fmt: skip
    return Net(run, **layers)


def relu_first() -> nn.Module:
    """Norms behind activations."""
    layers = {"a": nn.Conv2d(3, 5, 3), "na": nn.BatchNorm2d(5), "b": nn.Conv2d(5, 4, 3), "nb": nn.BatchNorm2d(4)}
    return Net(
        lambda s, x: s.d(s.nb(F.relu(s.b(F.max_pool2d(s.na(F.relu(s.a(x))), 2)))).mean((2, 3))),
        **layers, d=nn.Linear(4, 5),
    )  # fmt: skip


def vgg() -> nn.Module:
    """As in VGG: pooled down to a single position, which is flattened; activations in place."""
    layers = {"a": nn.Conv2d(3, 5, 3, padding=1), "na": nn.BatchNorm2d(5), "b": nn.Conv2d(5, 4, 3, padding=1),
              "nb": nn.BatchNorm2d(4), "c": nn.Linear(4, 6), "d": nn.Linear(6, 5)}  # fmt: skip

    def run(s: Net, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu_(s.na(s.a(x))), 2)
        x = F.max_pool2d(F.relu_(s.nb(s.b(x))), 4)
        return s.d(F.relu_(s.c(x.flatten(1))))

    return Net(run, **layers)


def stages() -> nn.Module:
    """Two residual stages, with sums and activations in place."""
    layers: dict[str, nn.Module] = {"stem": nn.Conv2d(3, 4, 3, padding=1, bias=False), "n0": nn.BatchNorm2d(4)}
    for block, (inputs, outputs) in enumerate([(4, 4), (4, 4), (4, 4), (4, 5), (5, 5), (5, 5)]):
        stride = outputs - inputs + 1
        layers |= {f"a{block}": nn.Conv2d(inputs, 3, 3, stride, 1), f"na{block}": nn.BatchNorm2d(3)}
        layers |= {f"b{block}": nn.Conv2d(3, outputs, 3, 1, 1, bias=False), f"nb{block}": nn.BatchNorm2d(outputs)}
    layers |= {"skip": nn.Conv2d(4, 5, 1, 2, bias=False), "ns": nn.BatchNorm2d(5), "d": nn.Linear(5, 5)}

    def run(s: Net, x: Tensor) -> Tensor:
        x = F.relu_(s.n0(s.stem(x)))
        for block in range(6):
            a, na, b, nb = (getattr(s, f"{key}{block}") for key in ("a", "na", "b", "nb"))
            y = nb(b(F.relu_(na(a(x)))))
            y += s.ns(s.skip(x)) if block == 3 else x
            x = F.relu_(y)
        return s.d(x.mean((2, 3)))

    return Net(run, **layers)


NETS: dict[str, Callable[[], nn.Module]] = {
    "stages": stages,
    "vgg": vgg,
    "convolutions": ConvNet,
    "residual": ResNet,
    "plain": plain,
    "grouped": grouped,
    "relu_first": relu_first,
}
#: the norm that each producer's gate stands behind; the producers left out have none
NORMS = {
    "stages": {
        "stem": "n0",
        "skip": "ns",
        **{f"{key}{block}": f"n{key}{block}" for key in "ab" for block in range(6)},
    },
    "vgg": {"a": "na", "b": "nb"},
    "convolutions": {"a": "na", "b": "nb", "c": "nc"},
    "residual": {"stem": "n0", "a": "na", "b": "nb", "c": "nc", "e": "ne", "skip": "ns"},
    "plain": {},
    "grouped": {"a": "na", "b": "nb"},
    "relu_first": {"a": "na", "b": "nb"},
}
every_net = pytest.mark.parametrize("net", [*NETS, "curved"])
normed = pytest.mark.parametrize("net", ["convolutions", "residual", "grouped", "relu_first"])


def double(net: str) -> tuple[nn.Module, Batches, Groups]:
    inputs = images(8, dtype=torch.float64)
    targets = torch.arange(8) % 4
    batches = list(zip(inputs.split((5, 3)), targets.split((5, 3)), strict=True))
    model = randomise(seeded(NETS[net])).double()
    return model, batches, free_groups(channel_groups(model, inputs[:1]))


def averaged(parts: list[tuple[int, dict[str, Tensor]]]) -> dict[str, Tensor]:
    """The mean over batches, whatever their sizes."""
    return {name: sum(part[name] for _, part in parts) / len(parts) for name in parts[0][1]}  # type: ignore


def weighted(parts: list[tuple[int, dict[str, Tensor]]]) -> dict[str, Tensor]:
    """The mean over batches by their sizes."""
    total = sum(size for size, _ in parts)
    return {name: sum(size * part[name] for size, part in parts) / total for name in parts[0][1]}  # type: ignore


class Gates:
    """One explicit multiplier a channel, put into a copy of the network behind the producers' norms."""

    def __init__(self, net: str, model: nn.Module, groups: Groups) -> None:
        self.model = copy.deepcopy(model).eval()
        self.values = {
            name: torch.ones(group.channels, dtype=torch.float64).requires_grad_()
            for name, group in groups.items()
        }
        self.outputs: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in groups}
        for name, group in groups.items():
            for part in group.produced:
                producer, _, attribute = part.tensor.rpartition(".")
                if attribute == "weight":
                    place = NORMS[net].get(producer, producer)
                    self.model.get_submodule(place).register_forward_hook(self.hook(name, part.index))

    def hook(self, name: str, index: Tensor) -> Callable[..., Tensor]:
        def multiply(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            gate = torch.ones(output.shape[1], dtype=torch.float64)
            channels = torch.arange(len(index))[:, None].expand(index.shape)
            gate = gate.index_put((index.flatten(),), self.values[name][channels.flatten()])
            gated = output * gate.view(-1, *[1] * (output.dim() - 2))
            self.outputs[name].append((gated, index))
            return gated.clone()  # what comes next may change it in place

        return multiply

    def gradients(self, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        loss = F.cross_entropy(self.model(inputs), targets)
        return dict(zip(self.values, torch.autograd.grad(loss, list(self.values.values())), strict=True))


def producers(groups: Groups) -> dict[str, int]:
    """How many layers put out the channels of each group, counted by their weights."""
    return {name: sum(part.tensor.endswith("weight") for part in group.produced) for name, group in groups.items()}


# Taylor


@every_net
@pytest.mark.parametrize("divisor", ["none", "n", "n2"])
def test_taylor_gate_squares_the_gradient_of_a_joint_gate_of_each_batch(net: str, divisor: str) -> None:
    model, batches, groups = double(net)
    gates = Gates(net, model, groups)
    parts = [(len(x), {k: g.square() for k, g in gates.gradients(x, y).items()}) for x, y in batches]
    count = producers(groups)
    power = ("none", "n", "n2").index(divisor)
    expected = {name: value / count[name] ** power for name, value in averaged(parts).items()}
    close(score(build("criterions", "TaylorGate", divisor=divisor), model, batches), expected)
    assert net != "residual" or sorted(count.values()) == [1, 1, 2, 2]


def test_the_joint_gate_of_a_stage_is_divided_by_its_producers_unless_told() -> None:
    model, batches, _ = double("residual")
    found = score("TaylorGate", model, batches)
    whole = score(build("criterions", "TaylorGate", divisor="none"), model, batches)
    assert {name: round(float((whole[name] / found[name]).nanmean()), 5) for name in found} == {
        "stem": 2, "a": 1, "c": 1, "e": 2,
    }  # fmt: skip
    with pytest.raises(UsageError, match="unknown divisor 'n3'.*none, n, n2"):
        build("criterions", "TaylorGate", divisor="n3")


@every_net
def test_taylor_gate_of_full_gradients_squares_each_sample(net: str) -> None:
    model, batches, groups = double(net)
    gates, count = Gates(net, model, groups), producers(groups)
    parts = []
    for inputs, targets in batches:
        each = [gates.gradients(x, y) for x, y in zip(inputs.split(1), targets.split(1), strict=True)]
        size = len(inputs)  # a sample's part of the gradient of the batch's mean loss
        parts.append((size, {n: sum((one[n] / size).square() for one in each) / count[n] for n in groups}))
    close(score("TaylorGateFG", model, batches), averaged(parts))  # type: ignore[arg-type]


@every_net
def test_of_a_single_sample_both_gate_criterions_score_the_same(net: str) -> None:
    model, batches, _ = double(net)
    one = [(batches[0][0][:1], batches[0][1][:1])]
    close(score("TaylorGateFG", model, one), score("TaylorGate", model, one))


def test_gates_of_weights_that_no_module_puts_out_are_told_sample_by_sample() -> None:
    """Torch's attention uses its weights without calling a layer."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(3, 4)
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
            self.head = nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.embed(x.flatten(2).transpose(1, 2)[:, :6]))
            return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))

    model = randomise(seeded(Attention)).double()
    x, y = images(5, dtype=torch.float64), torch.arange(5) % 4
    groups = free_groups(channel_groups(model, x[:1]))
    assert any("in_proj" in part.tensor for group in groups.values() for part in group.produced)
    found = score("TaylorGateFG", model, [(x, y)])
    singles = [
        score("TaylorGate", model, [(x[i : i + 1], y[i : i + 1])]) for i in range(5)
    ]  # a batch of one: its gradient is five times its part
    close(found, {name: sum(one[name].double() for one in singles) / 25 for name in found}, rtol=1e-4)  # type: ignore
    with pytest.raises(UsageError, match="in_proj"):
        score("TaylorOutput", model, [(x, y)])


@every_net
@pytest.mark.parametrize("original", [False, True])
def test_taylor_output_is_the_normalised_mean_of_output_times_gradient(net: str, original: bool) -> None:
    model, batches, groups = double(net)
    gates = Gates(net, model, groups)
    parts = []
    for inputs, targets in batches:
        for outputs in gates.outputs.values():
            outputs.clear()
        gates.model.zero_grad()
        loss = F.cross_entropy(gates.model(inputs), targets)
        means = {}
        for name in groups:
            given = []
            for output, index in gates.outputs[name]:
                (slope,) = torch.autograd.grad(loss, output, retain_graph=True)
                product = (output * slope).detach().flatten(2) if output.dim() > 2 else (output * slope)[..., None]
                given.append(product[:, index].sum(2))
            most = max(one.shape[2] for one in given)  # a gate with fewer positions counts at all of them
            shares = [one if one.shape[2] == most else one.sum(2, keepdim=True) / most for one in given]
            total: Any = sum(shares)
            q = total.mean(2).abs().mean(0) if original else total.abs().mean((0, 2))
            means[name] = q / (q.norm() + 1e-8)
        parts.append((len(inputs), means))
    close(score(build("criterions", "TaylorOutput", original=original), model, batches), averaged(parts))


def rows(model: nn.Module, group: ChannelGroup, values: Mapping[str, Tensor], channel: int) -> list[float]:
    """The entries of `values` in the rows that produce one channel, by loops."""
    found: list[float] = []
    for part in group.produced:
        if part.tensor.endswith("weight"):
            for row in part.index[channel].tolist():
                found += values[part.tensor][row].flatten().tolist()
    return found


def by_rows(
    model: nn.Module, groups: Groups, measure: Callable[..., float], *values: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """`measure` of the rows of each channel, taken from each of `values`."""
    return {
        name: torch.tensor(
            [measure(*(torch.tensor(rows(model, group, one, c)) for one in values)) for c in range(group.channels)]
        )
        for name, group in groups.items()
    }


def gradients(model: nn.Module, inputs: Tensor, targets: Tensor, temperature: float = 1.0) -> dict[str, Tensor]:
    model.eval()
    named = dict(model.named_parameters())
    loss = F.cross_entropy(model(inputs) / temperature, targets)
    return dict(zip(named, torch.autograd.grad(loss, list(named.values()), allow_unused=True), strict=True))


@every_net
def test_taylor_weight_sums_the_squares_of_each_batch(net: str) -> None:
    model, batches, groups = double(net)
    named = dict(model.named_parameters())
    parts = []
    for inputs, targets in batches:
        each = gradients(model, inputs, targets)
        parts.append(
            (len(inputs), by_rows(model, groups, lambda w, g: float((w * g).square().sum()), named, each))
        )
    close(score("TaylorWeight", model, batches), averaged(parts))


@every_net
@pytest.mark.parametrize(
    ("names", "measure"),
    [
        (("WeightNorm",), lambda w: float(w.square().sum())),
        (("WeightAbs", "L1"), lambda w: float(w.abs().sum())),
        (("MagBased",), lambda w: float(w.square().sum().sqrt())),
    ],
)
def test_magnitudes_read_the_rows_of_all_producers(net: str, names: tuple[str, ...], measure: Any) -> None:
    model, _, groups = double(net)
    expected = by_rows(model, groups, measure, dict(model.named_parameters()))
    for name in names:
        close(score(name, model, [], groups=groups), expected)


def over_norms(net: str, model: nn.Module, groups: Groups, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sum of `terms` (norm -> one number a unit) over the norms behind each channel; +inf where there is none."""
    found = {}
    for name, group in groups.items():
        total: Any = None
        for part in group.produced:
            producer, _, attribute = part.tensor.rpartition(".")
            if attribute == "weight" and producer in NORMS[net]:
                each = terms[NORMS[net][producer]][part.index].sum(1)
                total = each if total is None else total + each
        found[name] = total if total is not None else torch.full((group.channels,), torch.inf)
    return found


def finite(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: score for name, score in scores.items() if score.isfinite().all()}


@normed
def test_the_norm_s_scale_is_that_of_the_norm_behind_the_producer(net: str) -> None:
    model, batches, groups = double(net)
    sizes = {norm: model.get_submodule(norm).weight.abs() for norm in NORMS[net].values()}
    expected = over_norms(net, model, groups, sizes)
    for name in ("BNWeight", "BN"):
        found = score(name, model, batches)
        close(finite(found), finite(expected))
        never = {key for key, values in found.items() if bool((values == torch.inf).all())}
        assert never == expected.keys() - finite(expected).keys()
    assert never == ({"c", "e"} if net == "grouped" else set())
    model.get_submodule(next(iter(NORMS[net].values()))).weight.data.neg_()  # the sign does not count
    close(finite(score("BNWeight", model, batches)), finite(expected))


@normed
def test_the_taylor_term_of_norms_has_the_shift_in_it(net: str) -> None:
    model, batches, groups = double(net)
    parts = []
    for inputs, targets in batches:
        each, terms = gradients(model, inputs, targets), {}
        for norm in NORMS[net].values():
            module = model.get_submodule(norm)
            terms[norm] = module.weight * each[f"{norm}.weight"] + module.bias * each[f"{norm}.bias"]
        parts.append((len(inputs), {n: t.square() for n, t in over_norms(net, model, groups, terms).items()}))
    found = score("BNTaylor", model, batches)
    close(finite(found), finite(averaged(parts)))
    gate = score(build("criterions", "TaylorGate", divisor="none"), model, batches)
    for name, values in finite(found).items():
        torch.testing.assert_close(gate[name], values, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["BNWeight", "BNTaylor", "BN", "NvidiaFisher"])
def test_criterions_of_norms_refuse_a_network_without_one_in_one_line(name: str) -> None:
    model, batches, groups = double("plain")
    with pytest.raises(UsageError) as caught:
        score(name, model, batches, groups=groups)
    assert str(caught.value).startswith(f"{name} reads the scales of batch norms, and Net has none")
    assert "\n" not in str(caught.value)


def test_sums_over_a_filter_are_taken_in_eval_mode_since_before_norms_of_the_batch_they_vanish() -> None:
    model, batches, _ = double("convolutions")
    found = score("TFO", model.train(), batches)["b"]
    model.train()
    inputs, targets = whole(batches)
    (slope,) = torch.autograd.grad(F.cross_entropy(model(inputs) / 5, targets), model.b.weight)
    noise = (model.b.weight * slope).flatten(1).sum(1).abs()
    assert float(found.max()) > 1e-3 and float(noise.max()) < 1e-2 * float(found.max())


def test_random_channels_are_drawn_once_from_the_seed_and_ranked_globally() -> None:
    model, batches, groups = double("residual")
    one, other = build("criterions", "RandomChannel"), build("criterions", "StructuredRandom")
    assert one.scope == "global"
    assert same(score(one, model, batches), score(other, model, batches[:1]))
    other.step = 1
    assert not same(score(one, model, batches), score(other, model, batches))


# gradient flow


def whole(batches: Batches) -> tuple[Tensor, Tensor]:
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


FIRST_ORDER: dict[str, Callable[[Tensor, Tensor], float]] = {
    "LossBased": lambda w, g: float((w * g).abs().sum()),
    "TFO": lambda w, g: float((w * g).sum().abs()),
    "BiasedLoss": lambda w, g: float((w.square() * g.abs()).sum()),
    "BiasedLossTracked": lambda w, g: float(((w * g).abs() * w.abs()).sum()),
}


@every_net
@pytest.mark.parametrize("name", FIRST_ORDER)
def test_first_order_measures_of_the_mean_gradient(name: str, net: str) -> None:
    model, batches, groups = double(net)
    slopes = gradients(model, *whole(batches), temperature=5.0)
    expected = by_rows(model, groups, FIRST_ORDER[name], dict(model.named_parameters()), slopes)
    close(score(name, model.train(), batches), expected)
    cold = gradients(model, *whole(batches), temperature=0.7)
    expected = by_rows(model, groups, FIRST_ORDER[name], dict(model.named_parameters()), cold)
    close(score(build("criterions", name, temperature=0.7), model, batches), expected)


def test_the_tracked_measure_without_its_weighing_is_the_loss_based_one() -> None:
    model, batches, _ = double("residual")
    found = score(build("criterions", "BiasedLossTracked", use_l2=False), model, batches)
    assert same(found, score("LossBased", model, batches))


def test_the_loss_based_measure_bounds_the_first_order_term() -> None:
    model, batches, _ = double("residual")
    large, small = score("LossBased", model, batches), score("TFO", model, batches)
    assert all(bool((large[name] >= small[name]).all()) and bool((small[name] >= 0).all()) for name in large)


def test_element_scores_have_the_parameters_shapes_and_add_up_to_the_scores() -> None:
    model, batches, groups = double("residual")
    named = dict(model.named_parameters())
    for name in ("LossBased", "BiasedLoss", "Fisher"):
        criterion: Any = build("criterions", name)
        elements = criterion.element_scores(model, batches, F.cross_entropy, groups)
        assert {key: one.shape for key, one in elements.items()} == {key: named[key].shape for key in elements}
        expected = by_rows(model, groups, lambda one: float(one.sum()), elements)
        close(score(criterion, model, batches), expected)


@pytest.mark.parametrize("cut", [False, True])
def test_the_distance_from_the_initial_weights_follows_a_cut(cut: bool) -> None:
    from secateur.framework.pruning.surgery.cutting import cut as cut_channels

    model, batches, groups = double("residual")
    criterion = build("criterions", "BiasedLoss", use_init=True)
    with pytest.raises(UsageError, match="call start"):
        score(criterion, model, batches)
    criterion.start(model)
    with pytest.raises(UsageError, match="equal the initial weights"):
        score(criterion, model, batches)
    initial = {name: one.detach().clone() for name, one in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    criterion.start(model)  # only the first time counts
    if cut:
        keep = {name: torch.arange(group.channels) % 3 != 1 for name, group in groups.items()}
        groups = free_groups(cut_channels(model, keep, groups))
        left = {"stem": 0, "a": 1, "b": 2, "c": 3, "e": 4, "skip": 5}
        kept = {name: torch.arange(size) % 3 != 1 for name, size in
                {"stem": 6, "a": 5, "b": 6, "c": 7, "e": 9, "skip": 9}.items()}  # fmt: skip
        inputs = {"stem": None, "a": "stem", "b": "a", "c": "stem", "e": "c", "skip": "stem"}
        for name in left:
            tensor = initial[f"{name}.weight"][kept[name]]
            initial[f"{name}.weight"] = tensor if inputs[name] is None else tensor[:, kept[inputs[name]]]
    slopes = gradients(model, *whole(batches), temperature=5.0)
    named = dict(model.named_parameters())

    def measure(w: Tensor, g: Tensor, w0: Tensor) -> float:
        return float(((w - w0).abs() * (w * g).abs()).sum())

    close(score(criterion, model, batches), by_rows(model, groups, measure, named, slopes, initial))


def fisher(model: nn.Module, batches: Batches, per_example: bool, temperature: float = 5.0) -> dict[str, Tensor]:
    parts = []
    for inputs, targets in batches:
        sizes = [1] * len(inputs) if per_example else [len(inputs)]
        for x, y in zip(inputs.split(sizes), targets.split(sizes), strict=True):
            each = gradients(model, x, y, temperature)
            parts.append((len(x), {name: g.square() for name, g in each.items() if g is not None}))
    return weighted(parts)


@every_net
@pytest.mark.parametrize("per_example", [False, True])
def test_fisher_squares_the_gradient_of_each_batch_or_of_each_sample(net: str, per_example: bool) -> None:
    model, batches, groups = double(net)
    information = fisher(model, batches, per_example)
    named = dict(model.named_parameters())
    expected = by_rows(model, groups, lambda w, f: float((w.square() * f).sum()), named, information)
    close(score(build("criterions", "Fisher", per_example=per_example), model, batches), expected)
    assert all(bool((values >= 0).all()) for values in expected.values())


@normed
@pytest.mark.parametrize("per_example", [False, True])
def test_nvidia_fisher_reads_scales_and_shifts(net: str, per_example: bool) -> None:
    model, batches, groups = double(net)
    information, terms = fisher(model, batches, per_example), {}
    for norm in NORMS[net].values():
        module = model.get_submodule(norm)
        terms[norm] = (
            module.weight.square() * information[f"{norm}.weight"]
            + module.bias.square() * information[f"{norm}.bias"]
        )
    expected = over_norms(net, model, groups, terms)
    found = score(build("criterions", "NvidiaFisher", per_example=per_example), model, batches)
    close(finite(found), finite(expected))
    assert found.keys() == expected.keys()


def flow(model: nn.Module, batches: Batches, temperature: float) -> dict[str, Tensor]:
    """w * (H g) by the whole Hessian, over all parameters."""
    model.eval()
    named = {name: one.detach() for name, one in model.named_parameters()}
    sizes = [one.numel() for one in named.values()]
    inputs, targets = whole(batches)

    def loss(vector: Tensor) -> Tensor:
        parts = {n: p.view(named[n].shape) for n, p in zip(named, vector.split(sizes), strict=True)}
        return F.cross_entropy(functional_call(model, parts, (inputs,)) / temperature, targets)

    vector = torch.cat([one.flatten() for one in named.values()])
    hessian = torch.autograd.functional.hessian(loss, vector)
    vector.requires_grad_()
    (slope,) = torch.autograd.grad(loss(vector), vector)
    products = (vector * (hessian @ slope)).detach()
    return {n: p.view(named[n].shape) for n, p in zip(named, products.split(sizes), strict=True)}


def tiny(net: str) -> tuple[nn.Module, Batches, Groups]:
    """Networks whose whole Hessian is small."""

    def chain() -> nn.Module:
        layers = {"a": nn.Conv2d(3, 3, 3), "na": nn.BatchNorm2d(3), "b": nn.Conv2d(3, 4, 3), "d": nn.Linear(4, 5)}
        return Net(lambda s, x: s.d(F.relu(s.b(F.relu(s.na(s.a(x))))).mean((2, 3))), **layers)

    def residual() -> nn.Module:
        layers = {"a": nn.Conv2d(3, 3, 1), "na": nn.BatchNorm2d(3), "b": nn.Conv2d(3, 3, 3, padding=1),
                  "nb": nn.BatchNorm2d(3), "d": nn.Linear(3, 5)}  # fmt: skip

        def run(s: Net, x: Tensor) -> Tensor:
            x = F.relu(s.na(s.a(x)))
            return s.d(F.relu(x + s.nb(s.b(x))).mean((2, 3)))

        return Net(run, **layers)

    makers = {"chain": chain, "residual": residual, "linear": mlp}
    model = randomise(seeded(makers[net])).double()
    inputs = torch.randn(8, 12, generator=torch.Generator().manual_seed(0)).double()
    inputs = inputs if net == "linear" else images(8, dtype=torch.float64)
    batches = list(zip(inputs.split((5, 3)), (torch.arange(8) % 4).split((5, 3)), strict=True))
    return model, batches, free_groups(channel_groups(model, inputs[:1]))


@pytest.mark.parametrize("net", ["chain", "residual", "linear"])
@pytest.mark.parametrize(("name", "temperature"), [("GraspChannel", 200.0), ("GradPreserve", 1.0)])
def test_the_flow_of_channels_is_by_the_gradient_of_all_parameters(
    net: str, name: str, temperature: float
) -> None:
    model, batches, groups = tiny(net)
    expected = by_rows(model, groups, lambda one: float(one.sum()), flow(model, batches, temperature))
    if name == "GradPreserve":
        expected = {key: values.abs() for key, values in expected.items()}
    close(score(name, model.train(), batches), expected, rtol=1e-4)


def test_grad_preserve_is_the_size_of_grasp_at_the_same_temperature() -> None:
    model, batches, _ = double("residual")
    signed = score(build("criterions", "GraspChannel", grasp_temperature=1.0), model, batches)
    assert same(score("GradPreserve", model, batches), {name: one.abs() for name, one in signed.items()})
    assert any(bool((one < 0).any()) for one in signed.values())


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("LossBased", {"temperature": 0}, "temperature must be above 0 and finite, got 0"),
        ("Fisher", {"samples": 0}, "samples must be a positive integer, got 0"),
        ("GraspChannel", {"grasp_temperature": -1.0}, "grasp_temperature must be above 0"),
        ("GradPreserve", {"samples": 2.5}, "samples must be a whole number"),
    ],
)
def test_options_that_make_no_sense_are_refused(name: str, options: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        build("criterions", name, **options)


@pytest.mark.parametrize("name", ["LossBased", "TFO", "BiasedLoss", "BiasedLossTracked", "Fisher", "NvidiaFisher"])
def test_the_number_of_samples_is_what_the_framework_draws(name: str) -> None:
    assert (build("criterions", name).data.kind, build("criterions", name).data.samples) == ("random", 2560)
    assert build("criterions", name, samples=640).data.samples == 640
    assert build("criterions", name).data.samples == 2560
    assert repr(build("criterions", name, samples=640)).endswith("temperature=5.0, samples=640)")


# second order


def curved() -> nn.Module:
    """A stage that several layers write into, squeeze-and-excite and smooth activations."""

    def run(s: Net, x: Tensor) -> Tensor:
        x = F.gelu(s.a(x))
        x = x + s.b(F.silu(x))
        return s.d((x * torch.sigmoid(s.e(x.mean((2, 3), keepdim=True)))).mean((2, 3)))

    layers = {"a": nn.Conv2d(3, 4, 3), "b": nn.Conv2d(4, 4, 1), "e": nn.Conv2d(4, 4, 1), "d": nn.Linear(4, 5)}
    return Net(run, **layers)


def series() -> nn.Module:
    """Blocks of one layer, which reads and gives the same channels: strided, dilated, transposed, linear."""

    def run(s: Net, x: Tensor) -> Tensor:
        x = s.a(x)
        x = x + s.b(F.relu(x))
        x = x + s.c(F.leaky_relu(x, 0.1))
        x = x + s.t(F.relu_(x.clone()))
        x = F.max_pool2d(x, 2) + s.e(x)
        x = F.relu(x).mean((2, 3))
        return s.d(x + s.f(F.relu(s.g(x))))

    layers = {
        "a": nn.Conv2d(3, 4, 3, padding=1), "b": nn.Conv2d(4, 4, 3, padding=1),
        "c": nn.Conv2d(4, 4, 3, padding=2, dilation=2, bias=False), "t": nn.ConvTranspose2d(4, 4, 3, padding=1),
        "e": nn.Conv2d(4, 4, 2, 2), "g": nn.Linear(4, 3), "f": nn.Linear(3, 4), "d": nn.Linear(4, 5),
    }  # fmt: skip
    return Net(run, **layers)


def repeated() -> nn.Module:
    """Layers that are called twice, and a block whose layers read a concatenation."""

    def run(s: Net, x: Tensor) -> Tensor:
        x = s.a(x)
        x = x + s.b(F.relu(s.c(x)))
        x = x + s.b(F.relu(s.c(x)))
        y = s.e(F.relu(x))
        x = x + s.f(torch.cat([x, y], 1))
        return s.d(F.relu(x).mean((2, 3)))

    layers = {
        "a": nn.Conv2d(3, 4, 3, padding=1), "b": nn.Conv2d(3, 4, 1), "c": nn.Conv2d(4, 3, 1),
        "e": nn.Conv2d(4, 2, 1), "f": nn.Conv2d(6, 4, 3, padding=1), "d": nn.Linear(4, 5),
    }  # fmt: skip
    return Net(run, **layers)


NETS |= {"curved": curved, "series": series, "repeated": repeated}
NORMS |= {"curved": {}, "series": {}, "repeated": {}}


def curvatures(gates: Gates, inputs: Tensor, targets: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """First derivatives, and the diagonal of the whole Hessian by all gates together."""
    sizes = [len(one) for one in gates.values.values()]

    def loss(vector: Tensor) -> Tensor:
        for outputs in gates.outputs.values():
            outputs.clear()
        gates.values.update(zip(gates.values, vector.split(sizes), strict=True))
        return F.cross_entropy(gates.model(inputs), targets)

    ones = torch.ones(sum(sizes), dtype=torch.float64)
    diagonal = torch.autograd.functional.hessian(loss, ones).diagonal()
    ones.requires_grad_()
    (slope,) = torch.autograd.grad(loss(ones), ones)
    names = list(gates.values)
    return dict(zip(names, slope.split(sizes), strict=True)), dict(zip(names, diagonal.split(sizes), strict=True))


@pytest.mark.parametrize("net", [*NETS])
def test_second_derivatives_are_the_diagonal_of_the_hessian_by_explicit_gates(net: str) -> None:
    model, batches, groups = double(net)
    gates, count = Gates(net, model, groups), producers(groups)
    damage, order = [], []
    for inputs, targets in batches:
        first, second = curvatures(gates, inputs, targets)
        damage.append((len(inputs), second))
        order.append((len(inputs), {n: (second[n] / 2 - first[n]).square() / count[n] for n in groups}))
    close(score("OBD", model.train(), batches), averaged(damage))
    close(score("TaylorGateSO", model, batches), averaged(order))
    undivided = {name: value * count[name] for name, value in averaged(order).items()}
    close(score(build("criterions", "TaylorGateSO", divisor="none"), model, batches), undivided)


@pytest.mark.parametrize(
    ("net", "rows", "serial"),
    [
        ("convolutions", set(), {}),
        ("plain", set(), {}),
        ("residual", set(), {"stem": 0.0}),  # no layer between its first reader and e; e and skip are parallel
        # from the first reader to the producer of the last block: 4 of 6 and 2 of 4 layers
        ("stages", set(), {"stem": 4 / 14, "b3": 2 / 14}),
        ("curved", {"a"}, {}),
    ],
)
def test_channels_take_a_pass_each_only_where_the_outputs_are_not_linear_in_the_gate(
    net: str, rows: set[str], serial: dict[str, float]
) -> None:
    from secateur.framework.network.preserve import scoring
    from secateur.framework.pruning.scoring.gates.curvature import Curvature

    model, batches, groups = double(net)
    with scoring(model):
        plan = Curvature.plan(model, groups, batches[0][0][:2])
    assert (set(plan.rows.groups), plan.serial, plan.outputs) == (rows, serial, 5)
    assert plan.direct.groups.keys() | plan.rows.groups.keys() == groups.keys()
    channels = sum(groups[name].channels for name in rows)
    criterion: Any = build("criterions", "OBD")
    criterion.example_input = batches[0][0][:1]
    criterion.start(model)
    between = sum(share * groups[name].channels for name, share in serial.items())
    assert criterion.cost(30) == pytest.approx(30 * ((7 + between) / 3 + (1 + channels if channels else 0)))


def test_as_many_backward_passes_as_outputs_serve_all_layers_of_a_chain() -> None:
    model, batches, groups = double("convolutions")
    passes = []
    model.d.weight.register_hook(lambda grad: passes.append("weight"))
    handle = model.a.register_full_backward_hook(lambda *_: passes.append("back"))
    forward: list[int] = []
    model.d.register_forward_hook(lambda _m, inputs, _out: forward.append(len(inputs[0])))
    score("OBD", model, batches, groups=groups)
    handle.remove()
    assert forward.count(5) == 1 and forward.count(3) == 1  # the others are trials of one or two samples
    assert "weight" not in passes


def test_a_loss_that_is_linear_in_the_outputs_has_no_curvature_in_a_chain() -> None:
    model, batches, groups = double("plain")
    found = build("criterions", "OBD").score(model, batches, lambda out, y: out.mean(), groups)
    assert not any(bool(values.any()) for values in found.values())


# removal


def without(model: nn.Module, groups: Groups, removed: Mapping[str, list[int]]) -> nn.Module:
    """A copy in which every entry of some channels is zero."""
    from tests.networks import masked

    keep = {name: torch.ones(group.channels, dtype=torch.bool) for name, group in groups.items()}
    for name, channels in removed.items():
        keep[name][channels] = False
    return masked(model, keep, groups).eval()


def change(
    model: nn.Module, groups: Groups, batch: tuple[Tensor, Tensor], name: str, channels: list[int]
) -> float:
    inputs, targets = batch
    with torch.no_grad():
        before = F.cross_entropy(model.eval()(inputs), targets)
        return float(F.cross_entropy(without(model, groups, {name: channels})(inputs), targets) - before)


@pytest.mark.parametrize("net", [*NETS])
def test_the_oracle_is_the_squared_change_of_the_loss_without_the_channel(net: str) -> None:
    model, batches, groups = double(net)
    parts = [
        (len(batch[0]), {
            name: torch.tensor([change(model, groups, batch, name, [c]) ** 2 for c in range(group.channels)])
            for name, group in groups.items()
        })
        for batch in batches
    ]  # fmt: skip
    close(score("Oracle", model.train(), batches, groups=groups), averaged(parts))


@every_net
def test_the_layers_before_a_channel_are_run_once_for_all_of_them(net: str) -> None:
    from secateur.framework.pruning.scoring.ablation.consumers import reads_of
    from secateur.framework.pruning.scoring.ablation.loss_change import _Network
    from secateur.framework.pruning.scoring.ablation.replay import Replay

    model, batches, groups = double(net)
    model.eval()
    inputs = batches[0][0]
    with torch.no_grad():
        network, replay = _Network(model, inputs), Replay(model, inputs)
        for group in groups.values():
            reads = reads_of(model, group, replay)
            assert reads and network.proves(group)
            first = min(replay.nodes.index(node) for node in reads)
            assert all(replay.nodes.index(node) >= first for node in replay.after(reads))


@pytest.mark.parametrize("size", [1, 2])
def test_a_channel_scores_what_the_least_harmful_set_with_it_does(size: int) -> None:
    model, batches, groups = double("residual")
    criterion: Any = build("criterions", "Combinatorial", size=size)
    found = score(criterion, model, batches, groups=groups)
    expected = {}
    for name, group in groups.items():
        sets = list(itertools.combinations(range(group.channels), size))
        values = {
            one: sum(change(model, groups, b, name, list(one)) ** 2 for b in batches) / len(batches)
            for one in sets
        }
        torch.testing.assert_close(
            criterion.changes[name], torch.tensor(list(values.values())).double(), rtol=1e-5, atol=1e-12
        )
        least = [min(v for one, v in values.items() if c in one) for c in range(group.channels)]
        expected[name] = torch.tensor(least)
    close(found, expected)
    if size == 1:
        close(found, score("Oracle", model, batches, groups=groups))


def test_only_the_chosen_layer_is_tried_and_too_many_sets_are_refused() -> None:
    model, batches, groups = double("residual")
    found = score(build("criterions", "Combinatorial", layer="a"), model, batches, groups=groups)
    at = list(free_groups(groups)).index("a")
    assert same(score(build("criterions", "Combinatorial", layer=at), model, batches, groups=groups), found)
    assert {name for name, values in found.items() if bool((values == torch.inf).all())} == {"stem", "c", "e"}
    for options, expected in [
        ({"layer": "aa"}, "unknown layer 'aa': did you mean 'a'"),
        ({"most": 20}, "82 sets of 2 channels are more than most, 20"),
    ]:
        with pytest.raises(UsageError, match=expected):
            score(build("criterions", "Combinatorial", **options), model, batches, groups=groups)
    with pytest.raises(UsageError, match="size must be a positive integer, got 0"):
        build("criterions", "Combinatorial", size=0)


class Deciding(nn.Module):
    """A network that looks at values, which no recorded pass can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.d = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1), nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        return self.d(self.b(x if float(x.sum()) > 1e9 else x * 2).mean((2, 3)))


class Attending(nn.Module):
    """Torch's attention, whose queries and keys no layer reads, behind a norm over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(3, 4), nn.LayerNorm(4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.up, self.down, self.head = nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.embed(x.flatten(2).transpose(1, 2)[:, :6]))
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head((x + self.down(F.gelu(self.up(x)))).mean(1))


@pytest.mark.parametrize("make", [Deciding, Attending])
def test_the_oracle_is_exact_where_a_pass_cannot_be_taken_apart(make: Callable[[], nn.Module]) -> None:
    model = randomise(seeded(make)).double()
    x, y = images(6, dtype=torch.float64), torch.arange(6) % 4
    groups = free_groups(channel_groups(model, x[:1]))
    found = score("Oracle", model, [(x, y)], groups=groups)
    expected = {
        name: torch.tensor([change(model, groups, (x, y), name, [c]) ** 2 for c in range(group.channels)])
        for name, group in groups.items()
    }
    assert len(groups) > (make is Attending)
    close(found, expected)


class Pooling(nn.Module):
    """Pools to one position by a layer, which marks the result of channels-last images by new strides."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 7, 3), nn.Linear(7, 5)
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.pool(F.relu(self.b(F.relu(self.a(x))))).flatten(1))


def test_the_oracle_takes_pooling_of_channels_last_images_for_what_it_is(
    capfd: pytest.CaptureFixture[str],
) -> None:
    model = randomise(seeded(Pooling)).double().to(memory_format=torch.channels_last)
    x = images(6, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    y = torch.arange(6) % 4
    groups = free_groups(channel_groups(model, x[:1]))
    found = score("Oracle", model, [(x, y)], groups=groups)
    close(found, {
        name: torch.tensor([change(model, groups, (x, y), name, [c]) ** 2 for c in range(group.channels)])
        for name, group in groups.items()
    })  # fmt: skip
    assert "as_strided_" not in capfd.readouterr().err  # torch warns of what it does one by one


@pytest.mark.parametrize("name", ["VGG16", "LeNet5", "ResNet18"])
def test_shipped_networks_are_taken_apart(name: str) -> None:
    from secateur.framework.pruning.scoring.ablation.loss_change import _Network

    model = shipped(name, image_size=32).eval()
    inputs = images(2, channels=1, size=32)
    groups = free_groups(channel_groups(model, inputs[:1]))
    chosen = [list(groups)[0], *list(groups)[-2:]]
    with torch.no_grad():
        network = _Network(model, inputs)
        assert network.replay is not None
        assert [network.proves(groups[one]) for one in chosen] == [True] * 3


def test_a_channel_that_is_zero_everywhere_is_not_missed_and_costs_nothing() -> None:
    model, batches, groups = double("plain")
    model.a.weight.data[2], model.a.bias.data[2] = 0, -1  # its activation is zero
    seen = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append(1)
        return F.cross_entropy(outputs, targets)

    one = {"a": groups["a"]}
    found = build("criterions", "Oracle").score(model, batches[:1], loss, one)
    assert found["a"][2] == 0 and found["a"].count_nonzero() == 4
    assert len(seen) == 1 + 4  # the whole network, and those that change something


@pytest.mark.parametrize("reader", ["linear", "conv", "flattened"])
@pytest.mark.parametrize("criterion", ["Oracle", "Combinatorial"])
def test_channels_that_are_zero_for_all_samples_are_worth_nothing(criterion: str, reader: str) -> None:
    first: nn.Module = nn.Linear(16, 6) if reader == "linear" else nn.Conv2d(1, 6, 3)
    first.bias.data.fill_(-100)  # type: ignore[union-attr, operator]
    layers = {
        "linear": [nn.Flatten(), first, nn.ReLU(), nn.Linear(6, 3)],
        "conv": [first, nn.ReLU(), nn.Conv2d(6, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3)],
        "flattened": [first, nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)],
    }
    model = nn.Sequential(*layers[reader]).eval()
    batches = [(torch.randn(5, 1, 4, 4), torch.randint(0, 3, (5,)))]
    found = score(criterion, model, batches)
    assert torch.equal(next(iter(found.values())), torch.zeros(6))
