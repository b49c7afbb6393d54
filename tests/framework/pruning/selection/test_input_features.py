"""The network's inputs as units of the ranking of channels: masked, never cut."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur import registry
from secateur.framework.network.masks import Masks
from secateur.framework.plugins.registry import build
from secateur.framework.pruning.channels.discovery import channel_groups, node_sparsity
from secateur.framework.pruning.channels.groups import free_groups
from secateur.framework.pruning.scoring.criterion import Criterion
from secateur.framework.pruning.scoring.input_features import input_columns, over_inputs
from secateur.framework.pruning.selection.budgets import Nodes
from secateur.framework.pruning.selection.channel_ranking import INPUTS, ChannelRanking, to_budget
from secateur.framework.pruning.selection.input_features import NetworkInputs
from secateur.framework.pruning.selection.options import PruneOptions
from secateur.framework.storage.checkpoint import load_model, save_model
from secateur.utils.errors import UsageError
from tests import ROOT
from tests.networks import ConvNet, Net, ResNet, images, mlp, pruning_step, randomise, same, seeded, snapshot

RANKING = [
    name
    for name in registry.names("criterions")
    if registry.get("criterions", name).input_scores is not Criterion.input_scores
]
CHANNEL = [name for name in RANKING if registry.describe("criterions", name).granularity == "channel"]


def make(constructor: Any = mlp, double: bool = True) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    model = randomise(seeded(constructor))
    shape = (8, 12) if constructor is mlp else (8, 3, 8, 8)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    model, x = (model.double(), x.double()) if double else (model, x)
    return model, list(zip(x.split((5, 3)), (torch.arange(8) % 4).split((5, 3)), strict=True))


def scores(name: str, model: nn.Module, batches: Any, layer: str) -> Tensor:
    return build("criterions", name).input_scores(model, batches, F.cross_entropy, layer)


def test_every_structured_method_of_snipit_ranks_inputs() -> None:
    structured = {"SNAP", "SNAPit", "SNAPitDuring", "StructuredRandom", "StructuredGRASP", "EfficientConvNets"}
    assert structured | {"GroupHoyerSquare", "GateDecorators", "ChannelNorm", "FPGM"} <= set(CHANNEL)


def test_the_docs_name_the_criterions_that_rank_inputs() -> None:
    page = (ROOT / "docs" / "criterions.md").read_text(encoding="utf-8")
    sentence = page.split("`--outer_layer_pruning` is available for ")[1].split(".")[0]
    assert re.findall(r"[A-Z]\w+", sentence) == CHANNEL


@pytest.mark.parametrize("name", RANKING)
def test_scoring_inputs_is_pure_and_repeatable(name: str) -> None:
    model, batches = make(ConvNet)
    before, modes = snapshot(model), [module.training for module in model.modules()]
    first = scores(name, model, batches, "a")
    assert first.shape == (3,) and first.dtype == torch.float32 and not first.requires_grad
    assert torch.equal(scores(name, model, batches, "a"), first)
    assert same(snapshot(model), before)
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", ["SNAP", "SNAPit", "SNAPitDuring"])
@pytest.mark.parametrize(("constructor", "layer"), [(mlp, "0"), (ConvNet, "a")])
def test_snap_scores_an_input_by_a_gate_on_it(name: str, constructor: Any, layer: str) -> None:
    model, batches = make(constructor)
    found = scores(name, model, batches, layer)
    model.eval()
    x, y = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    gate = torch.ones(x.shape[1], dtype=torch.float64, requires_grad=True)
    loss = F.cross_entropy(model(x * gate.view(1, -1, *[1] * (x.dim() - 2))), y)
    (gradient,) = torch.autograd.grad(loss, gate)
    expected = gradient.abs() / (1e-8 + loss.detach().abs())
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-9)


def test_gate_decorators_score_an_input_by_a_gate_batch_by_batch() -> None:
    model, batches = make(ConvNet)
    found = scores("GateDecorators", model, batches, "a")
    model.eval()
    expected = torch.zeros(3, dtype=torch.float64)
    for x, y in batches:
        gate = torch.ones(3, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(x * gate.view(1, 3, 1, 1)), y), gate)
        expected += gradient.abs()
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "measure"),
    [
        ("ChannelNorm", lambda columns: columns.abs().sum(0)),
        ("EfficientConvNets", lambda columns: columns.abs().sum(0)),
        ("GroupHoyerSquare", lambda columns: columns.abs().amax(0)),
        ("FPGM", lambda columns: torch.stack([(columns - one[:, None]).norm(dim=0).sum() for one in columns.T])),
    ],
)
def test_magnitudes_read_the_columns(name: str, measure: Any) -> None:
    model, batches = make(mlp)
    found = scores(name, model, batches, "0")
    torch.testing.assert_close(found, measure(model[0].weight.detach()).float(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["TFO", "TaylorWeight"])
def test_taylor_terms_of_weights_read_the_columns(name: str) -> None:
    model, batches = make(mlp)
    found = scores(name, model, batches, "0")
    weight, gates = model[0].weight, torch.zeros(len(batches), 8, 12, dtype=torch.float64)
    for gate, (x, y) in zip(gates, batches, strict=True):
        outputs = model(x) / (5 if name == "TFO" else 1)
        (gradient,) = torch.autograd.grad(F.cross_entropy(outputs, y), weight)
        gate.copy_(weight.detach() * gradient)
    sizes = torch.tensor([len(x) / 8 for x, _ in batches], dtype=torch.float64)
    expected = torch.tensordot(sizes, gates, 1).sum(0).abs() if name == "TFO" else gates.square().sum(1).mean(0)
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-12)


def test_structured_grasp_adds_its_products_over_the_columns() -> None:
    model, batches = make(mlp)
    products = build("criterions", "GRASP").score(model, batches, F.cross_entropy)["0.weight"]
    torch.testing.assert_close(
        scores("StructuredGRASP", model, batches, "0"), products.sum(0), rtol=1e-4, atol=1e-9
    )


def test_columns_of_grouped_and_transposed_layers() -> None:
    conv = nn.Conv2d(4, 6, 3, groups=2)
    columns = input_columns(conv, conv.weight)
    assert columns.shape == (4, 3 * 9)
    torch.testing.assert_close(columns[1], conv.weight[:3, 1].flatten())
    torch.testing.assert_close(columns[2], conv.weight[3:, 0].flatten())
    mask = over_inputs(conv, torch.tensor([True, False, True, True]))
    assert mask.shape == conv.weight.shape
    assert not mask[:3, 1].any() and mask[3:].all() and mask[:3, 0].all()
    up = nn.ConvTranspose2d(4, 6, 2)
    torch.testing.assert_close(input_columns(up, up.weight)[3], up.weight[3].flatten())
    assert not over_inputs(up, torch.tensor([True, True, True, False]))[3].any()
    # the mask does what silencing the input does
    x = torch.randn(2, 4, 5, 5)
    silent = x * torch.tensor([1.0, 0, 1, 1]).view(1, -1, 1, 1)
    expected = conv(silent)
    with torch.no_grad():
        conv.weight.mul_(mask)
    torch.testing.assert_close(conv(x), expected)


def chosen_inputs(
    channels: list[float],
    inputs: list[float],
    alive: list[bool],
    target: float,
    scope: str = "global",
    threshold: float | None = None,
) -> list[bool]:
    """The inputs that are kept with those of 12 channels, in one layer, that `target` removes."""
    model = nn.Sequential(nn.Linear(len(inputs), len(channels)), nn.ReLU(), nn.Linear(len(channels), 2))
    x = torch.zeros(1, len(inputs))
    groups = free_groups(channel_groups(model, x))
    scores = {"0": torch.tensor(channels), INPUTS: torch.tensor(inputs)}
    ranking = ChannelRanking(model, groups, scores, PruneOptions(scope), inputs=torch.tensor(alive))
    if threshold is not None:
        return ranking.above(threshold)[INPUTS].tolist()  # type: ignore[no-any-return]
    keep = to_budget(ranking, Nodes(model, groups), target)
    assert int((~keep["0"]).sum()) == min(round(target * len(channels)), len(channels) - 1)
    return keep[INPUTS].tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("channels", "target", "kept"),
    [
        ([0.5, 3.0, 7.0, 8.0], 0.5, [1, 3]),  # below the best channel that is pruned, not level with it
        ([0.5, 3.0, 7.0, 8.0], 0.25, [0, 1, 2, 3]),  # two lie between that channel and the next one
        ([7.0, 3.0, 8.0, 8.0], 0.0, [0, 1, 2, 3]),
        ([99.0, 99.0, 99.0, 99.0], 0.5, [3]),  # the best one that is not masked yet
    ],
)
def test_an_input_goes_when_its_score_is_below_that_of_the_best_channel_that_went(
    channels: list[float], target: float, kept: list[int]
) -> None:
    keep = chosen_inputs(channels, [1.0, 3.0, 2.0, 5.0, 9.0], [True] * 4 + [False], target)
    assert keep == [at in kept for at in range(5)]


def test_by_layer_the_inputs_lose_their_share_and_a_threshold_holds_for_them_too() -> None:
    given = [0.0] * 10, [1.0, 3.0, 2.0, 5.0, 9.0], [True] * 4 + [False]
    assert chosen_inputs(*given, 0.6, scope="layer") == [False, True, False, True, False]
    assert chosen_inputs(*given, 0.2, scope="layer") == [True] * 4 + [False]  # the masked one is a fifth
    assert chosen_inputs(*given, 0.6, threshold=2.0) == [False, True, False, True, False]
    assert chosen_inputs(*given, 0.6, threshold=9.0) == [False] * 3 + [True, False]


@pytest.mark.parametrize("name", [name for name in CHANNEL if name != "GroupHoyerSquare"])
@pytest.mark.parametrize("constructor", [mlp, ConvNet, ResNet])
def test_inputs_are_masked_and_the_nodes_are_those_of_a_run_without(name: str, constructor: Any) -> None:
    plain, batches = make(constructor, double=False)
    model = copy.deepcopy(plain)
    events = []
    for network, rank in ((plain, False), (model, True)):
        step = pruning_step(network, build("criterions", name), batches[0][0], PruneOptions(rank_inputs=rank))
        events.append(step(0.6, batches, F.cross_entropy))
    first = next(module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d))
    size = 12 if constructor is mlp else 3
    left = events[1].inputs
    assert events[0].inputs is None and left.shape == (size,) and bool(left.any())
    assert all(torch.equal(events[0].keep[key], mask) for key, mask in events[1].keep.items())
    assert events[1].reached == events[0].reached == node_sparsity(model, batches[0][0])
    assert first.weight.shape[1] == size  # never cut
    assert torch.equal(input_columns(first, first.weight != 0).any(1), left)
    assert events[1].removed == events[0].removed + int((~left).sum())
    silent = batches[0][0] * left.view(1, -1, *[1] * (batches[0][0].dim() - 2))
    plain.eval(), model.eval()
    torch.testing.assert_close(model(batches[0][0]), plain(silent), rtol=1e-4, atol=1e-5)


def test_a_threshold_is_held_against_inputs_too() -> None:
    model, batches = make(mlp)
    with torch.no_grad():
        model[0].weight[:, 4:6] = 1e-4
        model[0].weight[3] = -1e-4
    step = pruning_step(
        model, build("criterions", "GroupHoyerSquare"), batches[0][0], PruneOptions(rank_inputs=True)
    )
    event = step(0.5, batches, F.cross_entropy)
    assert event.asked is None and event.inputs is not None
    assert (~event.inputs).nonzero().flatten().tolist() == [4, 5]
    assert (~event.keep["0"]).nonzero().flatten().tolist() == [3]


def test_masked_inputs_stay_so_in_training_through_checkpoints_and_further_steps(tmp_path: Path) -> None:
    model, batches = make(mlp, double=False)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    Masks(model).attach(optimizer)
    criterion = build("criterions", "SNAP")
    step = pruning_step(model, criterion, batches[0][0], PruneOptions(rank_inputs=True), optimizer)
    first = step(0.5, batches, F.cross_entropy).inputs
    assert first is not None and not first.all()
    F.cross_entropy(model(batches[0][0]), batches[0][1]).backward()
    optimizer.step()
    assert torch.equal(NetworkInputs(model, ["0"]).alive(), first)
    assert not model[0].weight[:, ~first].any()
    loaded = load_model(save_model(model, tmp_path / "one.safetensors"), mlp())
    assert same(snapshot(loaded), snapshot(model))
    assert torch.equal(NetworkInputs(loaded, ["0"]).alive(), first)
    again = pruning_step(loaded, criterion, batches[0][0], PruneOptions(rank_inputs=True))
    second = again(0.8, batches, F.cross_entropy).inputs
    assert second is not None and int(second.sum()) < int(first.sum())
    assert not (second & ~first).any()  # nothing comes back
    assert not loaded[0].weight[:, ~second].any()


def test_inputs_of_a_protected_first_layer_stay() -> None:
    model, batches = make(mlp)
    step = pruning_step(
        model, build("criterions", "SNAP"), batches[0][0], PruneOptions(rank_inputs=True, protect=("0",))
    )
    assert step(0.3, batches, F.cross_entropy).inputs is None
    assert len(Masks(model)) == 0


class Blind(Criterion):
    """Ranks channels alone."""

    granularity = "channel"

    def score(self, model: Any, batches: Any, loss: Any, groups: Any = None) -> Any:
        return {name: torch.rand(group.channels) for name, group in groups.items()}


class Wrong(Blind):
    """Returns whatever it was given."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def input_scores(self, model: Any, batches: Any, loss: Any, layer: str) -> Any:
        return self.value


