"""Compressed files are loaded like any checkpoint, exactly, and refused if they are damaged."""

from pathlib import Path

import pytest
import torch
from torch import nn

from secateur import Masks, UsageError, build, load_model, prune, save_compressed, save_model, share_weights
from secateur.framework.network.lineage import lineage_of
from secateur.framework.network.preserve import same_bits

IMAGE = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def pruned(name: str, criterion: str, sparsity: float) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = build("models", name, in_channels=1, num_classes=10, image_size=28)
    batches = [(IMAGE, torch.tensor([1, 2]))]
    prune(model, criterion, sparsity, batches=batches)
    return model


@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.parametrize(
    ("name", "criterion"),
    [("LeNet300", "Magnitude"), ("LeNet5", "Magnitude"), ("LeNet5", "SNAP"), ("ResNet18", "L1")],
)
def test_masked_and_cut_networks_come_back_exactly(
    tmp_path: Path, name: str, criterion: str, shares: bool
) -> None:
    model = pruned(name, criterion, 0.6)
    if shares:
        share_weights(model, 4, 5)
    loaded = load_model(save_compressed(model, tmp_path / "new" / "network.secateur"))
    for key, tensor in model.state_dict().items():
        assert same_bits(loaded.state_dict()[key], tensor), key
    assert {key: mask.tolist() for key, mask in Masks(loaded).items()} == {
        key: mask.tolist() for key, mask in Masks(model).items()
    }
    assert lineage_of(loaded).kept.keys() == lineage_of(model).kept.keys()
    assert torch.equal(loaded.eval()(IMAGE), model.eval()(IMAGE))
    assert (
        save_compressed(loaded, tmp_path / "again").read_bytes()
        == (tmp_path / "new/network.secateur").read_bytes()
    )


def test_a_shared_network_is_much_smaller_than_its_safetensors(tmp_path: Path) -> None:
    model = pruned("LeNet300", "Magnitude", 0.92)
    share_weights(model, 5)
    small, plain = save_compressed(model, tmp_path / "small"), save_model(model, tmp_path / "plain")
    assert small.stat().st_size < plain.stat().st_size / 25


def test_networks_outside_the_registry_and_other_dtypes(tmp_path: Path) -> None:
    def network() -> nn.Module:
        return nn.Sequential(nn.Conv1d(2, 4, 3), nn.Flatten(), nn.Linear(24, 3)).bfloat16()

    model = network()
    share_weights(model, 2)
    file = save_compressed(model, tmp_path / "mine.secateur")
    loaded = load_model(file, model=network())
    assert all(same_bits(one, other) for one, other in zip(loaded.parameters(), model.parameters(), strict=True))
    with pytest.raises(UsageError, match="outside the registry: pass the dense network"):
        load_model(file)
    with pytest.raises(UsageError, match="does not fit Linear"):
        load_model(file, model=nn.Linear(2, 2))


def test_a_damaged_file_is_one_line_with_path_and_reason(tmp_path: Path) -> None:
    file = save_compressed(pruned("LeNet300", "Magnitude", 0.9), tmp_path / "a.secateur")
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 4]))
    with pytest.raises(UsageError, match=r"cannot read .*a\.secateur: the checksum of '.*' does not match"):
        load_model(file)
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(UsageError, match="it is truncated"):
        load_model(file)
