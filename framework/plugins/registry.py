"""The registry of plug-ins: a plug-in is a file that defines a class of the same name.

Listing names reads folders, describing a plug-in parses its file, and only `get` imports it. The command line can
therefore print `--help` and `list` without importing torch.
"""

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from pathlib import Path
from types import ModuleType, NoneType
from typing import Any

from secateur.framework.plugins.faults import PLUGIN_FILES, ends_process
from secateur.framework.plugins.old_imports import old_names_allowed
from secateur.framework.plugins.source import ROOT, Entry, ancestry, check_source, read_entry
from secateur.utils.errors import RunError, UsageError
from secateur.utils.suggest import one_line, unknown

FOLDERS = {
    "models": "models",
    "criterions": "criterions",
    "trainers": "trainers",
    "testers": "testers",
    "losses": "losses",
    "datasets": "utils/data",
}
#: base class of the plug-ins of each kind, by the name under which users import it
BASES = {
    "models": "torch.nn.Module",
    "criterions": "secateur.Criterion",
    "trainers": "secateur.Trainer",
    "testers": "secateur.Tester",
    "losses": "secateur.Loss",
    "datasets": "secateur.DataSet",
}
# optimizers of torch by their names on the command line; they need no plug-in files
OPTIMIZERS = {
    "ADADELTA": "Adadelta",
    "ADAM": "Adam",
    "ADAMW": "AdamW",
    "RMSPROP": "RMSprop",
    "SGD": "SGD",
}
#: annotation -> description of the allowed values, for error messages, and their type
TYPES: dict[str, tuple[str, type]] = {
    "bool": ("true or false", bool),
    "int": ("a whole number", Integral),
    "float": ("a number", Real),
    "str": ("text", str),
    "None": ("none", NoneType),
}


