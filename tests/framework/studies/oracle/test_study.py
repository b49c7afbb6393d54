"""The oracle against removing one unit after the other, and the criterions' scores against the criterions."""

import copy
import json
from collections.abc import Iterable, Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur import Criterion, channel_groups
from secateur.framework.plugins.registry import build
from secateur.framework.pruning.channels.groups import Groups, free_groups
from secateur.framework.pruning.scoring.criterion import Batch, LossFunction, Scores
from secateur.framework.pruning.scoring.inputs import with_groups
from secateur.framework.studies.oracle.correlation import MEASURES, correlation
from secateur.framework.studies.oracle.study import REFERENCES, Study, judge, measure_oracle
from secateur.framework.studies.oracle.tables import head, left_out_lines, table
from secateur.utils.files.atomic import write_json
from tests.networks import ConvNet, ResNet, images, mask_channels, randomise, same, seeded, snapshot

NETWORKS = {"plain": ConvNet, "residual": ResNet}


def network(name: str) -> nn.Module:
    """In float64, in training mode as after training."""
    return randomise(seeded(NETWORKS[name])).double().train()


def batches() -> list[Batch]:
    """Of different sizes."""
    inputs = images(11, dtype=torch.float64)
    targets = torch.arange(11) % 5
    return list(zip(inputs.split(4), targets.split(4), strict=True))


