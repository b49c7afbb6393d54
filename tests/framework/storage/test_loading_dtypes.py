"""Checkpoints whose tensors were converted since they were saved are converted back or refused at loading."""

import itertools
import json
import math
import warnings
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from secateur.framework.commands.assemble import load_network, load_pretrained
from secateur.framework.network.masks import Masks
from secateur.framework.plugins.registry import build
from secateur.framework.storage.checkpoint import KEPT, MASK, load_model, save_model
from secateur.framework.storage.precision import converted
from secateur.utils.errors import UsageError
from tests.networks import ConvNet, images, seeded

OPTIONS = {"in_channels": 1, "num_classes": 10, "image_size": 8}
CONVERTIBLE = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
OTHERS = [
    torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8, torch.bool, torch.int16, torch.int64,
    torch.complex64,
]  # fmt: skip


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    """A masked network of the registry whose values are exact in each of the convertible dtypes."""
    model = build("models", "LeNet300", **OPTIONS)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randint(-8, 9, parameter.shape, generator=generator) / 16)
    weights = {name: p for name, p in model.named_parameters() if p.dim() == 2}
    Masks(model).hold({name: torch.rand(p.shape, generator=generator) < 0.5 for name, p in weights.items()})
    return model.to(dtype)


def rewritten(path: Path, dtype: torch.dtype, only: str | None = None) -> Path:
    """The file with its floating-point tensors, or the one called `only`, converted by another program."""
    with safe_open(str(path), "pt") as file:
        metadata = file.metadata()
    tensors = {
        name: value.to(dtype) if value.is_floating_point() and only in (None, name) else value
        for name, value in load_file(str(path)).items()
    }
    save_file(tensors, path, metadata)
    return path


def equal(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return all(torch.equal(ours[n], theirs[n]) and ours[n].dtype == theirs[n].dtype for n in ours | theirs)


@pytest.mark.parametrize(("saved", "since"), list(itertools.product(CONVERTIBLE, CONVERTIBLE)))
def test_what_was_converted_since_comes_back_in_the_dtype_that_was_saved(
    saved: torch.dtype, since: torch.dtype, tmp_path: Path
) -> None:
    model = network(saved)
    path = rewritten(save_model(model, tmp_path / "m.safetensors"), since)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is rounded
        assert equal(load_model(path), model)
        assert equal(load_model(path, build("models", "LeNet300", **OPTIONS).half()), model)
        run = load_network(path, "LeNet300", OPTIONS)
        assert equal(run, network())  # runs compute in float32
        assert equal(load_pretrained(path, "LeNet300", OPTIONS), run)
    assert torch.equal(run(torch.ones(2, 1, 8, 8)), network()(torch.ones(2, 1, 8, 8)))


@pytest.mark.parametrize("dtype", OTHERS, ids=str)
def test_tensors_of_another_kind_are_refused_by_name(dtype: torch.dtype, tmp_path: Path) -> None:
    path = save_model(network(), tmp_path / "m.safetensors")
    name = "features.1.weight"
    rewritten(path, dtype, only=name)
    for load in (load_model, lambda path: load_network(path, "LeNet300", OPTIONS)):
        with pytest.raises(UsageError, match=f"'{name}' is {dtype}, expected torch.float32"):
            load(path)


def test_each_tensor_has_its_own_dtype(tmp_path: Path) -> None:
    mixed = seeded(ConvNet).half()
    mixed.na.float()
    mixed.d.to(torch.bfloat16)
    path = save_model(mixed, tmp_path / "m.safetensors")
    assert equal(load_model(path, seeded(ConvNet, 1)), mixed)
    assert equal(load_model(rewritten(path, torch.float32), seeded(ConvNet, 1)), mixed)
    asked = load_model(path, seeded(ConvNet, 1), dtype=torch.float64)
    assert {p.dtype for p in asked.parameters()} == {torch.float64}
    for wrong in (torch.int64, "float16", 3):
        with pytest.raises(UsageError, match="dtype must be a floating-point dtype"):
            load_model(path, seeded(ConvNet, 1), dtype=wrong)  # type: ignore[arg-type]


def test_a_network_in_a_narrow_format_is_the_users_own_and_comes_back(tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4).to(torch.float8_e4m3fn), requires_grad=False)

    path = save_model(Scaled(), tmp_path / "m.safetensors")
    assert load_model(path, Scaled()).weight.dtype == torch.float8_e4m3fn
    with pytest.raises(UsageError, match="'weight' is torch.float8_e4m3fn, expected torch.float32"):
        load_model(path, Scaled(), dtype=torch.float32)


