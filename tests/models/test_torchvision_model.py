"""TorchvisionModel: names, sizes, weights from files, and the counts of the published tables."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from secateur import load_model, prune, save_model
from secateur.framework.network.lineage import lineage_of
from secateur.framework.plugins.registry import build, option_default, option_names, registry
from secateur.framework.pruning.channels.discovery import channel_groups
from secateur.framework.storage.pretrained import load_tensors
from secateur.main import main
from secateur.utils.errors import UsageError
from secateur.utils.vision import torchvision
from tests.command_line import Result, command
from tests.networks import images, randomise, same, snapshot

__all__ = ["command"]  # a fixture
Command = Callable[..., Result]
SMALL = "squeezenet1_1"  # 1.2 million parameters, a convolution as its last layer


def make(arch: str = SMALL, **sizes: Any) -> nn.Module:
    wanted = {"in_channels": 3, "num_classes": 5, "image_size": 32, **sizes}
    model: nn.Module = build("models", "TorchvisionModel", arch=arch, **wanted)
    return model


def meta(arch: str, **sizes: Any) -> nn.Module:
    with torch.device("meta"):
        return make(arch, **{"num_classes": 1000, "image_size": 224, **sizes})


def count(model: nn.Module) -> int:
    return sum(tensor.numel() for tensor in model.parameters())


LARGER = ("resnet18", "regnet_x_400mf", "vit_b_32")


# Names


@pytest.mark.parametrize("arch", ["resnet18s", "fasterrcnn_resnet50_fpn", "ResNet", ""])
def test_an_unknown_arch_is_one_line(arch: Any) -> None:
    with pytest.raises(UsageError) as caught:
        make(arch)
    message = str(caught.value)
    assert message.startswith(f"unknown arch '{arch}'") and "resnet18, " in message and "\n" not in message


@pytest.mark.parametrize("arch", [None, 5])
def test_an_arch_that_is_no_name_is_one_line(arch: Any) -> None:
    with pytest.raises(UsageError, match=f"^TorchvisionModel: arch must be text, got {arch}$"):
        make(arch)


@pytest.mark.parametrize("flags", [["--arch", "resnet19"], ["--set", "model.arch=resnet19"]])
def test_an_unknown_arch_is_refused_before_data_are_loaded(flags: list[str], tmp_path: Path, capsys: Any) -> None:
    where = ["--data_set", "CIFAR10", "--data_dir", str(tmp_path), "--results_dir", str(tmp_path)]
    assert main(["--model", "TorchvisionModel", *flags, *where]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: unknown --arch 'resnet19': did you mean 'resnet18'? (one of ")
    assert message.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            "--arch resnet18",
            "--arch: the model LeNet5 has no such option: network of torchvision, for --model TorchvisionModel",
        ),
        (
            "--model TorchvisionModel --arch resnet18 --set model.arch=vgg11",
            "--arch and --set model.arch contradict",
        ),
        ("--new_head", "--new_head needs --pretrained"),
    ],
)
def test_flags_that_do_not_fit_are_one_line(arguments: str, expected: str, command: Command) -> None:
    result = command(*arguments.split())
    assert result.code == 2 and expected in result.err and result.err.count("\n") == 1


def test_arch_is_short_for_the_option_of_the_model(command: Command) -> None:
    result = command("--model", "TorchvisionModel", "--arch", "vgg11")
    assert result.code == 0 and result.config.options("model") == {"arch": "vgg11"}


def test_the_options_of_a_class_that_makes_another_are_known() -> None:
    cls = registry.get("models", "TorchvisionModel")
    assert option_names(cls) == ["arch", "in_channels", "num_classes", "image_size"]
    assert [option_default(cls, name) for name in option_names(cls)] == ["resnet18", 3, 1000, 224]


# Sizes


#: parameters for 1000 classes
PARAMS = {
    "resnet18": 11_689_512, "resnet34": 21_797_672, "resnet50": 25_557_032, "resnet101": 44_549_160,
    "resnet152": 60_192_808, "densenet121": 7_978_856, "densenet201": 20_013_928,
}  # fmt: skip
#: layers and units behind the norms of each block and at the end of each stage; the same without the stages
UNITS = {
    "resnet18": (20, 4800, 16, 3840), "resnet34": (36, 8512, 32, 7552), "resnet50": (36, 11392, 32, 7552),
    "resnet101": (70, 20096, 66, 16256), "resnet152": (104, 27776, 100, 23936),
}  # fmt: skip


@pytest.mark.parametrize("arch", PARAMS)
def test_parameters_for_imagenet_are_the_published_ones(arch: str) -> None:
    assert count(meta(arch)) == PARAMS[arch]


@pytest.mark.parametrize("arch", UNITS)
def test_units_of_the_residual_networks_are_the_published_ones(arch: str) -> None:
    model = meta(arch)
    blocks = [model.get_submodule(f"layer{stage}") for stage in (1, 2, 3, 4)]
    inner = [
        layer for key, layer in model.named_modules() if key.rpartition(".")[2] in ("bn1", "bn2") and "." in key
    ]
    inner_units = sum(norm.num_features for norm in inner)  # type: ignore[misc]
    stages = [list(stage.modules())[1:] for stage in blocks]
    ends = [[m for m in stage if isinstance(m, nn.BatchNorm2d)][-1].num_features for stage in stages]
    assert (len(inner) + 4, inner_units + sum(ends), len(inner), inner_units) == UNITS[arch]


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["resnet50", "resnet101"])
def test_free_channels_of_bottleneck_networks_are_the_published_units(arch: str) -> None:
    """Without the stem: what recipes with a number of units to remove count in."""
    groups = channel_groups(make(arch), images(1, size=32))
    free = {name: group.channels for name, group in groups.items() if group.protected is None}
    assert free.pop("conv1") == 64
    assert (len(free), sum(free.values())) == UNITS[arch][:2]


def test_units_of_vgg11_are_the_published_ones() -> None:
    layers = [module for module in meta("vgg11_bn").modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert (len(layers) - 1, sum(len(layer.weight) for layer in layers[:-1])) == (10, 10944)


@pytest.mark.parametrize("arch", ["densenet121", "densenet201"])
def test_units_of_densenets_are_the_published_ones(arch: str) -> None:
    norms = [module for key, module in meta(arch).named_modules() if key.endswith("norm2") and "denselayer" in key]
    expected = {"densenet121": (58, 7424), "densenet201": (98, 12544)}[arch]
    assert (len(norms), sum(norm.num_features for norm in norms)) == expected  # type: ignore[misc]


@pytest.mark.parametrize(
    "arch",
    ["resnet18", SMALL, "mobilenet_v3_small", "shufflenet_v2_x0_5", "googlenet", "convnext_tiny", "vit_b_32"],
)
@pytest.mark.parametrize("sizes", [(1, 7, 64), (3, 11, 96)])
def test_channels_classes_and_image_size_are_those_of_the_data(arch: str, sizes: tuple[int, int, int]) -> None:
    channels, classes, size = sizes
    model = meta(arch, in_channels=channels, num_classes=classes, image_size=size)
    for training in (False, True):
        image = torch.empty(2, channels, size, size, device="meta")
        assert model.train(training)(image).shape == (2, classes)
    assert all(tensor.is_meta for tensor in model.state_dict().values())


def test_the_first_layer_for_other_channels_keeps_the_scale_of_its_outputs() -> None:
    torch.manual_seed(0)
    colour, grey = make("resnet18"), make("resnet18", in_channels=1)
    assert tuple(grey.conv1.weight.shape) == (64, 1, 7, 7)  # type: ignore[union-attr, operator]
    with torch.no_grad():
        wide = colour.conv1(torch.randn(8, 3, 32, 32)).std()  # type: ignore[operator]
        narrow = grey.conv1(torch.randn(8, 1, 32, 32)).std()  # type: ignore[operator]
    assert float(narrow / wide) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("arch", "sizes", "expected"),
    [
        ("vgg11", {"image_size": 28}, "vgg11 cannot work with image_size 28: it must be at least 32"),
        ("alexnet", {"image_size": 5}, "alexnet cannot work with image_size 5: it must be at least 63"),
        ("vit_b_16", {"image_size": 28}, "vit_b_16 needs an image_size that is a multiple of 16, got 28"),
        ("maxvit_t", {"image_size": 64}, "a multiple of 224, got 64"),
        ("resnet18", {"image_size": 0}, "image_size must be at least 1, got 0"),
        ("resnet18", {"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ("resnet18", {"in_channels": 0}, "in_channels must be at least 1, got 0"),
    ],
)
def test_sizes_that_do_not_work_are_one_line(arch: str, sizes: dict[str, int], expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        make(arch, **sizes)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_the_smallest_image_that_is_named_works() -> None:
    with pytest.raises(UsageError, match="it must be at least 17$"):
        make(image_size=16)
    assert make(image_size=17)(torch.zeros(1, 3, 17, 17)).shape == (1, 5)


def test_the_seed_decides_the_weights_and_building_leaves_the_mode_alone() -> None:
    torch.manual_seed(4)
    one = make(in_channels=2)
    torch.manual_seed(4)
    two = make(in_channels=2)
    assert same(snapshot(one), snapshot(two))
    assert all(module.training for module in one.modules())


# Files


@pytest.mark.parametrize("arch", [SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGER)])
def test_a_pruned_network_is_saved_and_loaded(arch: str, tmp_path: Path) -> None:
    model = randomise(make(arch))
    report = prune(model, criterion="ChannelNorm", sparsity=0.4, example_input=images(2, size=32))
    assert report.reached == pytest.approx(0.4, abs=0.01)
    loaded = load_model(save_model(model, tmp_path / "pruned.safetensors"))
    assert type(loaded) is type(model) and lineage_of(loaded).name == "TorchvisionModel"
    assert lineage_of(loaded).options["arch"] == arch
    assert same(snapshot(loaded), snapshot(model))
    with torch.no_grad():
        assert torch.equal(loaded.eval()(images(2, size=32)), model.eval()(images(2, size=32)))


def test_a_copy_is_as_good_as_the_network() -> None:
    model = make()
    twin = copy.deepcopy(model)
    assert lineage_of(twin).name == "TorchvisionModel" and same(snapshot(twin), snapshot(model))


def state(arch: str = SMALL, seed: int = 9, **sizes: Any) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return dict(randomise(make(arch, **sizes), seed).state_dict())


def test_weights_of_torchvision_itself_fit_by_name(tmp_path: Path) -> None:
    theirs = torchvision().models.get_model(SMALL, num_classes=5)
    save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")
    model = make()
    load_tensors(tmp_path / "theirs.safetensors", model)
    assert same(snapshot(model), snapshot(theirs))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrap", [
    lambda values: values,
    lambda values: {"state_dict": values, "epoch": 3, "best": 0.7},
    lambda values: {"net": {f"module.{name}": tensor for name, tensor in values.items()}},
])  # fmt: skip
def test_state_dicts_of_torch_are_read(tmp_path: Path, legacy: bool, wrap: Callable[[Any], Any]) -> None:
    file, values = tmp_path / "weights.pth", state()
    torch.save(wrap(values), file, _use_new_zipfile_serialization=not legacy)
    model = make()
    load_tensors(file, model)
    assert same(model.state_dict(), values)


class Touches:
    """An object that makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def test_a_file_that_asks_for_more_than_tensors_is_refused_and_nothing_in_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, made, model = tmp_path / "bad.pth", tmp_path / "made", make()
    torch.save({**state(), "extra": Touches(made)}, bad)
    with pytest.raises(UsageError, match="objects other than tensors; save model.state_dict()") as caught:
        load_tensors(bad, model)
    assert "\n" not in str(caught.value) and not made.exists()
    torch.load(bad, weights_only=False)  # the trap works
    assert made.exists()
    torch.save(make(), bad)  # a whole network
    with pytest.raises(UsageError, match="save model.state_dict()"):
        load_tensors(bad, model)


