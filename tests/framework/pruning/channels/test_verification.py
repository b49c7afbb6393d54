"""What tells whether a cut is right: images large enough, noise that is the same, masks that change something."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur import channel_groups, measure, prune
from secateur.framework.pruning.channels import verification
from secateur.utils.errors import UsageError
from tests.networks import assert_cut_is_mask, images


class OnPatches(nn.Module):
    """Attention of few large patches: of every fourth pixel of the image there would be a single one."""

    def __init__(self, scale: Callable[[int], float]) -> None:
        super().__init__()
        self.a, self.qkv, self.o = nn.Conv2d(3, 16, 32, 32), nn.Linear(16, 48), nn.Linear(16, 4)
        self.scale = scale
        self.qkv.weight.data.mul_(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).flatten(2).transpose(1, 2)
        parts = self.qkv(y).chunk(3, -1)
        q, k, v = (part.view(len(x), -1, 2, part.shape[-1] // 2).transpose(1, 2) for part in parts)
        found = (q @ k.transpose(-2, -1) / self.scale(q.shape[-1])).softmax(-1) @ v
        return self.o(found.transpose(1, 2).flatten(2).mean(1))  # type: ignore[no-any-return]


def test_attention_of_large_patches_is_tried_on_the_whole_image() -> None:
    x = torch.randn(1, 3, 224, 224, dtype=torch.float64)
    model = OnPatches(lambda size: size**0.5).double().eval()
    groups = channel_groups(model, x)
    keep = {"qkv": torch.arange(groups["qkv"].channels) >= 4}
    with torch.no_grad():
        assert_cut_is_mask(model, keep, groups, x, rtol=1e-12, atol=1e-12)
    other = channel_groups(OnPatches(lambda size: size).double().eval(), x)
    assert "does not compute" in str(other["qkv"].protected)


class BySize(nn.Module):
    """Reckons with the number of channels, for large images alone or in one way, for small ones in another."""

    def __init__(self, of: Callable[[Tensor, bool], Tensor]) -> None:
        super().__init__()
        self.a, self.p, self.o = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 6, 3, padding=1), nn.Linear(6, 4)
        self.of = of

    def forward(self, x: Tensor) -> Tensor:
        y = self.of(self.a(x), x.shape[-1] > 100)
        return self.o(self.p(y).mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "of",
    [
        lambda y, large: y * (y.shape[1] if large else 1),
        lambda y, large: y / y.shape[1] * 16 if large else y,
        lambda y, large: y.clamp(max=y.shape[1] / 100) if large else y.clamp(max=1),
        lambda y, large: y.where(y > 0, y.shape[1] if large else 0.1),
        lambda y, large: y.masked_fill(y > 0, y.shape[1] if large else 0.1),
        lambda y, large: F.normalize(y) * torch.tensor(float(y.shape[1])) if large else F.normalize(y),
    ],
)
def test_code_that_goes_by_the_size_of_the_image_is_tried_at_that_size(
    of: Callable[[Tensor, bool], Tensor],
) -> None:
    assert channel_groups(BySize(of), torch.randn(1, 3, 128, 128))["a"].protected is not None


def taken(monkeypatch: pytest.MonkeyPatch, model: nn.Module, x: Tensor) -> list[int]:
    """Widths of the images of the trials."""
    widths: list[int] = []
    small = verification._run_small

    def noted(twin: nn.Module, example: Tensor, path: Any) -> Any:
        found = small(twin, example, path)
        widths.append(found[0].shape[-1])
        return found

    monkeypatch.setattr(verification, "_run_small", noted)
    channel_groups(model, x)
    return widths


class Spread(nn.Module):
    """Mean and deviation over the places, of which little is left."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Sequential(nn.Conv2d(3, 8, 3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 8, 1))
        self.o = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(x)
        return self.o(torch.cat([y.mean((2, 3)), y.std((2, 3))], 1))  # type: ignore[no-any-return]


def test_where_few_rows_and_columns_are_as_good_they_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert taken(monkeypatch, plain, torch.randn(1, 3, 224, 224)) == [56]
    assert taken(monkeypatch, plain, torch.randn(1, 3, 64, 64)) == [64]


@pytest.mark.filterwarnings("ignore:std")
def test_an_output_that_is_not_finite_is_asked_for_of_more_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert taken(monkeypatch, Spread(), torch.randn(1, 3, 224, 224)) == [112]
    assert channel_groups(Spread(), torch.randn(1, 3, 224, 224))["b.2"].protected is None


