"""What the tester Accuracy counts, against counting by hand."""

import importlib
import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur import torchvision
from secateur.framework.plugins.registry import build
from secateur.framework.training.tester import TestContext
from secateur.utils.classification import Tally, confusion_counts, correct_samples


def naive(outputs: Tensor, targets: Tensor, bins: int = 15) -> dict[str, Any]:
    """Sample by sample, from the definitions."""
    rows = [[math.exp(value - max(row)) for value in row] for row in outputs.tolist()]
    shares = [[value / sum(row) for value in row] for row in rows]
    classes = len(rows[0])
    confusion = [[0] * classes for _ in range(classes)]
    members: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for row, target in zip(shares, targets.tolist(), strict=True):
        guess = max(range(classes), key=lambda label: row[label])
        confusion[target][guess] += 1
        inside = next(b for b in range(bins) if b / bins < row[guess] <= (b + 1) / bins + 1e-15)
        members[inside].append((row[guess], guess == target))
    ece = 0.0
    for inside_bin in members:
        if inside_bin:
            confidence = sum(share for share, _ in inside_bin) / len(inside_bin)
            accuracy = sum(hit for _, hit in inside_bin) / len(inside_bin)
            ece += len(inside_bin) / len(targets) * abs(confidence - accuracy)
    per_class = [row[at] / sum(row) if sum(row) else None for at, row in enumerate(confusion)]
    return {"ece": ece, "confusion": confusion, "per_class_accuracy": per_class, "bins": [len(m) for m in members]}


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 60), classes=st.integers(2, 6), scale=st.floats(0.1, 8))
def test_calibration_and_confusion_are_those_of_a_naive_count(
    seed: int, count: int, classes: int, scale: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    outputs = scale * torch.randn(count, classes, generator=generator, dtype=torch.float64)
    targets = torch.randint(classes, (count,), generator=generator)
    tally = Tally()
    for part in torch.arange(count).split(7):
        tally.add(outputs[part], targets[part])
    found, expected = tally.results(), naive(outputs, targets)
    assert found["ece"] == pytest.approx(expected["ece"], abs=1e-12)
    assert found["confusion"] == expected["confusion"] and found["samples"] == count
    assert found["accuracy"] == pytest.approx(sum(expected["confusion"][at][at] for at in range(classes)) / count)
    assert found["per_class_accuracy"] == expected["per_class_accuracy"]
    assert [one["samples"] for one in found["calibration_bins"]] == expected["bins"]


@pytest.mark.parametrize(("count", "classes"), [(1, 2), (97, 10), (300, 100)])
def test_calibration_and_confusion_are_those_of_torchmetrics(count: int, classes: int) -> None:
    torchvision()  # torchmetrics imports it
    metrics = importlib.import_module("torchmetrics.functional.classification")
    generator = torch.Generator().manual_seed(count)
    outputs = 3 * torch.randn(count, classes, generator=generator, dtype=torch.float64)
    targets = torch.randint(classes, (count,), generator=generator)
    tally = Tally()
    for part in torch.arange(count).split(64):
        tally.add(outputs[part], targets[part])
    found = tally.results()
    confusion = metrics.multiclass_confusion_matrix(outputs, targets, classes)
    assert found["confusion"] == confusion.tolist() == confusion_counts(outputs, targets).tolist()
    # which computes in float32
    assert found["ece"] == pytest.approx(
        float(metrics.multiclass_calibration_error(outputs, targets, classes)), abs=1e-6
    )


def test_a_sure_network_that_is_right_is_calibrated_and_one_that_is_wrong_is_not() -> None:
    outputs = 100.0 * torch.eye(4)
    for targets, ece in ((torch.arange(4), 0.0), (torch.arange(4).roll(1), 1.0)):
        tally = Tally()
        tally.add(outputs, targets)
        assert tally.results()["ece"] == pytest.approx(ece)


def test_a_known_case_by_hand() -> None:
    # confidences 0.9, 0.9, 0.62 and 0.62; right, wrong, right, right
    sure, unsure = math.log(9.0), math.log(0.62 / 0.38)
    outputs = torch.tensor([[sure, 0], [sure, 0], [0, unsure], [unsure, 0]], dtype=torch.float64)
    tally = Tally()
    tally.add(outputs, torch.tensor([0, 1, 1, 0]))
    found = tally.results()
    assert found["ece"] == pytest.approx(0.5 * abs(0.9 - 0.5) + 0.5 * abs(0.62 - 1.0))
    assert found["confusion"] == [[2, 0], [1, 1]]
    assert found["per_class_accuracy"] == [1.0, 0.5]
    (low,) = [one for one in found["calibration_bins"] if one["from"] < 0.62 <= one["to"]]
    assert (low["samples"], low["accuracy"], low["confidence"]) == (2, 1.0, pytest.approx(0.62))
    assert [one["samples"] for one in found["calibration_bins"]] == [0] * 9 + [2, 0, 0, 0, 2, 0]


def test_the_tester_keeps_its_keys_and_counts_every_sample() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 7))
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(11, 1, 2, 2, generator=generator)
    targets = torch.randint(6, (11,), generator=generator)  # class 6 has no sample
    tester = build("testers", "Accuracy")
    batches = list(zip(inputs.split(4), targets.split(4), strict=True))
    found = tester.evaluate(model, batches, build("losses", "CrossEntropy"))
    outputs = model(inputs).detach()
    assert list(found)[:4] == ["accuracy", "top5", "loss", "samples"]
    assert found["accuracy"] == (outputs.argmax(1) == targets).double().mean()
    assert found["loss"] == pytest.approx(float(nn.functional.cross_entropy(outputs, targets)))
    assert sum(map(sum, found["confusion"])) == found["samples"] == 11
    assert sum(row[at] for at, row in enumerate(found["confusion"])) / 11 == pytest.approx(found["accuracy"])
    assert found["per_class_accuracy"][6] is None and len(found["calibration_bins"]) == 15
    assert found["ece"] == pytest.approx(naive(outputs.double(), targets)["ece"])
    json.dumps(found, allow_nan=False)


def test_what_is_shown_names_the_classes() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    tester = build("testers", "Accuracy")
    context = TestContext(class_names=("cat", "dog", "emu"))
    batches = [(torch.randn(4, 1, 2, 2), torch.tensor([0, 0, 1, 1]))]
    lines = tester.shown(tester.evaluate(model, batches, build("losses", "CrossEntropy"), context=context))
    assert any(str(line).strip().startswith("ece: ") for line in lines)
    assert str(lines[-1]).strip() == "emu: no sample"


def test_outputs_that_are_no_numbers_are_wrong_everywhere_and_leave_finite_results() -> None:
    """The largest of them would be class 0."""
    outputs = torch.eye(4)[torch.tensor([0, 0, 1, 2])] * 3
    outputs[1] = torch.nan
    outputs[2, 3] = torch.nan
    targets = torch.tensor([0, 0, 1, 2])
    tester: Any = build("testers", "Accuracy")
    found = tester.run(lambda x: outputs[x], [(torch.arange(4), targets)], nn.functional.cross_entropy)
    assert (found["accuracy"], found["top5"]) == (0.5, 0.5)
    assert found["per_class_accuracy"] == [0.5, 0.0, 1.0, None]
    assert found["confusion"] == [[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert math.isfinite(found["ece"]) and sum(one["samples"] for one in found["calibration_bins"]) == 4
    assert int(correct_samples(outputs, targets)) == 2
    assert confusion_counts(outputs, targets).tolist() == found["confusion"]
