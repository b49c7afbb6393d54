"""Blocks whose channels are all pruned: what is left of them is their shortcut."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur import build, channel_groups, cut, load_model, prune, save_model
from secateur.framework.network.size import count_macs
from secateur.utils.errors import UsageError
from secateur.utils.vision import torchvision
from tests.networks import ConvNet, ResNet, assert_cut_is_mask, images, seeded


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return build("models", "ResNet18", in_channels=3, num_classes=10, image_size=32)  # type: ignore[no-any-return]


def scrambled(model: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if "running_var" in name:
                tensor.uniform_(0.5, 1.5)
            elif tensor.is_floating_point():
                tensor.add_(0.1 * torch.randn_like(tensor))
    return model.double().eval()


def removable(groups: Any) -> list[str]:
    return [name for name, group in groups.items() if group.removable]


def test_what_lies_inside_a_residual_branch_is_removable_and_the_trunk_is_not() -> None:
    groups = channel_groups(resnet(), torch.randn(1, 3, 32, 32))
    inside = {name for name in groups if name.endswith("residual.0")}
    assert len(inside) == 8
    assert set(removable(groups)) == inside
    assert removable(channel_groups(seeded(ConvNet), images(1))) == []


def test_a_branch_of_a_concatenation_and_a_gate_are_removable() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 5, 1)
            self.squeeze, self.excite = nn.Linear(9, 3), nn.Linear(3, 9)
            self.c = nn.Conv2d(9, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            both = torch.cat([self.a(x), self.b(x)], 1)
            gate = torch.sigmoid(self.excite(F.relu(self.squeeze(both.mean((2, 3))))))
            return self.c(both * gate[:, :, None, None])

    model, x = scrambled(Branches()), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    groups = channel_groups(model, x)
    assert set(removable(groups)) == {"a", "b", "squeeze"}
    for name in ("a", "b", "squeeze"):
        keep = {name: torch.zeros(groups[name].channels, dtype=torch.bool)}
        assert_cut_is_mask(copy.deepcopy(model), keep, groups, x, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["ResNet", "ResNet18", "bottlenecks", "mobilenet_v2", "vit", "swin", "convnext"])
def test_a_network_without_its_blocks_computes_what_the_masked_one_does(name: str, tmp_path: Any) -> None:
    models = torchvision().models
    transformer: dict[str, Any] = {"num_classes": 5}
    make: dict[str, Any] = {
        "ResNet": ResNet,
        "ResNet18": resnet,
        "bottlenecks": lambda: models.ResNet(models.resnet.Bottleneck, [1, 2, 1, 1], num_classes=5),
        "mobilenet_v2": lambda: models.mobilenet_v2(num_classes=5, width_mult=0.35),
        "vit": lambda: models.VisionTransformer(
            image_size=64, patch_size=16, num_layers=2, num_heads=4, hidden_dim=16, mlp_dim=24, **transformer
        ),
        "swin": lambda: models.SwinTransformer(
            patch_size=[4, 4], embed_dim=8, depths=[2, 2], num_heads=[2, 4], window_size=[4, 4], **transformer
        ),
        "convnext": lambda: models.ConvNeXt(
            [models.convnext.CNBlockConfig(8, 12, 1), models.convnext.CNBlockConfig(12, None, 2)], **transformer
        ),
    }
    torch.manual_seed(0)
    model = scrambled(make[name]())
    x = images(2).double() if name == "ResNet" else torch.randn(2, 3, 64, 64, dtype=torch.float64)
    if name in ("mobilenet_v2", "bottlenecks"):  # float64 has slow convolutions
        model, x = model.float(), x.float()
    groups = channel_groups(model, x)
    names = removable(groups)
    assert names
    keep = {one: torch.zeros(groups[one].channels, dtype=torch.bool) for one in names}
    dense = copy.deepcopy(model)
    exact = {"rtol": 1e-9, "atol": 1e-11} if x.dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    after = assert_cut_is_mask(model, keep, groups, x, **exact)
    assert {after[one].protected for one in names} == {"no channel is left"}
    assert count_macs(model, x)[0] < 0.8 * count_macs(dense, x)[0]
    again = channel_groups(model, x)  # what is left can be cut on
    free = [one for one, group in again.items() if group.protected is None]
    assert len(free) >= sum(group.protected is None for group in after.values())
    save_model(model, tmp_path / "net.safetensors")
    loaded = load_model(tmp_path / "net.safetensors", dense).eval()
    torch.testing.assert_close(loaded(x), model(x), rtol=0, atol=0)
    torch.testing.assert_close(copy.deepcopy(model)(x), model(x), rtol=0, atol=0)
    model.train()(x).sum().backward()


def test_prune_removes_blocks_on_request_alone() -> None:
    x = torch.randn(4, 3, 32, 32)
    model = resnet()
    prune(model, "ChannelNorm", 0.9, example_input=x)
    assert min(group.channels for group in channel_groups(model, x).values()) == 1
    model = resnet()
    with torch.no_grad():
        for name in ("features.9", "features.11"):
            for parameter in model.get_submodule(name).parameters():
                parameter.mul_(1e-6)
    report = prune(model, "ChannelNorm", 0.5, example_input=x, min_channels=0)
    sizes = [module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert 0 in sizes
    assert report.reached == pytest.approx(0.5, abs=0.05)  # with a block go all the outputs of its last layer
    assert model(x).isfinite().all()


def test_a_block_of_the_trunk_cannot_go_and_the_model_is_untouched() -> None:
    model = resnet()
    groups = channel_groups(model, torch.randn(1, 3, 32, 32))
    trunk = next(name for name, group in groups.items() if not group.removable and group.protected is None)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UsageError, match="leaves no channel"):
        cut(model, {trunk: torch.zeros(groups[trunk].channels, dtype=torch.bool)}, groups)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_removal_that_does_not_run_is_refused_and_never_chosen() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1)
            self.head = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head((x + self.b(F.max_pool2d(self.a(x), 3, 1, 1))).mean((2, 3)))

    model, x = Pooled(), torch.randn(1, 3, 8, 8)
    groups = channel_groups(model, x)
    assert groups["a"].removable
    with pytest.raises(UsageError, match=r"group 'a' cannot be removed entirely: .*RuntimeError"):
        cut(model, {"a": torch.zeros(4, dtype=torch.bool)}, groups)
    with pytest.warns(UserWarning, match="asked for sparsity"):
        prune(model, "ChannelNorm", 0.95, example_input=x, min_channels=0)
    assert model.a.out_channels == 1
    with pytest.raises(UsageError, match="without an example_input"):
        fresh = Pooled()
        cut(fresh, {"a": torch.zeros(4, dtype=torch.bool)}, dict(channel_groups(fresh, x)))
