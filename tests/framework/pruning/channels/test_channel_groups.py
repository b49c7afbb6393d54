"""Channel groups: what belongs to a channel, what is protected and why, and that tracing leaves no trace."""

import copy
import random
from collections.abc import Callable

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur import registry
from secateur.framework.network.lineage import lineage_of
from secateur.framework.plugins.registry import build
from secateur.framework.pruning.channels.discovery import channel_groups
from secateur.framework.pruning.channels.groups import ChannelGroup
from secateur.framework.pruning.surgery.cutting import cut
from secateur.utils.errors import UsageError
from tests.networks import (
    ConvNet,
    Net,
    ResNet,
    assert_cut_is_mask,
    images,
    mlp,
    random_keep,
    randomise,
    same,
    seeded,
    shipped,
    snapshot,
)

Conv, Linear = nn.Conv2d, nn.Linear
#: model -> free groups, all in forward order; the last group is the output
FREE = {
    "LogisticRegression": [],
    "LeNet300": ["features.1", "features.4"],
    "MLP5": ["features.1", "features.5", "features.9", "features.13"],
    "LeNet5": ["features.0", "features.4", "features.8", "classifier.1"],
    "ConvOnly": ["features.0", "features.4", "features.8", "features.12"],
    "Conv6": [f"features.{i}" for i in (0, 3, 7, 10, 14, 17)] + ["classifier.1", "classifier.5"],
    "AlexNet": [f"features.{i}" for i in (0, 4, 8, 11, 14)] + ["classifier.1", "classifier.5"],
    "VGG16": [f"features.{i}" for i in (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)]
    + ["classifier.1", "classifier.5"],
    # the stem shares the stage of blocks 4 and 5; each block has channels of its own inside
    "ResNet18": ["features.0"]
    + ["features.4.residual.0", "features.5.residual.0"]
    + ["features.6.residual.0", "features.6.residual.3", "features.7.residual.0"]
    + ["features.8.residual.0", "features.8.residual.3", "features.9.residual.0"]
    + ["features.10.residual.0", "features.10.residual.3", "features.11.residual.0"]
    + ["classifier.1"],
    "ResNet34": None,
    "VGG13": [f"features.{i}" for i in (0, 3, 7, 10, 14, 17, 21, 24, 28, 31)],
    # the stem and each pointwise convolution; depthwise ones follow
    "MobileNetV1": [f"features.{i}" for i in range(0, 79, 6)],
    "ResNet56": ["features.0"]
    + [f"features.{i}.residual.0" for i in range(3, 12)]
    + ["features.12.residual.0", "features.12.residual.3"]
    + [f"features.{i}.residual.0" for i in range(13, 21)]
    + ["features.21.residual.0", "features.21.residual.3"]
    + [f"features.{i}.residual.0" for i in range(22, 30)],
    "AlexNetCifar": [f"features.{i}" for i in (0, 3, 6, 8, 10)],
    "VGGCifar": [f"features.{i}" for i in (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)],
    "ResNetCifar": ["features.0", *(f"features.{i}.residual.{j}" for i in range(3, 12)
                                    for j in ((0, 3) if i in (6, 9) else (0,)))],
    "PreResNet": ["features.0", *(f"features.{i}.residual.{j}" for i in range(1, 10)
                                  for j in ((0, 3) if i in (4, 7) else (0,)))],
    "WideResNet": ["features.0", *(f"features.{i}.residual.{j}" for i in range(1, 7)
                                   for j in ((0, 3) if i % 2 else (0,)))],
    "ResNeXt29": ["features.0", *(f"features.{i}.residual.{j}" for i in range(3, 12)
                                  for j in ((0, 3, 6) if i % 3 == 0 else (0, 3)))],
    # three stages of 16 layers; 19 and 39 are the convolutions of the transitions
    "DenseNetBC": ["features.0"]
    + [f"features.{i}.residual.{j}" for i in range(1, 17) for j in (2, 5)] + ["features.19"]
    + [f"features.{i}.residual.{j}" for i in range(21, 37) for j in (2, 5)] + ["features.39"]
    + [f"features.{i}.residual.{j}" for i in range(41, 57) for j in (2, 5)],
    "HoyerMLP": ["features.1", "features.3"],
    "HoyerCNN": ["features.0", "features.3", "classifier.0"],
    "TorchvisionModel": ["conv1", "layer1.0.conv1", "layer1.1.conv1"]
    + ["layer2.0.conv1", "layer2.0.conv2", "layer2.1.conv1"]
    + ["layer3.0.conv1", "layer3.0.conv2", "layer3.1.conv1"]
    + ["layer4.0.conv1", "layer4.0.conv2", "layer4.1.conv1"],
}  # fmt: skip


def shapes(group: ChannelGroup) -> dict[tuple[str, int], tuple[int, ...]]:
    return {(part.tensor, part.dim): tuple(part.index.shape) for part in group.slices}


def reasons(model: nn.Module, inputs: Tensor, **options: object) -> dict[str, str | None]:
    return {name: group.protected for name, group in channel_groups(model, inputs, **options).items()}  # type: ignore


