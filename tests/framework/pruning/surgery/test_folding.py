"""Folding: the cut network computes what the network does whose removed channels have lost their weights."""

import copy
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

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
from secateur.framework.storage.checkpoint import load_model, save_model
from secateur.utils.errors import UsageError
from tests.networks import Groups, Net, images, randomise, same, seeded, snapshot

Keep = Mapping[str, Tensor]


@torch.no_grad()
def standing(model: nn.Module, keep: Keep, groups: Groups) -> nn.Module:
    """N0: a copy whose removed channels have lost the weights, and nothing else, of what produces them."""
    twin = copy.deepcopy(model)
    parameters = dict(twin.named_parameters())
    for name, mask in keep.items():
        for tensor, dim, index in groups[name].produced:
            if parameters[tensor].dim() > 1:
                parameters[tensor].index_fill_(dim, index[~mask].flatten(), 0)
    return twin


def ready(net: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Random shifts, scales and statistics, in float64 and eval mode."""
    return randomise(seeded(net, seed), seed).double().eval()


def halves(groups: Groups, seed: int = 0) -> dict[str, Tensor]:
    """A mask for every free group without half of its channels, drawn from the seed."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randperm(group.channels, generator=generator) >= group.channels // 2
        for name, group in free_groups(groups).items()
    }


def cut_quietly(model: nn.Module, keep: Keep, groups: Groups, **options: object) -> dict[str, ChannelGroup]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return cut(model, keep, groups, fold=True, **options)  # type: ignore[arg-type]


def close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-10 * expected.abs().max()


def far(found: Tensor, expected: Tensor) -> None:
    assert (found - expected).abs().max() > 1e-4 * expected.abs().max()


# what folds

C, B, L = nn.Conv2d, nn.BatchNorm2d, nn.Linear


def squeeze_and_excite(s: nn.Module, x: Tensor) -> Tensor:
    x = F.hardswish(s.n(s.a(x)))
    return s.b(x * torch.sigmoid(s.up(F.silu(s.down(x.mean((2, 3), keepdim=True))))))


def residual(s: nn.Module, x: Tensor) -> Tensor:
    x = F.relu(s.n(s.stem(x)))
    for a, b in ((s.a1, s.b1), (s.a2, s.b2)):
        x = x + b(torch.tanh(a(x)))
    return s.head(F.relu(x).mean((2, 3)))


def dense(s: nn.Module, x: Tensor) -> Tensor:
    a = torch.sigmoid(s.a(x))
    b = F.gelu(s.b(a))
    return s.c(torch.cat([b, a[:, :, 1:-1, 1:-1]], 1))


def attention(s: nn.Module, x: Tensor) -> Tensor:
    x = s.a(x.flatten(2))
    query, key, value = (layer(x).unflatten(-1, (3, 4)).transpose(1, 2) for layer in (s.q, s.k, s.v))
    mixed = F.scaled_dot_product_attention(query, key, value, scale=0.5)
    return s.b(x + s.o(mixed.transpose(1, 2).flatten(2)))


