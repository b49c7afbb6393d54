"""The formulas of the baselines against brute force in float64: Hessians, explicit gates, closed forms, loops."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from secateur.framework.network.layers import prunable_weights
from secateur.framework.network.masks import Masks
from secateur.framework.plugins.registry import build
from secateur.framework.pruning.channels.discovery import channel_groups
from secateur.framework.pruning.channels.groups import ChannelGroup, free_groups
from secateur.utils.errors import UsageError
from tests.networks import ConvNet, Net, ResNet, close, images, mlp, randomise, same, score, seeded, shipped

Batches = list[tuple[Tensor, Tensor]]
NETS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "convolutions": (ConvNet, images(8)),
    "residual": (ResNet, images(8)),
    "linear": (mlp, torch.randn(8, 12, generator=torch.Generator().manual_seed(0))),
}
every_net = pytest.mark.parametrize("net", NETS)


def double(net: str) -> tuple[nn.Module, Batches]:
    constructor, inputs = NETS[net]
    targets = torch.arange(len(inputs)) % 4
    batches = list(zip(inputs.double().split((5, 3)), targets.split((5, 3)), strict=True))
    return randomise(seeded(constructor)).double(), batches


def joined(batches: Batches) -> tuple[Tensor, Tensor]:
    return torch.cat([inputs for inputs, _ in batches]), torch.cat([targets for _, targets in batches])


# GraSP


def soft_loss(model: nn.Module, batches: Batches, temperature: float = 200.0) -> Callable[..., Tensor]:
    """The mean loss over all samples as a function of the parameters given by name."""
    inputs, targets = joined(batches)

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(functional_call(model, parameters, (inputs,)) / temperature, targets)

    return loss


def flow(model: nn.Module, batches: Batches, temperature: float = 200.0) -> dict[str, Tensor]:
    """theta * (H g) by the whole Hessian of a tiny network; g is that of the prunable weights alone."""
    parameters = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    shapes = {name: tensor.shape for name, tensor in parameters.items()}
    sizes = [tensor.numel() for tensor in parameters.values()]
    loss = soft_loss(model, batches, temperature)

    def of(vector: Tensor) -> Tensor:
        parts = zip(shapes.items(), vector.split(sizes), strict=True)
        return loss({name: part.reshape(shape) for (name, shape), part in parts})

    vector = torch.cat([tensor.flatten() for tensor in parameters.values()])
    hessian = torch.autograd.functional.hessian(of, vector)
    vector.requires_grad_()
    (gradient,) = torch.autograd.grad(of(vector), vector)
    weights = prunable_weights(model)
    chosen = torch.cat(
        [torch.full((tensor.numel(),), float(name in weights)) for name, tensor in parameters.items()]
    )
    products = vector.detach() * (hessian @ (gradient * chosen))
    return {
        name: part.reshape(shape)
        for (name, shape), part in zip(shapes.items(), products.split(sizes), strict=True)
    }


@pytest.mark.parametrize("name", ["GRASP", "IterativeGRASP"])
def test_grasp_is_weight_times_hessian_times_gradient(name: str) -> None:
    model, batches = double("linear")
    expected = flow(model.eval(), batches)
    found = score(name, model.train(), batches)
    close(found, {key: expected[key] for key in prunable_weights(model)})


def test_grasp_sees_norms_in_eval_mode_and_convolutions() -> None:
    layers = {"a": nn.Conv2d(1, 3, 3), "n": nn.BatchNorm2d(3), "d": nn.Linear(3, 4)}
    model = randomise(seeded(lambda: Net(lambda s, x: s.d(F.relu(s.n(s.a(x))).mean((2, 3))), **layers))).double()
    x = images(8, channels=1, size=5, dtype=torch.float64)
    batches = list(zip(x.split((5, 3)), (torch.arange(8) % 4).split((5, 3)), strict=True))
    expected = flow(model.eval(), batches)
    found = score("GRASP", model.train(), batches)
    close(found, {key: expected[key] for key in prunable_weights(model)})


def test_removing_what_grasp_ranks_lowest_leaves_more_gradient_flow_than_the_original_polarity() -> None:
    model, batches = double("linear")
    dense = gradient_flow(model, batches)
    change = {}
    for original in (False, True):
        found = score(build("criterions", "GRASP", original_polarity=original), model, batches)
        flat = torch.cat([tensor.flatten() for tensor in found.values()])
        threshold = flat.kthvalue(len(flat) // 50).values  # few: the formula is of first order
        twin = copy.deepcopy(model)
        Masks(twin).hold({key: tensor > threshold for key, tensor in found.items()})
        change[original] = gradient_flow(twin, batches) - dense
    assert change[False] > 0 > change[True]


def gradient_flow(model: nn.Module, batches: Batches) -> float:
    parameters = {name: tensor.detach().requires_grad_() for name, tensor in model.eval().named_parameters()}
    gradients = torch.autograd.grad(
        soft_loss(model, batches)(parameters), [parameters[n] for n in prunable_weights(model)]
    )
    return sum(float(one.square().sum()) for one in gradients)


def test_the_original_polarity_turns_grasp_round() -> None:
    model, batches = double("linear")
    plain = score("GRASP", model, batches)
    turned = score(build("criterions", "GRASP", original_polarity=True), model, batches)
    assert same({key: -tensor for key, tensor in turned.items()}, plain)


def test_the_flow_of_masked_weights_does_not_count() -> None:
    model, batches = double("linear")
    keep = torch.rand(8, 12, generator=torch.Generator().manual_seed(0)) < 0.5
    Masks(model).hold({"0.weight": keep})
    found = score("IterativeGRASP", model, batches)
    loss = soft_loss(model.eval(), batches)
    parameters = {name: tensor.detach().requires_grad_() for name, tensor in model.named_parameters()}
    names = list(prunable_weights(model))
    first = torch.autograd.grad(loss(parameters), [parameters[n] for n in names], create_graph=True)
    living = (first[0] * keep).square().sum() + sum(one.square().sum() for one in first[1:])
    second = torch.autograd.grad(living / 2, [parameters[n] for n in names])
    expected = {n: parameters[n].detach() * one for n, one in zip(names, second, strict=True)}
    close(found, expected)


def test_the_temperature_is_what_the_outputs_are_divided_by() -> None:
    model, batches = double("linear")
    found = score(build("criterions", "GRASP", temperature=2.0), model, batches)
    expected = flow(model.eval(), batches, temperature=2.0)
    close(found, {key: expected[key] for key in found})
    with pytest.raises(UsageError, match="temperature must be above 0"):
        build("criterions", "GRASP", temperature=0)


def test_batch_statistics_change_grasp_on_request_and_halves_change_them_again() -> None:
    model, batches = double("convolutions")
    plain = score("GRASP", model, batches)
    for key, tensor in score(build("criterions", "GRASP", halves=True), model, batches).items():
        torch.testing.assert_close(tensor, plain[key], rtol=1e-4, atol=1e-6 * float(plain[key].abs().max()))
    before = copy.deepcopy(model.state_dict())
    whole = score(build("criterions", "GRASP", train_batch_norm=True), model, batches)
    halves = score(build("criterions", "GRASP", train_batch_norm=True, halves=True), model, batches)
    assert same(dict(model.state_dict()), before)  # running statistics too, which torch writes to uncounted
    assert not torch.allclose(whole["a.weight"], plain["a.weight"], rtol=1e-2)
    assert not torch.allclose(whole["a.weight"], halves["a.weight"], rtol=1e-2)
    lonely = [(x[:1], y[:1]) for x, y in batches[:1]] + batches  # a sample without statistics of its own
    assert all(tensor.isfinite().all() for tensor in score(
        build("criterions", "GRASP", train_batch_norm=True), model, lonely).values())  # fmt: skip
    # the statistics of each batch: the same as with norms that have none of their own
    twin = copy.deepcopy(model)
    for module in twin.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean = module.running_var = None
    close(whole, score("GRASP", twin, batches))


def test_linear_weights_are_drawn_anew_on_request_and_the_network_keeps_its_own() -> None:
    model, batches = double("convolutions")
    before = copy.deepcopy(model.state_dict())
    criterion = build("criterions", "GRASP", xavier=True)
    found = score(criterion, model, batches)
    assert same(dict(model.state_dict()), before)
    assert same(score(criterion, model, batches), found)
    generator = criterion.generator()
    twin = copy.deepcopy(model)
    for layer in (twin.c, twin.d):
        drawn = nn.init.xavier_normal_(torch.empty(layer.weight.shape), generator=generator)
        layer.weight.data.copy_(drawn)
    close(found, score("GRASP", twin, batches))
    criterion.step = 1
    assert not same(score(criterion, model, batches), found)


@every_net
def test_structured_grasp_is_the_change_of_the_flow_with_an_explicit_gate(net: str) -> None:
    model, batches = double(net)
    groups = free_groups(channel_groups(model, batches[0][0]))
    found = score("StructuredGRASP", model, batches)
    model.eval()
    gates = {
        name: torch.ones(group.channels, dtype=torch.float64).requires_grad_() for name, group in groups.items()
    }
    parameters = dict(model.named_parameters())
    gated = {name: tensor.detach() for name, tensor in parameters.items()}
    for name, group in groups.items():
        for producer in group.producers:  # a gate on the producer's output scales its rows and its bias
            for tensor in (f"{producer}.weight", f"{producer}.bias"):
                if tensor in gated:
                    shape = (-1,) + (1,) * (gated[tensor].dim() - 1)
                    gated[tensor] = gated[tensor] * gates[name].view(shape)
    gated = {name: tensor if tensor.requires_grad else tensor.requires_grad_() for name, tensor in gated.items()}
    weights = [gated[name] for name in prunable_weights(model)]
    gradients = torch.autograd.grad(soft_loss(model, batches)(gated), weights, create_graph=True)
    half_flow = sum(one.square().sum() for one in gradients) / 2
    changes = torch.autograd.grad(half_flow, list(gates.values()))
    close(found, dict(zip(gates, changes, strict=True)), rtol=1e-4)
    turned = score(build("criterions", "StructuredGRASP", original_polarity=True), model, batches)
    assert same({key: -tensor for key, tensor in turned.items()}, found)


# SynFlow


def chain(*widths: int) -> nn.Sequential:
    layers = [nn.Linear(one, two, bias=False) for one, two in zip(widths, widths[1:], strict=False)]
    return seeded(lambda: nn.Sequential(*layers)).double()  # type: ignore[return-value]


def test_synflow_of_a_linear_chain_is_the_sum_over_paths() -> None:
    model = chain(4, 5, 3, 2)
    found = score("SynFlow", model, [(torch.randn(3, 4).double(), torch.zeros(3))])
    sizes = [layer.weight.detach().abs() for layer in model]
    for place in range(3):
        before, after = torch.ones(4).double(), torch.ones(2).double()
        for size in sizes[:place]:
            before = size @ before
        for size in reversed(sizes[place + 1 :]):
            after = after @ size
        expected = sizes[place] * after[:, None] * before[None, :]
        torch.testing.assert_close(found[f"{place}.weight"].double(), expected, rtol=1e-6, atol=0)
    totals = [float(tensor.double().sum()) for tensor in found.values()]
    assert totals == pytest.approx([totals[0]] * 3, rel=1e-6)  # synaptic flow is conserved from layer to layer


def test_synflow_adds_biases_and_takes_norms_as_neutral() -> None:
    layers = {"a": nn.Linear(3, 4), "n": nn.BatchNorm1d(4, eps=0.0), "b": nn.Linear(4, 2)}
    model = randomise(seeded(lambda: Net(lambda s, x: s.b(F.relu(s.n(s.a(x)))), **layers))).double()
    found = score("SynFlow", model, [(torch.randn(2, 3).double(), torch.zeros(2))])
    a, scale, b = model.a.weight.abs(), model.n.weight.abs(), model.b.weight.abs()
    hidden = scale * (a.sum(1) + model.a.bias.abs()) + model.n.bias.abs()
    torch.testing.assert_close(found["b.weight"].double(), (b * hidden).detach(), rtol=1e-6, atol=0)
    expected = a * (b.sum(0) * scale)[:, None]
    torch.testing.assert_close(found["a.weight"].double(), expected.detach(), rtol=1e-6, atol=0)


def test_synflow_needs_a_shape_and_no_data() -> None:
    model = chain(4, 5, 2)
    criterion = build("criterions", "SynFlow")
    assert criterion.data.kind == "none"
    with pytest.raises(UsageError, match="example input or a batch"):
        score(criterion, model, [])
    expected = score(criterion, model, [(torch.randn(3, 4).double(), torch.zeros(3))])
    criterion.example_input = torch.full((1, 4), torch.nan, dtype=torch.float64)
    assert same(score(criterion, model, []), expected)


def test_the_flow_through_a_deep_network_stays_within_numbers() -> None:
    model = nn.Sequential(*(nn.Linear(30, 30, bias=False) for _ in range(40)))
    with torch.no_grad():
        for layer in model:
            layer.weight.fill_(2.0)
            layer.weight[0, 0] = 1.0
    found = score("SynFlow", model, [(torch.ones(1, 30), torch.zeros(1))])  # about 60^40 = 1e71
    values = torch.cat([tensor.flatten() for tensor in found.values()])
    assert bool(torch.isfinite(values).all()) and values.max().item() == 1.0
    assert all(tensor[0, 0] < tensor[1, 1] for tensor in found.values())
    for layer in model:
        layer.weight.data.mul_(1e12)
    with pytest.raises(UsageError, match="too large for float64"):
        score("SynFlow", model, [(torch.ones(1, 30), torch.zeros(1))])


# magnitudes


@every_net
def test_lamp_by_loops(net: str) -> None:
    model, _ = double(net)
    found = score("LAMP", model, [])
    for name, weight in prunable_weights(model).items():
        values = weight.detach().flatten().tolist()
        expected = [v**2 / sum(u**2 for u in values if abs(u) >= abs(v)) for v in values]
        assert found[name].flatten().tolist() == pytest.approx(expected, rel=1e-5)
        assert found[name].max().item() == 1.0


def test_lamp_of_equal_and_of_zero_weights() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[0].weight.data.fill_(-3.0)
    model[1].weight.data.zero_()
    found = score("LAMP", model, [])
    assert found["0.weight"].flatten().tolist() == pytest.approx([1 / 4, 1 / 3, 1 / 2, 1])
    assert not found["1.weight"].any()


@every_net
def test_wanda_by_loops(net: str) -> None:
    model, batches = double(net)
    found = score("Wanda", model, batches)
    reads: dict[str, list[Tensor]] = {}
    twin = copy.deepcopy(model).eval()
    for name, module in twin.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(
                lambda _m, args, _o, name=name: reads.setdefault(name, []).append(args[0])
            )
    with torch.no_grad():
        for inputs, _ in batches:
            twin(inputs)
    for name, each in reads.items():
        weight = model.get_submodule(name).weight.detach()
        for feature in range(weight.shape[1]):
            norm = math.sqrt(sum(float((one[:, feature] ** 2).sum()) for one in each))
            expected = weight[:, feature].abs() * norm
            torch.testing.assert_close(
                found[f"{name}.weight"][:, feature].double(), expected, rtol=1e-5, atol=1e-9
            )


def test_wanda_of_grouped_and_transposed_convolutions() -> None:
    layers = {"a": nn.Conv2d(4, 6, 1, groups=2), "up": nn.ConvTranspose2d(6, 4, 2, 2), "d": nn.Linear(4, 4)}
    model = seeded(lambda: Net(lambda s, x: s.d(s.up(s.a(x)).mean((2, 3))), **layers)).double()
    x = images(3, channels=4, size=3, dtype=torch.float64)
    found = score("Wanda", model, [(x, torch.zeros(3))])
    norms = x.square().sum((0, 2, 3)).sqrt()
    for out in range(6):
        for entry in range(2):  # the first three outputs read channels 0 and 1, the others 2 and 3
            expected = model.a.weight[out, entry].abs() * norms[entry + 2 * (out // 3)]
            torch.testing.assert_close(
                found["a.weight"][out, entry].double(), expected.detach(), rtol=1e-5, atol=0
            )
    between = model.a(x).square().sum((0, 2, 3)).sqrt()
    expected = model.up.weight.abs() * between[:, None, None, None]
    torch.testing.assert_close(found["up.weight"].double(), expected.detach(), rtol=1e-5, atol=0)


def test_wanda_refuses_what_it_cannot_see_and_gives_zero_to_what_is_not_used() -> None:
    model = Net(lambda s, x: s.m(x, x, x)[0].mean(1), m=nn.MultiheadAttention(8, 2, batch_first=True))
    with pytest.raises(UsageError, match="'m.out_proj' inside nn.MultiheadAttention"):
        score("Wanda", model, [(torch.randn(2, 3, 8), torch.zeros(2))])
    model = Net(lambda s, x: s.a(x), a=nn.Linear(3, 2), unused=nn.Linear(3, 2))
    found = score("Wanda", model, [(torch.randn(2, 3), torch.zeros(2))])
    assert found["a.weight"].any() and not found["unused.weight"].any()
    with pytest.raises(UsageError, match="needs data"):
        score("Wanda", model, [])


def filters(model: nn.Module, group: ChannelGroup) -> list[list[float]]:
    """The rows of all producers of each channel; the stages of these nets have one row a channel and producer."""
    return [
        [
            v
            for producer in group.producers
            for v in model.get_submodule(producer).weight[channel].flatten().tolist()
        ]
        for channel in range(group.channels)
    ]


@every_net
def test_fpgm_by_loops(net: str) -> None:
    model, batches = double(net)
    found = score("FPGM", model, batches)
    for name, group in free_groups(channel_groups(model, batches[0][0])).items():
        rows = filters(model, group)
        expected = [sum(math.dist(one, other) for other in rows) for one in rows]
        assert found[name].tolist() == pytest.approx(expected, rel=1e-5)


def test_fpgm_tells_close_filters_apart() -> None:
    model = nn.Sequential(nn.Linear(50, 30), nn.ReLU(), nn.Linear(30, 2))
    with torch.no_grad():
        model[0].weight.fill_(100.0)
        model[0].weight[:, 0] += torch.linspace(0, 1e-2, 30)
    found = score("FPGM", model, [(torch.randn(2, 50), torch.zeros(2))])["0"]
    assert found.argmin().item() in (14, 15) and found.argmax().item() in (0, 29)


@every_net
def test_efficient_conv_nets_is_the_l1_norm_of_filters_by_layer(net: str) -> None:
    model, batches = double(net)
    criterion = build("criterions", "EfficientConvNets")
    assert (criterion.scope, repr(criterion)) == ("layer", "EfficientConvNets()")
    found = score(criterion, model, batches)
    for name, group in free_groups(channel_groups(model, batches[0][0])).items():
        assert found[name].tolist() == pytest.approx(
            [sum(map(abs, row)) for row in filters(model, group)], rel=1e-5
        )


@every_net
def test_group_hoyer_square_is_the_largest_weight_of_a_filter(net: str) -> None:
    model, batches = double(net)
    found = score("GroupHoyerSquare", model, batches)
    for name, group in free_groups(channel_groups(model, batches[0][0])).items():
        assert found[name].tolist() == pytest.approx(
            [max(map(abs, row)) for row in filters(model, group)], rel=1e-6
        )


@pytest.mark.parametrize("name", ["IMP", "HoyerSquare"])
def test_imp_and_hoyer_square_rank_magnitudes(name: str) -> None:
    model, _ = double("convolutions")
    assert same(score(name, model, []), score("Magnitude", model, []))


@pytest.mark.parametrize("name", ["HoyerSquare", "GroupHoyerSquare"])
def test_thresholds_are_options(name: str) -> None:
    assert build("criterions", name).threshold == 1e-3
    assert build("criterions", name, threshold=0.5).threshold == 0.5
    with pytest.raises(UsageError, match="at least 0, got -1"):
        build("criterions", name, threshold=-1)


@every_net
@pytest.mark.parametrize("name", ["CNIP", "CNIPit", "CNIPitDuring"])
def test_cnip_has_the_scores_of_snip_and_of_snap(name: str, net: str) -> None:
    model, batches = double(net)
    expected = {**score("SNIP", model, batches), **score("SNAP", model, batches)}
    close(score(name, model, batches), expected)


def test_the_second_derivative_of_fused_attention_is_taken() -> None:
    """Its fused kernels have none."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).chunk(3, dim=-1)
            return self.out(F.scaled_dot_product_attention(q, k, v).mean(1))

    model = seeded(Attention)
    found = score("GRASP", model, [(torch.randn(4, 5, 8), torch.arange(4))])
    assert found["qkv.weight"].any()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["GRASP", "SynFlow", "LAMP", "Wanda", "CNIP", "FPGM", "StructuredGRASP"])
def test_a_large_shipped_network_is_scored(name: str) -> None:
    model = shipped("ResNet18", in_channels=3, num_classes=10, image_size=32)
    found = score(name, model, [(images(8, size=32), torch.arange(8))])
    assert all(bool(torch.isfinite(tensor).all()) for tensor in found.values())
    assert sum(int(tensor.count_nonzero()) for tensor in found.values()) > 0
