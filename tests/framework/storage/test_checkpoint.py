"""Networks on disk: cut and masked ones come back bit by bit, and nothing in a file can do harm."""

import copy
import functools
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from secateur.framework.network.lineage import lineage_of
from secateur.framework.network.masks import Masks
from secateur.framework.plugins.registry import build
from secateur.framework.pruning.channels.discovery import channel_groups
from secateur.framework.pruning.surgery.cutting import cut
from secateur.framework.reporting.measure import measure
from secateur.framework.storage.checkpoint import KEY, file_size, is_ours, load_model, save_model, serialize
from secateur.framework.storage.pretrained import load_tensors
from secateur.utils.errors import UsageError
from tests.networks import ConvNet, ResNet, images, random_keep, randomise, same, seeded, snapshot


def pruned(model: nn.Module, inputs: Tensor, steps: str, seed: int = 0) -> nn.Module:
    """Cut ("c") and mask ("m") in the order given."""
    generator = torch.Generator().manual_seed(seed)
    for number, step in enumerate(steps):
        if step == "c":
            groups = channel_groups(model, inputs)
            cut(model, random_keep(groups, number + seed, share=0.7), groups)
        else:
            weights = {name: p for name, p in model.named_parameters() if p.dim() > 1}
            Masks(model).hold({n: torch.rand(w.shape, generator=generator) < 0.7 for n, w in weights.items()})
    return randomise(model)


def assert_same_model(one: nn.Module, other: nn.Module, inputs: Tensor) -> None:
    assert same(snapshot(one), snapshot(other))  # masks are buffers: they are compared too
    assert torch.equal(one.eval()(inputs), other.eval()(inputs))
    ours, theirs = lineage_of(one), lineage_of(other)
    assert {k: v.tolist() for k, v in ours.kept.items()} == {k: v.tolist() for k, v in theirs.kept.items()}
    assert (ours.dense, ours.name, ours.options) == (theirs.dense, theirs.name, theirs.options)
    before, after = measure(one, inputs, latency=False), measure(other, inputs, latency=False)
    assert before == after


@pytest.mark.parametrize("steps", ["", "c", "m", "cm", "cmc", "cc", "mcmc"])
@pytest.mark.parametrize("name", ["LeNet5", "LeNet300", "ResNet18"])
def test_a_network_comes_back_bit_by_bit(name: str, steps: str, tmp_path: Path) -> None:
    if name == "ResNet18" and steps not in ("c", "cmc"):
        pytest.skip("the large network takes two of the ways")
    inputs = images(2, channels=3, size=28)
    model = pruned(build("models", name, in_channels=3, num_classes=7), inputs, steps)
    path = save_model(model, tmp_path / "made" / "model.safetensors")
    assert path == tmp_path / "made" / "model.safetensors"
    state = torch.get_rng_state()
    loaded = load_model(path)
    assert torch.equal(torch.get_rng_state(), state)
    assert loaded.training
    assert not any(tensor.is_meta for tensor in [*loaded.parameters(), *loaded.buffers()])
    assert_same_model(model, loaded, inputs)
    assert serialize(loaded) == path.read_bytes()


@pytest.mark.parametrize("make", [ConvNet, ResNet])
@pytest.mark.parametrize("steps", ["", "c", "mcc"])
def test_a_network_outside_the_registry_is_given_dense(
    make: Callable[[], nn.Module], steps: str, tmp_path: Path
) -> None:
    model = pruned(seeded(make, 1), images(), steps)
    path = save_model(model, tmp_path / "model.safetensors")
    dense = seeded(make, 2)
    Masks(dense).hold({"a.weight": torch.zeros_like(dense.a.weight)})  # not part of what is loaded
    assert load_model(path, dense) is dense
    assert_same_model(model, dense, images())
    with pytest.raises(UsageError, match="outside the registry"):
        load_model(path)
    if steps:
        before = snapshot(dense)
        with pytest.raises(UsageError, match="was cut before" if "c" in steps else "mask"):
            load_model(path, dense)
        assert same(snapshot(dense), before)


