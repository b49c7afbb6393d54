"""Names of torchvision's classification networks, read from its source without importing it or torch."""

import functools
import importlib.util
import re
from pathlib import Path

from secateur.utils.errors import UsageError
from secateur.utils.suggest import unknown

#: a function that is decorated with `register_model`, among other decorators
REGISTERED = re.compile(r"^@register_model\(.*\)\n(?:(?!def ).*\n)*def (\w+)", re.MULTILINE)


@functools.cache
def classification_networks() -> tuple[str, ...]:
    """Return the sorted names of the builders registered in the files of torchvision's models folder.

    The folders for detection, segmentation, video and quantised networks are not searched.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        raise UsageError("torchvision is not installed: it is needed for --model TorchvisionModel")
    folder = Path(spec.submodule_search_locations[0]) / "models"
    names = [REGISTERED.findall(file.read_text(encoding="utf-8")) for file in folder.glob("*.py")]
    return tuple(sorted(sum(names, [])))


def check_arch(arch: object) -> None:
    """Raise UsageError with the nearest match unless `arch` is one of torchvision's classification networks."""
    names = classification_networks()
    if arch not in names:
        raise UsageError(unknown("arch", str(arch), names), argument="arch")
