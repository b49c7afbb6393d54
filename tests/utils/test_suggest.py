"""Messages about names that do not exist."""

from hypothesis import given
from hypothesis import strategies as st

from secateur.utils.suggest import nearest, one_line, unknown

SETS = ("CIFAR10", "CIFAR100", "FASHION", "MNIST")


def test_the_nearest_name_is_found_whatever_the_case() -> None:
    assert nearest("CIFAR01", SETS) == "CIFAR10"
    assert nearest("fashion", SETS) == "FASHION"
    assert nearest("mnst", SETS) == "MNIST"


def test_a_name_like_no_other_has_no_nearest() -> None:
    assert nearest("qqqq", SETS) is None
    assert nearest("CIFAR10", ()) is None


@given(st.sampled_from(SETS))
def test_a_name_is_nearest_to_itself(name: str) -> None:
    assert nearest(name, SETS) == name


def test_the_message_names_what_was_given_the_nearest_and_all() -> None:
    assert unknown("data_set", "CIFAR01", SETS) == (
        "unknown data_set 'CIFAR01': did you mean 'CIFAR10'? (one of CIFAR10, CIFAR100, FASHION, MNIST)"
    )
    assert unknown("data_set", "qqqq", ["MNIST"]) == "unknown data_set 'qqqq' (one of MNIST)"
    assert unknown("data_set", "MNIST", []) == "unknown data_set 'MNIST' (there are none)"


def test_an_iterator_of_names_is_read_once_and_kept() -> None:
    assert "did you mean 'MNIST'? (one of CIFAR10, CIFAR100, FASHION, MNIST)" in unknown("x", "mnist", iter(SETS))


@given(st.text())
def test_the_message_is_one_line_whatever_was_given(given_name: str) -> None:
    assert len(unknown("model", given_name, ["VGG16"]).splitlines()) == 1


@given(st.text(), st.integers(min_value=4, max_value=50))
def test_a_folded_text_is_one_short_line(text: str, limit: int) -> None:
    line = one_line(text, limit)
    assert len(line) <= limit
    assert len(line.splitlines()) <= 1
