"""The invariant on networks nobody wrote down: cut and masked compute the same, at once and after training."""

import copy
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.framework.network.lineage import lineage_of
from secateur.framework.network.masks import Masks
from secateur.framework.pruning.channels.discovery import channel_groups
from secateur.framework.pruning.channels.groups import ChannelGroup, free_groups
from secateur.framework.pruning.surgery.cutting import cut
from tests.networks import Net, images, mask_channels, masked, random_keep, randomise, same, seeded, snapshot

SIZE = 4
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky": lambda: nn.LeakyReLU(0.1),
    "sigmoid": nn.Sigmoid,
    "hardswish": nn.Hardswish,
}
Block = tuple[nn.Module, int]


class Spec(NamedTuple):
    """One block: what it is, and the choices that each kind makes of these numbers."""

    kind: str
    width: int = 3
    kernel: int = 3
    norm: bool = True
    bias: bool = True
    activation: str = "relu"
    variant: bool = False


def conv(inside: int, outside: int, spec: Spec, kernel: int | None = None, groups: int = 1) -> nn.Conv2d:
    kernel = kernel or spec.kernel
    return nn.Conv2d(inside, outside, kernel, padding=kernel // 2, bias=spec.bias, groups=groups)


def finished(layer: nn.Module, outside: int, spec: Spec) -> nn.Sequential:
    """The layer with its norm and activation."""
    norm = [nn.BatchNorm2d(outside)] if spec.norm else []
    return nn.Sequential(layer, *norm, ACTIVATIONS[spec.activation]())


def unit(inside: int, outside: int, spec: Spec, kernel: int | None = None, groups: int = 1) -> nn.Sequential:
    return finished(conv(inside, outside, spec, kernel, groups), outside, spec)


def even(inside: int, spec: Spec) -> Block:
    """What blocks that halve their input begin with: a layer of its own, or none where the input is even."""
    if spec.variant and inside % 2 == 0:
        return nn.Identity(), inside
    return unit(inside, 2 * spec.width, spec, kernel=1), 2 * spec.width


def chain(inside: int, spec: Spec) -> Block:
    """One layer, or two with pooling between them."""
    first = unit(inside, spec.width, spec)
    if not spec.variant:
        return first, spec.width
    return nn.Sequential(first, nn.MaxPool2d(3, 1, 1), unit(spec.width, spec.width + 1, spec)), spec.width + 1


def residual(inside: int, spec: Spec) -> Block:
    """With a 1x1 shortcut to another width, or with none."""
    outside = spec.width if spec.variant else inside
    return Net(
        lambda s, x: F.relu(s.b(s.a(x)) + s.skip(x)),
        a=unit(inside, spec.width, spec),
        b=conv(spec.width, outside, spec),
        skip=conv(inside, outside, spec, 1) if spec.variant else nn.Identity(),
    ), outside


def concat(inside: int, spec: Spec) -> Block:
    """Two branches, or the input and a branch."""
    other = inside if spec.variant else spec.width + 1
    return Net(
        lambda s, x: torch.cat([s.b(x), s.a(x)], 1),
        a=unit(inside, spec.width, spec),
        b=nn.Identity() if spec.variant else conv(inside, other, spec),
    ), spec.width + other


def halves(inside: int, spec: Spec) -> Block:
    """The halves gate each other, or go ways of their own."""
    own = [nn.Identity(), nn.Identity()] if spec.variant else [conv(spec.width, spec.width, spec, 1) for _ in "ab"]

    def run(s: Net, x: Tensor) -> Tensor:
        one, two = s.a(x).chunk(2, 1)
        return s.b(one) * s.c(two).sigmoid()

    return Net(run, a=unit(inside, 2 * spec.width, spec), b=own[0], c=own[1]), spec.width


def pieces(inside: int, spec: Spec) -> Block:
    """A share of the channels goes another way: a third of any number, or what one of two layers gave."""
    other = spec.width + 1

    def run(s: Net, x: Tensor) -> Tensor:
        first, second = s.a(x), s.b(x)
        joint = torch.cat([first, second], 1)
        at = first.shape[1] if spec.variant else joint.shape[1] // 3
        return torch.cat([F.relu(joint[:, :at]), joint[:, at:].sigmoid()], 1)

    return Net(run, a=unit(inside, spec.width, spec), b=conv(inside, other, spec)), spec.width + other


def shuffle(inside: int, spec: Spec) -> Block:
    """By torch's own operation, or as the paper's code does it."""

    def run(s: Net, x: Tensor) -> Tensor:
        x = s.a(x)
        if not spec.variant:
            return F.channel_shuffle(x, 2)
        count, channels, height, width = x.shape
        parts = x.view(count, 2, channels // 2, height, width)
        return parts.transpose(1, 2).reshape(count, channels, height, width)

    outside = 2 * spec.width
    return Net(run, a=unit(inside, outside, spec)), outside


def grouped(inside: int, spec: Spec) -> Block:
    first, width = even(inside, spec)
    return nn.Sequential(first, unit(width, 2 * spec.width, spec, groups=2)), 2 * spec.width


def depthwise(inside: int, spec: Spec) -> Block:
    """With one filter for each channel, or two."""
    times = 1 + spec.variant
    filters = unit(inside, times * inside, spec, kernel=3, groups=inside)
    return nn.Sequential(filters, unit(times * inside, spec.width, spec, kernel=1)), spec.width


def transposed(inside: int, spec: Spec) -> Block:
    return _transposed(inside, spec, 1)


def depthwise_transposed(inside: int, spec: Spec) -> Block:
    """With one filter for each channel, or two."""
    times = 1 + spec.variant
    layer = nn.ConvTranspose2d(inside, times * inside, 2, 2, bias=spec.bias, groups=inside)
    up = nn.Sequential(finished(layer, times * inside, spec), nn.AvgPool2d(2))
    return nn.Sequential(up, unit(times * inside, spec.width, spec, kernel=1)), spec.width


def grouped_transposed(inside: int, spec: Spec) -> Block:
    first, width = even(inside, spec)
    last, outside = _transposed(width, spec, 2)
    return nn.Sequential(first, last), outside


def _transposed(inside: int, spec: Spec, groups: int) -> Block:
    outside = groups * spec.width
    layer = nn.ConvTranspose2d(inside, outside, 2, 2, bias=spec.bias, groups=groups)
    return nn.Sequential(finished(layer, outside, spec), nn.AvgPool2d(2)), outside


def spatial_gate(inside: int, spec: Spec) -> Block:
    """A map of one channel over all the others."""
    return Net(
        lambda s, x: (lambda h: h * s.gate(h).sigmoid())(s.a(x)),
        a=nn.Identity() if spec.variant else unit(inside, spec.width, spec),
        gate=conv(inside if spec.variant else spec.width, 1, spec),
    ), inside if spec.variant else spec.width


def squeeze_excite(inside: int, spec: Spec) -> Block:
    """By 1x1 convolutions, or by linear layers."""
    kind = nn.Linear if spec.variant else lambda i, o: nn.Conv2d(i, o, 1)

    def run(s: Net, x: Tensor) -> Tensor:
        squeezed = x.mean((2, 3), keepdim=not spec.variant)
        scale = s.f(F.relu(s.e(squeezed))).sigmoid()
        return x * (scale[:, :, None, None] if spec.variant else scale)

    return Net(run, e=kind(inside, spec.width), f=kind(spec.width, inside)), inside


def shared(inside: int, spec: Spec) -> Block:
    """One layer twice in a row, or on two inputs."""
    if spec.variant:
        run: Callable[..., Tensor] = lambda s, x: s.b(s.a(x)) + s.b(s.c(x))  # noqa: E731
    else:
        run = lambda s, x: s.b(F.relu(s.b(s.a(x))))  # noqa: E731
    width = spec.width
    return Net(run, a=unit(inside, width, spec), b=conv(width, width, spec), c=conv(inside, width, spec)), width


class Attention(nn.Module):
    """Places attend to each other, with a residual; a LayerNorm before it or none."""

    def __init__(self, inside: int, spec: Spec) -> None:
        super().__init__()
        width = 2 * spec.width
        self.a = unit(inside, width, spec, kernel=1)
        self.norm = nn.LayerNorm(width) if spec.norm else nn.Identity()
        self.attention = nn.MultiheadAttention(width, 2, bias=spec.bias, batch_first=True)
        self.weights = spec.variant

    def forward(self, inputs: Tensor) -> Tensor:
        maps = self.a(inputs)
        places = maps.flatten(2).transpose(1, 2)
        normed = self.norm(places)
        found, _ = self.attention(normed, normed, normed, need_weights=self.weights)
        return (places + found).transpose(1, 2).unflatten(2, inputs.shape[2:])


def attention(inside: int, spec: Spec) -> Block:
    return Attention(inside, spec), 2 * spec.width


def layer_norm(inside: int, spec: Spec) -> Block:
    """Over the channels of each place, in a branch or in the way."""
    width = inside if spec.variant else spec.width
    return Net(
        lambda s, x: s.n(s.a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2) + (x if spec.variant else 0),
        a=unit(inside, width, spec),
        n=nn.LayerNorm(width),
    ), width


def other_norm(inside: int, spec: Spec) -> Block:
    """A group for each channel or few groups, or an instance norm; with tensors of their own or without."""
    width = 2 * spec.width
    norm: nn.Module = nn.GroupNorm(2 if spec.variant else width, width, affine=spec.bias)
    if not spec.norm:
        norm = nn.InstanceNorm2d(width, affine=spec.bias)
    return nn.Sequential(conv(inside, width, spec), norm, ACTIVATIONS[spec.activation]()), width


def rms_norm(inside: int, spec: Spec) -> Block:
    """Over the channels of each place, in a branch or in the way."""
    width = inside if spec.variant else spec.width
    return Net(
        lambda s, x: s.n(s.a(x).movedim(1, -1)).movedim(-1, 1) + (x if spec.variant else 0),
        a=unit(inside, width, spec),
        n=nn.RMSNorm(width, elementwise_affine=spec.bias),
    ), width


def packed_attention(inside: int, spec: Spec) -> Block:
    """Two heads whose size is computed: by torch's operation, or by hand with a scale that depends on it."""

    def run(s: Net, x: Tensor) -> Tensor:
        places = x.flatten(2).transpose(1, 2)
        q, k, v = s.qkv(places).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        if spec.norm:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = (q @ k.transpose(-2, -1) * k.shape[-1] ** -0.5).softmax(-1) @ v
        found = s.out(mixed.transpose(1, 2).flatten(2))
        return (places + found if spec.variant else found).transpose(1, 2).unflatten(2, x.shape[2:])

    outside = inside if spec.variant else spec.width
    width = 2 * spec.width
    return Net(run, qkv=nn.Linear(inside, 3 * width, bias=spec.bias), out=nn.Linear(width, outside)), outside


def decoder(inside: int, spec: Spec) -> Block:
    """Images to a vector, and that viewed as an image of so many channels as it has."""
    shape = (spec.width, SIZE, SIZE)
    return Net(
        lambda s, x: (
            s.u(s.a(x.flatten(1)).relu()) if spec.variant else s.a(x.flatten(1)).unflatten(1, (-1, *shape[1:]))
        ),
        a=nn.Linear(inside * SIZE**2, spec.width * SIZE**2, bias=spec.bias),
        u=nn.Unflatten(1, shape),
    ), spec.width


def embedded(inside: int, spec: Spec) -> Block:
    """A table's entry for each place, by the sign of its first channels' sum; with positions or without."""

    def run(s: Net, x: Tensor) -> Tensor:
        tokens = (x.detach().sum(1) > 0).long()
        found = s.table(tokens).movedim(-1, 1)
        return s.a(x) + (found + s.place if spec.variant else found)

    return Net(
        run, a=conv(inside, spec.width, spec), table=nn.Embedding(2, spec.width),
        place=nn.Parameter(torch.ones(1, spec.width, SIZE, SIZE)),  # type: ignore[arg-type]
    ), spec.width  # fmt: skip


BLOCKS: dict[str, Callable[[int, Spec], Block]] = {
    function.__name__: function
    for function in (
        chain, residual, concat, halves, pieces, shuffle, grouped, depthwise, transposed, grouped_transposed,
        spatial_gate, squeeze_excite, shared, attention, layer_norm, depthwise_transposed, other_norm, rms_norm,
        packed_attention, decoder, embedded,
    )
}  # fmt: skip


def network(stem: Spec, blocks: list[Spec], head: Spec) -> nn.Module:
    """Stem, blocks, and a head of two linear layers behind a flatten (or global pooling), for images of SIZE."""
    layers: list[nn.Module] = [unit(3, stem.width, stem)]
    width = stem.width
    for spec in blocks:
        block, width = BLOCKS[spec.kind](width, spec)
        layers.append(block)
    layers.append(nn.AdaptiveAvgPool2d(1) if head.variant else nn.Identity())
    hidden = [nn.Linear(width * (1 if head.variant else SIZE**2), head.width, bias=head.bias)]
    norm = [nn.BatchNorm1d(head.width)] if head.norm else []
    last = nn.Linear(head.width, 5, bias=head.bias)
    return nn.Sequential(*layers, nn.Flatten(), *hidden, *norm, ACTIVATIONS[head.activation](), last)


def specs(kinds: st.SearchStrategy[str]) -> st.SearchStrategy[Spec]:
    return st.builds(
        Spec,
        kind=kinds,
        width=st.integers(2, 6),
        kernel=st.sampled_from([1, 3]),
        norm=st.booleans(),
        bias=st.booleans(),
        activation=st.sampled_from(sorted(ACTIVATIONS)),
        variant=st.booleans(),
    )


def step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor) -> None:
    optimizer.zero_grad()
    (model(inputs) - 1).square().mean().backward()
    optimizer.step()


def assert_equal(found: Tensor, expected: Tensor, tolerance: float) -> None:
    found, expected = found.detach(), expected.detach()
    assert bool(expected.isfinite().all())
    assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


def assert_no_position_is_owned_twice(groups: dict[str, ChannelGroup]) -> None:
    owned: dict[tuple[str, int], list[Tensor]] = {}
    for group in groups.values():
        for tensor, dim, index in group.slices:
            assert len(index) == group.channels
            owned.setdefault((tensor, dim), []).append(index.flatten())
    for place, parts in owned.items():
        positions = torch.cat(parts)
        assert len(positions.unique()) == len(positions), place


def assert_left(small: nn.Module, big: nn.Module) -> None:
    """What the cut left of each tensor is what the masked network has there."""
    kept = lineage_of(small).kept
    dense = snapshot(big)
    for name, tensor in small.named_parameters():
        expected = dense[name]
        for (one, dim), index in kept.items():
            if one == name:
                expected = expected.index_select(dim, index)
        torch.testing.assert_close(tensor.detach(), expected, rtol=1e-8, atol=1e-9, msg=name)


def check(stem: Spec, blocks: list[Spec], head: Spec, seed: int) -> dict[str, ChannelGroup]:
    """The invariant on one network, twice, and what every trace must give; the groups of the dense one."""
    model = randomise(seeded(lambda: network(stem, blocks, head), seed), seed).double().eval()
    inputs = images(3, size=SIZE, seed=seed, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=0.01)
    step(model, optimizer, inputs)
    before = snapshot(model)
    groups = channel_groups(model, inputs)
    assert same(snapshot(model), before)
    assert not any(module.training for module in model.modules())
    assert all(group.protected is None or group.protected.strip() for group in groups.values())
    assert_no_position_is_owned_twice(groups)
    keep = random_keep(groups, seed, share=0.6)
    twin, held = copy.deepcopy((model, optimizer))  # together: the copied optimizer has the copied parameters
    mask_channels(twin, keep, groups)
    Masks(twin).attach(held)
    left = cut(model, keep, groups, optimizer)
    with torch.no_grad():
        assert_equal(model(inputs), twin(inputs), 1e-9)
    scaled = any(groups[name].queries and not bool(mask.all()) for name, mask in keep.items())
    for _ in range(2):
        step(model, optimizer, inputs)
        step(twin, held, inputs)
    if not scaled:  # queries that were multiplied have other gradients
        assert_equal(model(inputs), twin(inputs), 1e-8)
        assert_left(model, twin)
    assert_no_position_is_owned_twice(left)
    keep = random_keep(left, seed + 1, share=0.6)
    expected = masked(model, keep, left)(inputs)
    cut(model, keep, left, optimizer)
    assert_equal(model(inputs), expected, 1e-9)
    step(model, optimizer, inputs)
    return groups


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    stem=specs(st.just("stem")),
    blocks=st.lists(specs(st.sampled_from(sorted(BLOCKS))), min_size=1, max_size=5),
    head=specs(st.just("head")),
    seed=st.integers(0, 1000),
)
def test_cut_and_masked_are_alike_on_any_network(stem: Spec, blocks: list[Spec], head: Spec, seed: int) -> None:
    groups = check(stem, blocks, head, seed)
    event(f"{len(free_groups(groups))} of {len(groups)} groups free")


