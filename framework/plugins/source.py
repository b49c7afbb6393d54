"""Parsing of plug-in sources with `ast`, so that plug-ins are listed and checked without importing them."""

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, get_origin

from secateur.utils.errors import UsageError

#: the folder with framework/, models/, ...: the clone, or the installed package
ROOT = Path(__file__).resolve().parent.parent.parent

#: the module with the public names: beside framework/ in a clone, above it in the installed package
FRONT = next(file for file in (ROOT / "secateur" / "__init__.py", ROOT / "__init__.py") if file.is_file())

SCORE_ARGUMENTS = ["self", "model", "batches", "loss", "groups"]


@dataclass(frozen=True)
class Entry:
    """One row of `python main.py list`; the fields with a default are class attributes of the plug-in."""

    kind: str
    name: str
    summary: str
    granularity: str = ""
    schedule: str = ""
    paper: str = ""
    #: trainer that the criterion needs
    trainer: str = ""
    #: settings that a run takes unless the user gives them, see `Criterion.recommended`
    recommended: dict[str, Any] = field(default_factory=dict)
    #: whether the data set needs `--data_dir`
    needs_folder: bool = False
    #: whether the trainer trains gates that prune
    owns_gates: bool = False
    #: whether the tester attacks the network
    attacks: bool = False

    @property
    def prunes(self) -> bool:
        """Whether the default schedule of the criterion prunes at all."""
        return self.when != "never"

    @property
    def when(self) -> str:
        """Default moment of pruning: before, during, after or never."""
        return self.schedule.split("(")[0].split(".")[-1].lower()


#: class attribute of a plug-in that is read from its source -> its type
DECLARED = {field.name: get_origin(field.type) or field.type for field in fields(Entry)[3:]}


def read_entry(kind: str, name: str, file: Path, siblings: Mapping[str, Path]) -> Entry:
    """Describe a plug-in; attributes that its class does not declare are taken from its bases in `siblings`."""
    summary = (ast.get_docstring(class_node(name, file)) or "").split("\n")[0].strip()
    declared: dict[str, Any] = {}
    for current, source in ancestry(name, file, siblings):
        for attribute, value in _attributes(class_node(current, source)).items():
            if attribute not in declared:
                declared[attribute] = _value(value, f"{source}: {current}.{attribute}", DECLARED[attribute])
    return Entry(kind, name, summary, **declared)


def ancestry(name: str, file: Path, siblings: Mapping[str, Path]) -> list[tuple[str, Path]]:
    """Return (name, file) of a plug-in and of its base classes, nearest first.

    Base classes are plug-ins in `siblings` or defined by Secateur; those of other packages are left out.
    """
    ancestors = [(name, file)]
    for current, source in ancestors:  # grows during the loop
        for base in _bases(current, source):
            home = siblings.get(base) or _home(base, source) or _home(base, FRONT)
            if home is not None and base not in [other for other, _ in ancestors]:
                ancestors.append((base, home))
    return ancestors


def check_source(kind: str, name: str, file: Path) -> None:
    """Raise UsageError, naming the file, if its class is missing or `score` violates the contract."""
    node = class_node(name, file)
    if kind != "criterions":
        return
    for method in node.body:
        if isinstance(method, ast.FunctionDef) and method.name == "score":
            arguments = [argument.arg for argument in method.args.posonlyargs + method.args.args]
            if arguments != SCORE_ARGUMENTS or len(method.args.defaults) != 1:
                raise UsageError(
                    f"{file}: {name}.score takes ({', '.join(arguments)}), "
                    "expected (self, model, batches, loss, groups=None)"
                )


def class_node(name: str, file: Path) -> ast.ClassDef:
    """Return the class statement of a plug-in, which must be in the file of the same name."""
    classes = {node.name: node for node in reversed(_parse(file).body) if isinstance(node, ast.ClassDef)}
    if name in classes:
        return classes[name]
    others = ", ".join(reversed(classes)) or "no class"
    raise UsageError(f"{file}: expected a class named {name} (like the file), found {others}")


@lru_cache(maxsize=512)
def _tree(source: bytes, filename: str) -> ast.Module:
    """The syntax tree, not to be changed; cached by the text, so that an edited file is parsed again."""
    return ast.parse(source, filename=filename)


def _parse(file: Path) -> ast.Module:
    try:
        return _tree(file.read_bytes(), str(file))
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from error
    except (SyntaxError, ValueError) as error:  # ValueError: null bytes
        raise UsageError(f"{file} is not valid Python: {error}") from error


def _attributes(node: ast.ClassDef) -> dict[str, ast.expr]:
    """Return the expressions of the declared attributes in the body of a class."""
    found: dict[str, ast.expr] = {}
    for statement in node.body:
        if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            found |= {name: statement.value for name in names if name in DECLARED}
    return found


def _value(value: ast.expr, where: str, kind: Any) -> Any:
    """Return the value of an attribute as text, or as the literal that it must be."""
    if kind is str:
        return str(value.value) if isinstance(value, ast.Constant) else ast.unparse(value)
    try:
        literal = ast.literal_eval(value)
    except ValueError:
        literal = None
    names = list(literal) if isinstance(literal, dict) else []
    if not isinstance(literal, kind) or not all(isinstance(name, str) for name in names):
        example = '{"T": 5.0}' if kind is dict else "True"
        raise UsageError(f"{where} must be a literal such as {example}, got {ast.unparse(value)}")
    return literal


def _bases(name: str, file: Path) -> list[str]:
    """Return the names of the base classes in the modules that define them."""
    imports = [node for node in _parse(file).body if isinstance(node, ast.ImportFrom)]
    origin = {alias.asname: alias.name for node in imports for alias in node.names if alias.asname}
    bases = [ast.unparse(base).split(".")[-1] for base in class_node(name, file).bases]
    return [origin.get(base, base) for base in bases]


def _home(name: str, file: Path) -> Path | None:
    """Return the file of ours that defines a class that `file` defines or imports; None for other classes."""
    for node in ast.walk(_parse(file)):
        if isinstance(node, ast.ClassDef) and node.name == name:
            return file
        if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
            package, *inner = (node.module or "").split(".")
            if package == "secateur" and inner:
                return ROOT.joinpath(*inner).with_suffix(".py")
    return None