def test_rounding_is_told_and_values_out_of_range_are_refused(tmp_path: Path) -> None:
    model = network(torch.float64)
    model.features[2].weight.data[0] = 1 / 3
    path = save_model(model, tmp_path / "m.safetensors")
    with pytest.warns(UserWarning, match="'features.2.weight' from float64 to float32"):
        load_network(path, "LeNet300", OPTIONS)
    model.features[2].weight.data[0] = 1e300
    save_model(model, path)
    with pytest.raises(UsageError, match="'features.2.weight' has values beyond the range of float32"):
        load_network(path, "LeNet300", OPTIONS)
    assert equal(load_model(path), model)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["features.2.weight", "features.2.running_var"])
def test_runs_refuse_what_is_not_finite_and_the_library_keeps_it(value: float, name: str, tmp_path: Path) -> None:
    model = network()
    model.state_dict()[name].view(-1)[0] = value
    path = save_model(model, tmp_path / "m.safetensors")
    loaded = load_model(path).state_dict()[name]
    assert torch.equal(loaded.nan_to_num(7), model.state_dict()[name].nan_to_num(7))
    with pytest.raises(UsageError, match=f"'{name}' contains (NaN|infinity)"):
        load_network(path, "LeNet300", OPTIONS)


def test_files_without_a_record_are_of_float32_networks(tmp_path: Path) -> None:
    path = save_model(network(), tmp_path / "m.safetensors")
    with safe_open(str(path), "pt") as file:
        assert "dtypes" not in file.metadata()["secateur"]
    assert equal(load_model(rewritten(path, torch.bfloat16)), network())


@pytest.mark.parametrize("prefix", [KEPT, MASK])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int32, torch.bool, torch.uint8, torch.int64])
def test_masks_and_indices_of_another_dtype_are_refused(prefix: str, dtype: torch.dtype, tmp_path: Path) -> None:
    from secateur.framework.pruning.channels.discovery import channel_groups
    from secateur.framework.pruning.surgery.cutting import cut

    model = seeded(ConvNet)
    groups = channel_groups(model, images())
    cut(model, {"a": torch.arange(groups["a"].channels) > 0}, groups)
    Masks(model).hold({"c.weight": torch.rand_like(model.c.weight) < 0.5})
    path = save_model(model, tmp_path / "m.safetensors")
    if dtype == (torch.int64 if prefix == KEPT else torch.uint8):
        load_model(path, seeded(ConvNet))
        return
    with safe_open(str(path), "pt") as file:
        metadata = file.metadata()
    tensors: dict[str, Tensor] = load_file(str(path))
    name = next(name for name in tensors if name.startswith(prefix))
    save_file(tensors | {name: tensors[name].to(dtype)}, path, metadata)
    with pytest.raises(UsageError, match="bad indices of|the mask of"):
        load_model(path, seeded(ConvNet))


@pytest.mark.parametrize("record", [3, [], {"a": 3}, {"a": "int8"}, {"a": "nn"}, {"x": "no dtype"}])
def test_a_damaged_record_is_refused(record: object, tmp_path: Path) -> None:
    path = save_model(seeded(ConvNet), tmp_path / "m.safetensors")
    with safe_open(str(path), "pt") as file:
        header = json.loads(file.metadata()["secateur"])
    save_file(load_file(str(path)), path, {"secateur": json.dumps(header | {"dtypes": record})})
    with pytest.raises(UsageError, match="'dtypes' is damaged"):
        load_model(path, seeded(ConvNet))


@pytest.mark.parametrize(("count", "words"), [(2, "and 1 more$"), (3, "and 2 more$")])
def test_the_warning_counts_the_other_tensors_that_were_rounded(count: int, words: str) -> None:
    values = {f"w{index}": torch.tensor([0.1], dtype=torch.float64) for index in range(count)}
    with pytest.warns(UserWarning, match=words):
        converted(values, dict.fromkeys(values, torch.float32), "file")


def test_nan_and_infinity_are_not_taken_for_rounded_values() -> None:
    values = {"w": torch.tensor([0.5, math.nan, math.inf, -math.inf], dtype=torch.float64)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = converted(values, {"w": torch.float32}, "file")["w"]
    assert torch.equal(result[[0, 2, 3]], torch.tensor([0.5, math.inf, -math.inf])) and bool(result[1].isnan())