#: free groups of stem, block, one layer more and head, for both variants: a new protection is a step back
FREE = {
    "chain": (4, 5),
    "residual": (4, 5),
    "concat": (5, 4),
    "halves": (5, 4),
    "pieces": (3, 5),
    "shuffle": (3, 4),
    "grouped": (5, 4),
    "depthwise": (4, 4),
    "transposed": (4, 4),
    "grouped_transposed": (5, 4),
    "spatial_gate": (5, 4),
    "squeeze_excite": (4, 4),
    "shared": (4, 5),
    "attention": (4, 4),
    "layer_norm": (3, 2),
    "depthwise_transposed": (4, 4),
    "other_norm": (4, 3),
    "rms_norm": (3, 2),
    "packed_attention": (5, 4),
    "decoder": (4, 4),
    "embedded": (4, 4),
}


@pytest.mark.parametrize("variant", [False, True])
@pytest.mark.parametrize("kind", BLOCKS)
def test_cut_and_masked_are_alike_around_each_kind_of_block(kind: str, variant: bool) -> None:
    blocks = [Spec(kind, width=3, variant=variant), Spec("chain", width=5)]
    groups = check(Spec("stem", width=4), blocks, Spec("head", width=6, variant=not variant), seed=1)
    free = free_groups(groups)
    assert [name for name, group in groups.items() if group.protected == "model output"] == list(groups)[-1:]
    assert len(free) >= FREE[kind][variant]


@pytest.mark.parametrize("width", [4, 6])
def test_every_single_channel_that_is_free_before_a_channel_shuffle_can_go(width: int) -> None:
    net = Net(
        lambda s, x: s.b(F.channel_shuffle(s.a(x), 2)), a=nn.Conv2d(3, width, 1), b=nn.Conv2d(width, 4, 1)
    ).double()
    inputs = images(2, dtype=torch.float64)
    for name, group in free_groups(channel_groups(net, inputs)).items():
        for channel in range(group.channels):
            model = copy.deepcopy(net)
            groups = channel_groups(model, inputs)
            keep = {name: torch.arange(group.channels) != channel}
            expected = masked(model, keep, groups)(inputs)
            cut(model, keep, groups)
            assert_equal(model(inputs), expected, 1e-9)
