"""One ranking over weights and channels: the right number goes, by one definition of sparsity."""

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from secateur import measure, prune
from secateur.framework.network.layers import prunable_weights
from secateur.framework.network.masks import Masks
from secateur.framework.network.size import weight_sparsity
from secateur.framework.plugins.registry import build
from secateur.framework.pruning.channels.discovery import channel_groups
from secateur.framework.pruning.channels.groups import Groups, free_groups
from secateur.framework.pruning.scoring.criterion import Criterion
from secateur.framework.pruning.selection.budgets import Entries
from secateur.framework.pruning.selection.options import PruneOptions
from secateur.framework.pruning.selection.ranking import Keep
from secateur.framework.pruning.steps.step import JointStep, Request
from secateur.framework.storage.checkpoint import load_model, save_model
from secateur.utils.errors import UsageError
from tests.networks import (
    ConvNet,
    ResNet,
    channel_masks,
    images,
    mlp,
    pruning_step,
    randomise,
    same,
    seeded,
    snapshot,
)

NETS: dict[str, tuple[Any, Tensor]] = {
    "convolutions": (ConvNet, images(8)),
    "residual": (ResNet, images(8)),
    "linear": (mlp, torch.randn(8, 12, generator=torch.Generator().manual_seed(0))),
}


def make(net: str = "linear", seed: int = 0) -> tuple[nn.Module, list[tuple[Tensor, Tensor]], Groups]:
    constructor, inputs = NETS[net]
    model = randomise(seeded(constructor, seed))
    return model, [(inputs, torch.arange(8) % 4)], channel_groups(model, inputs)


def random_scores(model: nn.Module, groups: Groups, seed: int, ties: bool = False) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: weight.shape for name, weight in prunable_weights(model).items()}
    shapes |= {name: torch.Size([group.channels]) for name, group in free_groups(groups).items()}
    found = {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}
    return {name: (4 * score).round() for name, score in found.items()} if ties else found


def living_after(
    model: nn.Module, groups: Groups, scores: Mapping[str, Tensor], count: int
) -> tuple[int, list[str]]:
    """By sorting all entries in Python: weights left once the `count` lowest are gone, and what those were."""
    masks = Masks(model)
    entries: list[tuple[float, int, str, int]] = []
    for name, score in scores.items():
        best = int(score.argmax()) if name in groups else -1
        ties = (score == score.max()).nonzero().flatten().tolist() if name in groups else []
        best = ties[-1] if ties else best  # among equals the last one stays
        for place, value in enumerate(score.flatten().tolist()):
            if name in masks and not masks[name].flatten()[place] or place == best:
                continue
            entries.append((value, len(entries), name, place))
    gone = sorted(entries)[:count]
    keep = {name: torch.ones(score.shape, dtype=torch.bool) for name, score in scores.items()}
    for _, _, name, place in gone:
        keep[name].view(-1)[place] = False
    by_channel = channel_masks(model, {name: keep[name] for name in scores if name in groups}, groups)
    left = 0
    for name in prunable_weights(model):
        stays = keep[name] & (masks[name] != 0 if name in masks else torch.tensor(True))
        left += int((stays & by_channel.get(name, torch.tensor(True))).sum())
    return left, [name for _, _, name, _ in gone]


@settings(max_examples=12, deadline=None)
@given(
    net=st.sampled_from(sorted(NETS)), seed=st.integers(0, 10**6), share=st.floats(0, 0.99), ties=st.booleans(),
    dead=st.sampled_from([0.0, 0.3]),
)  # fmt: skip
def test_the_count_is_the_one_that_comes_nearest(
    net: str, seed: int, share: float, ties: bool, dead: float
) -> None:
    model, _, groups = make(net)
    if dead:
        generator = torch.Generator().manual_seed(seed)
        Masks(model).hold(
            {name: torch.rand(w.shape, generator=generator) >= dead for name, w in prunable_weights(model).items()}
        )
    scores = random_scores(model, groups, seed, ties)
    example = NETS[net][1]
    keep, _ = JointStep(model, Ranked(scores), example, PruneOptions()).choose(scores, Request(share))
    weights = Keep({name: mask for name, mask in keep.items() if name not in groups})
    channels = Keep({name: mask for name, mask in keep.items() if name in groups})
    measured = Entries(model, free_groups(groups), name="weights").predicted(keep)
    total = sum(weight.numel() for weight in prunable_weights(model).values())
    by_channel = channel_masks(model, channels, groups)
    left = sum(int((mask & by_channel.get(n, torch.tensor(True))).sum()) for n, mask in weights.items())
    masks = Masks(model)
    removed = channels.removed + sum(
        int((~mask & (masks[n] != 0) if n in masks else ~mask).sum()) for n, mask in weights.items()
    )
    expected, _ = living_after(model, groups, scores, removed)
    assert left == expected  # the lowest of one ranking, all of them
    assert measured == 1 - left / total

    def miss(count: int) -> float:
        return abs(1 - living_after(model, groups, scores, count)[0] / total - share)

    found = abs(1 - left / total - share)
    if removed:  # else more may be gone already
        everything = sum(score.numel() for score in scores.values())
        assert all(found <= miss(near) + 1e-9 for near in (removed - 1, min(removed + 1, everything)))
    assert all(bool(mask.any()) for mask in channels.values())