def test_a_loaded_network_is_pruned_on(tmp_path: Path) -> None:
    model = pruned(seeded(ConvNet), images(), "mc")
    loaded = load_model(save_model(model, tmp_path / "m.safetensors"), seeded(ConvNet, 3))
    for one in (model, loaded):
        groups = channel_groups(one, images())
        cut(one, random_keep(groups, 8), groups)
    assert_same_model(model, loaded, images())
    again = load_model(save_model(loaded, tmp_path / "m.safetensors"), seeded(ConvNet, 4))
    assert_same_model(model, again, images())
    optimizer = torch.optim.SGD(again.parameters(), lr=0.1, momentum=0.9)
    Masks(again).attach(optimizer)
    for _ in range(2):
        again.train()(images()).square().sum().backward()
        optimizer.step()
    assert not any((again.get_parameter(name)[mask == 0] != 0).any() for name, mask in Masks(again).items())


def test_equal_models_give_equal_bytes_and_other_ones_do_not() -> None:
    def make(seed: int, steps: str = "mc") -> bytes:
        return serialize(pruned(seeded(ConvNet, seed), images(), steps))

    assert make(1) == make(1)
    assert make(1) != make(2)
    assert make(1) != make(1, "mm")


def test_looking_at_a_model_does_not_change_its_bytes() -> None:
    model = build("models", "LeNet300")
    before = serialize(model)
    measure(model, images(1, channels=1, size=28), latency=False)
    assert serialize(model) == before


def test_the_file_has_one_metadata_key_with_sorted_json(tmp_path: Path) -> None:
    model = pruned(build("models", "LeNet5", num_classes=7, in_channels=3), images(2, size=28), "c")
    path = save_model(model, tmp_path / "some-place" / "model.safetensors")
    with safe_open(str(path), "pt") as file:
        metadata = file.metadata()
        names = set(file.keys())
    assert list(metadata) == [KEY] == ["secateur"]
    header = json.loads(metadata[KEY])
    assert metadata[KEY] == json.dumps(header, sort_keys=True)
    assert header == {
        "aliases": {},
        "format": 1,
        "model": "LeNet5",
        "options": {"in_channels": 3, "num_classes": 7},
    }
    assert b"some-place" not in path.read_bytes()
    assert set(model.state_dict()) <= names
    assert all(name.startswith("secateur.kept/") for name in names - set(model.state_dict()))


def test_masks_take_one_bit_an_entry() -> None:
    model = seeded(ConvNet)
    dense = file_size(model)
    Masks(model).hold({"c.weight": torch.rand_like(model.c.weight) < 0.5})
    assert 320 / 8 <= file_size(model) - dense < 320 / 8 + 120


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_another_precision_comes_back_as_it_was(dtype: torch.dtype, tmp_path: Path) -> None:
    model = pruned(seeded(ConvNet), images(), "cm").to(dtype)
    loaded = load_model(save_model(model, tmp_path / "m.safetensors"), seeded(ConvNet, 1))
    assert all(parameter.dtype == dtype for parameter in loaded.parameters())
    assert same(snapshot(model), snapshot(loaded))


