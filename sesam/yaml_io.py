"""YAML without the ambiguities that PyYAML accepts, and without what only an attacker writes."""

from pathlib import Path
from typing import Any

import yaml

from sesam.errors import SesamError
from sesam.regular_files import read_regular

MAX_CHARACTERS = 1 << 18
MAX_DEPTH = 100


class _Loader(yaml.SafeLoader):
    """No duplicate keys, and no aliases: a few lines of them expand to more than any memory holds."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not allowed; copy the value", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"duplicate key {key.value}", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> Any:
    """The value of a YAML text; ValueError, yaml.YAMLError or RecursionError."""
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"it has {len(text)} characters; at most {MAX_CHARACTERS} are read")
    return yaml.load(text, _Loader)


def read_fast(path: Path) -> Any:
    """The value in a YAML file of DVC's, by the C parser, which is faster and crashes on deep nesting.

    ValueError, yaml.YAMLError, OSError, or SesamError as of `read_regular`.
    """
    content, loader, depth = read_regular(path), getattr(yaml, "CSafeLoader", yaml.SafeLoader), 0
    for event in yaml.parse(content, loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError(f"{path} is nested too deep")
    return yaml.load(content, loader)


def read_yaml(path: Path) -> Any:
    """The value in a YAML file; SesamError if it is not valid YAML, has duplicate keys or aliases, or is too large."""
    try:
        return parse_yaml(read_regular(path).decode())
    except RecursionError:
        raise SesamError(f"{path} cannot be read: it is nested too deep.") from None
    except (OSError, ValueError, yaml.YAMLError) as problem:
        raise SesamError(f"{path} cannot be read: {problem}") from None
