"""YAML without the surprises of YAML 1.1: 3e-4 is a number, and a key stands once."""

import re
from typing import Any

import yaml

from feddpa_jax.types import UserError


class _Loader(yaml.SafeLoader):
    """YAML as 1.2 has it where 1.1 surprises: 3e-4 is a number, and a key stands once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key is no text", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value} stands twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)$"),
    list("-+0123456789."),
)


def parse_yaml(text: str, source: str) -> Any:
    """Parses one YAML document of plain data.

    Args:
      text: the document.
      source: its name, for messages.

    Raises:
      UserError: it is not valid YAML, with the line, or a key stands twice.

    >>> parse_yaml("rate: 3e-4", "here")
    {'rate': 0.0003}
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise UserError(f"{source}{line}: not valid YAML: {problem}") from None
    except ValueError as error:
        # Such as 2012-13-45, which looks like a date.
        raise UserError(f"{source}: {error}; quote what is meant as text") from None
    except RecursionError:
        raise UserError(f"{source}: is nested too deeply for a configuration") from None
