"""Spoiled images: what each corruption does, and what the tester reports."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.framework.plugins.registry import build
from secateur.framework.studies.robustness.assess import wilson
from secateur.framework.studies.robustness.corruptions import CORRUPTIONS, STRENGTHS, blur, contrast, noise
from secateur.framework.training.tester import Network, TestContext
from secateur.utils.errors import UsageError


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_there_are_three_corruptions_at_five_strengths() -> None:
    assert set(CORRUPTIONS) == {"noise", "blur", "contrast"} == set(STRENGTHS)
    assert all(len(strengths) == 5 for strengths in STRENGTHS.values())


def test_noise_has_its_deviation_in_pixels() -> None:
    grey = torch.full((4, 3, 64, 64), 0.5)
    for strength in STRENGTHS["noise"][:3]:  # the stronger ones are cut at 0 and 1
        assert float((noise(grey, strength, rng()) - grey).std()) == pytest.approx(strength, rel=0.02)
    strong = noise(grey, 5.0, rng())
    assert float(strong.min()) == 0 and float(strong.max()) == 1


@pytest.mark.parametrize("strength", STRENGTHS["blur"])
def test_a_blurred_point_is_a_bell_and_a_flat_image_stays(strength: float) -> None:
    point = torch.zeros(1, 2, 31, 31, dtype=torch.float64)
    point[0, 1, 15, 15] = 1
    spread = blur(point, strength, rng())
    assert float(spread[0, 0].abs().max()) == 0  # channels do not mix
    assert float(spread.sum()) == pytest.approx(1)
    at = torch.arange(31, dtype=torch.float64) - 15
    variance = float((spread[0, 1].sum(dim=0) * at**2).sum())
    reach = at[(at.abs() <= max(1, -(-3 * strength // 1)))]
    bell = torch.exp(-(reach**2) / (2 * strength**2))
    assert variance == pytest.approx(float((bell * reach**2).sum() / bell.sum()))
    torch.testing.assert_close(blur(torch.full((1, 1, 9, 9), 0.3), strength, rng()), torch.full((1, 1, 9, 9), 0.3))


def test_contrast_keeps_the_mean_and_shrinks_the_rest() -> None:
    images = torch.rand(3, 2, 8, 8, generator=rng(), dtype=torch.float64)
    flat = contrast(images, 0.3, rng())
    torch.testing.assert_close(flat.mean(dim=(2, 3)), images.mean(dim=(2, 3)))
    torch.testing.assert_close(flat.std(dim=(2, 3)), 0.3 * images.std(dim=(2, 3)))


class Bright(nn.Module):
    """Class 1 where the first pixel, of [0, 1], is above a half."""

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([mean, std]))

    def forward(self, images: Tensor) -> Tensor:
        pixel = images[:, 0, 0, 0] * self.scale[1] + self.scale[0] - 0.5
        return torch.stack([-pixel, pixel], dim=1)


def batches(mean: float, std: float, count: int = 40) -> list[tuple[Tensor, Tensor]]:
    pixels = torch.rand(count, 1, 6, 6, generator=rng())
    return [((part - mean) / std, (part[:, 0, 0, 0] > 0.5).long()) for part in pixels.split(16)]


def run(seed: int = 0, mean: float = 0.3, std: float = 0.5, **options: Any) -> dict[str, Any]:
    context = TestContext(mean=(mean,), std=(std,), **options.pop("context", {}))
    tester = build("testers", "CorruptionRobustness", **options)
    loss = build("losses", "CrossEntropy")
    found: dict[str, Any] = tester.evaluate(
        Bright(mean, std), batches(mean, std), loss, seed=seed, context=context
    )
    return found


def test_accuracy_is_counted_over_all_images_by_corruption_and_strength() -> None:
    found = run(noise=[1e-6, 2.0])
    assert (found["clean_accuracy"], found["samples"]) == (1.0, 40)
    mild, strong = found["corruptions"]["noise"]["accuracy"]
    assert mild == 1 and 0.3 < strong < 0.9
    assert found["corruptions"]["noise"]["interval"][1] == list(wilson(round(40 * strong), 40))
    assert found["corruptions"]["noise"]["mean"] == (mild + strong) / 2
    every = [share for one in found["corruptions"].values() for share in one["accuracy"]]
    assert found["mean_accuracy"] == pytest.approx(sum(every) / len(every)) and len(every) == 12


def test_strengths_are_of_pixels_whatever_the_normalisation() -> None:
    assert run(mean=0.3, std=0.5) == run(mean=0.0, std=1.0)


def test_equal_seeds_give_equal_numbers_and_others_other_noise() -> None:
    assert run(noise=[0.4]) == run(noise=[0.4])
    hits = {tuple(run(seed, noise=[0.4, 0.5, 0.6])["corruptions"]["noise"]["accuracy"]) for seed in range(4)}
    assert len(hits) > 1


def test_a_second_network_sees_the_same_images(tmp_path: Path) -> None:
    twin = Network("twin", Bright(), (0.0,), (1.0,))
    found = run(noise=[0.4], context={"compared": twin, "plots": tmp_path})
    assert found["compared"]["corruptions"] == found["corruptions"]
    assert (tmp_path / "corruptions.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    "options", [{"noise": []}, {"blur": [0]}, {"contrast": [1.5]}, {"noise": ["much"]}, {"batch_size": 0}]
)
def test_strengths_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        build("testers", "CorruptionRobustness", **options)
