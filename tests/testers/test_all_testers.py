"""What holds for every tester, whatever it measures."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.framework.plugins.registry import build, registry
from secateur.framework.training.tester import Network, TestContext
from secateur.utils.errors import RunError
from tests.networks import randomise, same, seeded, snapshot

#: options that make a tester fast
OPTIONS: Mapping[str, dict[str, Any]] = {
    "AdversarialEvaluation": {"attack": "LinfPGD,DDNAttack", "attack_steps": 5}
}
NAMES = registry.names("testers")


def network(seed: int = 0) -> nn.Module:
    """Convolution, norm and dropout: a mode that is left on would show."""

    def make() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5),
            nn.Linear(5 * 36, 4),
        )  # fmt: skip

    model = randomise(seeded(make, seed)).train()
    model[1].eval()  # type: ignore[index]
    return model


def data(count: int = 14) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(count, 2, 6, 6, generator=generator)
    targets = torch.randint(4, (count,), generator=generator)
    return list(zip(((pixels - 0.4) / 0.2).split(5), targets.split(5), strict=True))


def evaluate(name: str, model: nn.Module, seed: int = 0, **context: Any) -> dict[str, Any]:
    tester = build("testers", name, **OPTIONS.get(name, {}))
    told = TestContext(mean=(0.4, 0.4), std=(0.2, 0.2), **context)
    found: dict[str, Any] = tester.evaluate(
        model, data(), build("losses", "CrossEntropy"), seed=seed, context=told
    )
    assert tester.shown(found)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_tester_leaves_network_gradients_mode_and_random_numbers_alone(name: str) -> None:
    model, other = network(), network(1)
    model(data()[0][0]).sum().backward()
    before = [snapshot(one) for one in (model, other)]
    gradients = {key: parameter.grad.clone() for key, parameter in model.named_parameters()}
    modes = [[module.training for module in one.modules()] for one in (model, other)]
    state = torch.get_rng_state()
    tester = registry.get("testers", name)
    compared = {"compared": Network("other", other, (0.4, 0.4), (0.2, 0.2))} if tester.compares else {}
    evaluate(name, model, **compared)
    assert all(same(old, snapshot(one)) for old, one in zip(before, (model, other), strict=True))
    assert modes == [[module.training for module in one.modules()] for one in (model, other)]
    assert all(torch.equal(parameter.grad, gradients[key]) for key, parameter in model.named_parameters())
    assert all(parameter.requires_grad for parameter in other.parameters())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", NAMES)
def test_equal_seeds_give_equal_results_that_json_can_hold(name: str) -> None:
    one, two = evaluate(name, network(), seed=4), evaluate(name, network(), seed=4)
    assert one == two and one["samples"] == 14
    assert json.loads(json.dumps(one, allow_nan=False)) == one


@pytest.mark.parametrize("name", NAMES)
def test_without_a_batch_there_is_nothing_to_test(name: str) -> None:
    with pytest.raises(RunError, match="to test"):
        build("testers", name).evaluate(network(), [], build("losses", "CrossEntropy"))


@pytest.mark.parametrize("name", NAMES)
def test_colour_pictures_are_drawn_where_there_are_some(name: str, tmp_path: Path) -> None:
    evaluate(name, network(), plots=tmp_path)
    drawn = {file.name for file in tmp_path.iterdir()}
    expected = {
        "AdversarialEvaluation": {"robustness.png", "examples_LinfPGD.png", "examples_DDNAttack.png"},
        "CorruptionRobustness": {"corruptions.png"},
    }
    assert drawn == expected.get(name, set())
