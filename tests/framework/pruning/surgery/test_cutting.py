"""The invariant: a cut network computes what the masked one computes, now and after further training."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur import registry
from secateur.framework.network.lineage import Lineage, lineage_of, set_lineage
from secateur.framework.network.masks import Masks
from secateur.framework.pruning.channels.discovery import channel_groups
from secateur.framework.pruning.channels.groups import ChannelGroup
from secateur.framework.pruning.channels.slicing import shrink
from secateur.framework.pruning.surgery.cutting import cut
from secateur.utils.errors import UsageError
from secateur.utils.optimizers import unwrapped
from tests.networks import (
    ConvNet,
    Net,
    ResNet,
    assert_cut_is_mask,
    images,
    mask_channels,
    masked,
    random_keep,
    randomise,
    same,
    seeded,
    shipped,
    snapshot,
)

LARGE = ("AlexNet", "VGG16", "ResNet34")
MODELS = registry.names("models")
OTHER_SIZE = {"Conv6": {"in_channels": 3, "image_size": 32}}
Groups = dict[str, ChannelGroup]


def make(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor]:
    """A shipped network with random norms and biases, and a batch for it."""
    options = {"in_channels": 1, "image_size": 28, **OTHER_SIZE.get(name, {})}
    model = shipped(name, **options).to(dtype)
    return model, images(4, channels=options["in_channels"], size=options["image_size"], dtype=dtype)


def thinned(name: str, channels: int = 7) -> tuple[nn.Module, Tensor]:
    """The network in float64, cut to a few channels of each group, without dropout."""
    model, inputs = make(name)
    groups = channel_groups(model, inputs)
    keep = {
        key: torch.randperm(group.channels, generator=torch.Generator().manual_seed(1)) < channels
        for key, group in groups.items()
        if group.protected is None
    }
    cut(model, keep, groups)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.double(), inputs.double()


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, steps: int, mode: bool = True
) -> None:
    """Training steps, by default in train mode: norms use the statistics of the batch, and update theirs."""
    model.train(mode)
    targets = torch.arange(len(inputs)) % 3
    for step in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs + 0.1 * step), targets).backward()
        optimizer.step()


def momentum(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)


def assert_same_left(small: nn.Module, big: nn.Module, kept: dict[tuple[str, int], Tensor]) -> None:
    """Every tensor of the cut network equals what the cut left of the masked one's; what went is zero."""
    dense = snapshot(big)
    parameters = {name for name, _ in big.named_parameters()}
    for name, tensor in snapshot(small).items():
        expected, rest = dense[name], dense[name].clone()
        for (one, dim), index in kept.items():
            if one == name.replace("mask_of_", "").replace("again", "b"):
                expected = expected.index_select(dim, index)
        torch.testing.assert_close({name: tensor}, {name: expected}, rtol=1e-9, atol=1e-10)
        if name in parameters and (name, 0) in kept:
            rest.index_fill_(0, kept[name, 0], 0)
            assert not rest.any(), name


def cut_and_masked(
    model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, seed: int
) -> tuple[nn.Module, torch.optim.Optimizer, dict[tuple[str, int], Tensor]]:
    """Cut the model and its optimizer; return the masked twin with its own, and what was kept of each tensor."""
    set_lineage(model, Lineage(dense={name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}))
    twin, held = copy.deepcopy((model, optimizer))  # together: the copied optimizer has the copied parameters
    groups = channel_groups(model, inputs)
    keep = random_keep(groups, seed)
    mask_channels(twin, keep, groups)
    Masks(twin).attach(held)
    cut(model, keep, groups, optimizer)
    return twin, held, lineage_of(model).kept