def assert_cuts_are_masks(model: nn.Module, inputs: Tensor, seeds: int = 3) -> None:
    randomise(model).eval()
    for seed in range(seeds):
        twin = copy.deepcopy(model)
        groups = channel_groups(twin, inputs)
        keep = random_keep(groups, seed)
        assert_cut_is_mask(twin, keep, groups, inputs, rtol=1e-5, atol=1e-5)


def test_every_shipped_model_is_in_the_table() -> None:
    assert sorted(FREE) == registry.names("models")


@pytest.mark.parametrize("name", [name for name, free in FREE.items() if free is not None])
def test_groups_of_the_shipped_models_in_forward_order(name: str) -> None:
    model = shipped(name)
    groups = channel_groups(model, images(2, channels=1, size=28))
    assert [key for key, group in groups.items() if group.protected is None] == FREE[name]
    last = list(groups)[-1]
    assert [key for key, group in groups.items() if group.protected is not None] == [last]
    assert groups[last].protected == "model output"
    assert lineage_of(model).output_layers == groups[last].layers
    assert all(group.exact for group in groups.values())


def test_resnet34_has_a_group_for_each_stage_and_one_inside_each_block() -> None:
    groups = channel_groups(shipped("ResNet34"), images(1, channels=1, size=28))
    free = [group for group in groups.values() if group.protected is None]
    assert len(free) == 4 + 16 + 1
    assert [len(group.producers) for group in free if len(group.producers) > 1] == [4, 5, 7, 4]


def test_a_group_lists_every_slice_of_a_channel() -> None:
    groups = channel_groups(seeded(ConvNet), images())
    assert list(groups) == ["a", "b", "c", "d"]
    assert shapes(groups["a"]) == {
        ("a.weight", 0): (6, 1),
        ("a.bias", 0): (6, 1),
        ("na.weight", 0): (6, 1),
        ("na.bias", 0): (6, 1),
        ("na.running_mean", 0): (6, 1),
        ("na.running_var", 0): (6, 1),
        ("b.weight", 1): (6, 1),
    }
    assert {part.tensor for part in groups["a"].produced} == {"a.weight", "a.bias"}
    assert [part.tensor for part in groups["b"].produced] == ["b.weight"]
    for group in groups.values():
        assert all(part.index.dtype == torch.int64 for part in group.slices)
        assert group.origin.tolist() == list(range(group.channels))


def test_a_channel_owns_its_columns_behind_a_flatten() -> None:
    groups = channel_groups(seeded(ConvNet), images())
    columns = next(part.index for part in groups["b"].slices if part.tensor == "c.weight")
    assert columns.tolist() == [[4 * c + i for i in range(4)] for c in range(8)]


def test_a_shared_stage_is_one_group_of_several_producers() -> None:
    groups = channel_groups(seeded(ResNet), images())
    assert [name for name, group in groups.items() if group.protected is None] == ["stem", "a", "c", "e"]
    assert groups["stem"].producers == ("stem", "b")
    assert groups["e"].producers == ("e", "skip")
    assert {(part.tensor, part.dim) for part in groups["stem"].slices if part.dim == 1} == {
        ("a.weight", 1),
        ("c.weight", 1),
        ("skip.weight", 1),
    }
    assert_cuts_are_masks(seeded(ResNet), images())


@pytest.mark.parametrize("make", [ConvNet, ResNet])
def test_original_indices_are_composed_over_cuts(make: Callable[[], nn.Module]) -> None:
    model = seeded(make)
    names = {name: torch.arange(group.channels) for name, group in channel_groups(model, images()).items()}
    groups = channel_groups(model, images())
    for seed in (1, 2):
        keep = random_keep(groups, seed, share=0.7)
        names |= {name: names[name][mask] for name, mask in keep.items()}
        groups = cut(model, keep, groups)
        traced = channel_groups(model, images())
        for name, original in names.items():
            assert torch.equal(groups[name].origin, original)
            assert torch.equal(traced[name].origin, original)


@pytest.mark.parametrize("make", [ConvNet, ResNet])
def test_the_groups_a_cut_returns_are_those_of_a_new_trace(make: Callable[[], nn.Module]) -> None:
    model = seeded(make)
    groups = channel_groups(model, images())
    returned = cut(model, random_keep(groups), groups)
    traced = channel_groups(model, images())
    assert list(returned) == list(traced)
    for name, group in traced.items():
        assert returned[name].channels == group.channels
        found = {(part.tensor, part.dim): part.index.tolist() for part in returned[name].slices}
        assert found == {(part.tensor, part.dim): part.index.tolist() for part in group.slices}


