"""The dialects, found by their files."""

import importlib
import pkgutil

from secateur.framework.settings import dialects
from secateur.framework.settings.dialects.translation import Dialect
from secateur.framework.settings.field import Flag

_names = [module.name for module in pkgutil.iter_modules(dialects.__path__) if module.name != "discovery"]
_modules = [importlib.import_module(f"{dialects.__name__}.{name}") for name in _names]
DIALECTS: list[Dialect] = [module for module in _modules if hasattr(module, "translate")]  # type: ignore[misc]
#: the flags of all dialects by name
OTHER_PROGRAMS: dict[str, Flag] = {name: flag for dialect in DIALECTS for name, flag in dialect.FLAGS.items()}
#: flags of Secateur that may stand without a value there, and the value that they have then
BARE: dict[str, str] = {
    name: value for dialect in DIALECTS for name, value in getattr(dialect, "BARE", {}).items()
}