class Ranked(Criterion):
    """Scores that were given."""

    granularity = "both"

    def __init__(self, scores: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.scores = scores

    def score(self, model: Any, batches: Any, loss: Any, groups: Any = None) -> Any:
        return self.scores


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("sparsity", [0.3, 0.9])
def test_cut_and_masked_compute_the_same(net: str, sparsity: float) -> None:
    model, batches, groups = make(net)
    twin = copy.deepcopy(model)
    step = pruning_step(model, build("criterions", "CNIP"), batches[0][0])
    event = step(sparsity, batches, F.cross_entropy)
    assert event.asked == sparsity and event.removed > 0
    assert event.reached == weight_sparsity(model) == pytest.approx(sparsity, abs=0.02)
    weights = {name: mask for name, mask in event.keep.items() if name not in groups}
    channels = {name: mask for name, mask in event.keep.items() if name in groups}
    by_channel = channel_masks(twin, channels, groups)
    held = {name: weights.get(name, torch.ones_like(by_channel[name])) & by_channel[name] for name in by_channel}
    Masks(twin).hold({**weights, **held})
    assert weight_sparsity(twin) == pytest.approx(event.reached, abs=1e-12)
    inputs = torch.cat([batches[0][0], batches[0][0].flip(0)])
    torch.testing.assert_close(model.eval()(inputs), twin.eval()(inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["CNIP", "CNIPit", "CNIPitDuring"])
def test_one_call_prunes_to_the_weight_sparsity_asked_for(name: str) -> None:
    model, batches, _ = make("convolutions")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    dense = sum(weight.numel() for weight in prunable_weights(model).values())
    F.cross_entropy(model(batches[0][0]), batches[0][1]).backward()
    optimizer.step()
    report = prune(model, name, 0.9, batches=batches, optimizer=optimizer)
    left = sum(int(weight.count_nonzero()) for weight in prunable_weights(model).values())
    assert (report.asked, report.budget) == (0.9, "weights")
    assert report.reached == pytest.approx(1 - left / dense) == pytest.approx(0.9, abs=0.005)
    assert report.after["params"] < report.before["params"]  # channels were cut
    assert 0 < Masks(model).sparsity < 0.9  # and single weights masked
    F.cross_entropy(model(batches[0][0]), batches[0][1]).backward()
    optimizer.step()
    assert weight_sparsity(model) == report.reached


def test_dead_weights_are_not_in_the_pool() -> None:
    """With them, and their scores of zero, later steps would prune too little, and the wrong things."""
    model, batches, _ = make("linear")
    criterion = build("criterions", "CNIP")
    step = pruning_step(model, criterion, batches[0][0])
    reached = [step(target, batches, F.cross_entropy).reached for target in (0.3, 0.5, 0.7, 0.8)]
    assert reached == pytest.approx([0.3, 0.5, 0.7, 0.8], abs=0.04)


def test_weights_in_channels_that_go_count_as_gone() -> None:
    model, batches, groups = make("linear")
    scores = {name: torch.full_like(weight, 5.0) for name, weight in prunable_weights(model).items()}
    scores |= {"0": torch.tensor([1.0, 2, 3, 9, 9, 9, 9, 9]), "2": torch.full((6,), 9.0)}
    # a channel of "0" has 12 + 6 of the 96 + 48 + 24 weights
    step = pruning_step(model, Ranked(scores), batches[0][0])
    event = step(36 / 168, batches, F.cross_entropy)
    assert event.keep["0"].tolist() == [False, False] + [True] * 6
    assert event.reached == pytest.approx(36 / 168)
    assert model[0].weight.shape == (6, 12) and Masks(model).sparsity == 0.0
    assert event.removed == 2


def test_a_fixed_threshold_holds_for_weights_and_channels() -> None:
    model, batches, groups = make("linear")
    scores = random_scores(model, groups, seed=3)
    criterion = Ranked(scores)
    criterion.threshold = 0.5
    event = pruning_step(model, criterion, batches[0][0])(0.1, batches, F.cross_entropy)
    assert event.asked is None
    assert all(torch.equal(event.keep[name], score > 0.5) for name, score in scores.items())
    assert model[0].out_features == int((scores["0"] > 0.5).sum())


def test_the_best_channels_of_a_group_stay_and_other_entries_go_instead() -> None:
    model, batches, groups = make("linear")
    scores = {name: torch.full_like(weight, 5.0) for name, weight in prunable_weights(model).items()}
    scores |= {"0": torch.arange(8.0) / 100, "2": torch.arange(6.0) / 100}
    step = pruning_step(model, Ranked(scores), batches[0][0], PruneOptions(min_channels=3))
    step(0.98, batches, F.cross_entropy)
    assert [model[0].out_features, model[2].out_features] == [3, 3]
    assert weight_sparsity(model) == pytest.approx(0.98, abs=0.004)


def test_protected_and_outer_layers_keep_their_weights() -> None:
    model, batches, _ = make("linear")
    step = pruning_step(
        model, build("criterions", "CNIP"), batches[0][0], PruneOptions(outer_layers=False, protect=("2",))
    )
    before = snapshot(model)
    event = step(0.99, batches, F.cross_entropy)
    assert set(step.spared()) == {"0.weight", "2.weight", "4.weight"}
    assert model[2].out_features == 6 and model[0].out_features == 1  # what may go are the channels of "0"
    assert not len(Masks(model)) or Masks(model).sparsity == 0
    assert torch.equal(model[4].weight, before["4.weight"])
    assert event.reached < 0.99


def test_a_target_that_is_reached_already_changes_nothing() -> None:
    model, batches, _ = make("linear")
    step = pruning_step(model, build("criterions", "CNIP"), batches[0][0])
    step(0.6, batches, F.cross_entropy)
    before = snapshot(model)
    event = step(0.4, batches, F.cross_entropy)
    assert event.removed == 0 and same(snapshot(model), before)


def test_what_was_pruned_is_saved_and_pruned_on(tmp_path: Any) -> None:
    model, batches, _ = make("convolutions")
    prune(model, "CNIP", 0.5, batches=batches)
    loaded = load_model(save_model(model, tmp_path / "half.safetensors"), seeded(ConvNet))
    assert same(snapshot(loaded), snapshot(model))
    assert weight_sparsity(loaded) == weight_sparsity(model)
    report = prune(loaded, "CNIP", 0.9, batches=batches)
    assert report.reached == pytest.approx(0.9, abs=0.005)
    assert measure(loaded, batches[0][0], latency=False)["weight_sparsity"] == report.reached


def test_a_network_without_free_channels_loses_weights_alone() -> None:
    model = nn.Linear(12, 4)
    report = prune(model, "CNIP", 0.5, batches=[(torch.randn(4, 12), torch.arange(4))])
    assert report.reached == 0.5 and model.weight.shape == (4, 12)


def test_an_optimizer_that_cannot_be_cut_leaves_everything_as_it_was() -> None:
    model, batches, _ = make("linear")
    optimizer = torch.optim.LBFGS(model.parameters())
    before = snapshot(model)
    with pytest.raises(UsageError, match="LBFGS"):
        prune(model, "CNIP", 0.9, batches=batches, optimizer=optimizer)
    assert same(snapshot(model), before)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"scope": "layer"}, "unknown scope 'layer'"), ({"round_to": 4}, "round_to cannot be combined with CNIP"),
     ({"budget": "macs"}, "is for channels")],
)  # fmt: skip
def test_what_one_ranking_cannot_do_is_refused(options: dict[str, Any], words: str) -> None:
    model, batches, _ = make("linear")
    with pytest.raises(UsageError, match=words):
        prune(model, "CNIP", 0.5, batches=batches, **options)
