"""What one step reports and spares, with scores made up to the entry."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.framework.network.layers import prunable_weights
from secateur.framework.network.masks import Masks
from secateur.framework.pruning.scoring.criterion import Criterion
from secateur.framework.pruning.selection.options import PruneOptions
from secateur.framework.pruning.steps.by_schedule import iterative_options
from secateur.framework.pruning.steps.step import PruningStep, step_class
from secateur.framework.schedules.every_n_batches import Iterative
from secateur.utils.errors import UsageError
from tests.networks import Net, images, pruning_step, randomise, same, seeded, snapshot


class Ranked(Criterion):
    """Each weight's score is its position, and the inputs' scores are given by layer."""

    granularity = "weight"

    def __init__(self, inputs: dict[str, list[float]] | None = None) -> None:
        super().__init__()
        self.inputs = inputs or {}

    def score(self, model: nn.Module, batches: Any, loss: Any, groups: Any = None) -> dict[str, Tensor]:
        """Positions, 0, 1, 2, ..."""
        if groups is not None:
            return {name: torch.arange(float(group.channels)) for name, group in groups.items()}
        weights = prunable_weights(model)
        return {name: torch.arange(float(one.numel())).view_as(one) for name, one in weights.items()}

    def input_scores(self, model: nn.Module, batches: Any, loss: Any, layer: str) -> Tensor:
        """As given."""
        return torch.tensor(self.inputs[layer])


def net() -> nn.Module:
    """Layers whose names begin alike: 12, 16 and 8 weights."""
    return Net(
        lambda self, x: self.head(F.relu(self.ab(F.relu(self.a(x))))),
        a=nn.Linear(3, 4), ab=nn.Linear(4, 4), head=nn.Linear(4, 2),
    )  # fmt: skip


def step_of(criterion: Criterion, **options: Any) -> PruningStep:
    return pruning_step(seeded(net), criterion, torch.randn(2, 3), PruneOptions(**options))


def test_each_step_reports_the_weights_that_it_masked_itself() -> None:
    step = step_of(Ranked())
    assert [step(target, [], F.cross_entropy).removed for target in (0.25, 0.5, 0.5, 0.75)] == [9, 9, 0, 9]
    assert sum(int((mask == 0).sum()) for mask in Masks(step.model).values()) == 27


@pytest.mark.parametrize(("protect", "spared"), [(["a"], ["a"]), (["ab"], ["ab"]), (["a", "ab"], ["a", "ab"])])
def test_a_protected_name_is_a_whole_name_and_not_the_beginning_of_one(
    protect: list[str], spared: list[str]
) -> None:
    step = step_of(Ranked(), protect=protect)
    step(0.5, [], F.cross_entropy)
    masked = {name.removesuffix(".weight") for name, mask in Masks(step.model).items() if not mask.all()}
    assert masked == {"a", "ab", "head"} - set(spared)


def test_everything_below_a_protected_module_is_spared() -> None:
    model = nn.ModuleDict({"body": nn.Sequential(nn.Linear(3, 4), nn.ReLU()), "bodywork": nn.Linear(4, 2)})
    whole = Net(lambda self, x: self.parts["bodywork"](self.parts["body"](x)), parts=model)
    step = pruning_step(whole, Ranked(), torch.randn(2, 3), PruneOptions(protect=["parts.body"]))
    assert step.spared() == {"parts.body.0.weight"}


def test_a_weight_whose_score_is_the_threshold_goes() -> None:
    criterion = Ranked()
    criterion.threshold = 3.0
    step = step_of(criterion)
    assert step(0.9, [], F.cross_entropy).removed == 3 * 4  # scores 0, 1, 2 and 3 of each layer
    assert all((mask == 0).flatten().nonzero().flatten().tolist() == [0, 1, 2, 3]
               for mask in Masks(step.model).values())  # fmt: skip


@pytest.mark.parametrize(
    ("scores", "gone"),
    [({"a": [3.0, 1, 2], "b": [0.0, 5, 4]}, 0), ({"a": [3.0, 1, 2], "b": [9.0, 5, 1]}, 2)],
)
def test_scores_that_several_layers_give_an_input_are_added(scores: dict[str, list[float]], gone: int) -> None:
    """Neither layer alone would choose the input of the first case, or that of the second."""

    class Channels(Ranked):
        granularity = "channel"

    model = Net(
        lambda self, x: self.c(F.relu(torch.cat([self.a(x), self.b(x)], 1)).mean((2, 3))),
        a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(3, 5, 3), c=nn.Linear(9, 2),
    )  # fmt: skip
    step = pruning_step(model, Channels(scores), images(1), PruneOptions(scope="layer", rank_inputs=True))
    left = step(0.3, [], F.cross_entropy).inputs
    assert left is not None and left.tolist() == [at != gone for at in range(3)]


#: option -> a value other than the default
OPTIONS: dict[str, Any] = {
    "round_to": 2, "group_size": 2, "flops": 1.0, "rank_inputs": True, "min_channels": 3, "keep_share": 0.5,
    "attention": "heads", "inexact": True, "fold": True,
}  # fmt: skip
#: granularity -> options, and fields of an iterative schedule, that have no meaning
UNUSED = {
    "weight": ({*OPTIONS}, {"group_size", "flops", "fixed_layer"}),
    "both": (
        {"round_to", "group_size", "flops", "rank_inputs"},
        {"group_size", "flops", "fixed_layer", "per_step", "most"},
    ),
    "channel": (set(), set()),
}


class Drawn(Criterion):
    """Random scores of all that a criterion of its granularity scores; those of channels are the lower ones."""

    def __init__(self, granularity: str) -> None:
        super().__init__()
        self.granularity = granularity

    def score(self, model: nn.Module, batches: Any, loss: Any, groups: Any = None) -> dict[str, Tensor]:
        """Drawn with a fixed seed."""
        generator = torch.Generator().manual_seed(0)
        found = {name: torch.rand(group.channels, generator=generator) for name, group in (groups or {}).items()}
        if self.granularity != "channel":
            weights = prunable_weights(model)
            found |= {name: 1 + torch.rand(one.shape, generator=generator) for name, one in weights.items()}
        return found


@pytest.mark.parametrize("granularity", UNUSED)
def test_options_without_a_meaning_for_a_kind_of_step_are_refused_and_no_others(granularity: str) -> None:
    criterion = Drawn(granularity)
    refused: tuple[set[str], set[str]] = set(), set()
    for name, value in OPTIONS.items():
        try:
            step_class(criterion).check_options(criterion, PruneOptions(**{name: value}))
        except UsageError as error:
            assert error.argument == name and f"{name} cannot be combined with Drawn" in str(error)
            refused[0].add(name)
    for name, field in {"fixed_layer": 0, "group_size": 2, "flops": 1.0, "per_step": 3, "most": 3}.items():
        try:
            iterative_options(criterion, Iterative(**{name: field}), PruneOptions(), True)  # type: ignore[arg-type]
        except UsageError as error:
            assert error.argument == name
            refused[1].add(name)
    assert refused == UNUSED[granularity]


class Encoder(nn.Module):
    """Attention over four tokens between linear layers, with norms over the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.encoder = nn.Linear(6, 8), nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x)).mean(1))


@pytest.mark.filterwarnings("ignore:cut. the constants")
@pytest.mark.parametrize("granularity", ["weight", "both"])
@pytest.mark.parametrize(
    "name", sorted(OPTIONS.keys() - {"rank_inputs"})
)  # inputs are scored by channel criterions
def test_the_refused_options_would_have_no_effect_and_the_others_have_one(
    granularity: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    criterion, left = Drawn(granularity), []
    monkeypatch.setattr(step_class(criterion), "unused", ())
    for options in (PruneOptions(), PruneOptions(**{name: OPTIONS[name]})):
        model = randomise(seeded(Encoder)).eval()
        pruning_step(model, criterion, torch.ones(2, 4, 6), options)(0.8, [], F.cross_entropy)
        left.append(snapshot(model))
    assert same(*left) == (name in UNUSED[granularity][0])
