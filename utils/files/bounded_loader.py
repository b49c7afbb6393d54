"""PyYAML's safe loader with limits; imported only when YAML is read."""

import re
from typing import Any

import yaml

from secateur.utils.errors import UsageError

#: tags that no setting uses
REFUSED = ("binary", "set", "omap", "pairs")
#: a number such as 1e-3; YAML 1.1 requires a dot in a float, so it would be a string
FLOAT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$")
#: largest number of characters of a number, since numbers in base 60 are converted in quadratic time
LONGEST_NUMBER = 400


class BoundedLoader(yaml.SafeLoader):
    """A loader that raises UsageError for documents that are too large or contain themselves.

    An alias counts as all values that it refers to.

    Args:
        text: The document.
        values: Largest number of values.
    """

    def __init__(self, text: str, values: int) -> None:
        super().__init__(text)
        self._most_values = values
        self._values = 0
        self._sizes: dict[str, int] = {}  # anchor -> values of its finished node

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose a node, and count it and its children."""
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in self.anchors and event.anchor not in self._sizes:
                raise UsageError(f"the anchor &{event.anchor} contains itself")
            self._count(self._sizes.get(str(event.anchor), 0))
            return super().compose_node(parent, index)
        before = self._values
        self._count(1)
        node = super().compose_node(parent, index)
        if event.anchor is not None:
            self._sizes[event.anchor] = self._values - before
        return node

    def _count(self, values: int) -> None:
        self._values += values
        if self._values > self._most_values:
            raise UsageError(f"it has more than {self._most_values:,} values, with aliases written out")

    def construct_number(self, node: Any) -> Any:
        """Construct an integer or a float; raises UsageError if it has too many characters."""
        if len(str(node.value)) > LONGEST_NUMBER:
            raise UsageError(f"a number has more than {LONGEST_NUMBER} characters")
        integer = node.tag.endswith(":int")
        return self.construct_yaml_int(node) if integer else self.construct_yaml_float(node)


BoundedLoader.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("+-0123456789"))
for tag in ("int", "float"):
    BoundedLoader.add_constructor(f"tag:yaml.org,2002:{tag}", BoundedLoader.construct_number)
for tag in REFUSED:
    del BoundedLoader.yaml_constructors[f"tag:yaml.org,2002:{tag}"]  # a copy, since the first `add_constructor`
