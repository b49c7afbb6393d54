"""Small networks and helpers that the tests of pruning share."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from secateur import Criterion
from secateur.framework.network.masks import Masks
from secateur.framework.plugins.registry import build
from secateur.framework.pruning.channels.groups import ChannelGroup, free_groups
from secateur.framework.pruning.steps.step import PruningStep, step_class
from secateur.framework.pruning.surgery.cutting import cut

Groups = Mapping[str, ChannelGroup]


class Net(nn.Module):
    """Named layers and a function of (self, inputs)."""

    def __init__(self, run: Callable[..., object], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.run = run

    def forward(self, inputs: Tensor) -> object:
        return self.run(self, inputs)


class ConvNet(nn.Module):
    """Two convolutions and two linear layers, all with norms: images (3, 8, 8), 5 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, padding=1)
        self.na = nn.BatchNorm2d(6)
        self.b = nn.Conv2d(6, 8, 3, padding=1, bias=False)
        self.nb = nn.BatchNorm2d(8)
        self.c = nn.Linear(8 * 4, 10)
        self.nc = nn.BatchNorm1d(10)
        self.d = nn.Linear(10, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = F.max_pool2d(F.leaky_relu(self.na(self.a(images)), 0.05), 2)
        x = F.max_pool2d(F.relu(self.nb(self.b(x))), 2)
        return self.d(F.relu(self.nc(self.c(x.flatten(1)))))


class ResNet(nn.Module):
    """A stem and a block that share a stage, then a block with a 1x1 skip: images (3, 8, 8), 5 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.n0 = nn.BatchNorm2d(6)
        self.a = nn.Conv2d(6, 5, 3, padding=1)
        self.na = nn.BatchNorm2d(5)
        self.b = nn.Conv2d(5, 6, 3, padding=1)
        self.nb = nn.BatchNorm2d(6)
        self.c = nn.Conv2d(6, 7, 3, padding=1, stride=2)
        self.nc = nn.BatchNorm2d(7)
        self.e = nn.Conv2d(7, 9, 3, padding=1)
        self.ne = nn.BatchNorm2d(9)
        self.skip = nn.Conv2d(6, 9, 1, stride=2, bias=False)
        self.ns = nn.BatchNorm2d(9)
        self.d = nn.Linear(9, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.n0(self.stem(images)))
        x = F.relu(x + self.nb(self.b(F.relu(self.na(self.a(x))))))
        y = self.ne(self.e(F.relu(self.nc(self.c(x)))))
        return self.d(F.relu(y + self.ns(self.skip(x))).mean((2, 3)))


def mlp() -> nn.Sequential:
    """12 inputs, hidden layers of 8 and 6, 4 classes."""
    return nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4))


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A network whose initial weights depend on the seed alone, in training mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random norm scales, shifts and statistics, and biases: on a fresh network any wrong meaning passes."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is None or not tensor.is_floating_point() or tensor.dim() > 1:
                continue
            values = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
            tensor.copy_(values + (-0.5 if name in ("bias", "running_mean") else 0.5))
    return model


def shipped(name: str, seed: int = 0, **options: int) -> nn.Module:
    """A network of models/ with plain Gaussian weights: orthogonal ones take seconds for the largest."""
    with torch.device("meta"):
        # torchvision's networks are sized for ImageNet unless told
        sizes = {"in_channels": 1, "num_classes": 10, "image_size": 28} if name == "TorchvisionModel" else {}
        model = build("models", name, **sizes | options)
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.dim() > 1:
                tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=generator)
            else:
                tensor.zero_()
    return randomise(model, seed)


def random_keep(groups: Groups, seed: int = 0, share: float = 0.5) -> dict[str, Tensor]:
    """A random mask for every free group, never empty."""
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for name, group in free_groups(groups).items():
        mask = torch.rand(group.channels, generator=generator) < share
        mask[int(torch.randint(group.channels, (), generator=generator))] = True
        keep[name] = mask
    return keep


def mask_channels(model: nn.Module, keep: Mapping[str, Tensor], groups: Groups) -> None:
    """Mask instead of cut: every parameter entry of a removed channel's slices is zeroed and held at zero."""
    Masks(model).hold(channel_masks(model, keep, groups))


def channel_masks(model: nn.Module, keep: Mapping[str, Tensor], groups: Groups) -> dict[str, Tensor]:
    """Return parameter name -> bool mask, False for entries of removed channels."""
    parameters = dict(model.named_parameters())
    masks: dict[str, Tensor] = {}
    for name, mask in keep.items():
        off = ~mask.cpu()
        for tensor, dim, index in groups[name].slices:
            if tensor in parameters:
                held = masks.setdefault(tensor, torch.ones_like(parameters[tensor], dtype=torch.bool))
                held.index_fill_(dim, index[off].flatten().to(held.device), False)
    return masks


def masked(model: nn.Module, keep: Mapping[str, Tensor], groups: Groups) -> nn.Module:
    """A copy of the model in which the channels are masked instead of cut."""
    twin = copy.deepcopy(model)
    mask_channels(twin, keep, groups)
    return twin


def assert_cut_is_mask(
    model: nn.Module, keep: Mapping[str, Tensor], groups: Groups, inputs: Tensor, **tolerances: float
) -> dict[str, ChannelGroup]:
    """Cut the model, which must then compute what the masked one computes; return its groups."""
    expected = masked(model, keep, groups)(inputs)
    after = cut(model, keep, groups)
    torch.testing.assert_close(tree_leaves(model(inputs)), tree_leaves(expected), **tolerances)
    return after


def images(count: int = 4, *, channels: int = 3, size: int = 8, seed: int = 0, **options: object) -> Tensor:
    """Random images that depend on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, size, size, generator=generator, dtype=torch.float64).to(
        options.get("dtype", torch.float32)  # type: ignore[call-overload]
    )


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Copies of every parameter and buffer, masks included."""
    return {
        name: tensor.detach().clone()
        for name, tensor in [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
    }


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """The same names with bit-identical tensors (NaN equals NaN)."""
    return one.keys() == other.keys() and all(
        torch.equal(one[name].nan_to_num(7.0), other[name].nan_to_num(7.0)) for name in one
    )


def score(criterion: str | Criterion, model: nn.Module, batches: Any, **options: Any) -> dict[str, Tensor]:
    made = build("criterions", criterion) if isinstance(criterion, str) else criterion
    return dict(made.score(model, batches, F.cross_entropy, **options))


def close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], rtol: float = 1e-5) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        scale = float(tensor.abs().max())
        torch.testing.assert_close(found[name].double(), tensor.detach().double(), rtol=rtol, atol=1e-6 * scale)
        assert scale > 0, f"{name}: nothing but zeros proves nothing"


def pruning_step(model: nn.Module, criterion: Criterion, *args: Any) -> PruningStep:
    """The step of the criterion's kind; example input, options, optimizer and companions follow."""
    return step_class(criterion)(model, criterion, *args)