@pytest.mark.parametrize("content", [[1, 2], {"a": 3}, {3: torch.zeros(1)}, torch.zeros(2), {}])
def test_a_file_without_a_state_dict_is_one_line(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(UsageError) as caught:
        load_tensors(tmp_path / "odd.pth", make())
    assert str(tmp_path / "odd.pth") in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["plain pickle", "zip of something else", "text", "empty"])
def test_files_of_other_kinds_are_refused_by_their_first_bytes(
    tmp_path: Path, kind: str, command: Command
) -> None:
    import zipfile

    file = tmp_path / "odd.pth"
    if kind == "plain pickle":
        file.write_bytes(pickle.dumps({"a": 1}, protocol=2))
    elif kind == "zip of something else":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("readme.txt", "hello")
    else:
        file.write_text("no weights" if kind == "text" else "")
    result = command("--pretrained", file)
    assert result.code == 2 and "neither a safetensors file nor a file of torch.save" in result.err
    assert result.err.count("\n") == 1


def test_a_head_for_other_classes_is_refused_or_started_anew(tmp_path: Path) -> None:
    for arch, head in ((SMALL, "classifier.1"), ("shufflenet_v2_x0_5", "fc")):
        file, values = tmp_path / f"{arch}.pth", state(arch, num_classes=7)
        torch.save(values, file)
        model = make(arch)
        before = snapshot(model)
        with pytest.raises(UsageError) as caught:
            load_tensors(file, model)
        message = str(caught.value)
        assert f"'{head}.weight' has 7 outputs, not the 5 of the data set; new_head" in message
        assert same(snapshot(model), before)
        load_tensors(file, model, new_head=True)
        for name, tensor in model.state_dict().items():
            expected = before[name] if name.startswith(f"{head}.") else values[name]
            assert torch.equal(tensor, expected), name


