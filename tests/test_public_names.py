"""The public names: listed once for Python, once for type checkers, and each with its home."""

import ast
from pathlib import Path

import feddpa_jax


def checked_names() -> set[str]:
    """The names that type checkers see."""
    tree = ast.parse(Path(feddpa_jax.__file__).read_text())
    (block,) = [
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    found = set()
    for node in block.body:
        if isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign):
            found |= {name.id for name in ast.walk(node.targets[0]) if isinstance(name, ast.Name)}
    return {name for name in found if not name.startswith("_")}


def test_the_lists_agree() -> None:
    names = set(feddpa_jax.__all__) - {"__version__"}
    assert len(names) == len(feddpa_jax.__all__) - 1
    assert checked_names() == names
    assert feddpa_jax._HOMES.keys() == names


def test_every_name_is_there_and_described() -> None:
    for name in feddpa_jax.__all__:
        assert getattr(feddpa_jax, name).__doc__, name
