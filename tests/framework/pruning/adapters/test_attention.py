"""Attention: heads and their channels go, the rest computes what it did, whatever the module's code fixes."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.coverage import half
from secateur import ChannelGroup, adapter, channel_groups, cut, load_model, prune, save_model
from secateur.framework.pruning.adapters.attention import SlimMultiheadAttention
from secateur.framework.pruning.adapters.base import _ADAPTERS, _HEADS
from secateur.utils.errors import UsageError
from secateur.utils.vision import torchvision
from tests.networks import Net, assert_cut_is_mask, mask_channels, seeded

WAYS = ("dims", "heads")


def encoder(**options: Any) -> nn.Module:
    """Embedding, attention, a residual sum, head."""
    given: dict[str, Any] = {"batch_first": True, "need_weights": False, **options}
    need = given.pop("need_weights")

    def run(net: Net, x: Tensor) -> Tensor:
        h = net.embed(x)
        first = given["batch_first"]
        h = h if first else h.transpose(0, 1)
        mixed = net.attention(h, h, h, need_weights=need)[0]
        return net.head((h + mixed).mean(0 if not first else 1))

    return Net(run, embed=nn.Linear(7, 24), attention=nn.MultiheadAttention(24, 4, **given), head=nn.Linear(24, 5))


def scrambled(model: nn.Module) -> nn.Module:
    """Float64, and no parameter zero or one."""
    torch.manual_seed(3)
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.4 * torch.randn_like(parameter) + parameter)
    return model


def cut_equals_masked(model: nn.Module, x: Tensor, attention: str, inexact: bool = False) -> Any:
    groups = channel_groups(model, x, attention=attention, inexact=inexact)
    keep = half({name: group for name, group in groups.items() if group.exact or inexact})
    if inexact:
        cut(model, keep, groups)
    else:
        assert_cut_is_mask(model, keep, groups, x, rtol=1e-10, atol=1e-12)
    return groups


def rescaled(group: ChannelGroup) -> tuple[str, ...]:
    """The tensors whose kept query rows a cut rescales."""
    return tuple(part.tensor for part in group.queries)


@pytest.mark.parametrize("attention", WAYS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"need_weights": True},
        {"bias": False},
        {"batch_first": False},
        {"add_bias_kv": True},
        {"add_bias_kv": True, "add_zero_attn": True, "need_weights": True},
        {"add_zero_attn": True},
    ],
    ids=str,
)
def test_heads_and_their_channels_go_from_torchs_attention(options: dict[str, Any], attention: str) -> None:
    model, x = scrambled(encoder(**options)), torch.randn(3, 6, 7, dtype=torch.float64)
    groups = cut_equals_masked(model, x, attention)
    group = groups["attention"]
    assert group.protected is None
    assert group.channels == (6 if attention == "dims" else 4)
    assert group.producers == ("attention",)
    slices = {(part.tensor, part.dim): part.index.shape[1] for part in group.slices}
    rows = 12 if attention == "dims" else 18
    assert slices["attention.in_proj_weight", 0] == rows
    assert slices["attention.out_proj.weight", 1] == rows // 3
    slim = model.get_submodule("attention")
    assert isinstance(slim, SlimMultiheadAttention)
    assert (slim.num_heads, slim.head_dim) == ((4, 3) if attention == "dims" else (2, 6))
    assert slim.in_proj_weight.shape == (36, 12)  # the stream it reads is cut as well


@pytest.mark.parametrize("attention", WAYS)
def test_attention_is_cut_again_copied_saved_and_loaded(attention: str, tmp_path: Any) -> None:
    model, x = scrambled(encoder()), torch.randn(3, 6, 7, dtype=torch.float64)
    cut_equals_masked(model, x, attention)
    cut_equals_masked(model, x, attention)
    other = "heads" if attention == "dims" else "dims"
    groups = cut_equals_masked(model, x, other)
    assert groups["attention"].protected is None
    expected = model(x)
    torch.testing.assert_close(copy.deepcopy(model)(x), expected, rtol=0, atol=0)
    save_model(model, tmp_path / "net.safetensors")
    loaded = load_model(tmp_path / "net.safetensors", encoder().double()).eval()
    torch.testing.assert_close(loaded(x), expected, rtol=0, atol=0)


def test_slim_attention_computes_what_torchs_does() -> None:
    """Nothing removed: masks, unbatched inputs, cross attention, weights."""
    torch.manual_seed(0)
    for options in (
        {},
        {"kdim": 5, "vdim": 3},
        {"batch_first": True, "add_bias_kv": True},
        {"add_zero_attn": True},
    ):
        dense = nn.MultiheadAttention(8, 2, **options).double().eval()  # type: ignore[arg-type]
        slim = copy.deepcopy(dense)
        slim.scale = slim.head_dim**-0.5  # type: ignore[assignment]
        slim.__class__ = SlimMultiheadAttention
        first = dense.batch_first
        batch = 3
        q = torch.randn(*((batch, 4) if first else (4, batch)), 8, dtype=torch.float64)
        k = torch.randn(*((batch, 6) if first else (6, batch)), dense.kdim, dtype=torch.float64)
        v = torch.randn(*((batch, 6) if first else (6, batch)), dense.vdim, dtype=torch.float64)
        padding = torch.zeros(batch, 6, dtype=torch.bool)
        padding[:, 4:] = True
        masks: list[dict[str, Any]] = [
            {},
            {"attn_mask": torch.randn(4, 6, dtype=torch.float64)},
            {"attn_mask": torch.rand(4, 6) > 0.8, "key_padding_mask": torch.zeros(batch, 6, dtype=torch.bool)},
            {"attn_mask": torch.randn(2 * batch, 4, 6, dtype=torch.float64)},
            {"key_padding_mask": padding, "average_attn_weights": False},
        ]
        for mask in masks:
            for need in (True, False):
                expected = dense(q, k, v, need_weights=need, **mask)
                found = slim(q, k, v, need_weights=need, **mask)
                torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
        one = [tensor[0] if first else tensor[:, 0] for tensor in (q, k, v)]
        torch.testing.assert_close(slim(*one), dense(*one), rtol=1e-10, atol=1e-12)


def test_cross_attention_with_one_packed_projection_is_cut() -> None:
    def run(net: Net, x: Tensor) -> Tensor:
        queries, memory = net.a(x), net.b(x)
        return net.head(net.attention(queries, memory, memory, need_weights=False)[0].mean(1))

    model = scrambled(
        Net(run, a=nn.Linear(7, 8), b=nn.Linear(7, 8), attention=nn.MultiheadAttention(8, 2, batch_first=True),
            head=nn.Linear(8, 3))
    )  # fmt: skip
    groups = cut_equals_masked(model, torch.randn(2, 5, 7, dtype=torch.float64), "dims")
    assert groups["attention"].protected is None


def test_the_scores_of_a_head_see_its_rows() -> None:
    """Magnitudes, gradients of gates and random scores all know the packed projection."""
    x, y = torch.randn(6, 5, 7), torch.arange(6) % 5
    for criterion in ("ChannelNorm", "SNAP", "StructuredRandom"):
        model = seeded(encoder)
        report = prune(model, criterion, 0.4372, batches=[(x, y)], protect=("embed",), budget="params")
        slim = model.get_submodule("attention")
        assert slim.in_proj_weight.shape[0] < 72  # type: ignore[operator, union-attr, index]
        assert report.after["params"] < report.before["params"]


def test_a_transformer_encoder_of_torch_runs_after_a_cut() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
    model = nn.Sequential(
        nn.Linear(7, 16), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(16, 3)
    )
    model, x = scrambled(model), torch.randn(2, 5, 7, dtype=torch.float64)
    groups = cut_equals_masked(model, x, "dims")
    free = {name for name, group in groups.items() if group.protected is None}
    assert free == {f"1.layers.{n}.{part}" for n in (0, 1) for part in ("self_attn", "linear1")}
    stream = channel_groups(model, x, inexact=True)["0"]
    assert stream.protected is None and not stream.exact


@pytest.mark.parametrize("attention", WAYS)
def test_heads_stay_where_their_mean_weights_are_used(attention: str) -> None:
    def run(net: Net, x: Tensor) -> Tensor:
        mixed, weights = net.attention(x, x, x)
        return net.head(mixed.mean(1)) + weights.mean()

    model = scrambled(
        Net(run, attention=nn.MultiheadAttention(8, 4, batch_first=True), head=nn.Linear(8, 3))
    )  # fmt: skip
    group = cut_equals_masked(model, torch.randn(2, 5, 8, dtype=torch.float64), attention)["attention"]
    assert group.protected == (None if attention == "dims" else "reduced over: mean at attention")


@pytest.mark.parametrize("attention", WAYS)
def test_a_cut_transformer_encoder_takes_a_padding_mask_without_gradients(attention: str) -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 2)

        def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
            return self.encoder(x, src_key_padding_mask=padding)

    model, x = scrambled(Encoder()), torch.randn(2, 5, 16, dtype=torch.float64)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    groups = channel_groups(model, x, attention=attention)
    keep = half({name: group for name, group in groups.items() if "self_attn" in name})
    assert len(keep) == 2
    masked = copy.deepcopy(model)
    masked.encoder.enable_nested_tensor = masked.encoder.use_nested_tensor = False
    mask_channels(masked, keep, groups)
    cut(model, keep, groups)
    with torch.no_grad():
        found, expected = model(x, padding), masked(x, padding)
        torch.testing.assert_close(found[~padding], expected[~padding], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("attention", WAYS)
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("size", [32, 36])
def test_windowed_attention_goes_with_and_without_shifts_and_padding(
    attention: str, version: int, size: int
) -> None:
    swin = torchvision().models.swin_transformer
    block, down = (
        (swin.SwinTransformerBlock, swin.PatchMerging)
        if version == 1
        else (swin.SwinTransformerBlockV2, swin.PatchMergingV2)
    )
    model = swin.SwinTransformer(
        patch_size=[4, 4], embed_dim=8, depths=[2, 2], num_heads=[2, 4], window_size=[4, 4], num_classes=5,
        block=block, downsample_layer=down, stochastic_depth_prob=0.0,
    )  # fmt: skip
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    groups = cut_equals_masked(scrambled(model), x, attention)
    found = [
        group
        for group in groups.values()
        if any(part.tensor.endswith("attn.qkv.weight") and part.dim == 0 for part in group.slices)
    ]
    assert [group.protected for group in found] == [None] * 4
    assert [group.channels for group in found] == ([4] * 4 if attention == "dims" else [2, 2, 4, 4])


@pytest.mark.parametrize("attention", WAYS)
def test_maxvit_and_vit_go_too(attention: str) -> None:
    models = torchvision().models
    maxvit = models.MaxVit(
        input_size=(32, 32), stem_channels=8, partition_size=2, block_channels=[8, 16], block_layers=[1, 1],
        head_dim=4, stochastic_depth_prob=0.0, num_classes=5,
    )  # fmt: skip
    vit = models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=16, mlp_dim=24, num_classes=5
    )
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    for model, part in ((maxvit, "attn_layer.1.to_qkv"), (vit, "self_attention")):
        groups = cut_equals_masked(scrambled(model), x, attention)
        own = [group for name, group in groups.items() if name.endswith(part)]
        assert own
        assert {group.protected for group in own} == {None}


@pytest.mark.parametrize("attention", WAYS)
def test_the_stream_of_a_transformer_is_cut_on_request_and_it_runs(attention: str) -> None:
    models = torchvision().models
    vit = models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=16, mlp_dim=24, num_classes=5
    )
    swin = models.SwinTransformer(
        patch_size=[4, 4], embed_dim=8, depths=[2, 2], num_heads=[2, 4], window_size=[4, 4], num_classes=5
    )
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    for model, first in ((vit, "conv_proj"), (swin, "features.0.0")):
        before = {name: value.clone() for name, value in scrambled(model).state_dict().items()}
        assert (channel_groups(model, x)[first].protected or "").startswith("reduced over: LayerNorm")
        groups = cut_equals_masked(model, x, attention, inexact=True)
        assert groups[first].protected is None and not groups[first].exact
        assert model(x).shape == (2, 5)
        assert model.get_submodule(first).out_channels < before[f"{first}.weight"].shape[0]


def test_tracing_with_inexact_leaves_tokens_and_positions_alone() -> None:
    vit = torchvision().models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=8, num_classes=5
    )
    scrambled(vit)
    before = {name: value.clone() for name, value in vit.state_dict().items()}
    channel_groups(vit, torch.randn(1, 3, 32, 32, dtype=torch.float64), inexact=True)
    for name, value in vit.state_dict().items():
        assert torch.equal(value, before[name]), name


class Separate(nn.Module):
    """Queries, keys and values of layers of their own; torch divides by the square root of a query's size."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(7, 12), nn.Linear(7, 12, bias=False), nn.Linear(7, 12)
        self.out = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, places, 7) to (batch, places, 3), with two heads."""
        q, k, v = (layer(x).unflatten(-1, (2, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_a_scale_that_depends_on_the_size_of_a_head_is_made_up_for_in_the_queries() -> None:
    model, x = scrambled(Separate()), torch.randn(2, 5, 7, dtype=torch.float64)
    groups = channel_groups(model, x)
    assert {name: (group.protected, rescaled(group)) for name, group in groups.items()} == {
        "q": (None, ("q.weight", "q.bias")),
        "v": (None, ()),
        "out": ("model output", ()),
    }
    keep = {"q": torch.tensor([True, False, True, False, False, True])}
    masked, average = copy.deepcopy(model), torch.optim.swa_utils.AveragedModel(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    mask_channels(masked, keep, groups)
    after = cut(model, keep, groups, companions=[average, before])
    torch.testing.assert_close(model(x), masked(x), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(average.module(x), masked(x), rtol=1e-10, atol=1e-12)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert_cut_is_mask(model, {"q": torch.tensor([True, False, True])}, after, x, rtol=1e-10, atol=1e-12)


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def by_width(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ((q @ k.mT) * k.shape[-1] ** -0.5).softmax(-1) @ v


def queries_first(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ((q / math.sqrt(q.size(-1))) @ k.mT).softmax(-1) @ v


def by_einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("bhnd,bhmd->bhnm", q, k) / math.sqrt(q.size(-1))
    return torch.einsum("bhnm,bhmd->bhnd", scores.softmax(-1), v)


def by_a_constant(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT * 0.4).softmax(-1) @ v


class Packed(nn.Module):
    """Queries, keys and values of one layer, with two heads whose size is computed."""

    def __init__(self, attend: Callable[[Tensor, Tensor, Tensor], Tensor], bias: bool = True) -> None:
        super().__init__()
        self.attend, self.qkv, self.out = attend, nn.Linear(7, 24, bias=bias), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, places, 7) to (batch, places, 3)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        return self.out(self.attend(q, k, v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("attend", [fused, by_width, queries_first, by_einsum])
def test_the_queries_of_a_packed_projection_make_up_for_the_scale(attend: Any, bias: bool) -> None:
    model, x = scrambled(Packed(attend, bias)), torch.randn(2, 5, 7, dtype=torch.float64)
    groups = channel_groups(model, x)
    group = groups["qkv"]
    assert (group.channels, group.protected) == (4, None)
    assert rescaled(group) == (("qkv.weight", "qkv.bias") if bias else ("qkv.weight",))
    assert all(part.index.tolist() == [[c, 4 + c] for c in range(4)] for part in group.queries)
    for keep in ([True, False, True, True], [True, True, False]):
        masked, average = copy.deepcopy(model), torch.optim.swa_utils.AveragedModel(model)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        mask_channels(masked, {"qkv": torch.tensor(keep)}, groups)
        groups = cut(model, {"qkv": torch.tensor(keep)}, groups, companions=[average, before])
        torch.testing.assert_close(model(x), masked(x), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(average.module(x), masked(x), rtol=1e-10, atol=1e-12)
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert channel_groups(model, x)["qkv"].queries[0].index.tolist() == groups["qkv"].queries[0].index.tolist()


def test_attention_whose_code_holds_the_size_of_a_head_is_told_by_one_trial_for_all_layers() -> None:
    calls = []

    class Fixed(Packed):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(1)
            q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
            return self.out(self.attend(q, k, v).transpose(1, 2).flatten(2))

    layers: list[nn.Module] = []
    for _ in range(8):
        layers += [Fixed(fused), nn.Linear(3, 7)]
    model, x = scrambled(nn.Sequential(*layers)), torch.randn(2, 5, 7, dtype=torch.float64)
    groups = channel_groups(model, x)
    found = {name: group.protected for name, group in groups.items() if name.endswith("qkv")}
    assert found == {
        f"{2 * at}.qkv": "a cut does not compute what a mask computes: RuntimeError" for at in range(8)
    }
    assert len(calls) <= 6 * 8  # one trial per layer would be 8 * 8


def test_a_scale_that_is_a_constant_leaves_the_queries_alone() -> None:
    model, x = scrambled(Packed(by_a_constant)), torch.randn(2, 5, 7, dtype=torch.float64)
    group = cut_equals_masked(model, x, "dims")["qkv"]
    assert (group.protected, rescaled(group)) == (None, ())


@pytest.mark.parametrize("attend", [by_width, queries_first, by_einsum])
def test_queries_of_a_layer_of_their_own_make_up_for_a_scale_written_by_hand(attend: Any) -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (2, -1)).transpose(1, 2) for layer in (s.q, s.k, s.v))
        return s.out(attend(q, k, v).transpose(1, 2).flatten(2))

    model = scrambled(
        Net(run, q=nn.Linear(7, 12), k=nn.Linear(7, 12), v=nn.Linear(7, 8), out=nn.Linear(8, 3))
    )  # fmt: skip
    groups = cut_equals_masked(model, torch.randn(2, 5, 7, dtype=torch.float64), "dims")
    assert {name: (group.protected, rescaled(group)) for name, group in groups.items()} == {
        "q": (None, ("q.weight", "q.bias")),
        "v": (None, ()),
        "out": ("model output", ()),
    }


class OwnAttention(nn.Module):
    """Heads of a fixed number and size, as many write it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.scale = self.size**-0.5

    def forward(self, x: Tensor) -> Tensor:
        """(batch, places, width) to the same."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, self.size)).permute(2, 0, 3, 1, 4)
        scores = F.softmax(q @ k.transpose(-2, -1) * self.scale, dim=-1)
        return self.out((scores @ v).transpose(1, 2).flatten(2))


def test_a_users_own_attention_is_protected_until_it_has_an_adapter() -> None:
    def make() -> nn.Module:
        return scrambled(nn.Sequential(nn.Linear(7, 12), OwnAttention(12, 3), nn.Flatten(), nn.Linear(60, 4)))

    x = torch.randn(2, 5, 7, dtype=torch.float64)
    assert "a cut does not compute what a mask computes" in str(channel_groups(make(), x)["1.qkv"].protected)

    @adapter(OwnAttention, heads=lambda module: (module.heads, module.size))
    def follow(module: Any, kept: Any) -> None:
        rows = kept("qkv.weight", 0)
        if rows is not None:
            queries = rows[rows < 12] // 4
            module.heads = len(queries.unique())
            module.size = len(queries) // module.heads

    try:
        for attention, channels in (("dims", 4), ("heads", 3)):
            groups = cut_equals_masked(make(), x, attention)
            assert groups["1.qkv"].protected is None
            assert groups["1.qkv"].channels == channels
    finally:
        del _ADAPTERS[OwnAttention], _HEADS[OwnAttention]


def test_an_adapter_takes_modules_only() -> None:
    with pytest.raises(UsageError, match="adapter: types .*got 3"):
        adapter(3)(lambda module, kept: None)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="unknown way to cut attention 'head': did you mean 'heads'"):
        channel_groups(encoder(), torch.randn(2, 5, 7), attention="head")


def test_heads_of_attention_that_nobody_described_are_warned_of() -> None:
    with pytest.warns(UserWarning, match="no module has an adapter"):
        channel_groups(
            nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(1, 4), attention="heads"
        )