class Tied(nn.Module):
    """Two layers with one weight, a layer under two names, a buffer that is not saved and a view of a memory."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.wide = nn.Linear(6, 5)
        self.again = self.wide
        self.last = nn.Linear(5, 2)
        self.register_buffer("scale", torch.full((1,), 2.0), persistent=False)
        memory = torch.randn(8)
        self.register_buffer("head", memory[:5])
        self.register_buffer("tail", memory[3:])

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.again(self.second(self.first(inputs)))) * self.scale


def test_tied_parameters_stay_tied_and_are_saved_once(tmp_path: Path) -> None:
    inputs = torch.randn(3, 6)
    model = seeded(Tied)
    groups = channel_groups(model, inputs)
    cut(model, {"wide": torch.tensor([True, False, True, True, False])}, groups)
    path = save_model(model, tmp_path / "m.safetensors")
    with safe_open(str(path), "pt") as file:
        assert ("second.weight" in file.keys(), "first.weight" in file.keys()) == (False, True)  # noqa: SIM118
    loaded = load_model(path, seeded(Tied, 1))
    assert loaded.second.weight is loaded.first.weight
    assert loaded.again is loaded.wide
    assert torch.equal(loaded(inputs), model(inputs))
    assert torch.equal(loaded.tail, model.tail)
    with torch.no_grad():
        loaded.first.weight.zero_()
    assert not loaded.second.weight.any()


def test_what_is_loaded_does_not_hang_on_the_file(tmp_path: Path) -> None:
    model = seeded(ConvNet)
    path = save_model(model, tmp_path / "m.safetensors")
    loaded = load_model(path, seeded(ConvNet, 1))
    path.write_bytes(b"\0" * path.stat().st_size)
    assert same(snapshot(loaded), snapshot(model))


def test_buffers_that_are_not_saved_have_their_values_in_a_rebuilt_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Scaled(nn.Module):
        """A model with a table that the constructor makes."""

        def __init__(self, *, width: int = 3) -> None:
            super().__init__()
            self.layer = nn.Linear(4, width)
            self.register_buffer("table", torch.arange(width) + 1.0, persistent=False)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.layer(inputs) * self.table

    from secateur.framework.plugins.registry import registry

    monkeypatch.setitem(registry._files["models"], "Scaled", Path(__file__))
    monkeypatch.setitem(registry._classes, ("models", "Scaled"), Scaled)
    model = build("models", "Scaled", width=5)
    state = torch.get_rng_state()
    loaded = load_model(save_model(model, tmp_path / "m.safetensors"))
    assert torch.equal(torch.get_rng_state(), state)
    inputs = torch.randn(2, 4)
    assert torch.equal(loaded(inputs), model(inputs))


def test_frozen_parameters_of_the_given_model_stay_frozen(tmp_path: Path) -> None:
    dense = seeded(ConvNet, 1)
    dense.a.requires_grad_(False)
    load_model(save_model(pruned(seeded(ConvNet), images(), "c"), tmp_path / "m.safetensors"), dense)
    assert [name for name, p in dense.named_parameters() if not p.requires_grad] == ["a.weight", "a.bias"]


def test_the_old_file_stays_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_model(seeded(ConvNet, 1), tmp_path / "m.safetensors")
    before = path.read_bytes()

    def full(self: Path, data: bytes) -> int:
        with open(self, "wb") as file:
            file.write(data[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        save_model(seeded(ConvNet, 2), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["m.safetensors"]


def test_options_that_are_no_json_are_named() -> None:
    model = seeded(ConvNet)
    lineage_of(model).name, lineage_of(model).options = "ConvNet", {"size": {1, 2}}
    with pytest.raises(UsageError, match="options of ConvNet cannot be saved"):
        serialize(model)


def test_state_that_is_no_tensor_is_named() -> None:
    class Odd(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"calls": 1}

        def set_extra_state(self, state: Any) -> None:
            pass

    with pytest.raises(UsageError, match="has '_extra_state' in its state, which is not a tensor"):
        serialize(Odd(2, 2))


def test_tensors_from_anywhere_fill_a_dense_network(tmp_path: Path) -> None:
    model, path = seeded(ConvNet, 1), tmp_path / "foreign.safetensors"
    path.write_bytes(save(dict(seeded(ConvNet, 2).state_dict())))
    assert not is_ours(path)
    load_tensors(path, model)
    assert same(snapshot(model), snapshot(seeded(ConvNet, 2)))
    path.write_bytes(save({"a.weight": torch.zeros(1)}))
    with pytest.raises(UsageError, match="the file lacks"):
        load_tensors(path, model)
    path.write_bytes(b"no file of tensors")
    with pytest.raises(UsageError, match=f"cannot read {path}: it is damaged"):
        load_tensors(path, model)
    with pytest.raises(UsageError, match="damaged or not a safetensors file"):
        is_ours(path)
    assert is_ours(save_model(model, path))


# files that are refused


def rewritten(data: bytes, change: Callable[[dict[str, Tensor], dict[str, Any]], object]) -> bytes:
    """The file with its tensors and its header changed."""
    (length,) = struct.unpack("<Q", data[:8])
    raw = json.loads(data[8 : 8 + length])
    header = json.loads(raw["__metadata__"][KEY])
    from safetensors.torch import load

    tensors = load(data)
    replaced = change(tensors, header)
    text = replaced if isinstance(replaced, str) else json.dumps(header, sort_keys=True)
    return save(tensors, {KEY: text})


def put(part: str, key: str, value: Any) -> Callable[[dict[str, Tensor], dict[str, Any]], None]:
    """Set one entry of the tensors or of the header."""
    return lambda tensors, header: (tensors if part == "tensors" else header).__setitem__(key, value)


def rename(old: str, new: str) -> Callable[[dict[str, Tensor], dict[str, Any]], None]:
    def change(tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
        tensors[new] = tensors.pop(old)

    return change


BITS = torch.full((20,), 255, dtype=torch.uint8)
CHANGES: dict[str, tuple[Any, str]] = {
    "no JSON": (lambda t, h: "{", "header is damaged"),
    "deep JSON": (lambda t, h: "[" * 100_000, "header is damaged"),
    "long number": (lambda t, h: '{"format": ' + "9" * 10_000 + "}", "header is damaged"),
    "a list": (lambda t, h: "[1]", "format that this version cannot read"),
    "newer format": (put("header", "format", 2), "it reads format 1"),
    "no model": (lambda t, h: h.pop("model") and None, "'model' is damaged"),
    "options are a list": (put("header", "options", []), "'options' is damaged"),
    "aliases of numbers": (put("header", "aliases", {"x": 3}), "'aliases' must be names"),
    "aliases of lists": (put("header", "aliases", {"x": ["a.weight"]}), "'aliases' must be names"),
    "alias of nothing": (put("header", "aliases", {"x": "y"}), "'x' is an alias of 'y', which is missing"),
    "stranger's alias": (put("header", "aliases", {"x": "a.weight"}), "the model lacks 'x'"),
    "missing tensor": (lambda t, h: t.pop("a.bias"), "the file lacks 'a.bias'"),
    "extra tensor": (put("tensors", "zzz", torch.ones(1)), "the model lacks 'zzz'"),
    "wrong shape": (put("tensors", "a.bias", torch.ones(99)), r"'a.bias' is \(99,\)"),
    "integers for weights": (put("tensors", "d.bias", torch.ones(5, dtype=torch.int64)), "is torch.int64"),
    "floats for counts": (put("tensors", "na.num_batches_tracked", torch.tensor(1.0)), "is torch.float32"),
    "complex weights": (put("tensors", "d.bias", torch.ones(5, dtype=torch.complex64)), "torch.complex64"),
    "no dimension": (rename("secateur.kept/0/a.bias", "secateur.kept/²/a.bias"), "is not an index"),
    "negative dimension": (rename("secateur.kept/0/a.bias", "secateur.kept/-1/a.bias"), "is not an index"),
    "far dimension": (rename("secateur.kept/0/a.bias", "secateur.kept/1/a.bias"), "bad indices of 'a.bias'"),
    "indices of no tensor": (rename("secateur.kept/0/a.bias", "secateur.kept/0/x"), "bad indices of 'x'"),
    "float indices": (put("tensors", "secateur.kept/0/a.bias", torch.ones(4)), "bad indices of 'a.bias'"),
    "indices out of range": (
        put("tensors", "secateur.kept/0/a.bias", torch.tensor([0, 1, 2, 2**40])),
        "bad indices",
    ),
    "negative indices": (put("tensors", "secateur.kept/0/a.bias", torch.tensor([-1, 1, 2, 3])), "bad indices"),
    "repeated indices": (put("tensors", "secateur.kept/0/a.bias", torch.tensor([1, 1, 2, 3])), "bad indices"),
    "no indices": (put("tensors", "secateur.kept/0/a.bias", torch.ones(0, dtype=torch.int64)), "does not fit"),
    "mask of a buffer": (put("tensors", "secateur.mask/na.running_mean", BITS[:1]), "mask of 'na.running_mean'"),
    "mask of nothing": (put("tensors", "secateur.mask/zzz", BITS), "the mask of 'zzz' does not fit"),
    "short mask": (put("tensors", "secateur.mask/a.weight", BITS[:1]), "the mask of 'a.weight' does not fit"),
    "float mask": (put("tensors", "secateur.mask/a.bias", torch.ones(1)), "the mask of 'a.bias' does not fit"),
    "square mask": (put("tensors", "secateur.mask/a.bias", BITS[:1, None]), "the mask of 'a.bias' does not fit"),
}  # fmt: skip


@functools.cache
def good_file() -> bytes:
    """A cut and masked network; no fixture, or each failing example would print it."""
    return serialize(pruned(seeded(ConvNet), images(), "mc"))


@pytest.mark.parametrize("case", CHANGES)
def test_a_file_that_does_not_fit_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    change, words = CHANGES[case]
    path = tmp_path / "m.safetensors"
    path.write_bytes(rewritten(good_file(), change))
    model = seeded(ConvNet, 1)
    before, objects = snapshot(model), [id(parameter) for parameter in model.parameters()]
    with pytest.raises(UsageError, match=words) as raised:
        load_model(path, model)
    assert "\n" not in str(raised.value)
    assert str(path) in str(raised.value)
    assert same(snapshot(model), before)
    assert [id(parameter) for parameter in model.parameters()] == objects
    assert (lineage_of(model).kept, len(Masks(model))) == ({}, 0)
    assert model.a.out_channels == 6


STRANGE: dict[str, tuple[str, dict[str, Any], str]] = {
    "unknown model": ("LeNet55", {}, "unknown model 'LeNet55': did you mean 'LeNet5'"),
    "a path": ("../../evil", {}, "unknown model"),
    "unknown option": ("LeNet5", {"in_chanels": 1}, "did you mean 'in_channels'"),
    "text": ("LeNet5", {"in_channels": "three"}, "LeNet5"),
    "negative": ("LeNet5", {"num_classes": -4}, "num_classes"),
    "huge": ("LeNet5", {"num_classes": 10**15}, "LeNet5"),
    "too huge": ("LeNet5", {"num_classes": 10**30}, "LeNet5"),
    "list": ("LeNet5", {"image_size": [28]}, "image_size|cannot be built"),
    "another model": ("LeNet300", {}, "does not fit LeNet300"),
}


@pytest.mark.parametrize("case", STRANGE)
def test_strange_architectures_are_refused(case: str, tmp_path: Path) -> None:
    name, options, words = STRANGE[case]
    data = serialize(build("models", "LeNet5"))
    path = tmp_path / "m.safetensors"
    path.write_bytes(rewritten(data, lambda t, h: h.update(model=name, options=options)))
    with pytest.raises(UsageError, match=words) as raised:
        load_model(path)
    assert "\n" not in str(raised.value)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "damaged or not a safetensors file"),
        (b"{}", "damaged or not a safetensors file"),
        (b"\x80\x04\x95", "damaged or not a safetensors file"),  # a pickle
        (struct.pack("<Q", 2**63) + b"{}", "damaged or not a safetensors file"),
        (save({"a": torch.ones(1)}), "lacks the key 'secateur'"),
        (save({"a": torch.ones(1)}, {"format": "pt"}), "lacks the key 'secateur'"),
    ],
)
def test_foreign_files_are_refused(data: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=words) as raised:
        load_model(path, seeded(ConvNet))
    assert "\n" not in str(raised.value)


def test_a_missing_file_or_a_folder_is_named(tmp_path: Path) -> None:
    for path, words in ((tmp_path / "none.safetensors", "there is no file"), (tmp_path, "is a folder")):
        with pytest.raises(UsageError, match=words):
            load_model(path)


@given(share=st.floats(0, 0.999))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_truncated_file_is_refused(share: float, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(good_file()[: int(share * len(good_file()))])
    with pytest.raises(UsageError):
        load_model(path, seeded(ConvNet))


@given(data=st.data())
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_flipped_bytes_load_or_are_refused_and_nothing_else(data: st.DataObject, tmp_path: Path) -> None:
    header = struct.unpack("<Q", good_file()[:8])[0] + 8
    place = st.integers(0, header - 1) | st.integers(0, len(good_file()) - 1) | st.integers(0, 16)
    changed = bytearray(good_file())
    for at in data.draw(st.lists(place, min_size=1, max_size=4)):
        changed[at] = data.draw(st.integers(0, 255) | st.sampled_from(list(b'"{}[],:0192-')))
    path = tmp_path / "m.safetensors"
    path.write_bytes(changed)
    model = seeded(ConvNet, 1)
    before = snapshot(model)
    try:
        load_model(path, model)
    except UsageError as error:
        assert "\n" not in str(error)
        assert same(snapshot(model), before)
    else:
        assert model(images()).shape == (4, 5)


@given(change=st.dictionaries(
    st.sampled_from(["aliases", "format", "model", "options", "kept"]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["LeNet5", "a.weight"]),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
        max_leaves=6,
    ),
))  # fmt: skip
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_json_in_the_header_loads_or_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(rewritten(good_file(), lambda tensors, header: header.update(change)))
    model = seeded(ConvNet, 1)
    try:
        load_model(path, model)
    except UsageError as error:
        assert "\n" not in str(error)


def test_a_copy_of_a_loaded_model_saves_the_same_bytes(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(good_file())
    assert serialize(copy.deepcopy(load_model(path, seeded(ConvNet, 1)))) == good_file()


def test_a_cut_along_a_later_dimension_comes_back(tmp_path: Path) -> None:
    class Placed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Linear(6, 16), nn.Linear(16, 3)
            self.place = nn.Parameter(torch.randn(1, 5, 16))

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.head(self.embed(inputs) + self.place)

    from secateur import channel_groups, cut, load_model, save_model

    torch.manual_seed(0)
    model, inputs = Placed(), torch.randn(2, 5, 6)
    cut(model, {"embed": torch.arange(16) % 3 > 0}, channel_groups(model, inputs))
    again = load_model(save_model(model, tmp_path / "cut.safetensors"), Placed())
    assert torch.equal(model(inputs), again(inputs))


@pytest.mark.parametrize("last", [5, 6, 7])
def test_the_last_index_that_was_kept_is_below_the_size_of_the_dense_tensor(last: int, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    model = seeded(ConvNet)
    cut(model, {"a": torch.tensor([True] * 3 + [False] * 2 + [True])}, channel_groups(model, images()))

    def change(tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
        for name in tensors:
            if name.startswith("secateur.kept/"):
                tensors[name] = torch.tensor([0, 1, 2, last])

    path.write_bytes(rewritten(serialize(model), change))
    if last < 6:
        assert lineage_of(load_model(path, seeded(ConvNet))).kept["a.weight", 0].tolist() == [0, 1, 2, last]
    else:
        with pytest.raises(UsageError, match="bad indices"):
            load_model(path, seeded(ConvNet))


def test_what_was_cut_from_a_tied_tensor_holds_for_each_of_its_names(tmp_path: Path) -> None:
    model, path = seeded(Tied), tmp_path / "m.safetensors"
    cut(model, {"wide": torch.tensor([True, False, True, True, False])}, channel_groups(model, torch.randn(3, 6)))
    dropped: list[str] = []

    def change(tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
        """Leave the record of one name of each tied tensor."""
        for name in [name for name in tensors if name.startswith("secateur.kept/") and "wide" in name]:
            del tensors[name]
            dropped.append(name)

    path.write_bytes(rewritten(serialize(model), change))
    loaded = load_model(path, seeded(Tied, 1))
    kept = lineage_of(loaded).kept
    assert dropped and kept["wide.weight", 0].tolist() == kept["again.weight", 0].tolist() == [0, 2, 3]
    assert loaded.wide is loaded.again and loaded.wide.out_features == 3
