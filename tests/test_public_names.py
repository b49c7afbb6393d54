"""The names that are imported from `secateur`: documented in full, each with an example that runs."""

import ast
import doctest
import importlib
import inspect
import re
import subprocess
import sys

import pytest

import secateur
from tests import ROOT

#: names that are never removed
CONTRACT = [
    "registry",
    "build",
    "Criterion",
    "Scores",
    "Masks",
    "channel_groups",
    "select",
    "prune",
    "cut",
    "measure",
    "save_model",
    "load_model",
    "Before",
    "During",
    "After",
]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
PLAIN = sorted(name for name in secateur.__all__ if not inspect.isclass(getattr(secateur, name)))
FUNCTIONS = [name for name in PLAIN if inspect.isfunction(getattr(secateur, name))]
CLASSES = sorted(name for name in secateur.__all__ if inspect.isclass(getattr(secateur, name)))


def test_the_public_names_are_those_for_type_checkers() -> None:
    tree = ast.parse((ROOT / "secateur" / "__init__.py").read_text())
    (block,) = (
        node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    listed = {
        alias.asname: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert listed == secateur._HOME
    assert set(CONTRACT) <= set(secateur.__all__) == set(listed) <= set(dir(secateur))


def test_a_module_gives_the_name_it_defines() -> None:
    for name, home in secateur._HOME.items():
        module = importlib.import_module(home)
        assert getattr(module, name) is getattr(secateur, name)
        source = inspect.getsource(module)
        assert re.search(rf"^(?:def|class) {name}\b|^{name}\b.*=", source, re.MULTILINE), (name, home)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'secateur' has no attribute 'prunee'"):
        secateur.prunee  # noqa: B018
    with pytest.raises(ImportError):
        exec("from secateur import prunee")


def test_in_a_clone_framework_gives_the_same_objects() -> None:
    code = "import framework, secateur, sys"
    code += f"; print(all(getattr(framework, name) is getattr(secateur, name) for name in {CONTRACT!r}))"
    code += "; print(sorted(m for m in sys.modules if m.split('.')[0] in ('framework', 'utils')))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["True", "['framework']"], done.stderr


@pytest.mark.parametrize(
    "line",
    [
        "from utils.errors import UsageError",
        "from utils import errors, vision",
        "import utils.vision, utils.errors",
    ],
)
def test_in_a_clone_utils_gives_the_same_objects(line: str) -> None:
    code = f"{line}; import secateur, sys; print(sys.modules['utils.errors'].UsageError is secateur.UsageError)"
    code += "; print(sys.modules['utils.vision'].torchvision is secateur.torchvision)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["True", "True"], done.stderr


def test_import_loads_no_torch() -> None:
    code = "import secateur, sys; print(sorted({'torch', 'numpy', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr


def sections(name: str) -> dict[str, str]:
    """Heading -> text below it, of a docstring in Google's style; "" for what comes before the first."""
    text = inspect.getdoc(getattr(secateur, name)) or ""
    parts = re.split(r"^(Args|Attributes|Returns|Yields|Raises|Example|Examples):\n", text, flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def entries(text: str) -> set[str]:
    """The names of an Args section: what stands before a colon at its first indentation."""
    groups = re.findall(r"^    ([\w*][\w*, ]*)(?: \(.*?\))?:", text, re.MULTILINE)
    return {word.strip("*") for group in groups for word in group.split(", ")}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_says_what_it_takes_gives_and_refuses(name: str) -> None:
    function = getattr(secateur, name)
    found = sections(name)
    parameters = {p.name for p in inspect.signature(function).parameters.values()}
    assert entries(found.get("Args", "")) == parameters
    returns = inspect.signature(function).return_annotation
    assert {"Returns", "Yields"} & found.keys() or returns in (None, "None")
    assert "Example" in found and ">>>" in found["Example"]
    assert re.match(r"[A-Z`].*\.$", found[""].strip().splitlines()[0]), "a sentence"


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_says_what_it_is_made_of(name: str) -> None:
    cls = getattr(secateur, name)
    found = sections(name)
    constructor = vars(cls).get("__init__")
    if "__init__" in vars(cls) or hasattr(cls, "__dataclass_fields__") or hasattr(cls, "_fields"):
        parameters = set(inspect.signature(cls).parameters)
        documented = entries(found.get("Args", "") + found.get("Attributes", ""))
        assert parameters <= documented or constructor is None and not parameters, parameters - documented
    assert "Example" in found and ">>>" in found["Example"]


@pytest.mark.parametrize("name", sorted({*FUNCTIONS, *CLASSES}))
def test_the_example_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    thing = getattr(secateur, name)
    finder = doctest.DocTestFinder(recurse=False)
    (example,) = finder.find(thing, name, module=False, globs={})
    assert example.examples
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    assert runner.run(example).failed == 0, capsys.readouterr().out