@pytest.mark.parametrize("name", MODELS)
def test_a_cut_model_computes_what_the_masked_one_computes(name: str) -> None:
    model, inputs = make(name)
    model.eval()
    for seed in range(1 if name in LARGE else 3):
        small = copy.deepcopy(model) if name not in LARGE else model
        groups = channel_groups(small, inputs)
        keep = random_keep(groups, seed)
        with torch.no_grad():
            expected = masked(small, keep, groups)(inputs)
            cut(small, keep, groups)
            found = small(inputs)
        assert found.shape == expected.shape == (4, 10)
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_training_on_keeps_cut_and_masked_alike(name: str, seed: int) -> None:
    model, inputs = thinned(name)
    optimizer = momentum(model)
    train(model, optimizer, inputs, 2)
    twin, held, kept = cut_and_masked(model, optimizer, inputs, seed)
    train(model, optimizer, inputs, 3)
    train(twin, held, inputs, 3)
    assert_same_left(model, twin, kept)
    for one in (model.train(), twin.train()):
        one.requires_grad_(False)
    torch.testing.assert_close(model(inputs), twin(inputs), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model.eval()(inputs), twin.eval()(inputs), rtol=1e-9, atol=1e-9)


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05),
    "Nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01),
    "AMSGrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True, foreach=False),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01),
    "fused AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "Adadelta": lambda p: torch.optim.Adadelta(p, lr=0.5),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("net", [ConvNet, ResNet])
def test_the_state_of_every_optimizer_is_cut_with_the_weights(name: str, net: Callable[[], nn.Module]) -> None:
    # In eval mode: before a norm in train mode the gradient of a bias is nothing but rounding, which most of
    # these optimizers blow up to a full step.
    model = randomise(seeded(net)).double()
    inputs = images(6, dtype=torch.float64)
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer, inputs, 3, mode=False)
    twin, held, kept = cut_and_masked(model, optimizer, inputs, seed=3)
    for parameter in model.parameters():
        assert all(
            value.shape == parameter.shape
            for value in optimizer.state[parameter].values()
            if isinstance(value, Tensor) and value.numel() > 1
        )
    assert len(optimizer.state) in (0, len(list(model.parameters())))
    train(model, optimizer, inputs, 3, mode=False)
    train(twin, held, inputs, 3, mode=False)
    assert_same_left(model, twin, kept)


def test_parameter_groups_keep_their_options_and_order() -> None:
    model = seeded(ConvNet)
    optimizer = torch.optim.SGD(
        [{"params": [model.d.weight, model.a.weight], "lr": 0.5}, {"params": [model.b.weight]}], lr=0.1
    )
    groups = channel_groups(model, images())
    cut(model, random_keep(groups), groups, optimizer)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.1]
    found = [[id(parameter) for parameter in group["params"]] for group in optimizer.param_groups]
    assert found == [[id(model.d.weight), id(model.a.weight)], [id(model.b.weight)]]


def test_wrapped_optimizers_are_cut_inside() -> None:
    from accelerate import Accelerator

    model = seeded(ConvNet)
    inner = momentum(model)
    wrapped = Accelerator(cpu=True).prepare_optimizer(inner)
    assert unwrapped(wrapped) is inner
    train(model, inner, images(), 1)
    groups = channel_groups(model, images())
    Masks(model).attach(unwrapped(wrapped))
    cut(model, random_keep(groups), groups, wrapped)
    assert {id(p) for p in inner.param_groups[0]["params"]} == {id(p) for p in model.parameters()}
    train(model, wrapped, images(), 2)
    with pytest.raises(UsageError, match="dict .* torch optimizer"):
        unwrapped({})


@pytest.mark.parametrize("net", [ConvNet, ResNet])
def test_a_cut_while_the_previous_loss_is_still_held(net: Callable[[], nn.Module]) -> None:
    model = seeded(net).double()
    inputs = images(dtype=torch.float64)
    expected = seeded(net).double()
    F.cross_entropy(expected(inputs), torch.arange(4)).backward()
    groups = channel_groups(model, inputs)
    old = dict(model.named_parameters())
    loss = F.cross_entropy(model(inputs), torch.arange(4))
    cut(model, random_keep(groups), groups)
    loss.backward()
    for name, parameter in expected.named_parameters():
        torch.testing.assert_close(old[name].grad, parameter.grad, rtol=1e-12, atol=1e-14)
    assert all(new.grad is None for name, new in model.named_parameters() if new is not old[name])
    F.cross_entropy(model(inputs), torch.arange(4)).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_layer_under_two_names_is_cut_once() -> None:
    model = randomise(seeded(ConvNet)).double()
    model.again = model.b
    inputs = images(dtype=torch.float64)
    optimizer = momentum(model)
    train(model, optimizer, inputs, 2)
    twin, held, kept = cut_and_masked(model, optimizer, inputs, seed=3)
    assert model.again is model.b
    train(model, optimizer, inputs, 3)
    train(twin, held, inputs, 3)
    assert_same_left(model, twin, {key: index for key, index in kept.items() if key[0] != "again.weight"})