@pytest.mark.parametrize(
    ("criterion", "words"),
    [
        (Blind(), r"Blind cannot rank the network's inputs"),
        (Wrong(torch.ones(3)), r"Wrong.input_scores.*\(3,\).*\(12,\)"),
        (Wrong(torch.full((12,), torch.nan)), "Wrong.input_scores contains NaN"),
        (Wrong([1.0]), "Wrong.input_scores.*list"),
    ],
)
def test_scores_of_inputs_that_break_the_contract_are_named(criterion: Criterion, words: str) -> None:
    model, batches = make(mlp)
    before = snapshot(model)
    step = pruning_step(model, criterion, batches[0][0], PruneOptions(rank_inputs=True))
    with pytest.raises(UsageError, match=words):
        step(0.5, batches, F.cross_entropy)
    assert same(snapshot(model), before)


def test_weights_and_inputs_are_not_ranked_together() -> None:
    model, batches = make(mlp)
    with pytest.raises(UsageError, match="rank_inputs cannot be combined with SNIP, which prunes weights"):
        pruning_step(model, build("criterions", "SNIP"), batches[0][0], PruneOptions(rank_inputs=True))


def test_a_block_whose_skip_reads_the_input_is_pruned_too() -> None:
    layers = {"a": nn.Conv2d(3, 4, 1), "b": nn.Conv2d(4, 4, 1), "d": nn.Linear(4, 4)}
    model = randomise(seeded(lambda: Net(lambda s, x: s.d((s.b(s.a(x).relu()) + s.a(x)).mean((2, 3))), **layers)))
    batches = [(images(8), torch.arange(8) % 4)]
    event = pruning_step(model, build("criterions", "SNAP"), images(1), PruneOptions(rank_inputs=True))(
        0.5, batches, F.cross_entropy
    )
    assert event.inputs is not None and model.a.weight.shape[0] == 2


