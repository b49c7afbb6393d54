"""The flags of arguments that errors of the library name."""

import re

from secateur.framework.settings.run_config import FLAGS
from secateur.utils.errors import UsageError

#: flags by the arguments that they set
FLAG_OF = {option: name for name, flag in FLAGS.items() for option in flag.readers.values()}


def in_flags(error: UsageError) -> str:
    """Return the message, with flags in place of the arguments that it names, where there are such flags."""
    text = str(error)
    named = (error.argument,) if isinstance(error.argument, str) else error.argument or ()
    for argument in named:
        flag = FLAG_OF.get(argument, argument)
        if flag in FLAGS:
            text = re.sub(rf"(?<!-)\b{argument}=False\b", f"--no_{flag}", text)
            # a word of English is the argument only where it stands first
            text = re.sub(rf"(?<!-)\b{argument}\b", f"--{flag}", text, count=0 if "_" in argument else 1)
    return text