def test_gradients_are_cut_too() -> None:
    model = seeded(ConvNet)
    model(images()).square().sum().backward()
    before = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.na.weight.grad = None
    groups = channel_groups(model, images())
    keep = random_keep(groups)
    cut(model, keep, groups)
    assert torch.equal(model.a.weight.grad, before["a.weight"][keep["a"]])
    assert torch.equal(model.b.weight.grad, before["b.weight"][keep["b"]][:, keep["a"]])
    assert torch.equal(model.nb.bias.grad, before["nb.bias"][keep["b"]])
    assert torch.equal(model.d.bias.grad, before["d.bias"])
    assert model.na.weight.grad is None


def test_frozen_parameters_stay_frozen() -> None:
    model = seeded(ConvNet)
    model.a.requires_grad_(False)
    groups = channel_groups(model, images())
    cut(model, random_keep(groups), groups)
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["a.weight", "a.bias"]


def test_attributes_follow() -> None:
    model = seeded(ConvNet)
    groups = channel_groups(model, images())
    keep = random_keep(groups, seed=4)
    a, b, c = (int(keep[name].sum()) for name in "abc")
    cut(model, keep, groups)
    assert (model.a.in_channels, model.a.out_channels, model.na.num_features) == (3, a, a)
    assert (model.b.in_channels, model.b.out_channels, model.nb.num_features) == (a, b, b)
    assert (model.c.in_features, model.c.out_features, model.nc.num_features) == (4 * b, c, c)
    assert (model.d.in_features, model.d.out_features) == (c, 5)


def test_attributes_of_rarer_layers_follow() -> None:
    model = Net(
        lambda s, x: s.c(s.up(s.p(s.dw(s.a(x))))),
        a=nn.Conv2d(3, 6, 1),
        dw=nn.Conv2d(6, 6, 3, groups=6),
        p=nn.PReLU(6),
        up=nn.ConvTranspose2d(6, 5, 2),
        c=nn.Conv2d(5, 2, 1),
    )
    groups = channel_groups(model, images())
    keep = {"a": torch.arange(6) < 4, "up": torch.arange(5) < 3}
    assert_cut_is_mask(model, keep, groups, images())
    assert (model.dw.groups, model.dw.in_channels, model.dw.out_channels) == (4, 4, 4)
    assert model.p.num_parameters == 4
    assert (model.up.in_channels, model.up.out_channels, model.c.in_channels) == (4, 3, 3)
    assert str(model.dw) == "Conv2d(4, 4, kernel_size=(3, 3), stride=(1, 1), groups=4)"


def test_a_depthwise_convolution_of_one_channel_left() -> None:
    layers = {"a": nn.Conv2d(3, 6, 1), "dw": nn.Conv2d(6, 6, 3, groups=6), "c": nn.Conv2d(6, 2, 1)}
    model = Net(lambda s, x: s.c(s.dw(s.a(x))), **layers)
    groups = channel_groups(model, images())
    keep = {"a": torch.arange(6) == 2}
    assert_cut_is_mask(model, keep, groups, images())
    assert (model.dw.groups, model.dw.in_channels, model.dw.out_channels) == (1, 1, 1)