class Registry:
    """Finds plug-ins by kind and name in the built-in folders and in added folders.

    A plug-in is a file that defines a class of the same name, such as models/LeNet5.py. The folders are models/,
    criterions/, trainers/, testers/, losses/ and utils/data/ (kind "datasets"); "optimizers" are those of torch.

    Args:
        root: folder that contains the built-in plug-in folders. Default: the folder of Secateur.

    Attributes:
        kinds: names of all kinds of plug-ins.
        folders: added plug-ins folders, in order.

    Raises:
        UsageError: in all methods, with the nearest match, for an unknown kind or name.

    Example:
        >>> from secateur import Registry
        >>> plugins = Registry()
        >>> plugins.kinds
        ('models', 'criterions', 'trainers', 'testers', 'losses', 'datasets', 'optimizers')
        >>> "SNAP" in plugins.names("criterions")
        True
        >>> plugins.describe("criterions", "SNAP").granularity
        'channel'
    """

    kinds: tuple[str, ...] = (*FOLDERS, "optimizers")

    def __init__(self, root: Path = ROOT) -> None:
        self._files: dict[str, dict[str, Path]] = {kind: {} for kind in FOLDERS}
        self._classes: dict[tuple[str, str], type] = {}
        self.folders: list[Path] = []
        self._register(_scan(root))

    def add_folder(self, folder: str | Path) -> None:
        """Register all plug-ins of a folder; all are checked before any is added.

        Args:
            folder: folder with one or more of models/, criterions/, trainers/, testers/, losses/ and utils/data/.

        Raises:
            UsageError: naming the file, if the folder does not exist or has no plug-in, if a name is already
                registered, if a file does not define the class of its name, or if the `score` method of a
                criterion has a wrong signature.
        """
        path = Path(os.path.realpath(folder))  # Path.resolve() fails on circular links and on long names
        if path in self.folders:
            return
        if not os.path.isdir(path):
            raise UsageError(f"plug-ins folder {folder} does not exist")
        try:
            found = _scan(path)
        except OSError as error:
            raise UsageError(f"plug-ins folder {folder} cannot be read: {error.strerror}") from error
        if not any(found.values()):
            places = ", ".join(f"{place}/*.py" for place in FOLDERS.values())
            raise UsageError(f"plug-ins folder {folder} contains no plug-in: looked for {places}")
        for kind, files in found.items():
            for name, file in files.items():
                if name in self._files[kind]:
                    raise UsageError(f"{file}: the name {name} is already used by {self._files[kind][name]}")
                check_source(kind, name, file)
        self._register(found)
        self.folders.append(path)

    def names(self, kind: str) -> list[str]:
        """Return the sorted names of the plug-ins of one kind, without importing them."""
        return sorted(OPTIMIZERS if kind == "optimizers" else self.files(kind))

    def files(self, kind: str) -> dict[str, Path]:
        """Return a mapping from name to source file of all plug-ins of one kind."""
        if kind not in self._files:
            raise UsageError(unknown("kind", kind, self.kinds))
        return dict(self._files[kind])

    def describe(self, kind: str, name: str) -> Entry:
        """Return summary, granularity, schedule and paper of a plug-in, parsed from its source."""
        if kind == "optimizers":
            self.check_name(kind, name)
            return Entry(kind, name, f"torch.optim.{OPTIMIZERS[name]}")
        return read_entry(kind, name, self.file(kind, name), self.files(kind))

    def derives(self, kind: str, name: str, base: str) -> bool:
        """Whether the plug-in is `base` or derived from it, parsed from its source; not for optimizers."""
        return base in [ancestor for ancestor, _ in ancestry(name, self.file(kind, name), self.files(kind))]

    def file(self, kind: str, name: str) -> Path:
        """Return the source file of a plug-in."""
        self.check_name(kind, name)
        return self._files[kind][name]

    def check_name(self, kind: str, name: str) -> None:
        """Raise UsageError, with the nearest match, unless `name` is registered."""
        if name not in self.names(kind):
            raise UsageError(unknown(_singular(kind), name, self.names(kind)))

    def get(self, kind: str, name: str) -> type:
        """Return the class of a plug-in; imports only its file."""
        if kind == "optimizers":
            self.check_name(kind, name)
            optimizer: type = getattr(importlib.import_module("torch.optim"), OPTIMIZERS[name])
            return optimizer
        if (kind, name) not in self._classes:
            file = self.file(kind, name)
            check_source(kind, name, file)
            cls = getattr(self._module(kind, name, file), name)
            _check_class(kind, cls, file)
            self._classes[kind, name] = cls
        return self._classes[kind, name]

    def _module(self, kind: str, name: str, file: Path) -> ModuleType:
        """Import the module of a plug-in; raise UsageError if it fails."""
        try:
            if file.parent == ROOT / FOLDERS[kind]:
                return importlib.import_module(f"secateur.{FOLDERS[kind].replace('/', '.')}.{name}")
            return _load(f"secateur_plugins_{id(self)}.{kind}.{name}", file)
        except BaseException as error:
            if not isinstance(error, Exception) and not ends_process(error):
                raise  # Ctrl-C
            why = str(error) if isinstance(error, UsageError) else f"{type(error).__name__}: {error}"
            kind_of_error = RunError if ends_process(error) else UsageError
            raise kind_of_error(f"{file} cannot be imported: {one_line(why)}") from error

    def _register(self, found: dict[str, dict[str, Path]]) -> None:
        for kind, files in found.items():
            self._files[kind].update(files)
            PLUGIN_FILES.update({file: name for name, file in files.items()})


