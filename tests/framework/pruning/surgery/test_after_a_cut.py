"""What people do with a cut network: copy, export, save, load, cut again, train on with any optimizer."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.framework.network.lineage import lineage_of
from secateur.framework.network.masks import Masks
from secateur.framework.pruning.channels.discovery import channel_groups
from secateur.framework.pruning.surgery.cutting import cut
from secateur.framework.storage.checkpoint import load_model, save_model
from secateur.utils.vision import torchvision
from tests.networks import (
    Groups,
    assert_cut_is_mask,
    images,
    random_keep,
    randomise,
    same,
    seeded,
    snapshot,
)


class ResidualAndConcat(nn.Module):
    """A residual sum of two convolutions, then a concatenation of two more: images (3, 8, 8), 5 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.n0 = nn.BatchNorm2d(6)
        self.a = nn.Conv2d(6, 5, 3, padding=1)
        self.na = nn.BatchNorm2d(5)
        self.b = nn.Conv2d(5, 6, 3, padding=1)
        self.left = nn.Conv2d(6, 4, 1)
        self.right = nn.Conv2d(6, 7, 3, padding=1, stride=1)
        self.c = nn.Linear(11 * 16, 9)
        self.d = nn.Linear(9, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        x = F.relu(self.n0(self.stem(inputs)))
        x = F.relu(x + self.b(F.relu(self.na(self.a(x)))))
        x = F.max_pool2d(torch.cat([self.left(x), F.leaky_relu(self.right(x))], 1), 2)
        return self.d(F.relu(self.c(x.flatten(1))))


class Transformer(nn.Module):
    """One block of attention over the places of an image (3, 8, 8), 5 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 10, 3, padding=1)
        self.patches = nn.Conv2d(10, 12, 4, stride=4)
        self.n1 = nn.LayerNorm(12)
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
        self.n2 = nn.LayerNorm(12)
        self.up = nn.Linear(12, 16)
        self.down = nn.Linear(16, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        x = self.patches(F.relu(self.stem(inputs))).flatten(2).transpose(1, 2)
        y = self.n1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.down(F.gelu(self.up(self.n2(x))))
        return self.head(x.mean(1))


def resnet18() -> nn.Module:
    found: nn.Module = torchvision().models.resnet18(weights=None, num_classes=5)
    return found


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "residual and concat": (ResidualAndConcat, 8),
    "attention": (Transformer, 8),
    "resnet18": (resnet18, 64),
}


def dense(name: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """The network with random norms and biases in eval mode, and a batch of two."""
    make, size = NETWORKS[name]
    return randomise(seeded(make, seed), seed).eval(), images(2, size=size)


def pruned(name: str) -> tuple[Any, Tensor, Groups]:
    """The network with half the channels of every free group, its batch, and its groups."""
    model, inputs = dense(name)
    groups = channel_groups(model, inputs)
    before = sum(parameter.numel() for parameter in model.parameters())
    after = cut(model, random_keep(groups), groups)
    assert sum(parameter.numel() for parameter in model.parameters()) < 0.8 * before
    return model, inputs, after


def step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor) -> float:
    optimizer.zero_grad()
    loss = F.cross_entropy(model(inputs), torch.arange(len(inputs)))
    loss.backward()
    optimizer.step()
    return loss.item()


every_network = pytest.mark.parametrize("name", NETWORKS)


@every_network
def test_a_copy_computes_the_same_and_is_its_own(name: str) -> None:
    model, inputs, _ = pruned(name)
    before, twin = snapshot(model), copy.deepcopy(model)
    assert torch.equal(twin(inputs), model(inputs))
    step(twin.train(), torch.optim.SGD(twin.parameters(), lr=0.1), inputs)
    assert same(snapshot(model), before)


@every_network
def test_an_exported_program_computes_the_same(name: str) -> None:
    model, inputs, _ = pruned(name)
    with torch.no_grad():
        program = torch.export.export(model, (inputs,))
        torch.testing.assert_close(program.module()(inputs), model(inputs))
    shapes = {key: tuple(tensor.shape) for key, tensor in program.state_dict.items()}
    assert shapes == {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}


@every_network
def test_an_exported_program_takes_any_batch(name: str) -> None:
    model, inputs, _ = pruned(name)
    with torch.no_grad():
        program = torch.export.export(model, (inputs,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        more = torch.cat([inputs, inputs.flip(3), inputs[:1]])
        torch.testing.assert_close(program.module()(more), model(more))


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=[pytest.mark.slow] if one == "resnet18" else []) for one in NETWORKS]
)
# the old exporter is deprecated and warns of what it cannot follow; the new one uses deprecated parts of torch
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::torch.jit.TracerWarning"
)
@pytest.mark.parametrize("dynamo", [True, False])
def test_an_onnx_file_computes_the_same(name: str, dynamo: bool, tmp_path: Path) -> None:
    model, inputs, _ = pruned(name)
    file = tmp_path / "small.onnx"
    torch.onnx.export(model, (inputs,), file, dynamo=dynamo, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})[0]
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), model(inputs), rtol=1e-4, atol=1e-4)


@every_network
def test_a_saved_network_is_loaded_into_a_fresh_dense_one_without_pickle(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs, _ = pruned(name)
    fresh, _ = dense(name, seed=5)
    for function in ("pickle.dump", "pickle.dumps", "pickle.load", "pickle.loads", "torch.save", "torch.load"):
        monkeypatch.setattr(function, lambda *_, **__: pytest.fail("pickle"))
    file = save_model(model, tmp_path / "small.safetensors")
    loaded = load_model(file, fresh)
    assert loaded is fresh
    assert same(snapshot(loaded), snapshot(model))
    assert torch.equal(loaded.eval()(inputs), model(inputs))
    assert lineage_of(loaded).kept.keys() == lineage_of(model).kept.keys()
    assert all(torch.equal(index, lineage_of(loaded).kept[key]) for key, index in lineage_of(model).kept.items())


@every_network
def test_a_loaded_network_is_cut_like_the_one_that_was_saved(name: str, tmp_path: Path) -> None:
    model, inputs, groups = pruned(name)
    loaded = load_model(save_model(model, tmp_path / "small.safetensors"), dense(name, seed=5)[0]).eval()
    keep = random_keep(groups, seed=3)
    cut(model, keep, groups)
    cut(loaded, keep, channel_groups(loaded, inputs))
    assert same(snapshot(loaded), snapshot(model))
    assert torch.equal(loaded(inputs), model(inputs))


@every_network
def test_two_cuts_are_one_cut_of_both(name: str) -> None:
    model, inputs, groups = pruned(name)
    first = lineage_of(model)
    origins = {key: group.origin for key, group in groups.items()}
    second = random_keep(groups, seed=3)
    cut(model, second, groups)
    whole, _ = dense(name)
    groups = channel_groups(whole, inputs)
    keep = {}
    for key, mask in second.items():
        # by the first position of each channel in the dense network, which names it
        keep[key] = torch.isin(groups[key].origin, origins[key][mask])
    cut(whole, keep, groups)
    assert same(snapshot(model), snapshot(whole))
    assert torch.equal(model(inputs), whole(inputs))
    kept = lineage_of(whole).kept
    assert {key: index.tolist() for key, index in first.kept.items()} == {k: i.tolist() for k, i in kept.items()}


@every_network
def test_training_goes_on_after_a_cut(name: str) -> None:
    model, inputs, groups = pruned(name)
    # the gradient of a bias before a norm is zero, or nearly: decay moves it all the same
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.1)
    model.train()
    losses = [step(model, optimizer, inputs) for _ in range(2)]
    cut(model, random_keep(groups, seed=3), groups, optimizer)
    before = snapshot(model)
    losses += [step(model, optimizer, inputs) for _ in range(2)]
    assert all(torch.isfinite(torch.tensor(losses)))
    gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
    assert all(g is not None and g.shape == before[key].shape for key, g in gradients.items())
    assert all(not torch.equal(before[key], tensor) for key, tensor in model.named_parameters())


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-3, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-3),
    "Adadelta": lambda p: torch.optim.Adadelta(p, lr=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9, centered=True),
}


def sliced(tensor: Tensor, name: str, kept: dict[tuple[str, int], Tensor]) -> Tensor:
    """The entries of a tensor of the dense network that the cuts so far left, by the record."""
    for (one, dim), index in kept.items():
        if one == name:
            tensor = tensor.index_select(dim, index)
    return tensor


def states(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    """A copy of the optimizer's state by parameter name."""
    return {
        name: {
            key: value.clone() if isinstance(value, Tensor) else value
            for key, value in optimizer.state[parameter].items()
        }
        for name, parameter in model.named_parameters()
    }


@every_network
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_optimizer_state_is_the_dense_one_where_channels_are_left(kind: str, name: str) -> None:
    model, inputs = dense(name)
    optimizer = OPTIMIZERS[kind](model.parameters())
    for _ in range(2):
        step(model, optimizer, inputs)
    groups: Groups = channel_groups(model, inputs)
    before, weights = states(model, optimizer), snapshot(model)
    groups = cut(model, random_keep(groups), groups, optimizer)
    cut(model, random_keep(groups, seed=3), groups, optimizer)
    kept, after = lineage_of(model).kept, states(model, optimizer)
    assert len(optimizer.state) == len(after) == len(before)
    for key, parameter in model.named_parameters():
        assert torch.equal(parameter, sliced(weights[key], key, kept))
        assert after[key].keys() == before[key].keys() and after[key]
        for entry, value in before[key].items():
            if isinstance(value, Tensor) and value.shape == weights[key].shape:
                assert torch.equal(after[key][entry], sliced(value, key, kept)), (key, entry)
            else:
                assert after[key][entry] == value
    moved = snapshot(model)
    step(model, optimizer, inputs)
    assert all(not torch.equal(moved[key], parameter) for key, parameter in model.named_parameters())


@every_network
def test_an_average_and_a_rewind_copy_follow(name: str) -> None:
    model, inputs = dense(name)
    rewind = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    average = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    step(model, optimizer, inputs)
    average.update_parameters(model)
    groups: Groups = channel_groups(model, inputs)
    start, averaged = dict(rewind), snapshot(average.module)
    groups = cut(model, random_keep(groups), groups, optimizer, [average, rewind])
    cut(model, random_keep(groups, seed=3), groups, optimizer, [average, rewind])
    kept = lineage_of(model).kept
    assert all(torch.equal(rewind[key], sliced(tensor, key, kept)) for key, tensor in start.items())
    assert all(torch.equal(t, sliced(averaged[key], key, kept)) for key, t in snapshot(average.module).items())
    average.eval()(inputs)
    step(model, optimizer, inputs)
    average.update_parameters(model)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(rewind[key])
    step(model, optimizer, inputs)


@every_network
def test_masks_of_weights_go_along_into_copies_and_files(name: str, tmp_path: Path) -> None:
    model, inputs, groups = pruned(name)
    weights = {key: parameter for key, parameter in model.named_parameters() if parameter.dim() > 1}
    generator = torch.Generator().manual_seed(0)
    Masks(model).hold({key: torch.rand(w.shape, generator=generator) < 0.7 for key, w in weights.items()})
    cut(model, random_keep(groups, seed=3), groups)
    loaded = load_model(save_model(model, tmp_path / "small.safetensors"), dense(name, seed=5)[0]).eval()
    assert same(dict(Masks(loaded)), dict(Masks(model)))
    assert torch.equal(loaded(inputs), model(inputs))
    for one in (copy.deepcopy(model), loaded):
        optimizer = torch.optim.SGD(one.parameters(), lr=0.01, momentum=0.9)
        Masks(one).attach(optimizer)
        step(one, optimizer, inputs)
        assert not any(one.get_parameter(key)[mask == 0].any() for key, mask in Masks(one).items())


def test_an_optimizer_of_the_model_and_its_companion_follows_both() -> None:
    model, inputs = dense("residual and concat")
    twin, _ = dense("residual and concat", seed=1)
    optimizer = torch.optim.SGD([*model.parameters(), *twin.parameters()], lr=0.01, momentum=0.9)
    for one in (model, twin):
        step(one, optimizer, inputs)
    groups = channel_groups(model, inputs)
    before = states(twin, optimizer)
    cut(model, random_keep(groups), groups, optimizer, [twin])
    present = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert {id(parameter) for parameter in optimizer.state} == present
    after, kept = states(twin, optimizer), lineage_of(twin).kept
    for key, entries in before.items():
        assert torch.equal(after[key]["momentum_buffer"], sliced(entries["momentum_buffer"], key, kept))
    optimizer.state_dict()


def test_a_cut_network_gets_a_new_head_of_one_layer() -> None:
    model, inputs, _ = pruned("residual and concat")
    model.d = nn.Linear(model.d.in_features, 7)
    groups = channel_groups(model, inputs)
    keep = random_keep(groups, seed=3)
    assert {"stem", "a", "c"} <= keep.keys()
    assert_cut_is_mask(model, keep, groups, inputs)


def test_a_cut_network_gets_a_new_head_of_two_layers() -> None:
    model, inputs, _ = pruned("residual and concat")
    model.d = nn.Sequential(nn.Linear(model.d.in_features, 20), nn.ReLU(), nn.Linear(20, 7))
    groups = channel_groups(model, inputs)
    keep = random_keep(groups, seed=3)
    assert {"stem", "a", "c", "d.0"} <= keep.keys()
    assert_cut_is_mask(model, keep, groups, inputs)


def test_a_hidden_layer_of_a_cut_network_is_swapped_for_a_wider_one() -> None:
    model, inputs, _ = pruned("residual and concat")
    model.c = nn.Linear(model.c.in_features, 30)
    model.d = nn.Linear(30, 5)
    groups = channel_groups(model, inputs)
    keep = random_keep(groups, seed=3)
    assert_cut_is_mask(model, keep, groups, inputs)


class Grouped(nn.Module):
    """A grouped convolution between two others: images (3, 8, 8), 5 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 1)
        self.g = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.b = nn.Conv2d(4, 5, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.b(F.relu(self.g(F.relu(self.a(inputs))))).mean((2, 3))


ONE = torch.tensor([True, False])


def test_a_grouped_convolution_with_one_input_a_group_left_is_cut_again() -> None:
    model, inputs = seeded(Grouped), images()
    groups = cut(model, {"a": ONE}, channel_groups(model, inputs))
    assert_cut_is_mask(model, {"g": ONE}, groups, inputs)


def test_a_grouped_convolution_with_one_input_a_group_left_is_traced_and_cut_again() -> None:
    model, inputs = seeded(Grouped), images()
    cut(model, {"a": ONE}, channel_groups(model, inputs))
    groups = channel_groups(model, inputs)
    keep = random_keep(groups)
    assert_cut_is_mask(model, keep, groups, inputs)


def test_a_grouped_convolution_that_lost_a_whole_group_comes_back_from_a_file(tmp_path: Path) -> None:
    model, inputs = seeded(Grouped), images()
    cut(model, {"a": ONE}, channel_groups(model, inputs))
    cut(model, {"a": ONE}, channel_groups(model, inputs))  # of the two conv groups of one channel each
    loaded = load_model(save_model(model, tmp_path / "small.safetensors"), seeded(Grouped, 1))
    assert torch.equal(loaded(inputs), model(inputs))
