"""Random changes of training images, checked against plain loops over one image at a time."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.utils.loading.augment import AUGMENTATIONS, augment, crop, cutout, flip, rotate
from secateur.utils.vision import torchvision

STEPS = [flip, crop, cutout, rotate]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 16, channels: int = 3, height: int = 12, width: int = 12) -> Tensor:
    """Return uint8 images without any black pixel, so that black shows where something was cut away."""
    shape = (count, channels, height, width)
    return torch.randint(1, 256, shape, dtype=torch.uint8, generator=generator(1))


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_shape_and_type_stay_and_the_input_is_not_changed(name: str, dtype: torch.dtype) -> None:
    given_images = images().to(dtype)
    before = given_images.clone()
    result = augment(given_images, name, generator())
    assert result.shape == given_images.shape and result.dtype == dtype
    assert torch.equal(given_images, before)
    assert torch.equal(result, before) == (name == "none")


@pytest.mark.parametrize("name", [name for name in AUGMENTATIONS if name != "none"])
def test_the_generator_alone_decides(name: str) -> None:
    global_state = torch.get_rng_state()
    first, again, other = (augment(images(), name, generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), global_state)


@pytest.mark.parametrize("step", STEPS)
def test_every_image_of_a_batch_draws_its_own_numbers(step: Callable[..., Tensor]) -> None:
    same = images(1).expand(64, -1, -1, -1)
    assert len({bytes(image.numpy().tobytes()) for image in step(same, generator())}) > 1


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), channels=st.integers(1, 3), height=st.integers(2, 9), width=st.integers(2, 9))
def test_each_step_changes_a_float_image_as_it_changes_the_uint8_image(
    seed: int, channels: int, height: int, width: int
) -> None:
    given_images = images(4, channels, height, width)
    for step in (flip, crop, cutout):
        from_float = step(given_images.float() / 255, generator(seed))
        assert torch.equal(from_float, step(given_images, generator(seed)).float() / 255)
    turned = rotate(given_images.float(), generator(seed))
    assert (turned - rotate(given_images, generator(seed)).float()).abs().max() <= 0.5001


def test_flip_mirrors_the_images_whose_number_is_below_a_half() -> None:
    given_images = images(200, 1, 3, 4)
    numbers = torch.rand(200, generator=generator(5))
    result = flip(given_images, generator(5))
    for image, number, flipped in zip(given_images, numbers, result, strict=True):
        expected = torch.stack([image[..., 3 - column] for column in range(4)], dim=-1) if number < 0.5 else image
        assert torch.equal(flipped, expected)
    assert 60 < int((numbers < 0.5).sum()) < 140


def test_crop_shifts_by_up_to_four_pixels_and_fills_with_black() -> None:
    given_images = images(300, 2, 6, 7)
    draws = generator(6)
    tops = torch.randint(0, 9, (300,), generator=draws).tolist()
    lefts = torch.randint(0, 9, (300,), generator=draws).tolist()
    result = crop(given_images, generator(6))
    assert set(tops) == set(lefts) == set(range(9))
    for number in range(0, 300, 7):
        expected = torch.zeros(2, 6, 7, dtype=torch.uint8)
        for row in range(6):
            for column in range(7):
                source_row, source_column = row + tops[number] - 4, column + lefts[number] - 4
                if 0 <= source_row < 6 and 0 <= source_column < 7:
                    expected[:, row, column] = given_images[number, :, source_row, source_column]
        assert torch.equal(result[number], expected)


def test_cutout_blackens_one_square_of_half_the_side_clipped_at_the_border() -> None:
    given_images = images(100, 2, 8, 10)
    draws = generator(7)
    rows = torch.randint(0, 8, (100,), generator=draws).tolist()
    columns = torch.randint(0, 10, (100,), generator=draws).tolist()
    result = cutout(given_images, generator(7))
    for number in range(100):
        expected = given_images[number].clone()
        top, left = rows[number] - 2, columns[number] - 2
        expected[:, max(top, 0) : top + 4, max(left, 0) : left + 4] = 0
        assert torch.equal(result[number], expected)
    areas = {int((image[0] == 0).sum()) for image in result}
    assert max(areas) == 16 and min(areas) == 4


@pytest.mark.parametrize(("height", "width"), [(12, 12), (8, 12), (11, 7)])
def test_rotation_turns_counter_clockwise_as_torchvision_does(height: int, width: int) -> None:
    functional = torchvision().transforms.functional
    given_images = images(6, 2, height, width).float()
    angles = torch.rand(6, generator=generator(8)) * 180
    bilinear = functional.InterpolationMode.BILINEAR
    expected = [functional.rotate(image, angle.item(), interpolation=bilinear)
                for image, angle in zip(given_images, angles, strict=True)]  # fmt: skip
    torch.testing.assert_close(rotate(given_images, generator(8)), torch.stack(expected), rtol=0, atol=0.02)


def test_rotation_angles_fill_the_half_circle() -> None:
    # one bright pixel right of the centre: counter-clockwise by 0..180 degrees it visits the upper half only
    image = torch.zeros(1, 1, 21, 21)
    image[..., 10, 18] = 1
    mass = rotate(image.expand(400, -1, -1, -1), generator()).sum(dim=(0, 1))
    upper, lower = mass[:9].sum().item(), mass[12:].sum().item()
    assert upper > 100 and lower == 0
    assert mass[:10, :5].sum() > 20 and mass[:10, 16:].sum() > 20


def test_names_apply_their_steps_in_the_documented_order() -> None:
    given_images = images()
    draws = generator(9)
    expected = cutout(flip(crop(given_images, draws), draws), draws)
    assert torch.equal(augment(given_images, "cutout", generator(9)), expected)
    draws = generator(9)
    expected = rotate(cutout(flip(given_images, draws), draws), draws)
    assert torch.equal(augment(given_images, "cutout_rotate", generator(9)), expected)
