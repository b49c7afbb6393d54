"""The flags of arguments that errors of the library name."""

import re

from secateur.framework.settings.run_config import FLAGS
from secateur.utils.errors import UsageError

#: flags by the arguments that they set
FLAG_OF = {option: name for name, flag in FLAGS.items() for option in flag.readers.values()}


def in_flags(error: UsageError) -> str:
    """Return the message, with the flag in place of the argument that it names, if there is such a flag."""
    flag = FLAG_OF.get(error.argument or "", error.argument)
    if flag is None or flag not in FLAGS:
        return str(error)
    return re.sub(rf"(?<!-)\b{error.argument}\b", f"--{flag}", str(error), count=1)