def test_a_copy_of_a_cut_model_is_independent() -> None:
    model = randomise(seeded(ConvNet)).eval()
    groups = channel_groups(model, images())
    groups = cut(model, random_keep(groups), groups)
    before, twin = snapshot(model), copy.deepcopy(model)
    assert torch.equal(twin(images()), model(images()))
    cut(twin, random_keep(groups, seed=9), groups)
    assert same(snapshot(model), before)
    assert lineage_of(model).kept["a.weight", 0].tolist() == groups["a"].origin.tolist()


def test_channels_last_stays_channels_last() -> None:
    model = seeded(ConvNet).to(memory_format=torch.channels_last)
    optimizer = momentum(model)
    inputs = images().contiguous(memory_format=torch.channels_last)
    train(model, optimizer, inputs, 1)
    groups = channel_groups(model, inputs)
    cut(model, random_keep(groups), groups, optimizer)
    for parameter in (model.a.weight, model.b.weight):
        for tensor in (parameter, parameter.grad, optimizer.state[parameter]["momentum_buffer"]):
            assert tensor.is_contiguous(memory_format=torch.channels_last)
            assert not tensor.is_contiguous()


@pytest.mark.parametrize("shape", [(6, 5, 1, 1), (6, 1, 3, 3), (6, 5, 3, 3), (4, 5, 2, 2, 2), (7, 3), (9,)])
def test_shrinking_takes_the_entries_and_keeps_the_layout(shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape)
    index = {dim: torch.tensor([0, size - 1] if size > 1 else [0]) for dim, size in enumerate(shape[:2])}
    expected = tensor
    for dim, positions in index.items():
        expected = expected.index_select(dim, positions)
    assert torch.equal(shrink(tensor, index), expected)
    assert shrink(tensor, index).is_contiguous()
    if len(shape) > 3:
        layout = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
        found = shrink(tensor.contiguous(memory_format=layout), index)
        assert torch.equal(found, expected)
        assert found.is_contiguous(memory_format=layout)


def test_keeping_everything_changes_nothing() -> None:
    model = seeded(ConvNet)
    groups = channel_groups(model, images())
    before = [id(parameter) for parameter in model.parameters()]
    keep = {name: torch.ones(group.channels, dtype=torch.bool) for name, group in groups.items()}
    assert cut(model, keep, groups) == groups
    assert cut(model, {}, groups) == groups
    assert [id(parameter) for parameter in model.parameters()] == before
    assert lineage_of(model).kept == {}


def test_masks_of_weights_survive_a_cut_in_training() -> None:
    model = randomise(seeded(ConvNet)).double()
    inputs = images(dtype=torch.float64)
    optimizer = momentum(model)
    generator = torch.Generator().manual_seed(0)
    weights = {name: parameter for name, parameter in model.named_parameters() if parameter.dim() > 1}
    Masks(model).hold({name: torch.rand(w.shape, generator=generator) < 0.7 for name, w in weights.items()})
    Masks(model).attach(optimizer)
    train(model, optimizer, inputs, 2)
    twin, held, kept = cut_and_masked(model, optimizer, inputs, seed=1)
    train(model, optimizer, inputs, 3)
    train(twin, held, inputs, 3)
    assert_same_left(model, twin, kept)


# companions


@pytest.mark.parametrize("traced_before", [False, True])
def test_a_twin_is_cut_alike(traced_before: bool) -> None:
    model, other = randomise(seeded(ConvNet, 1)), randomise(seeded(ConvNet, 2), 5)
    if traced_before:
        channel_groups(other, images())
    groups = channel_groups(model, images())
    keep = random_keep(groups)
    expected = masked(other, keep, groups).eval()(images())
    groups = cut(model, keep, groups, companions=[other])
    torch.testing.assert_close(other.eval()(images()), expected)
    cut(model, random_keep(groups, seed=8), groups, companions=[other])
    assert [tuple(p.shape) for p in other.parameters()] == [tuple(p.shape) for p in model.parameters()]
    kept, twins = lineage_of(model).kept, lineage_of(other).kept
    assert {key: index.tolist() for key, index in kept.items()} == {k: i.tolist() for k, i in twins.items()}
    assert lineage_of(other).dense == lineage_of(model).dense
    other.load_state_dict(model.state_dict())