FOLDS: dict[str, Callable[[], nn.Module]] = {
    "norm and relu": lambda: nn.Sequential(C(3, 14, 3), B(14), nn.ReLU(), C(14, 4, 3)),
    "linear": lambda: nn.Sequential(nn.Flatten(), L(192, 8), nn.ReLU(), L(8, 7), nn.Tanh(), L(7, 4)),
    "no bias, then norm": lambda: nn.Sequential(
        C(3, 6, 3), nn.Sigmoid(), C(6, 8, 3, bias=False), B(8), nn.ReLU(), C(8, 4, 1)
    ),
    "linear without bias, then norm": lambda: nn.Sequential(
        nn.Flatten(), L(192, 8), nn.Sigmoid(), L(8, 6, bias=False), nn.BatchNorm1d(6, affine=False), L(6, 4)
    ),
    "shift through sigmoid": lambda: nn.Sequential(C(3, 6, 3, bias=False), B(6), nn.Sigmoid(), C(6, 4, 3)),
    "concatenation": lambda: Net(dense, a=C(3, 5, 3), b=C(5, 4, 3), c=C(9, 4, 1)),
    "residual stream": lambda: Net(
        residual,
        stem=C(3, 6, 3, padding=1, bias=False), n=B(6), a1=C(6, 5, 1), b1=C(5, 6, 1), a2=C(6, 4, 1),
        b2=C(4, 6, 1), head=L(6, 4),
    ),
    "1x1 after padded": lambda: nn.Sequential(C(3, 6, 3, padding=1), nn.Sigmoid(), C(6, 4, 1)),
    "same, of one pixel": lambda: nn.Sequential(C(3, 6, 3, padding="same"), nn.ELU(), C(6, 4, 1, padding="same")),
    "valid": lambda: nn.Sequential(C(3, 6, 3), nn.Softplus(), C(6, 4, 3, padding="valid")),
    **{
        mode: lambda mode=mode: nn.Sequential(  # type: ignore[misc]
            C(3, 6, 3), nn.Sigmoid(), C(6, 4, 3, padding=1, padding_mode=mode)
        )
        for mode in ("reflect", "replicate")
    },
    "strided and dilated": lambda: nn.Sequential(C(3, 6, 3), nn.SiLU(), C(6, 4, 2, stride=2, dilation=2)),
    "grouped": lambda: nn.Sequential(C(3, 6, 3), nn.Sigmoid(), C(6, 8, 3, groups=2), nn.SiLU(), C(8, 4, 1)),
    "depthwise": lambda: nn.Sequential(C(3, 6, 3), nn.Sigmoid(), C(6, 6, 3, groups=6), B(6), C(6, 4, 1)),
    "filters of one channel": lambda: nn.Sequential(
        C(3, 4, 3), nn.Sigmoid(), C(4, 8, 3, groups=4), nn.Sigmoid(), C(8, 4, 1)
    ),
    "flattened": lambda: nn.Sequential(C(3, 6, 3), B(6), nn.SiLU(), nn.MaxPool2d(2), nn.Flatten(), L(54, 4)),
    "flattened, behind padding": lambda: nn.Sequential(
        C(3, 6, 3), nn.Sigmoid(), C(6, 6, 3, padding=1, groups=6), nn.Flatten(), L(216, 4)
    ),
    "pooled": lambda: nn.Sequential(
        C(3, 6, 3), B(6), nn.Sigmoid(), nn.MaxPool2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), L(6, 4)
    ),
    "pooled over unequal windows": lambda: nn.Sequential(
        C(3, 6, 2), nn.Sigmoid(), nn.AdaptiveAvgPool2d(5), B(6), C(6, 4, 2)
    ),
    "dropout": lambda: nn.Sequential(
        C(3, 6, 3), nn.Sigmoid(), nn.Dropout2d(0.5), C(6, 5, 3), nn.Sigmoid(), nn.Flatten(), nn.Dropout(), L(80, 4)
    ),
    "squeeze and excite": lambda: Net(
        squeeze_and_excite, a=C(3, 6, 3), n=B(6), down=C(6, 3, 1), up=C(3, 6, 1), b=C(6, 4, 3)
    ),
    "attention": lambda: Net(
        attention, a=L(64, 12), q=L(12, 12), k=L(12, 12), v=L(12, 12), o=L(12, 12), b=L(12, 4)
    ),
    "prelu": lambda: nn.Sequential(C(3, 6, 3), nn.PReLU(6), C(6, 4, 3)),
    "sequences": lambda: Net(
        lambda s, x: s.c(F.gelu(s.b(F.gelu(s.a(x.flatten(2)))))), a=L(64, 9), b=L(9, 7), c=L(7, 4)
    ),
    "transposed, of one pixel": lambda: nn.Sequential(
        nn.ConvTranspose2d(3, 6, 2, 2), nn.Sigmoid(), nn.ConvTranspose2d(6, 5, 1), nn.Sigmoid(), C(5, 4, 1)
    ),
    "called twice": lambda: Net(
        lambda s, x: s.c(torch.tanh(s.b(torch.tanh(s.a(x))) + s.b(torch.tanh(s.a(x.flip(3)))))),
        a=C(3, 6, 3), b=C(6, 5, 1), c=C(5, 4, 1),
    ),
    "keyword": lambda: Net(
        lambda s, x: s.b(input=torch.sigmoid(s.a(input=x))), a=C(3, 6, 3), b=C(6, 4, 3)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_what_removed_channels_carry_moves_on(name: str, seed: int) -> None:
    model, inputs = ready(FOLDS[name], seed), images(3, dtype=torch.float64)
    groups = channel_groups(model, inputs)
    keep = halves(groups, seed)
    others = torch.cat([inputs, 3 * images(2, seed=5, dtype=torch.float64)])
    expected = standing(model, keep, groups)(others)
    plain = copy.deepcopy(model)
    cut(plain, keep, groups)
    cut_quietly(model, keep, groups)
    close(model(others), expected)
    far(plain(others), expected)
    assert {key: tensor.shape for key, tensor in plain.state_dict().items()} == {
        key: tensor.shape for key, tensor in model.state_dict().items()
    }


def test_a_network_whose_rows_are_zero_already_stays_exactly_as_it_stands() -> None:
    net = nn.Sequential(C(3, 6, 3), B(6), nn.SiLU(), C(6, 5, 2), B(5), nn.ReLU(), nn.Flatten(), L(125, 4))
    model, inputs = ready(lambda: net), images(4, dtype=torch.float64)
    groups = channel_groups(model, inputs)
    keep = {"0": torch.arange(6) % 3 > 0, "3": torch.arange(5) % 2 > 0}
    Masks(model).hold(
        {
            f"{name}.weight": mask[:, None, None, None].expand_as(model.get_submodule(name).weight)
            for name, mask in keep.items()
        }
    )
    expected, other = model(inputs), images(4, seed=1, dtype=torch.float64)
    expected_other = model(other)
    cut_quietly(model, keep, groups)
    close(model(inputs), expected)
    close(model(other), expected_other)
    assert model[0].weight.shape[0] == 4 and model[3].weight.shape[:2] == (2, 4)


def test_a_reader_that_pads_in_circles() -> None:
    def net(mode: str) -> nn.Module:
        return nn.Sequential(C(3, 6, 3), nn.Sigmoid(), C(6, 4, 3, padding=1, padding_mode=mode))

    model, inputs = ready(lambda: net("circular")), images(3, dtype=torch.float64)
    groups = channel_groups(ready(lambda: net("zeros")), inputs)  # the tracer does not know how circles are made
    keep = halves(groups)
    expected = standing(model, keep, groups)(inputs)
    cut_quietly(model, keep, groups)
    close(model(inputs), expected)


@pytest.mark.parametrize("name", ["no bias, then norm", "linear without bias, then norm"])
def test_behind_a_running_mean_training_goes_on_alike_too(name: str) -> None:
    model, inputs = ready(FOLDS[name]), images(6, dtype=torch.float64)
    groups = channel_groups(model, inputs)
    keep = {next(iter(groups)): halves(groups)[next(iter(groups))]}
    twin = standing(model, keep, groups)
    cut_quietly(model, keep, groups)
    for one in (model, twin):
        one.train()
    close(model(inputs), twin(inputs))
    for one in (model, twin):
        one.eval()
    close(model(inputs), twin(inputs))  # the running means went on from where they were


# what does not fold


class PadsItself(nn.Conv2d):
    """Zero padding that no attribute tells of."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (1, 1, 1, 1)))


def shares_bias() -> nn.Module:
    net = Net(
        lambda s, x: s.c(torch.sigmoid(s.b(torch.sigmoid(s.a(x))))), a=C(3, 6, 3), b=C(6, 4, 1), c=C(4, 4, 1)
    )
    net.c.bias = net.b.bias
    return net


STAYS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "padded reader": (
        lambda: nn.Sequential(C(3, 6, 3), nn.Sigmoid(), C(6, 4, 3, padding=1)),
        r"3 removed channels could .* folded: 3 zero padding \('2'\)$",
    ),
    "padded to the same size": (
        lambda: nn.Sequential(C(3, 6, 3), nn.Sigmoid(), C(6, 4, (1, 3), padding="same")),
        r"zero padding \('2'\)",
    ),
    "padded and grouped": (
        lambda: nn.Sequential(C(3, 6, 3), nn.Sigmoid(), C(6, 4, 3, padding=1, groups=2)),
        r"constants of .* not all be folded: [1-4] zero padding \('2'\)$",
    ),
    "padded depthwise in between": (
        lambda: nn.Sequential(C(3, 6, 3), nn.Sigmoid(), C(6, 6, 3, padding=1, groups=6), nn.ELU(), C(6, 4, 1)),
        r"3 not constant \('4'\)$",
    ),
    "no bias": (lambda: nn.Sequential(C(3, 6, 3), nn.Sigmoid(), C(6, 4, 3, bias=False)), r"3 no bias \('2'\)$"),
    "no bias, norm and something else": (
        lambda: Net(
            lambda s, x: s.c(s.n(y := s.b(torch.sigmoid(s.a(x)))) + y),
            a=C(3, 6, 3), b=C(6, 4, 3, bias=False), n=B(4), c=C(4, 4, 1),
        ),
        r"3 no bias \('b'\)$",
    ),
    "no bias, norm and output": (
        lambda: Net(
            lambda s, x: (s.n(y := s.b(torch.sigmoid(s.a(x)))), y), a=C(3, 6, 3), b=C(6, 4, 3, bias=False), n=B(4)
        ),
        r"3 no bias \('b'\)$",
    ),
    "no bias, norm of two": (
        lambda: Net(
            lambda s, x: s.n(s.b(torch.sigmoid(s.a(x)))) + s.n(s.d(x)),
            a=C(3, 6, 3), b=C(6, 4, 3, bias=False), n=B(4), d=C(3, 4, 5),
        ),
        r"3 no bias \('b'\)$",
    ),
    "no bias, norm of places": (
        lambda: Net(
            lambda s, x: s.c(s.n(s.b(torch.sigmoid(s.a(x.flatten(2))))).flatten(1)),
            a=L(64, 6), b=L(6, 3, bias=False), n=nn.BatchNorm1d(3), c=L(9, 4),
        ),
        r"3 no bias \('b'\)$",
    ),
    "many layers": (
        lambda: Net(
            lambda s, x: torch.cat([conv(torch.sigmoid(s.a(x))) for conv in s.readers], 1),
            a=C(3, 6, 3), readers=nn.ModuleList(C(6, 2, 3, padding=1) for _ in range(5)),
        ),
        r"3 zero padding \('readers.0', 'readers.1', 'readers.2' and 2 more\)$",
    ),
    "called with two constants": (
        lambda: Net(
            lambda s, x: s.b(torch.sigmoid(s.a(x))) + s.b(torch.tanh(s.a(x))), a=C(3, 6, 3), b=C(6, 4, 3)
        ),
        r"3 not constant \('b'\)$",
    ),
    "gated by what varies": (
        lambda: Net(
            lambda s, x: s.b(torch.sigmoid(s.a(x)) * x.mean(1, keepdim=True)), a=C(3, 6, 1), b=C(6, 4, 3)
        ),
        r"3 not constant \('b'\)$",
    ),
    "shared bias": (shares_bias, r"3 shared bias \('b'\)$"),
    "pads itself": (lambda: nn.Sequential(C(3, 6, 3), nn.Sigmoid(), PadsItself(6, 4, 3)), "3 spread unevenly"),
    "transposed": (
        lambda: nn.Sequential(C(3, 6, 3), nn.Sigmoid(), nn.ConvTranspose2d(6, 4, 3, 2)), "3 spread unevenly"
    ),
    "summed up": (
        lambda: Net(lambda s, x: s.b(x) * F.tanh(s.a(x)).norm(dim=1, keepdim=True), a=C(3, 6, 3), b=C(3, 4, 3)),
        "removed channels could not all be folded: .*not a convolution or linear layer$",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STAYS)
def test_what_cannot_move_is_lost_as_without_folding_and_told(name: str) -> None:
    make, words = STAYS[name]
    model, inputs = ready(make), images(3, dtype=torch.float64)
    groups = channel_groups(model, inputs)
    keep = {"0" if "0" in groups else "a": halves(groups)["0" if "0" in groups else "a"]}
    plain = copy.deepcopy(model)
    cut(plain, keep, groups)
    with pytest.warns(UserWarning, match=words) as caught:
        cut(model, keep, groups, fold=True)
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
    assert caught[0].filename == __file__
    assert same(snapshot(model), snapshot(plain))


def test_layers_that_can_fold_do_so_next_to_others_that_cannot() -> None:
    def net() -> nn.Module:
        return Net(
            lambda s, x: s.b(y := torch.sigmoid(s.a(x)))[:, :, 1:-1, 1:-1] + s.c(y),
            a=C(3, 6, 3), b=C(6, 4, 3, padding=1), c=C(6, 4, 3),
        )  # fmt: skip

    model, inputs = ready(net), images(3, dtype=torch.float64)
    groups = channel_groups(model, inputs)
    keep = {"a": torch.arange(6) > 1}
    twin = standing(model, keep, groups)
    with pytest.warns(UserWarning, match=r"2 removed channels .*: 2 zero padding \('b'\)$"):
        cut(model, keep, groups, fold=True)
    given = torch.sigmoid(model.a(inputs))
    close(model.c(given), twin.c(torch.sigmoid(twin.a(inputs))))
    assert torch.equal(model.b.bias, twin.b.bias)


def test_packed_attention_is_told_of() -> None:
    layers = {"a": L(64, 12), "mix": nn.MultiheadAttention(12, 3, batch_first=True), "b": L(12, 4)}
    model = ready(lambda: Net(lambda s, x: s.b(s.mix(y := s.a(x.flatten(2)), y, y)[0]), **layers))
    groups = channel_groups(model, images(dtype=torch.float64))
    with pytest.warns(UserWarning, match="not a convolution or linear layer"):
        cut(model, halves(groups), groups, fold=True)


def test_a_bias_that_a_mask_holds_is_left_alone() -> None:
    model, inputs = ready(lambda: nn.Sequential(C(3, 6, 3), nn.Sigmoid(), C(6, 4, 3))), images(dtype=torch.float64)
    Masks(model).hold({"2.bias": torch.arange(4) > 0})
    groups = channel_groups(model, inputs)
    with pytest.warns(UserWarning, match=r"2 masked bias \('2'\)$"):
        cut(model, {"0": torch.arange(6) > 1}, groups, fold=True)
    assert model[2].bias[0] == 0


def test_constants_that_are_zero_need_no_warning() -> None:
    model, inputs = ready(lambda: nn.Sequential(C(3, 6, 3), nn.ReLU(), C(6, 4, 3, padding=1))), images()
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([-1.0, -2, -1, 3, 3, 3], dtype=torch.float64))
    groups = channel_groups(model, inputs.double())
    groups = cut_quietly(model, {"0": torch.arange(6) > 1}, groups)
    with pytest.warns(UserWarning, match="1 removed channels"):
        cut(model, {"0": torch.arange(4) > 1}, groups, fold=True)


# what goes along


def hidden() -> nn.Module:
    return nn.Sequential(nn.Flatten(), L(192, 8), nn.Sigmoid(), L(8, 6), nn.Sigmoid(), L(6, 4))


def named() -> nn.Module:
    layers = {"a": L(192, 8), "b": L(8, 6), "c": L(6, 4)}
    return Net(lambda s, x: s.c(torch.sigmoid(s.b(torch.sigmoid(s.a(x.flatten(1)))))), **layers)


def trained(model: nn.Module, inputs: Tensor) -> torch.optim.Optimizer:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), torch.arange(len(inputs)) % 4).backward()
        optimizer.step()
    return optimizer


def test_only_values_differ_from_a_plain_cut() -> None:
    model, inputs = ready(named), images(dtype=torch.float64)
    model.b.bias.requires_grad_(False)
    model.again = model.c
    Masks(model).hold({"b.weight": torch.arange(48).view(6, 8) % 5 > 0})
    optimizer = trained(model, inputs)
    plain, other = copy.deepcopy((model, optimizer))
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        theirs.grad = None if mine.grad is None else mine.grad.clone()
    twin, start = copy.deepcopy(model), {name: one.clone() for name, one in model.state_dict().items()}
    groups = channel_groups(model, inputs)
    keep = halves(groups)
    twin_bias = twin.c.bias
    folded = cut_quietly(model, keep, groups, optimizer=optimizer, companions=[twin, start])
    expected = cut(plain, keep, groups, optimizer=other)
    differ = {"b.bias", "c.bias", "again.bias"}
    one, two = snapshot(model), snapshot(plain)
    assert {name for name in one if not torch.equal(one[name], two[name])} == differ
    assert same(snapshot(twin), two) and twin.c.bias is twin_bias
    assert all(torch.equal(start[name], two[name]) for name in plain.state_dict())
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in plain.parameters()]
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None)
        assert mine.grad is None or torch.equal(mine.grad, theirs.grad)
        assert same(optimizer.state[mine], other.state[theirs]) if mine.requires_grad else True
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in model.parameters()}
    assert model.again.bias is model.c.bias
    assert lineage_of(model).kept.keys() == lineage_of(plain).kept.keys()
    assert {name: group.channels for name, group in folded.items()} == {
        name: group.channels for name, group in expected.items()
    }
    trained(model, inputs)


def test_a_graph_from_before_stays_valid() -> None:
    model, inputs = ready(FOLDS["no bias, then norm"]), images(dtype=torch.float64)
    expected = copy.deepcopy(model)
    (expected(inputs).square().sum() + expected[5].bias.square().sum()).backward()
    groups = channel_groups(model, inputs)
    old = dict(model.named_parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    loss = model(inputs).square().sum() + model[5].bias.square().sum()
    cut_quietly(model, halves(groups), groups)
    loss.backward()
    for name, parameter in expected.named_parameters():
        torch.testing.assert_close(old[name].grad, parameter.grad, rtol=1e-12, atol=1e-14)
    assert not any(parameter.grad.any() for parameter in model.parameters())


def test_a_folded_network_is_saved_and_loaded(tmp_path: Path) -> None:
    model, inputs = ready(FOLDS["no bias, then norm"]), images(dtype=torch.float64)
    groups = channel_groups(model, inputs)
    groups = cut_quietly(model, halves(groups), groups)
    cut_quietly(model, halves(groups, 3), groups)  # and cut again, with the example it was traced with
    again = load_model(save_model(model, tmp_path / "net.safetensors"), seeded(FOLDS["no bias, then norm"]))
    assert torch.equal(again.eval()(inputs), model(inputs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_coarser_numbers_fold_too(dtype: torch.dtype) -> None:
    for name in ("norm and relu", "depthwise", "pooled", "squeeze and excite", "sequences"):
        model, inputs = ready(FOLDS[name]).to(dtype), images(dtype=dtype)
        groups = channel_groups(model, inputs)
        keep = halves(groups)
        expected = standing(model, keep, groups)(inputs).float()
        cut_quietly(model, keep, groups)
        assert all(tensor.dtype == dtype for tensor in model.parameters())
        assert (model(inputs).float() - expected).abs().max() <= 20 * torch.finfo(dtype).eps * expected.abs().max()


def test_tokens() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.a, self.b = nn.Embedding(9, 6), nn.Linear(6, 8), nn.Linear(8, 4)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.b(torch.sigmoid(self.a(self.table(tokens))))

    model, tokens = ready(Words), torch.arange(12).view(2, 6) % 9
    for example in (tokens, torch.full((1, 5), 3)):
        small = copy.deepcopy(model)
        groups = channel_groups(small, tokens)
        keep = {"a": torch.arange(8) % 3 > 0}
        expected = standing(small, keep, groups)(tokens)
        cut_quietly(small, keep, groups, example_input=example)
        close(small(tokens), expected)


@pytest.mark.parametrize("example", [torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), -2.0)])
def test_an_example_all_of_one_value_does_not_make_constants(example: Tensor) -> None:
    layers = {"a": C(3, 6, 1), "b": C(6, 4, 3)}
    model = ready(lambda: Net(lambda s, x: s.b(torch.sigmoid(s.a(x)) * x.mean((1, 2, 3), keepdim=True)), **layers))
    groups = channel_groups(model, example.double())
    with pytest.warns(UserWarning, match="3 not constant"):
        cut(model, halves(groups), groups, fold=True)


def test_tokens_all_alike_do_not_make_constants() -> None:
    def gated(s: nn.Module, tokens: Tensor) -> Tensor:
        words = s.table(tokens)
        return s.b(torch.sigmoid(s.a(words)) * words.mean(-1, keepdim=True))

    model = ready(lambda: Net(gated, table=nn.Embedding(9, 6), a=L(6, 8), b=L(8, 4)))
    groups = channel_groups(model, torch.full((1, 5), 3))
    with pytest.warns(UserWarning, match="4 not constant"):
        cut(model, {"a": torch.arange(8) > 3}, groups, fold=True)


# errors


class Picky(nn.Module):
    """Accepts a few calls only, and counts them in a buffer and draws numbers in each."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.calls = calls
        self.net = hidden()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        self.count += 1
        torch.rand(3)
        self.calls -= 1
        if self.calls < 0:
            raise ValueError("no more")
        return self.net(inputs)


@pytest.mark.parametrize(
    "problem", ["first call", "third call", "last call", "optimizer", "strict warnings", "none"]
)
def test_the_model_is_untouched_until_the_cut_and_when_it_fails(problem: str) -> None:
    inputs = images(dtype=torch.float64)
    model = ready(lambda: Picky(99)).train()
    if problem == "strict warnings":
        model.net[3].bias = None
    groups = channel_groups(model, inputs)
    model.net[3].eval()
    model.calls = {"first call": 0, "third call": 2, "last call": 5}.get(problem, 99)
    optimizer = trained(copy.deepcopy(model), inputs) if problem == "third call" else None
    if problem == "optimizer":
        optimizer = torch.optim.LBFGS(model.parameters())
    loss = model.net[1].weight.square().sum()
    before, tensors = snapshot(model), [*model.parameters(), *model.buffers()]
    versions, modes = [one._version for one in tensors[:-1]], [module.training for module in model.modules()]
    random_state = torch.get_rng_state()
    if problem == "none":
        cut_quietly(model, halves(groups), groups)
    else:
        with pytest.raises((UsageError, UserWarning), match="no more|LBFGS|no bias"):
            cut_quietly(model, halves(groups), groups, optimizer=optimizer)
        assert same(snapshot(model), before)
        assert all(a is b for a, b in zip([*model.parameters(), *model.buffers()], tensors, strict=True))
        assert not has_cuts(model)
    assert [one._version for one in tensors[:-1]] == versions
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    loss.backward()


def has_cuts(model: nn.Module) -> bool:
    return bool(lineage_of(model).kept)


def test_an_example_is_needed_somewhere() -> None:
    model, inputs = ready(hidden), images(dtype=torch.float64)
    groups = channel_groups(model, inputs)
    keep, before = halves(groups), snapshot(model)
    with pytest.raises(UsageError, match="example_input") as caught:
        cut(model, keep, dict(groups), fold=True)
    assert "\n" not in str(caught.value)
    assert same(snapshot(model), before)
    expected = standing(model, keep, groups)(inputs)
    cut_quietly(model, keep, dict(groups), example_input=inputs)
    close(model(inputs), expected)


def test_nothing_to_remove_needs_nothing_and_keeps_the_example() -> None:
    model, inputs = ready(hidden), images(dtype=torch.float64)
    groups = channel_groups(model, inputs)
    before = snapshot(model)
    assert cut(model, {}, dict(groups), fold=True) == groups
    assert cut(model, {}, groups, fold=True).example is groups.example  # type: ignore[attr-defined]
    assert same(snapshot(model), before)


# random chains

ACTIVATIONS = [nn.ReLU, nn.Sigmoid, nn.SiLU, nn.Tanh, nn.Identity]
#: kernel, padding, bias, norm, activation, depthwise, channels
BLOCK = st.tuples(
    st.sampled_from([1, 2, 3]),
    st.sampled_from(["none", "none", "zeros", "reflect"]),
    st.booleans(),
    st.booleans(),
    st.sampled_from(ACTIVATIONS),
    st.booleans(),
    st.integers(2, 6),
)


def chain(blocks: list[tuple[int, str, bool, bool, type[nn.Module], bool, int]], flatten: bool) -> nn.Module:
    """Convolutional blocks, then pooling or flattening and a linear layer with bias."""
    layers: list[nn.Module] = []
    width = 3
    for kernel, padding, bias, norm, activation, depthwise, channels in blocks:
        mode = padding if padding != "none" else "zeros"
        size = kernel // 2 if padding != "none" else 0
        channels, groups = (width, width) if depthwise and layers else (channels, 1)
        layers.append(C(width, channels, kernel, padding=size, padding_mode=mode, bias=bias, groups=groups))
        layers += [B(channels)] if norm else []
        layers.append(activation())
        width = channels
    layers += [nn.AdaptiveAvgPool2d(2 if flatten else 1), nn.Flatten(), nn.LazyLinear(4)]
    net = nn.Sequential(*layers)
    net.double().eval()(images(1, size=12, dtype=torch.float64))
    return net


@settings(max_examples=60, deadline=None)
@given(st.lists(BLOCK, min_size=1, max_size=4), st.booleans(), st.integers(0, 99))
def test_random_chains(
    blocks: list[tuple[int, str, bool, bool, type[nn.Module], bool, int]], flatten: bool, seed: int
) -> None:
    model, inputs = ready(lambda: chain(blocks, flatten), seed), images(2, size=12, seed=seed, dtype=torch.float64)
    groups = channel_groups(model, inputs)
    keep = halves(groups, seed)
    expected = standing(model, keep, groups)(inputs)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cut(model, keep, groups, fold=True)
    foldable = all(padding != "zeros" and (bias or norm) for _, padding, bias, norm, *_ in blocks[1:])
    event(f"{'foldable' if foldable else 'not all foldable'}, {'a warning' if caught else 'no warning'}")
    if foldable:
        assert not caught
    if not caught:
        torch.testing.assert_close(
            model(inputs), expected, rtol=1e-10, atol=1e-10 * float(expected.detach().abs().max())
        )
    assert len(caught) <= 1