class TwoStems(nn.Module):
    """Two layers that read the images."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 5, padding=2)
        self.c, self.d = nn.Conv2d(8, 6, 3), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(torch.cat([self.a(x), self.b(x)], 1))
        out: Tensor = self.d(F.relu(self.c(h)).mean((2, 3)))
        return out


@pytest.mark.parametrize("name", sorted(name for name in CHANNEL if build("criterions", name).threshold is None))
def test_inputs_that_two_layers_read_go_from_both(name: str) -> None:
    model, x = seeded(TwoStems).double(), images(6).double()
    batches = [(x, torch.arange(6) % 4)]
    step = pruning_step(model, build("criterions", name), x, PruneOptions(scope="layer", rank_inputs=True))
    added = sum(scores(name, model, batches, layer) for layer in ("a", "b"))
    assert isinstance(added, Tensor)
    left = step(0.4, batches, F.cross_entropy).inputs
    assert left is not None and left.tolist() == [at != int(added.argmin()) for at in range(3)]
    for layer in (model.get_submodule("a"), model.get_submodule("b")):
        weight: Any = layer.weight
        assert [bool(column.any()) for column in weight.transpose(0, 1)] == left.tolist()
    out = model(x)
    assert torch.equal(model(x + 9 * ~left.view(1, 3, 1, 1)), out)  # the network does not see it any more


class Wide(nn.Module):
    """A convolution and a linear layer that read the images, in two shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Linear(192, 6)
        self.c, self.d = nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.c(F.relu(self.a(x)).mean((2, 3))) + self.b(x.flatten(1))
        out: Tensor = self.d(F.relu(h))
        return out


def test_images_that_are_read_in_two_shapes_have_no_inputs_to_rank() -> None:
    with pytest.raises(UsageError, match="a and b read the images in different shapes"):
        pruning_step(seeded(Wide), build("criterions", "SNAP"), images(2), PruneOptions(rank_inputs=True))
    pruning_step(seeded(Wide), build("criterions", "SNAP"), images(2))  # channels alone are pruned as ever
