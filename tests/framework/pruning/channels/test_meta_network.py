"""Networks of known layers are traced on shapes alone, all others on their values, and the groups are the same."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur import build, channel_groups
from secateur.framework.pruning.channels import discovery
from secateur.framework.pruning.channels.tracing.tracer import meta_copy
from secateur.utils.vision import torchvision
from tests.networks import ConvNet, ResNet, images, seeded


def described(model: nn.Module, x: Tensor) -> list[Any]:
    """All that is known of the groups."""
    return [
        (name, group.protected, group.exact, group.removable, group.producers,
         [(part.tensor, part.dim, part.index.tolist()) for part in group.slices])
        for name, group in channel_groups(model, x).items()
    ]  # fmt: skip


def small(name: str) -> nn.Module:
    model: nn.Module = torchvision().models.get_model(name, weights=None, num_classes=7)
    return model


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (lambda: build("models", "ResNet18", in_channels=3, num_classes=5, image_size=32), 32),
        (lambda: small("mobilenet_v3_small"), 64),
        (lambda: small("shufflenet_v2_x0_5"), 64),
        (lambda: small("squeezenet1_1"), 64),
    ],
)
def test_shapes_alone_give_the_groups_that_values_give(
    make: Any, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = make(), torch.randn(1, 3, size, size)
    assert meta_copy(model) is not None
    found = described(model, x)
    monkeypatch.setattr(discovery, "meta_copy", lambda model: None)
    assert described(model, x) == found


class Asking(ConvNet):
    """Looks at a value, as code may."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if float(x.sum()) > -1e9 else x


class Attending(nn.Module):
    """Attention as a plain function: on another device it is computed by other operations."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 12), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.a(x).unsqueeze(1).chunk(3, dim=-1)
        return self.b(F.scaled_dot_product_attention(q, k, v).squeeze(1))  # type: ignore[no-any-return]


def passes(monkeypatch: pytest.MonkeyPatch, model: nn.Module, x: Tensor) -> list[str]:
    """Devices of the passes that tracing took to its end or not."""
    taken: list[str] = []
    follow = discovery._follow

    def noted(model: nn.Module, example: Tensor, *args: Any) -> Any:
        taken.append(example.device.type)
        return follow(model, example, *args)

    monkeypatch.setattr(discovery, "_follow", noted)
    channel_groups(model, x)
    return taken


@pytest.mark.parametrize(
    ("make", "x", "taken"),
    [
        (ResNet, images(), ["meta"]),
        (Asking, images(), ["meta", "cpu"]),
        (Attending, torch.randn(2, 5, 6), ["meta", "cpu"]),
    ],
)
def test_where_values_are_asked_for_the_pass_is_taken_with_values(
    make: Any, x: Tensor, taken: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert passes(monkeypatch, seeded(make), x) == taken


class Scaled(ConvNet):
    """A parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))


def hooked() -> nn.Module:
    model = seeded(ConvNet)
    model.register_forward_hook(lambda module, args, out: None)
    return model


@pytest.mark.parametrize("make", [Scaled, hooked])
def test_parameters_of_strangers_and_hooks_may_need_values(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    assert meta_copy(model) is None
    assert passes(monkeypatch, model, images()) == ["cpu"]


def test_the_network_itself_is_never_touched() -> None:
    model = seeded(ResNet)
    before = {name: (tensor, tensor.clone()) for name, tensor in model.state_dict(keep_vars=True).items()}
    shadow = meta_copy(model)
    assert shadow is not None and all(tensor.is_meta for tensor in shadow.state_dict().values())
    channel_groups(model, images())
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert tensor is before[name][0] and torch.equal(tensor, before[name][1]) and not tensor.is_meta