def test_a_twin_copied_after_a_cut_joins_the_next_one() -> None:
    model = seeded(ConvNet)
    groups = channel_groups(model, images())
    groups = cut(model, random_keep(groups), groups)
    twin = copy.deepcopy(model)
    del twin.__dict__["_secateur_lineage"]  # as if it had been put together by hand
    cut(model, random_keep(groups, seed=6), groups, companions=[twin])
    assert lineage_of(twin).kept["a.weight", 0].tolist() == lineage_of(model).kept["a.weight", 0].tolist()


def test_a_mapping_is_cut_where_it_has_the_names() -> None:
    model = seeded(ConvNet)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items() if not name.startswith("n")}
    start["unrelated"] = torch.arange(3)
    before = dict(start)
    groups = channel_groups(model, images())
    keep = random_keep(groups)
    cut(model, keep, groups, companions=[start])
    assert start.keys() == before.keys()
    assert all(start[name].shape == model.state_dict()[name].shape for name in start if name != "unrelated")
    assert torch.equal(start["b.weight"], before["b.weight"][keep["b"]][:, keep["a"]])
    assert start["d.bias"] is before["d.bias"]


def test_an_averaged_model_is_cut_and_goes_on_averaging() -> None:
    model = randomise(seeded(ConvNet))
    average = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    optimizer = momentum(model)
    train(model, optimizer, images(), 1)
    average.update_parameters(model)
    groups = channel_groups(model, images())
    keep = random_keep(groups)
    expected = masked(average.module, keep, groups).eval()(images())
    cut(model, keep, groups, optimizer, companions=[average])
    torch.testing.assert_close(average.eval()(images()), expected)
    train(model, optimizer, images(), 1)
    average.update_parameters(model)
    torch.optim.swa_utils.update_bn([images()], average)
    assert int(average.n_averaged) == 2
    assert lineage_of(average.module).kept.keys() == lineage_of(model).kept.keys()


# errors


def spoil(key: str, make_value: Callable[[Tensor], Any]) -> Callable[[nn.Module], torch.optim.Optimizer]:
    def build(model: nn.Module) -> torch.optim.Optimizer:
        optimizer = momentum(model)
        train(model, optimizer, images(), 1)
        optimizer.state[model.c.weight][key] = make_value(model.c.weight)
        return optimizer

    return build