class Counting(nn.Module):
    """Counts its calls in one buffer in place, in another by assignment, and draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.head = nn.Conv2d(4, 2, 1)
        self.frozen = nn.Dropout(0.5)
        self.frozen.eval()
        for name in ("calls", "other"):
            self.register_buffer(name, torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        self.other = self.other + 1
        return self.head(self.conv(inputs)) + 0 * torch.rand(())


@pytest.mark.parametrize("make", [ConvNet, ResNet, Counting])
def test_tracing_leaves_no_trace(make: Callable[[], nn.Module]) -> None:
    model = seeded(make)
    model.conv = getattr(model, "conv", None)
    list(model.parameters())[0].requires_grad_(False)
    list(model.parameters())[1].grad = torch.full_like(list(model.parameters())[1], 3.0)
    next(model.children()).eval()
    before, modes = snapshot(model), [module.training for module in model.modules()]
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    objects = [id(tensor) for tensor in [*model.parameters(), *model.buffers()]]
    states = torch.get_rng_state(), numpy.random.get_state()[1].tolist(), random.getstate()
    channel_groups(model, images())
    assert same(snapshot(model), before)
    assert [id(tensor) for tensor in [*model.parameters(), *model.buffers()]] == objects
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert [p.grad is not None for p in model.parameters()] == [i == 1 for i in range(len(objects[: len(wanted)]))]
    assert bool((list(model.parameters())[1].grad == 3).all())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert numpy.random.get_state()[1].tolist() == states[1]
    assert random.getstate() == states[2]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_frozen_network_is_traced_and_without_gradients_too() -> None:
    expected = [shapes(group) for group in channel_groups(seeded(ConvNet), images()).values()]
    model = seeded(ConvNet).requires_grad_(False)
    with torch.no_grad():
        assert [shapes(group) for group in channel_groups(model, images()).values()] == expected
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_dead_channels_do_not_hide_what_a_cut_would_break() -> None:
    model = Net(lambda s, x: s.b(s.a(x).softmax(1)), a=Conv(3, 6, 1), b=Conv(6, 4, 1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert reasons(model, images())["a"] is not None


def test_the_groups_do_not_depend_on_the_size_of_the_batch_or_the_mode() -> None:
    one = channel_groups(seeded(ConvNet).eval(), images(1))
    many = channel_groups(seeded(ConvNet).train(), images(7))
    assert [shapes(group) for group in one.values()] == [shapes(group) for group in many.values()]


def test_protected_by_module_name_prefix() -> None:
    model = build("models", "LeNet5")
    inputs = images(1, channels=1, size=28)
    found = reasons(model, inputs, protect=("features.4", "classifier"))
    assert found["features.4"] == "protected by name: features.4"
    assert found["classifier.1"] == "protected by name: classifier"
    assert found["classifier.5"] == "model output"
    assert found["features.0"] is None
    with pytest.raises(UsageError, match="did you mean 'features.8'"):
        channel_groups(model, inputs, protect=("feature.8",))


def test_a_prefix_ends_at_a_dot() -> None:
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(12)])
    found = reasons(model, torch.randn(1, 4), protect=("1",))
    assert [name for name, reason in found.items() if reason is not None] == ["1", "11"]


def test_a_follower_protected_by_name_protects_its_group() -> None:
    model = Net(lambda s, x: s.b(s.dw(s.a(x))), a=Conv(3, 4, 1), dw=Conv(4, 4, 3, groups=4), b=Conv(4, 2, 1))
    assert reasons(model, images(), protect=("dw",))["a"] == "protected by name: dw"


def test_the_output_layer_of_a_cut_network_is_left_alone() -> None:
    model = seeded(ConvNet)
    with pytest.raises(UsageError, match=r"'d' is protected \(model output\)"):
        groups = channel_groups(model, images())
        cut(model, {"d": torch.tensor([True, False, True, True, True])}, groups)


OPEN = {
    "depthwise": (
        lambda s, x: s.b(F.relu(s.n(s.dw(s.a(x))))),
        {
            "a": Conv(3, 6, 1),
            "dw": Conv(6, 6, 3, groups=6),
            "n": nn.BatchNorm2d(6),
            "b": Conv(6, 4, 1),
        },
        ["a"],
    ),
    "concat": (
        lambda s, x: s.c(torch.cat([s.a(x), s.b(x)], 1)),
        {"a": Conv(3, 4, 1), "b": Conv(3, 6, 1), "c": Conv(10, 5, 1)},
        ["a", "b"],
    ),
    "concat with itself": (
        lambda s, x: s.c((lambda h: torch.cat([h, h.relu()], 1))(s.a(x))),
        {"a": Conv(3, 4, 1), "c": Conv(8, 5, 1)},
        ["a"],
    ),
    "dense block": (
        lambda s, x: s.c((lambda h: torch.cat([h, s.b(F.relu(h))], 1))(s.a(x))),
        {"a": Conv(3, 4, 1), "b": Conv(4, 3, 1), "c": Conv(7, 5, 1)},
        ["a", "b"],
    ),
    "concat added to": (
        lambda s, x: s.c(s.d(x) + torch.cat([s.a(x), s.b(x)], 1)),
        {"a": Conv(3, 4, 1), "b": Conv(3, 6, 1), "c": Conv(10, 5, 1), "d": Conv(3, 10, 1)},
        None,
    ),
    "squeeze and excite": (
        lambda s, x: s.b((lambda h: h * s.f(F.relu(s.e(h.mean((2, 3), keepdim=True)))).sigmoid())(s.a(x))),
        {"a": Conv(3, 4, 1), "e": Conv(4, 3, 1), "f": Conv(3, 4, 1), "b": Conv(4, 5, 1)},
        ["a", "e"],
    ),
    "flatten": (
        lambda s, x: s.b(F.relu(s.a(x)).flatten(1)),
        {"a": Conv(3, 4, 3), "b": Linear(4 * 36, 5)},
        ["a"],
    ),
    "norm behind flatten": (
        lambda s, x: s.b(s.n(s.a(x).view(len(x), -1))),
        {"a": Conv(3, 4, 3), "n": nn.BatchNorm1d(4 * 36), "b": Linear(4 * 36, 5)},
        ["a"],
    ),
    "reused layer": (
        lambda s, x: s.c(s.b(F.relu(s.b(s.a(x))))),
        {"a": Conv(3, 6, 1), "b": Conv(6, 6, 1), "c": Conv(6, 5, 1)},
        ["a"],
    ),
    "reused layer of other width": (
        lambda s, x: s.c(torch.cat([s.b(s.a(x)), s.b(s.d(x))], 1)),
        {"a": Conv(3, 6, 1), "d": Conv(3, 6, 1), "b": Conv(6, 4, 1), "c": Conv(8, 5, 1)},
        ["a", "b"],
    ),
    "transposed convolution": (
        lambda s, x: s.c(F.relu(s.b(s.a(x)))),
        {"a": Conv(3, 6, 1), "b": nn.ConvTranspose2d(6, 4, 2, 2), "c": Conv(4, 5, 1)},
        ["a", "b"],
    ),
    "prelu": (
        lambda s, x: s.b(s.n(s.a(x))),
        {"a": Conv(3, 6, 1), "n": nn.PReLU(6), "b": Conv(6, 4, 1)},
        ["a"],
    ),
    "instance norm": (
        lambda s, x: s.b(s.n(s.a(x))),
        {
            "a": Conv(3, 6, 1),
            "n": nn.InstanceNorm2d(6, affine=True, track_running_stats=True),
            "b": Conv(6, 4, 1),
        },
        ["a"],
    ),
    "several outputs": (
        lambda s, x: {"one": s.b(s.a(x)), "two": (s.c(s.a(x)), 3)},
        {"a": Conv(3, 6, 1), "b": Conv(6, 4, 1), "c": Conv(6, 2, 1)},
        ["a"],
    ),
    "channels last by permute": (
        lambda s, x: s.b(s.a(x).permute(0, 2, 3, 1)),
        {"a": Conv(3, 6, 1), "b": Linear(6, 4)},
        ["a"],
    ),
    "constant of one channel": (
        lambda s, x: s.b((lambda h: torch.cat([h[:, :1] * 2, h[:, 1:]], 1))(s.a(x))),
        {"a": Conv(3, 6, 1), "b": Conv(6, 4, 1)},
        None,
    ),
    "grouped convolution": (
        lambda s, x: s.b(s.g(s.a(x))),
        {"a": Conv(3, 4, 1), "g": Conv(4, 8, 1, groups=2), "b": Conv(8, 5, 1)},
        ["a", "g"],
    ),
    "depthwise multiplier": (
        lambda s, x: s.b(s.g(s.a(x))),
        {"a": Conv(3, 4, 1), "g": Conv(4, 8, 1, groups=4), "b": Conv(8, 5, 1)},
        ["a"],
    ),
    "mixed by reshape": (
        lambda s, x: s.b(s.a(x).permute(0, 2, 3, 1).flatten(1)),
        {"a": Conv(3, 6, 1), "b": Linear(6 * 64, 4)},
        ["a"],
    ),
    "pixel shuffle": (
        lambda s, x: s.b(F.pixel_shuffle(s.a(x), 2)),
        {"a": Conv(3, 8, 1), "b": Conv(2, 4, 1)},
        ["a"],
    ),
    "halves of a chunk": (
        lambda s, x: (lambda p: s.b(p[0]) + s.c(p[1]))(s.a(x).chunk(2, 1)),
        {"a": Conv(3, 16, 1), "b": Conv(8, 5, 1), "c": Conv(8, 5, 1)},
        ["a"],
    ),
    "gated linear unit": (
        lambda s, x: s.b((lambda p: p[0] * p[1].sigmoid())(s.a(x).chunk(2, 1))),
        {"a": Conv(3, 16, 1), "b": Conv(8, 5, 1)},
        ["a"],
    ),
    "gated linear unit of torch": (
        lambda s, x: s.b(F.glu(s.a(x), 1)),
        {"a": Conv(3, 16, 1), "b": Conv(8, 5, 1)},
        ["a"],
    ),
    "places picked by an index": (
        lambda s, x: s.b(s.a(x).index_select(2, torch.tensor([1, 3]))),
        {"a": Conv(3, 16, 1), "b": Conv(16, 5, 1)},
        ["a"],
    ),
    "vectors viewed as images": (
        lambda s, x: s.b(s.n(s.a(x.flatten(1)).relu().view(len(x), -1, 4, 4))),
        {"a": Linear(192, 6 * 16), "n": nn.BatchNorm2d(6), "b": Conv(6, 4, 3)},
        ["a"],
    ),
    "vectors unflattened to images": (
        lambda s, x: s.b(s.up(s.u(s.a(x.flatten(1))))),
        {"a": Linear(192, 6 * 16), "u": nn.Unflatten(1, (6, 4, 4)), "up": nn.Upsample(scale_factor=2),
         "b": nn.ConvTranspose2d(6, 4, 3)},
        ["a"],
    ),
    "vectors viewed as sequences": (
        lambda s, x: s.c(s.b(s.a(x.flatten(1)).unflatten(1, (-1, 8))).relu()),
        {"a": Linear(192, 6 * 8), "b": nn.Conv1d(6, 4, 3), "c": nn.Conv1d(4, 3, 1)},
        ["a", "b"],
    ),
    "embedding": (
        lambda s, x: s.b(s.a(s.table(x[:, 0, 0].abs().clamp(max=4).long()))),
        {"table": nn.Embedding(5, 6), "a": Linear(6, 8), "b": Linear(8, 4)},
        ["table", "a"],
    ),
    "embedding and positions": (
        lambda s, x: s.b((s.table(x[:, 0, 0].abs().clamp(max=4).long()) + s.place).relu()),
        {"table": nn.Embedding(5, 6), "place": nn.Parameter(torch.randn(1, 8, 6)), "b": Linear(6, 4)},
        ["table"],
    ),
    "bag of embeddings": (
        lambda s, x: s.b(s.table(x[:, 0, 0].abs().clamp(max=4).long())),
        {"table": nn.EmbeddingBag(5, 6), "b": Linear(6, 4)},
        ["table"],
    ),
    "no gradient through": (
        lambda s, x: s.b(s.a(x).detach()),
        {"a": Conv(3, 6, 1), "b": Conv(6, 4, 1)},
        ["a"],
    ),
    "parameter outside a layer": (
        lambda s, x: s.b(s.a(x) * s.scale),
        {"a": Conv(3, 6, 1), "b": Conv(6, 4, 1), "scale": nn.Parameter(torch.ones(1, 6, 1, 1))},
        ["a"],
    ),
    "class token and positions": (
        lambda s, x: s.b(torch.cat([s.token.expand(len(x), -1, -1), s.a(x).flatten(2).mT], 1) + s.place),
        {
            "a": Conv(3, 6, 1),
            "b": Linear(6, 4),
            "token": nn.Parameter(torch.randn(1, 1, 6)),
            "place": nn.Parameter(torch.randn(1, 65, 6)),
        },
        ["a"],
    ),
    "attention whose scale is a function of its width": (
        lambda s, x: (lambda h: s.b(F.scaled_dot_product_attention(*s.qkv(h).chunk(3, -1))))(s.a(x)),
        {"a": Linear(8, 8), "qkv": Linear(8, 18), "b": Linear(6, 4)},
        ["a", "qkv"],
    ),
    "heads with their size computed": (
        lambda s, x: s.b(heads_of(s, x.flatten(2).mT, lambda h: h.unflatten(-1, (2, -1)))),
        {"q": Linear(3, 8), "k": Linear(3, 8), "v": Linear(3, 8), "b": Linear(8, 4)},
        ["q", "v"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OPEN)
def test_a_free_group_is_cut_exactly(case: str) -> None:
    run, layers, free = OPEN[case]
    model = Net(run, **copy.deepcopy(layers))  # type: ignore[arg-type]
    found = reasons(model, images())
    if free is not None:
        assert [name for name, reason in found.items() if reason is None] == free
    assert_cuts_are_masks(model, images())


CLOSED = {
    "depthwise on the image": (
        lambda s, x: s.b(s.g(x)),
        {"g": Conv(3, 3, 1, groups=3), "b": Conv(3, 5, 1)},
        {"g": "meets a constant of its size: depthwise convolution"},
    ),
    "layer norm": (
        lambda s, x: s.b(s.n(s.a(x.flatten(1)))),
        {"a": Linear(192, 6), "n": nn.LayerNorm(6), "b": Linear(6, 4)},
        {"a": "reduced over: LayerNorm at n"},
    ),
    "group norm": (
        lambda s, x: s.b(s.n(s.a(x))),
        {"a": Conv(3, 6, 1), "n": nn.GroupNorm(2, 6), "b": Conv(6, 4, 1)},
        {"a": "reduced over: GroupNorm at n"},
    ),
    "functional layer norm": (
        lambda s, x: s.b(F.layer_norm(s.a(x.flatten(1)), (6,))),
        {"a": Linear(192, 6), "b": Linear(6, 4)},
        {"a": "LayerNorm"},
    ),
    "softmax over channels": (
        lambda s, x: s.b(s.a(x).softmax(1)),
        {"a": Conv(3, 6, 1), "b": Conv(6, 4, 1)},
        {"a": "reduced over: softmax"},
    ),
    "mean over channels": (
        lambda s, x: s.b(s.a(x).mean(1).flatten(1)),
        {"a": Conv(3, 6, 1), "b": Linear(64, 4)},
        {"a": "reduced over: mean"},
    ),
    "largest channel": (
        lambda s, x: s.b((lambda h: h - h.amax(1, keepdim=True))(s.a(x))),
        {"a": Conv(3, 6, 1), "b": Conv(6, 4, 1)},
        {"a": "reduced over: amax"},
    ),
    "channel shuffle": (
        lambda s, x: s.b(s.a(x).view(-1, 2, 3, 8, 8).transpose(1, 2).reshape(-1, 6, 8, 8)),
        {"a": Conv(3, 6, 1), "b": Conv(6, 4, 1)},
        {"a": "RuntimeError"},
    ),
    "products of channels": (
        lambda s, x: s.b((lambda h: (h @ h.transpose(1, 2)).flatten(1))(s.a(x).flatten(2))),
        {"a": Conv(3, 6, 1), "b": Linear(36, 4)},
        {"a": "two kinds of channels on one axis"},
    ),
    "constant vector": (
        lambda s, x: s.b(s.a(x) + torch.arange(6.0).view(1, 6, 1, 1)),
        {"a": Conv(3, 6, 1), "b": Conv(6, 4, 1)},
        {"a": "meets a constant of its size: aten.add"},
    ),
    "added to the image": (
        lambda s, x: s.b(x + s.a(x)),
        {"a": Conv(3, 3, 1), "b": Conv(3, 4, 1)},
        {"a": "meets a constant of its size: aten.add"},
    ),
    "split by fixed sizes": (
        lambda s, x: (lambda p: s.b(p[0]) + s.c(p[1]))(s.a(x).split([2, 4], 1)),
        {"a": Conv(3, 6, 1), "b": Conv(2, 5, 1), "c": Conv(4, 5, 1)},
        {"a#1": "split into unequal parts", "a#2": "split into unequal parts"},
    ),
    "hidden layer that is an output too": (
        lambda s, x: (lambda h: (h, s.b(F.relu(h))))(s.a(x)),
        {"a": Conv(3, 6, 1), "b": Conv(6, 4, 1)},
        {"a": "model output"},
    ),
    "attention of queries that are no linear function of a layer": (
        lambda s, x: (
            lambda q, k, v: s.b(F.scaled_dot_product_attention(q.sigmoid(), k.sigmoid(), v))
        )(*s.qkv(x).chunk(3, -1)),
        {"qkv": Linear(8, 18), "b": Linear(6, 4)},
        {"qkv": "the scale of attention depends on it"},
    ),
    "channels picked by an index": (
        lambda s, x: s.b(s.a(x).index_select(1, torch.tensor([1, 3]))),
        {"a": Conv(3, 6, 1), "b": Conv(2, 5, 1)},
        {"a": "indexed at constant positions"},
    ),
    "vectors viewed as images of so many channels": (
        lambda s, x: s.b(s.a(x.flatten(1)).view(len(x), 6, 4, 4)),
        {"a": Linear(192, 6 * 16), "b": Conv(6, 4, 3)},
        {"a": "a cut does not compute what a mask computes: RuntimeError"},
    ),
    "embedding behind a norm": (
        lambda s, x: s.b(s.n(s.table(x[:, 0, 0].abs().clamp(max=4).long()))),
        {"table": nn.Embedding(5, 6), "n": nn.LayerNorm(6), "b": Linear(6, 4)},
        {"table": "reduced over: LayerNorm at n"},
    ),
    "recurrent": (
        lambda s, x: s.b(s.r(s.a(x.flatten(2)))[0]),
        {"a": Linear(64, 6), "r": nn.LSTM(6, 5, batch_first=True), "b": Linear(5, 4)},
        {"a": "unsupported op: aten.mkldnn_rnn_layer at r"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CLOSED)
def test_what_has_no_exact_cut_is_protected_and_says_why(case: str) -> None:
    run, layers, expected = CLOSED[case]
    found = reasons(Net(run, **copy.deepcopy(layers)), images())  # type: ignore[arg-type]
    outputs = {name for name, reason in found.items() if reason == "model output" and name not in expected}
    assert len(outputs) == 1
    assert found.keys() - outputs == set(expected)
    for name, words in expected.items():
        assert words in str(found[name])


def heads_of(net: Net, x: Tensor, split: Callable[[Tensor], Tensor]) -> Tensor:
    """Attention of two heads without the scale."""
    q, k, v = (split(layer(x)).transpose(1, 2) for layer in (net.q, net.k, net.v))
    return ((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2)


def test_a_grouped_convolution_ties_channel_j_of_every_conv_group() -> None:
    model = Net(lambda s, x: s.b(s.g(s.a(x))), a=Conv(3, 8, 1), g=Conv(8, 4, 1, groups=2), b=Conv(4, 5, 1))
    groups = channel_groups(model, images())
    assert reasons(model, images()) == {"a": None, "g": None, "b": "model output"}
    assert [part.index.tolist() for part in groups["a"].produced[:1]] == [[[0, 4], [1, 5], [2, 6], [3, 7]]]
    assert [part.index.tolist() for part in groups["g"].produced[:1]] == [[[0, 2], [1, 3]]]
    assert_cuts_are_masks(model, images())


def test_computed_weights_protect() -> None:
    model = Net(lambda s, x: s.b(s.a(x)), a=nn.utils.parametrizations.weight_norm(Conv(3, 6, 1)), b=Conv(6, 4, 1))
    assert reasons(model, images())["a"] == "unsupported op: a.weight is computed from other tensors"


def test_tied_weights_and_modules_with_two_names_are_cut_once() -> None:
    model = Net(
        lambda s, x: s.d(s.c(s.b(s.a(x.flatten(1))))),
        a=Linear(192, 6),
        b=Linear(6, 6),
        c=Linear(6, 6),
        d=Linear(6, 3),
    )
    model.c.weight = model.b.weight
    groups = channel_groups(model, images())
    assert (groups["a"].layers, groups["a"].protected) == (("a", "b", "c"), None)
    assert_cuts_are_masks(model, images())
    model = Net(lambda s, x: s.c(s.b(s.a(x))), a=Conv(3, 6, 1), b=Conv(6, 4, 1), c=Conv(4, 2, 1))
    model.again = model.b
    assert reasons(model, images()) == {"a": None, "b": None, "c": "model output"}
    assert_cuts_are_masks(model, images())


@pytest.mark.parametrize(
    ("name", "size", "free"),
    [
        ("shufflenet_v2_x0_5", 64, 20),
        ("mobilenet_v3_small", 64, 27),
        pytest.param("regnet_y_400mf", 64, 53, marks=pytest.mark.slow),
        pytest.param("resnext50_32x4d", 64, 37, marks=pytest.mark.slow),
        ("squeezenet1_1", 64, 25),
        pytest.param("swin_t", 64, 12, marks=pytest.mark.slow),
        # so deep that rounding shows where the trial is not well-conditioned
        pytest.param("efficientnet_b3", 64, 59, marks=pytest.mark.slow),
        pytest.param("regnet_y_16gf", 64, 59, marks=pytest.mark.slow),
    ],
)
def test_networks_of_torchvision(name: str, size: int, free: int) -> None:
    """Channel shuffle, depthwise and grouped convolutions, squeeze-and-excite, fire modules, shifted windows."""
    from secateur.utils.vision import torchvision

    torch.manual_seed(0)
    model = torchvision().models.get_model(name, weights=None, num_classes=4)
    found = reasons(model, images(1, size=size))
    assert sum(reason is None for reason in found.values()) >= free
    assert all(reason is None or reason == "model output" or "LayerNorm" in reason for reason in found.values())
    assert_cuts_are_masks(model, images(2, size=size))


def test_inexact_frees_what_only_changes_numbers() -> None:
    model = Net(lambda s, x: s.b(s.n(s.a(x.flatten(1)))), a=Linear(192, 6), n=nn.LayerNorm(6), b=Linear(6, 4))
    groups = channel_groups(model, images(), inexact=True)
    assert (groups["a"].protected, groups["a"].exact, groups["b"].exact) == (None, False, True)
    assert {("n.weight", 0), ("n.bias", 0)} <= set(shapes(groups["a"]))
    cut(model, {"a": torch.tensor([True, False, True, True, False, True])}, groups)
    assert model(images()).shape == (4, 4)
    assert model.n.normalized_shape == (4,)
    softmax = Net(lambda s, x: s.b(s.a(x).softmax(1)), a=Conv(3, 6, 1), b=Conv(6, 4, 1))
    groups = channel_groups(softmax, images(), inexact=True)
    assert (groups["a"].protected, groups["a"].exact) == (None, False)
    constant = Net(lambda s, x: s.b(s.a(x) + torch.ones(6, 1, 1)), a=Conv(3, 6, 1), b=Conv(6, 4, 1))
    assert channel_groups(constant, images(), inexact=True)["a"].protected is not None


def test_parts_of_one_layer_are_numbered_by_their_first_index() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        h = s.a(x)
        second, first = h[:, 1:], h[:, :1]
        return s.c(second) + s.b(first)

    model = Net(run, a=Conv(3, 6, 1), b=Conv(1, 5, 1), c=Conv(5, 5, 1))
    groups = channel_groups(model, images())
    assert list(groups) == ["a#1", "a#2", "c"]
    assert (groups["a#1"].origin.tolist(), groups["a#2"].origin.tolist()) == ([0], [1, 2, 3, 4, 5])
    assert ("b.weight", 1) in shapes(groups["a#1"])
    assert ("c.weight", 1) in shapes(groups["a#2"])
    assert_cuts_are_masks(model, images())


def test_each_part_of_a_split_knows_its_reader() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        one, two, three = s.a(x).split([1, 3, 2], 1)
        return s.d(three) + s.b(one) + s.c(two)

    model = Net(run, a=Conv(3, 6, 1), b=Conv(1, 5, 1), c=Conv(3, 5, 1), d=Conv(2, 5, 1))
    groups = channel_groups(model, images())
    readers = {name: [part.tensor for part in group.slices if part.dim == 1] for name, group in groups.items()}
    assert readers == {"a#1": ["b.weight"], "a#2": ["c.weight"], "a#3": ["d.weight"], "d": []} | {
        name: [] for name in groups if not name.startswith("a")
    }
    assert [group.channels for name, group in groups.items() if name.startswith("a")] == [1, 3, 2]


def test_layers_that_do_not_run_are_in_no_group() -> None:
    model = Net(lambda s, x: s.b(s.a(x)), a=Conv(3, 6, 1), b=Conv(6, 4, 1), unused=Conv(3, 5, 1))
    assert list(channel_groups(model, images())) == ["a", "b"]


def test_a_single_layer_is_a_network() -> None:
    groups = channel_groups(Conv(3, 4, 1), images())
    assert [(name, group.protected) for name, group in groups.items()] == [("", "model output")]
    assert [part.tensor for part in groups[""].slices] == ["weight", "bias"]


def test_bad_input_is_one_line() -> None:
    with pytest.raises(UsageError, match="rejects an input of shape") as raised:
        channel_groups(seeded(ConvNet), images(1, size=20))
    assert "\n" not in str(raised.value)
    with pytest.raises(UsageError, match="has no prunable layer"):
        channel_groups(nn.ReLU(), images())


def test_a_chain_of_linear_layers() -> None:
    model = seeded(mlp)
    assert [(n, g.channels, g.protected) for n, g in channel_groups(model, torch.randn(2, 12)).items()] == [
        ("0", 8, None),
        ("2", 6, None),
        ("4", 4, "model output"),
    ]


def test_layers_of_one_output_unit() -> None:
    groups = channel_groups(nn.Sequential(Linear(3, 8), nn.ReLU(), Linear(8, 1)), torch.randn(4, 3))
    assert groups["2"].protected == "model output"
    assert [(part.tensor, part.dim) for part in groups["2"].slices] == [("2.weight", 0), ("2.bias", 0)]
    hidden = nn.Sequential(Linear(3, 1), nn.ReLU(), Linear(1, 4))
    assert shapes(channel_groups(hidden, torch.randn(4, 3))["0"]).keys() == {
        ("0.weight", 0),
        ("0.bias", 0),
        ("2.weight", 1),
    }
    flat = Net(lambda s, x: s.b(s.a(x).flatten(1)), a=Conv(3, 1, 1), b=Linear(64, 4))
    assert shapes(channel_groups(flat, images())["a"])["b.weight", 1] == (1, 64)


@pytest.mark.parametrize(("inside", "outside"), [(8, 8), (8, 4), (4, 6)])
def test_a_grouped_transposed_convolution_ties_channel_j_of_every_conv_group(inside: int, outside: int) -> None:
    up = nn.ConvTranspose2d(inside, outside, 2, 2, groups=2)
    model = Net(
        lambda s, x: s.b(s.n(s.up(s.a(x))).relu()),
        a=Conv(3, inside, 1), up=up, n=nn.BatchNorm2d(outside), b=Conv(outside, 3, 1),
    )  # fmt: skip
    groups = channel_groups(model, images())
    assert {name: (group.channels, group.protected) for name, group in groups.items()} == {
        "a": (inside // 2, None),
        "up": (outside // 2, None),
        "b": (3, "model output"),
    }
    assert shapes(groups["up"]) == {
        ("up.weight", 1): (outside // 2, 1),
        ("up.bias", 0): (outside // 2, 2),
        **{(f"n.{name}", 0): (outside // 2, 2) for name in ("weight", "bias", "running_mean", "running_var")},
        ("b.weight", 1): (outside // 2, 2),
    }
    assert_cuts_are_masks(model, images())
    cut(model, {"up": torch.arange(outside // 2) != 0, "a": torch.arange(inside // 2) != 1}, groups)
    assert (up.in_channels, up.out_channels, up.groups) == (inside - 2, outside - 2, 2)


@pytest.mark.parametrize("times", [1, 2])
def test_filters_of_a_depthwise_transposed_convolution_follow_their_channel(times: int) -> None:
    up = nn.ConvTranspose2d(6, 6 * times, 2, 2, groups=6)
    model = Net(lambda s, x: s.b(s.up(s.a(x)).relu()), a=Conv(3, 6, 1), up=up, b=Conv(6 * times, 3, 1))
    groups = channel_groups(model, images())
    assert {name: (group.channels, group.protected) for name, group in groups.items()} == {
        "a": (6, None),
        "b": (3, "model output"),
    }
    assert (groups["a"].producers, groups["a"].layers) == (("a",), ("a", "up"))
    assert_cuts_are_masks(model, images())
    for left in (4, 1):
        groups = cut(model, {"a": torch.arange(groups["a"].channels) < left}, groups)
        assert (up.in_channels, up.out_channels, up.groups) == (left, left * times, left)
        assert channel_groups(model, images())["a"].channels == left


def test_a_depthwise_transposed_convolution_of_the_input_stays() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(4, 8, 3, groups=4), nn.ReLU(), Conv(8, 3, 1))
    found = reasons(model, torch.randn(2, 4, 5, 5))
    assert found == {"0": "meets a constant of its size: depthwise convolution", "2": "model output"}


def test_a_layer_swapped_before_the_first_cut_belongs_to_the_dense_network() -> None:
    from secateur import build, measure, prune

    model = build("models", "LeNet5", in_channels=1, num_classes=10, image_size=28)
    model.classifier[5] = Linear(84, 100)
    example = torch.randn(2, 1, 28, 28)
    assert measure(model, example, latency=False)["weight_sparsity"] == 0
    assert prune(model, "Magnitude", 0.5, example_input=example).reached == pytest.approx(0.5, abs=1e-5)


def test_a_channel_of_vectors_viewed_as_images_owns_its_places() -> None:
    model = Net(lambda s, x: s.b(s.a(x.flatten(1)).view(len(x), -1, 2, 2)), a=Linear(192, 12), b=Conv(3, 4, 1))
    groups = channel_groups(model, images())
    assert groups["a"].produced[0].index.tolist() == [[4 * c + at for at in range(4)] for c in range(3)]


def test_attributes_of_embeddings_follow() -> None:
    for kind in (nn.Embedding, nn.EmbeddingBag):
        model = nn.Sequential(kind(20, 8), Linear(8, 4))
        tokens = torch.randint(0, 20, (3, 5))
        groups = channel_groups(model, tokens)
        assert (groups["0"].producers, groups["0"].layers, groups["0"].channels) == (("0",), (), 8)
        cut(model, {"0": torch.arange(8) > 2}, groups)
        assert (model[0].num_embeddings, model[0].embedding_dim) == (20, 5)
        assert model(tokens).shape[-1] == 4