class Sampling(nn.Module):
    """Draws noise also in eval mode, as a variational autoencoder may."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.m, self.d, self.o = nn.Linear(16, 20), nn.Linear(20, 12), nn.Linear(6, 20), nn.Linear(20, 16)

    def forward(self, x: Tensor) -> Tensor:
        mean, spread = self.m(self.e(x).relu()).chunk(2, -1)
        return self.o(self.d(mean + torch.randn_like(mean) * (spread / 2).exp()).relu())  # type: ignore[no-any-return]


def test_noise_is_the_same_for_the_masked_network_and_the_cut_one() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    groups = channel_groups(Sampling(), torch.randn(2, 16))
    assert groups["e"].protected is None and groups["d"].protected is None
    torch.set_rng_state(before)
    Sampling(), torch.randn(2, 16)
    after = torch.get_rng_state()
    torch.set_rng_state(before)
    channel_groups(Sampling(), torch.randn(2, 16))
    assert torch.equal(torch.get_rng_state(), after)


class OfAnother(nn.Module):
    """Runs by a closure over the first of all copies."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)
        self.f = lambda x: self.o(self.a(x).mul(self.a.out_channels).mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x)  # type: ignore[no-any-return]


def test_where_the_mask_changes_nothing_nothing_is_proven() -> None:
    assert "does not depend on the mask" in str(channel_groups(OfAnother(), images())["a"].protected)


class WeakBranch(nn.Module):
    """A branch that hardly matters, and is cut wrongly."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self.c, self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 1), nn.Conv2d(16, 8, 1)
        self.o = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c(x)
        h = self.a(x).relu()
        return self.o((x + self.share * self.b(h / h.shape[1])).mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("share", "dtype"),
    [(1e-1, torch.float32), (1e-2, torch.float32), (1e-3, torch.float64), (1e-5, torch.float64)],
)
def test_a_wrong_cut_in_a_weak_branch_is_seen(share: float, dtype: torch.dtype) -> None:
    groups = channel_groups(WeakBranch(share).to(dtype), images(dtype=dtype))
    assert "does not compute" in str(groups["a"].protected)
    assert groups["c"].protected is None


class OnGraph(nn.Module):
    """A sparse matrix beside the layers."""

    def __init__(self, buffer: bool) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 16), nn.Linear(16, 6), nn.Linear(6, 4)
        adjacent = torch.eye(5).to_sparse()
        self.adjacent: Tensor
        if buffer:
            self.register_buffer("adjacent", adjacent)
        else:
            self.adjacent = adjacent

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(torch.sparse.mm(self.adjacent, self.a(x[0])).relu()).relu())[None]  # type: ignore[no-any-return]


@pytest.mark.parametrize("buffer", [False, True])
def test_what_meets_a_sparse_matrix_is_protected_by_name(buffer: bool) -> None:
    groups = channel_groups(OnGraph(buffer), torch.randn(1, 5, 8))
    assert "unsupported op" in str(groups["a"].protected) and groups["b"].protected is None


class Counting(nn.Module):
    """Keeps count, in a buffer, a tensor, a number and a list; its embedding may need values."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1), nn.Linear(3, 4)
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(()))
        self.steps, self.number, self.history = torch.zeros(()), 0, [0]
        self.unused = nn.Embedding(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.steps += 1
        self.number += 1
        self.history.append(self.number)
        return self.o((x + self.b(self.a(x).relu())).mean((2, 3)))  # type: ignore[no-any-return]


def test_tracing_leaves_what_a_network_keeps_of_its_passes() -> None:
    model = Counting()
    groups = channel_groups(model, images())
    assert groups["a"].removable
    assert (float(model.calls), float(model.steps), model.number, model.history) == (0, 0, 0, [0])


def test_buffers_are_as_before_after_everything_that_only_looks() -> None:
    model = Counting()
    measure(model, images(), latency=True)
    prune(model, "ChannelNorm", 0.3, example_input=images(), min_channels=0, latency=True)
    with pytest.raises(UsageError, match="budget latency"):
        prune(model, "ChannelNorm", 0.98, example_input=images(), budget="latency")
    assert float(model.calls) == 0


class WithHelper(nn.Module):
    """A second head for training, beside dropout as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o, self.second = (
            nn.Conv2d(3, 6, 3),
            nn.Conv2d(6, 8, 3),
            nn.Linear(8, 4),
            nn.Linear(6, 4),
        )

    def forward(self, x: Tensor) -> Any:
        y = F.dropout(self.a(x), 0.5, self.training)
        out = self.o(F.dropout(self.b(y).mean((2, 3)), training=self.training))
        return (out, self.second(y.mean((2, 3)))) if self.training else out


def test_dropout_as_a_function_protects_nothing() -> None:
    dropout = F.dropout
    groups = channel_groups(WithHelper(), images())
    assert {name for name, group in groups.items() if group.protected is None} == {"a", "b"}
    assert F.dropout is dropout


class Trying(nn.Module):
    """Goes another way where it has no values."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.h, self.other, self.o = nn.Linear(4, 6), nn.Linear(6, 7), nn.Linear(4, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.h(self.a(x).relu()).relu()
        try:
            found = y if float(y.sum()) > -1 else y * 2
        except RuntimeError:
            found = self.other(x) * 8
        return self.o(found)  # type: ignore[no-any-return]


def test_what_a_trial_refuses_is_traced_again_with_values() -> None:
    groups = channel_groups(Trying(), torch.randn(2, 4))
    assert groups["a"].protected is None and "other" not in {
        name for name, group in groups.items() if group.protected is None
    }