def lbfgs(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.LBFGS(model.parameters())


FIRST = {"a": torch.arange(6) < 3}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown group": ({"keep": {"aa": torch.ones(6) > 0}}, "unknown channel group 'aa': did you mean 'a'"),
    "protected": ({"keep": {**FIRST, "d": torch.arange(5) < 3}}, r"'d' is protected \(model output\)"),
    "too long": ({"keep": {"a": torch.ones(7) > 0}}, r"mask of 'a' is torch.bool \(7,\), expected bool \(6,\)"),
    "not bool": ({"keep": {"a": torch.ones(6)}}, "torch.float32"),
    "empties a group": ({"keep": {"b": torch.arange(8) < 3, "a": torch.ones(6) < 0}}, "'a' leaves no channel"),
    "state of another shape": (
        {"keep": {"b": torch.arange(8) < 3}, "optimizer": spoil("row", lambda w: torch.ones(len(w)))},
        r"SGD's state 'row' of 'c.weight' has shape \(10,\)",
    ),
    "LBFGS": ({"keep": FIRST, "optimizer": lbfgs}, "LBFGS"),
    "mapping of another shape": (
        {"keep": FIRST, "companions": [{"b.weight": torch.ones(8, 5, 3, 3)}]},
        r"companion: 'b.weight' has shape \(8, 5, 3, 3\)",
    ),
    "twin of another shape": (
        {"keep": FIRST, "companions": [Net(len, a=nn.Conv2d(3, 5, 3))]},
        r"companion Net: 'a.weight' has shape \(5, 3, 3, 3\)",
    ),
    "twin without the layer": ({"keep": FIRST, "companions": [nn.Linear(3, 3)]}, "'a.weight' is missing"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_an_error_leaves_everything_bit_identical(case: str) -> None:
    options, words = REFUSED[case]
    model = seeded(ConvNet)
    build = options.get("optimizer", lambda model: None)
    optimizer = build(model)
    groups = channel_groups(model, images())
    twin = seeded(ConvNet, 5)
    mapping = {name: tensor.clone() for name, tensor in twin.state_dict().items()}
    before, others = snapshot(model), snapshot(twin)
    objects = [id(parameter) for parameter in model.parameters()]
    state = copy.deepcopy(optimizer.state_dict()) if optimizer is not None else None
    kept = dict(lineage_of(model).kept)
    companions = [twin, mapping, *options.get("companions", [])]
    with pytest.raises(UsageError, match=words) as raised:
        cut(model, options["keep"], groups, optimizer, companions)
    assert "\n" not in str(raised.value)
    assert same(snapshot(model), before)
    assert same(snapshot(twin), others)
    assert same(mapping, dict(seeded(ConvNet, 5).state_dict()))
    assert [id(parameter) for parameter in model.parameters()] == objects
    assert lineage_of(model).kept == kept
    assert model.a.out_channels == 6
    if optimizer is not None:
        assert str(optimizer.state_dict()) == str(state)
        assert {id(p) for p in optimizer.param_groups[0]["params"]} == set(objects)


def test_groups_from_before_an_earlier_cut_are_refused() -> None:
    model = seeded(ConvNet)
    groups = channel_groups(model, images())
    cut(model, {"a": torch.arange(6) > 0}, groups)
    before = snapshot(model)
    with pytest.raises(UsageError, match="use the groups that cut returned"):
        cut(model, {"a": torch.arange(6) > 2}, groups)
    with pytest.raises(UsageError, match="use the groups that cut returned"):
        cut(model, {"b": torch.arange(8) > 2}, groups)
    assert same(snapshot(model), before)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["VGG16", "AlexNet", "ResNet34", "ResNet18"])
def test_training_on_keeps_the_whole_cut_and_masked_network_alike(name: str) -> None:
    model, inputs = make(name)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    groups = channel_groups(model, inputs)
    cut(model, random_keep(groups, 2, share=0.3), groups)
    model, inputs = model.double(), inputs.double()
    optimizer = momentum(model)
    train(model, optimizer, inputs, 1)
    twin, held, kept = cut_and_masked(model, optimizer, inputs, seed=0)
    # One step: with four images each one more multiplies whatever rounding there is by a hundred (weights of VGG16
    # changed by 1e-15 are 2e-9 off after three), and three steps are taken with the thinned networks.
    train(model, optimizer, inputs, 1)
    train(twin, held, inputs, 1)
    assert_same_left(model, twin, kept)


def test_a_backward_pass_of_before_a_folding_cut_does_not_reach_the_new_gradients() -> None:
    """The bias that takes up a constant keeps its shape, and its gradient has memory of its own."""
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    with torch.no_grad():
        model[0].weight[1] = 0
        model[0].bias.fill_(0.5)
    inputs = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    loss = model(inputs).square().mean()
    loss.backward(retain_graph=True)
    old = model[2].bias
    groups = channel_groups(model, inputs)
    cut(model, {"0": torch.arange(5) != 1}, groups, fold=True, example_input=inputs)
    new = model[2].bias
    assert new is not old and not torch.equal(new, old)
    before = new.grad.clone()
    loss.backward()
    assert torch.equal(new.grad, before) and torch.allclose(old.grad, 2 * before)


def test_marks_on_a_parameter_outlive_a_cut() -> None:
    model = seeded(ConvNet)
    model.a.weight.rate, model.b.weight.name_of_mine = 0.3, "b"
    groups = channel_groups(model, images())
    old = model.a.weight, model.b.weight
    cut(model, random_keep(groups), groups)
    assert model.a.weight is not old[0] and model.b.weight is not old[1]
    assert (model.a.weight.rate, model.b.weight.name_of_mine) == (0.3, "b")
