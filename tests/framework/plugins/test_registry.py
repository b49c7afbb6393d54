"""The registry: names from files, checks that name the file, and nothing imported before it is needed."""

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from secateur.framework.plugins.registry import ROOT, Registry, build, check_options, check_values, option_names
from secateur.utils.errors import UsageError

Tree = Callable[[dict[str, str]], Path]
SCORE = "def score(self, model, batches, loss, groups=None): return {}"


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Write a folder of files: relative path -> text."""

    def write(files: dict[str, str], name: str = "tree") -> Path:
        for path, text in files.items():
            file = tmp_path / name / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


@pytest.fixture
def empty(tmp_path: Path) -> Registry:
    """A registry without built-in plug-ins."""
    (tmp_path / "root").mkdir()
    return Registry(tmp_path / "root")


def criterion(name: str, body: str = SCORE, head: str = 'granularity = "weight"') -> str:
    return f"from secateur import Criterion\n\nclass {name}(Criterion):\n    {head}\n    {body}\n"


def test_names_are_sorted_and_import_nothing(tree: Tree) -> None:
    boom = "raise RuntimeError('imported')\nclass {}: pass\n"
    root = tree({f"models/{name}.py": boom.format(name) for name in ("Zed", "Abc")})
    registry = Registry(root)
    assert registry.names("models") == ["Abc", "Zed"]
    assert registry.describe("models", "Zed").name == "Zed"


def test_files_with_an_underscore_and_other_files_are_no_plugins(tree: Tree) -> None:
    root = tree({"models/__init__.py": "", "models/_helper.py": "", "models/notes.txt": "", "models/Net.py": ""})
    assert Registry(root).names("models") == ["Net"]


def test_data_sets_are_found_below_utils(tree: Tree) -> None:
    assert Registry(tree({"utils/data/TOY.py": "class TOY: pass"})).names("datasets") == ["TOY"]


def test_optimizers_are_those_of_torch(empty: Registry) -> None:
    import torch

    assert empty.names("optimizers") == ["ADADELTA", "ADAM", "ADAMW", "RMSPROP", "SGD"]
    assert empty.get("optimizers", "RMSPROP") is torch.optim.RMSprop
    with pytest.raises(UsageError, match="unknown optimizer 'ADMA': did you mean 'ADAM'"):
        empty.get("optimizers", "ADMA")


def test_an_unknown_name_is_answered_with_the_nearest(tree: Tree) -> None:
    registry = Registry(tree({"models/VGG16.py": "", "models/LeNet5.py": ""}))
    with pytest.raises(UsageError, match=r"model 'vgg': did you mean 'VGG16'\? \(one of LeNet5, VGG16\)"):
        registry.file("models", "vgg")


def test_an_unknown_kind_is_answered_with_the_nearest(empty: Registry) -> None:
    with pytest.raises(UsageError, match="unknown kind 'criteria': did you mean 'criterions'"):
        empty.names("criteria")


def test_a_folder_adds_classes_that_can_be_used(tree: Tree, empty: Registry) -> None:
    empty.add_folder(tree({"criterions/Mine.py": criterion("Mine")}))
    cls = empty.get("criterions", "Mine")
    assert cls.__name__ == "Mine" and cls.granularity == "weight"
    assert empty.get("criterions", "Mine") is cls


def test_getting_one_plugin_imports_that_file_only(tree: Tree, empty: Registry) -> None:
    empty.add_folder(tree({"criterions/One.py": criterion("One"), "criterions/Two.py": criterion("Two")}))
    before = set(sys.modules)
    empty.get("criterions", "One")
    loaded = {name for name in set(sys.modules) - before if "secateur_plugins" in name}
    assert {name.split(".")[-1] for name in loaded} == {"One"}


def test_a_folder_given_twice_counts_once(tree: Tree, empty: Registry) -> None:
    folder = tree({"losses/Mine.py": "class Mine: pass"})
    empty.add_folder(folder)
    empty.add_folder(f"{folder}/../{folder.name}")
    assert empty.folders == [folder]


def test_a_plugin_in_a_folder_inside_the_project_is_its_own_module(tree: Tree) -> None:
    root = tree({"criterions/mine/criterions/Inner.py": criterion("Inner")})
    registry = Registry(root)
    registry.add_folder(root / "criterions" / "mine")
    assert registry.get("criterions", "Inner").__name__ == "Inner"


REFUSED = {
    "no class": (
        {"losses/Mine.py": "x = 1"},
        "Mine.py: expected a class named Mine (like the file), found no class",
    ),
    "other class": ({"losses/Mine.py": "class Yours: pass"}, "found Yours"),
    "no Python": ({"losses/Mine.py": "class Mine(:"}, "Mine.py is not valid Python"),
    "null bytes": ({"losses/Mine.py": "class Mine: pass\0"}, "Mine.py is not valid Python"),
    "score lacks an argument": (
        {"criterions/Mine.py": criterion("Mine", "def score(self, model, batches, loss): return {}")},
        "Mine.py: Mine.score takes (self, model, batches, loss), expected (self, model, batches, loss, gr",
    ),
    "score takes others": (
        {"criterions/Mine.py": criterion("Mine", "def score(self, net, data, loss, groups=None): return {}")},
        "Mine.score takes (self, net, data, loss, groups)",
    ),
    "groups has no default": (
        {"criterions/Mine.py": criterion("Mine", "def score(self, model, batches, loss, groups): return {}")},
        "expected (self, model, batches, loss, groups=None)",
    ),
    "score takes anything": (
        {"criterions/Mine.py": criterion("Mine", "def score(self, *args, **kwargs): return {}")},
        "Mine.score takes",
    ),
    "wrong layout": (
        {"Mine.py": "class Mine: pass"},
        "contains no plug-in: looked for models/*.py, criterions/*.py",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_folder_that_breaks_the_contract_is_refused_whole(tree: Tree, empty: Registry, case: str) -> None:
    files, expected = REFUSED[case]
    folder = tree({**files, **({} if case == "wrong layout" else {"models/Fine.py": "class Fine: pass"})})
    with pytest.raises(UsageError) as error:
        empty.add_folder(folder)
    assert expected in str(error.value)
    assert empty.names("models") == [] and empty.folders == []


def test_a_name_that_is_taken_is_refused_with_both_files(tree: Tree, tmp_path: Path) -> None:
    registry = Registry(tree({"models/Net.py": "class Net: pass"}))
    other = tmp_path / "other" / "models"
    other.mkdir(parents=True)
    (other / "Net.py").write_text("class Net: pass")
    with pytest.raises(UsageError) as error:
        registry.add_folder(other.parent)
    assert str(other / "Net.py") in str(error.value) and str(tmp_path / "tree" / "models") in str(error.value)


def test_the_same_name_in_another_kind_is_free(tree: Tree, empty: Registry) -> None:
    empty.add_folder(tree({"models/Twin.py": "class Twin: pass", "losses/Twin.py": "class Twin: pass"}))
    assert empty.names("models") == empty.names("losses") == ["Twin"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "class Mine:\n    pass\n",
            "must be a subclass of secateur.Criterion",
        ),
        (criterion("Mine", "pass"), "Mine lacks score"),
        ("import no_such_module\n\nclass Mine:\n    pass\n", "cannot be imported: ModuleNotFoundError"),
        ("class Mine:\n    pass\n\n\nMine = 3\n", "Mine is not a class"),
    ],
)
def test_what_only_an_import_shows_is_refused_by_file(
    tree: Tree, empty: Registry, text: str, expected: str
) -> None:
    empty.add_folder(tree({"criterions/Mine.py": text}))
    with pytest.raises(UsageError) as error:
        empty.get("criterions", "Mine")
    assert "Mine.py" in str(error.value) and expected in str(error.value)


def test_a_description_comes_from_the_class_and_its_bases(tree: Tree) -> None:
    root = tree(
        {
            "criterions/Parent.py": criterion(
                "Parent", head='"""Parent line."""\n    granularity: str = "channel"\n    paper = "arXiv:1"'
            ),
            "criterions/Child.py": (
                "from secateur.criterions.Parent import Parent as Base\n"
                "import secateur.framework.schedules.base\n\n"
                'class Child(Base):\n    """First line.\n\n    More.\n    """\n'
                "    schedule = secateur.framework.schedules.base.During(delay=1)\n"
            ),
        }
    )
    entry = Registry(root).describe("criterions", "Child")
    assert (entry.summary, entry.granularity, entry.when, entry.paper) == (
        "First line.",
        "channel",
        "during",
        "arXiv:1",
    )


def test_a_criterion_without_a_schedule_prunes_before_training(tree: Tree) -> None:
    root = tree({"criterions/Plain.py": criterion("Plain")})
    assert Registry(root).describe("criterions", "Plain").when == "before"


def test_bases_that_go_in_a_circle_end(tree: Tree) -> None:
    root = tree({"models/A.py": "class A(B): pass", "models/B.py": "class B(A): pass"})
    assert Registry(root).describe("models", "A").summary == ""


def test_options_are_collected_up_the_constructors() -> None:
    class Base:
        def __init__(self, *, width: int = 1) -> None: ...

    class Middle(Base):
        def __init__(self, *, depth: int = 1, **options: int) -> None: ...

    class Closed(Middle):
        def __init__(self, *, height: int = 1) -> None: ...

    assert option_names(Middle) == ["depth", "width"]
    assert option_names(Closed) == ["height"]
    with pytest.raises(UsageError, match="unknown option of Net 'widht': did you mean 'width'"):
        check_options(Middle, "Net", ["depth", "widht"])
    with pytest.raises(UsageError, match="Net has no options, got 'x'"):
        check_options(object, "Net", ["x"])


def test_a_value_of_the_wrong_type_is_named_in_one_line() -> None:
    with pytest.raises(UsageError, match="^VGG16: num_classes must be a whole number, got 'ten'$"):
        build("models", "VGG16", num_classes="ten")
    with pytest.raises(UsageError, match=r"^SGD\(params, lr\): TypeError: .*not supported"):
        build("optimizers", "SGD", params=[nn.Parameter(torch.ones(1))], lr="fast")


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("GRASP", {"original_polarity": "nein"}, "GRASP: original_polarity must be true or false, got 'nein'"),
        ("GRASP", {"halves": 3}, "GRASP: halves must be true or false, got 3"),
        ("GRASP", {"temperature": "abc"}, "GRASP: temperature must be a number, got 'abc'"),
        ("GRASP", {"temperature": float("nan")}, "GRASP: temperature must be a number, got nan"),
        ("GRASP", {"temperature": float("inf")}, "GRASP: temperature must be above 0 and finite, got inf"),
        ("LossBased", {"temperature": float("inf")}, "temperature must be above 0 and finite, got inf"),
        ("LossBased", {"samples": 2.5}, "LossBased: samples must be a whole number, got 2.5"),
        ("LossBased", {"samples": True}, "LossBased: samples must be a whole number, got True"),
    ],
)
def test_values_of_another_type_than_the_constructor_names_are_refused(
    name: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        build("criterions", name, **options)


@pytest.mark.parametrize("options", [{"temperature": 3}, {"temperature": np.float32(3)}])
def test_numbers_of_other_libraries_are_numbers(options: dict[str, Any]) -> None:
    assert build("criterions", "LossBased", **options)


def test_other_annotations_are_the_constructors_own_business() -> None:
    def made(self: Any, plain: int | None, listed: list[int], bare=None, *, text: str = "") -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
        """Takes what it likes."""

    parameters = dict(inspect.signature(made).parameters)
    check_values("x", parameters, {"plain": 10**400})
    check_values("x", parameters, {"plain": None, "listed": "no list", "bare": object(), "text": "yes", "more": 1})
    for options in ({"plain": "1"}, {"text": 1}):
        with pytest.raises(UsageError):
            check_values("x", parameters, options)


@pytest.mark.slow
def test_users_packages_of_the_same_names_are_left_alone(tree: Tree) -> None:
    text = "from torch import nn\nclass VGG16(nn.ReLU): pass\n"
    mine = tree({"models/__init__.py": "", "models/VGG16.py": text, "utils.py": "", "framework/__init__.py": ""})
    code = (
        "import framework, models.VGG16, utils; from secateur import build; cls = type(build('models', 'VGG16'))"
    )
    code += "; import inspect; print(inspect.getfile(cls), models.VGG16.__file__)"
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(mine), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False, cwd=mine
    )
    assert done.stdout.split() == [str(ROOT / "models" / "VGG16.py"), str(mine / "models" / "VGG16.py")], (
        done.stderr
    )


def test_recommended_settings_are_read_from_the_class_and_its_bases(tree: Tree) -> None:
    settings = {"T": 5.0, "keep_share": {"rounds": 0.05}}
    head = f'granularity = "channel"; recommended = {settings}'
    derived = "from criterions.Base import Base\nclass {}(Base):\n    {}\n"
    files = {
        "criterions/Base.py": criterion("Base", head=head),
        "criterions/Same.py": derived.format("Same", '"""The same."""'),
        "criterions/Other.py": derived.format("Other", 'recommended: ClassVar = {"use_l2": True}'),
        "criterions/Plain.py": criterion("Plain"),
        "models/Net.py": 'class Net:\n    recommended = {"image_size": 32}\n',
    }
    registry = Registry(tree(files))
    found = {name: registry.describe("criterions", name).recommended for name in registry.names("criterions")}
    assert found == {"Base": settings, "Same": settings, "Other": {"use_l2": True}, "Plain": {}}
    assert registry.describe("models", "Net").recommended == {"image_size": 32}


@pytest.mark.parametrize("value", ["dict(T=5)", "[1]", "{1: 2}", "{**Base.recommended}"])
def test_recommended_settings_must_be_literal(value: str, tree: Tree) -> None:
    registry = Registry(tree({"criterions/Odd.py": criterion("Odd", head=f"recommended = {value}")}))
    with pytest.raises(UsageError, match=r"Odd\.py: Odd\.recommended must be a literal"):
        registry.describe("criterions", "Odd")


def test_a_criterion_prunes_unless_its_schedule_is_never(tree: Tree) -> None:
    never = criterion("Dense", head='granularity = "weight"; schedule = Never()')
    registry = Registry(tree({"criterions/Dense.py": never, "criterions/Own.py": criterion("Own")}))
    assert [registry.describe("criterions", name).prunes for name in ("Dense", "Own")] == [False, True]


@pytest.mark.parametrize("kind", ["criterions", "datasets", "models"])
def test_what_is_read_is_what_the_class_has(kind: str) -> None:
    ours = Registry()
    for name in ours.names(kind):
        entry, cls = ours.describe(kind, name), ours.get(kind, name)
        assert entry.recommended == getattr(cls, "recommended", {})
        assert entry.granularity == getattr(cls, "granularity", "")
        assert kind != "criterions" or entry.when == type(cls.schedule).__name__.lower()


@pytest.mark.parametrize(
    "head",
    [
        "from secateur import WeightCriterion\n\nclass Own(WeightCriterion):",
        "import secateur\n\nclass Own(secateur.WeightCriterion):",
        "from secateur.framework.pruning.scoring.templates import WeightCriterion as W\n\nclass Own(W):",
        "from secateur.criterions.SNIP import SNIP\n\nclass Base(SNIP): pass\n\nclass Own(Base):",
    ],
)
def test_attributes_of_our_base_classes_are_read(head: str, tree: Tree) -> None:
    registry = Registry(tree({"criterions/Own.py": head + "\n    def formula(self, w, g, l): return w\n"}))
    entry = registry.describe("criterions", "Own")
    assert (entry.granularity, entry.when) == ("weight", "before")