@torch.no_grad()
def one_by_one(model: nn.Module, given: list[Batch], groups: Groups) -> dict[str, list[list[float]]]:
    """Per group and unit the change of each batch's loss, of copies with all entries of the unit at zero."""
    whole = copy.deepcopy(model).eval()
    before = [float(F.cross_entropy(whole(x), y)) for x, y in given]
    found: dict[str, list[list[float]]] = {}
    for name, group in groups.items():
        found[name] = []
        for unit in range(group.channels):
            twin = copy.deepcopy(whole)
            keep = torch.ones(group.channels, dtype=torch.bool)
            keep[unit] = False
            mask_channels(twin, {name: keep}, groups)
            after = [float(F.cross_entropy(twin(x), y)) for x, y in given]
            found[name].append([b - a for a, b in zip(before, after, strict=True)])
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_the_oracle_is_the_loss_without_each_unit_minus_the_loss(name: str) -> None:
    model, given = network(name), batches()
    groups = channel_groups(model, given[0][0])
    found = measure_oracle(model, given, F.cross_entropy, groups)
    sizes = torch.tensor([len(x) for x, _ in given], dtype=torch.float64)
    expected = one_by_one(model, given, free_groups(groups))
    assert list(found.changes["signed"]) == list(expected)
    for group, rows in expected.items():
        each = torch.tensor(rows, dtype=torch.float64)
        signed = each @ sizes / 11
        torch.testing.assert_close(found.changes["signed"][group], signed, rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(found.changes["total"][group], signed.square(), rtol=1e-8, atol=1e-14)
        squared = each.square().mean(1)
        torch.testing.assert_close(found.changes["squared"][group], squared, rtol=1e-8, atol=1e-14)
    inputs, targets = (torch.cat(part) for part in zip(*given, strict=True))
    assert found.samples == 11
    with torch.no_grad():
        assert found.loss == pytest.approx(float(F.cross_entropy(model.eval()(inputs), targets)), abs=1e-12)


def test_the_squared_change_is_the_score_of_the_criterion_oracle() -> None:
    model, given = network("residual"), batches()
    groups = channel_groups(model, given[0][0])
    found = measure_oracle(model, given, F.cross_entropy, groups)
    scores = build("criterions", "Oracle").score(model, given, F.cross_entropy, groups)
    for name, score in scores.items():
        torch.testing.assert_close(found.changes["squared"][name].float(), score, rtol=1e-5, atol=1e-12)


def test_of_a_single_batch_the_squares_are_the_same() -> None:
    model, given = network("plain"), batches()[:1]
    found = measure_oracle(model, given, F.cross_entropy, channel_groups(model, given[0][0]))
    total, squared = found.changes["total"], found.changes["squared"]
    assert all(torch.allclose(total[name], squared[name], rtol=1e-12) for name in total)


def test_a_study_leaves_the_network_as_it_was() -> None:
    model, given = network("plain"), batches()
    before = snapshot(model)
    groups = channel_groups(model, given[0][0])
    oracle = measure_oracle(model, given, F.cross_entropy, groups)
    judge(build("criterions", "TaylorGate"), model, given, F.cross_entropy, groups, oracle)
    assert same(before, snapshot(model)) and model.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_progress_is_told_batch_by_batch_as_they_are_done() -> None:
    model, given, told = network("plain"), batches(), []

    def track(items: Sequence[Batch]) -> Iterator[Batch]:
        for item in items:
            told.append(len(seen))
            yield item

    seen: list[int] = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append(len(targets))
        return F.cross_entropy(outputs, targets)

    measure_oracle(model, given, loss, channel_groups(model, given[0][0]), track)
    assert len(told) == 3 and told[0] < told[1] < told[2]


class Given(Criterion):
    """Scores that a test gives it."""

    granularity = "channel"

    def __init__(self, scores: dict[str, Tensor]) -> None:
        super().__init__()
        self.scores = scores
        self.seen = 0

    def score(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups | None = None
    ) -> Scores:
        """As given."""
        self.seen = len(list(batches))
        free, _ = with_groups(model, [], groups)
        return {name: self.scores[name] for name in free}


@pytest.fixture
def study() -> Study:
    """Perfect, opposite, partly unknown and constant scores of the plain network."""
    model, given = network("plain"), batches()
    groups = channel_groups(model, given[0][0])
    oracle = measure_oracle(model, given, F.cross_entropy, groups)
    perfect = {name: one.float() for name, one in oracle.changes["squared"].items()}
    names = list(perfect)
    partly = perfect | {names[0]: torch.full_like(perfect[names[0]], torch.inf)}
    scores = {
        "Opposite": {name: -one for name, one in perfect.items()},
        "Perfect": perfect,
        "Partly": partly,
        "Constant": {name: torch.ones_like(one) for name, one in perfect.items()},
    }
    judged = {
        name: judge(Given(one), model, given, F.cross_entropy, groups, oracle) for name, one in scores.items()
    }
    return Study(groups, oracle, judged, {"Other": "is not here"})


def test_perfect_scores_correlate_perfectly_in_every_layer_and_over_all(study: Study) -> None:
    for sign, name in ((1.0, "Perfect"), (-1.0, "Opposite")):
        judged = study.judged[name]
        correlations = judged.correlation["squared"]
        everywhere = [correlations["all"], correlations["layer_mean"], *correlations["layers"].values()]
        for found in everywhere:
            assert found == {measure: pytest.approx(sign, abs=1e-6) for measure in MEASURES}


def test_over_all_layers_is_over_the_raw_scores(study: Study) -> None:
    judged = study.judged["Perfect"]
    for reference in REFERENCES:
        wanted = study.oracle.changes[reference]
        scores = torch.cat([judged.scores[name] for name in wanted])
        assert judged.correlation[reference]["all"] == correlation(scores, torch.cat(list(wanted.values())))


def test_the_best_comes_first_and_what_is_undefined_last(study: Study) -> None:
    assert study.ranked()[-2:] == ["Opposite", "Constant"]


def test_the_numbers_are_json_without_nan(study: Study, tmp_path: object) -> None:
    results = json.loads(json.dumps(study.results(), default=str))
    constant = results["criterions"]["Constant"]["correlation"]
    assert constant["squared"]["all"] == dict.fromkeys(MEASURES)
    assert results["units"] == 24 and results["samples"] == 11
    names = list(results["layers"])
    assert results["criterions"]["Partly"]["units"] == 24 - results["layers"][names[0]]["units"]
    assert results["criterions"]["Partly"]["correlation"]["squared"]["layers"][names[0]]["pearson"] is None
    assert "model output" in results["protected"].values()
    file = tmp_path / "study.json"  # type: ignore[operator]
    write_json(file, study.results())
    assert json.loads(file.read_text())["criterions"]["Partly"]["scores"][names[0]] == [None] * 6


def test_criterions_without_data_get_none_and_the_others_the_same_batches(study: Study) -> None:
    model, given = network("plain"), batches()
    groups = channel_groups(model, given[0][0])
    criterion = Given(study.judged["Perfect"].scores)
    judge(criterion, model, given, F.cross_entropy, groups, study.oracle)
    assert criterion.seen == 0
    criterion.__dict__["data"] = build("criterions", "TaylorGate").data
    judge(criterion, model, given, F.cross_entropy, groups, study.oracle)
    assert criterion.seen == 3


def test_the_table_shows_a_dash_where_nothing_is_defined(study: Study) -> None:
    shown = table(study, "made up")
    names, *columns = ([str(cell) for cell in column.cells] for column in shown.columns)
    assert names == study.ranked()
    assert [column[-1] for column in columns[:-1]] == ["-"] * 8
    assert columns[0][names.index("Opposite")] == "-1.000"
    assert head(study)[0].startswith("24 units in 3 layers, loss ")
    assert left_out_lines(study) == ["left out: Other (is not here)"]