def test_files_older_than_todays_names_fit(tmp_path: Path) -> None:
    values = state("densenet121", image_size=64)
    old = {
        name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): tensor
        for name, tensor in values.items()
        if not name.endswith("num_batches_tracked")
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "old.pth")
    model = make("densenet121", image_size=64)
    load_tensors(tmp_path / "old.pth", model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, values[name]) or name.endswith("num_batches_tracked"), name
    model_of_norms = {
        name: t for name, t in model.state_dict().items() if "norm1" in name and "tracked" not in name
    }
    assert all(torch.equal(tensor, values[name]) for name, tensor in model_of_norms.items())


@pytest.mark.slow
def test_heads_that_only_training_needs_are_left_out_of_googlenet(tmp_path: Path) -> None:
    theirs = torchvision().models.googlenet(num_classes=5, aux_logits=True, init_weights=False)
    torch.save(theirs.state_dict(), tmp_path / "googlenet.pth")
    model = make("googlenet", image_size=64)
    assert isinstance(model.train()(torch.randn(2, 3, 64, 64)), Tensor)
    load_tensors(tmp_path / "googlenet.pth", model)
    assert torch.equal(model.conv1.conv.weight, theirs.conv1.conv.weight)  # type: ignore[union-attr]
    assert not any(name.startswith("aux") for name in model.state_dict())


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    values = state()
    values.pop("features.0.bias")
    torch.save(values, tmp_path / "less.pth")
    with pytest.raises(UsageError, match="the file lacks 'features.0.bias'"):
        load_tensors(tmp_path / "less.pth", make())
    torch.save(state(), tmp_path / "colour.pth")
    with pytest.raises(UsageError, match=r"'features.0.weight' is \(64, 3, 3, 3\), expected \(64, 1, 3, 3\)"):
        load_tensors(tmp_path / "colour.pth", make(in_channels=1))


def test_names_are_checked_without_a_network() -> None:
    cls: Any = registry.get("models", "TorchvisionModel")
    cls.check_options("vit_b_16")
    with pytest.raises(UsageError, match="did you mean 'vit_b_16'"):
        cls.check_options("vit_b16")