def _load(module_name: str, file: Path) -> ModuleType:
    """Import a file as a module of this name."""
    spec = importlib.util.spec_from_file_location(module_name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        with old_names_allowed():
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    return module


def build(kind: str, name: str, /, **options: Any) -> Any:
    """Build an instance of a plug-in.

    The name and the options of a model are recorded with it; `save_model` writes them to the file, from which
    `load_model` rebuilds the model.

    Args:
        kind: "models", "criterions", "trainers", "testers", "losses", "datasets" or "optimizers".
        name: name of the plug-in, as listed by `registry.names(kind)`.
        options: arguments of the constructor, by keyword.

    Returns:
        The instance.

    Raises:
        UsageError: for an unknown kind, name or option, with the nearest match, and for a value that the
            constructor does not accept.

    Example:
        >>> from secateur import build
        >>> model = build("models", "LeNet300", in_channels=1, num_classes=10, image_size=28)
        >>> sum(parameter.numel() for parameter in model.parameters())
        267410
        >>> build("criterions", "SNAPP")
        Traceback (most recent call last):
            ...
        secateur.utils.errors.UsageError: ... did you mean 'SNAP'? ...
    """
    cls = registry.get(kind, name)
    check_options(cls, name, options)
    check_values(name, _options(cls), options)
    try:
        instance = cls(**options)
    except UsageError:
        raise
    except BaseException as error:
        # other exceptions are faults of the plug-in
        if not (isinstance(error, (TypeError, ValueError)) or ends_process(error)):
            raise
        why = one_line(f"{type(error).__name__}: {error}")
        kind_of_error = RunError if ends_process(error) else UsageError
        raise kind_of_error(f"{name}({', '.join(options)}): {why}") from error
    if kind == "models":
        from secateur.framework.network.lineage import lineage_of

        lineage_of(instance).name, lineage_of(instance).options = name, dict(options)
    return instance


def check_options(cls: type, name: str, options: Iterable[str]) -> None:
    """Raise UsageError for the first option that the constructor does not accept."""
    allowed = option_names(cls)
    for option in options:
        if option not in allowed:
            raise UsageError(
                unknown(f"option of {name}", option, allowed)
                if allowed
                else f"{name} has no options, got {option!r}"
            )


def check_values(name: str, parameters: Mapping[str, inspect.Parameter], options: Mapping[str, Any]) -> None:
    """Raise UsageError for the first value that does not match its annotation, such as `float | None`.

    Only annotations of plain types are checked; all other parameters are left to the constructor. NaN is not a
    number.
    """
    for option, value in options.items():
        types = _types(parameters.get(option))
        if types and not any(_is(value, kind) for kind in types):
            wanted = " or ".join(TYPES[kind][0] for kind in types)
            raise UsageError(f"{name}: {option} must be {wanted}, got {one_line(repr(value), 60)}")


def _types(parameter: inspect.Parameter | None) -> list[str]:
    """Return the plain types of an annotation; none if it has any other type."""
    if parameter is None:
        return []
    note = parameter.annotation
    text = note if isinstance(note, str) else getattr(note, "__name__", str(note))
    names = [part.strip() for part in text.split("|")]
    return names if all(name in TYPES for name in names) else []


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "bool"
    return isinstance(value, TYPES[kind][1]) and bool(value == value)  # NaN is not equal to itself


def option_names(cls: type) -> list[str]:
    """Return the options that a constructor accepts, including those that `**options` passes to its bases."""
    return list(_options(cls))


def option_default(cls: type, name: str) -> Any:
    """Return the default of an option of a constructor; None if it has none."""
    option = _options(cls).get(name)
    return None if option is None or option.default is option.empty else option.default


def _options(cls: type) -> dict[str, inspect.Parameter]:
    accepted: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        constructor = vars(base).get("__init__", vars(base).get("__new__"))
        if constructor is None or base is object:
            continue
        parameters = list(inspect.signature(constructor).parameters.values())[1:]
        for parameter in parameters:
            if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD):
                accepted.setdefault(parameter.name, parameter)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return accepted


def _scan(root: Path) -> dict[str, dict[str, Path]]:
    return {
        kind: {file.stem: file for file in sorted((root / folder).glob("[!_]*.py"))}
        for kind, folder in FOLDERS.items()
    }


def _check_class(kind: str, cls: object, file: Path) -> None:
    if not isinstance(cls, type):
        raise UsageError(f"{file}: {file.stem} is not a class")
    module, _, name = BASES[kind].rpartition(".")
    if not issubclass(cls, getattr(importlib.import_module(module), name)):
        raise UsageError(f"{file}: {cls.__name__} must be a subclass of {BASES[kind]}")
    missing = sorted(getattr(cls, "__abstractmethods__", ()))
    if missing:
        raise UsageError(f"{file}: {cls.__name__} lacks {', '.join(missing)}")


def _singular(kind: str) -> str:
    return {"losses": "loss", "datasets": "data_set"}.get(kind, kind[:-1])


#: The registry of all plug-ins: the built-in ones, and those of folders added by `registry.add_folder(folder)`.
#: `registry.names("criterions")` lists the criterions; see `Registry`.
registry = Registry()
