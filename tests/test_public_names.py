"""What `import feddpa_jax` offers, and what it leaves alone until it is needed."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import feddpa_jax as fd

ROOT = Path(__file__).parents[1]
HEAVY = ("jax", "matplotlib", "orbax", "pandas", "pydantic", "torch", "transformers")

PROGRAM = """
import json, os, sys
before = sum(os.times()[:2])
import feddpa_jax
took = sum(os.times()[:2]) - before
first = sorted(sys.modules)
for name in feddpa_jax.__all__:
    getattr(feddpa_jax, name)
for registry in ("families", "methods", "metrics", "rules", "templates"):
    assert len(getattr(feddpa_jax, registry)), registry
feddpa_jax.Config(fed={"rounds": 3})
from jax._src import xla_bridge
backends = sorted(xla_bridge._backends)
print(json.dumps([took, first, sorted(sys.modules), backends]))
"""


@pytest.fixture(scope="module")
def loaded() -> tuple[float, set[str], set[str], list[str]]:
    out = subprocess.check_output([sys.executable, "-c", PROGRAM], cwd=ROOT, text=True)
    took, first, last, backends = json.loads(out)
    return took, set(first), set(last), backends


def test_importing_the_package_loads_nothing_heavy(loaded):
    took, first, *_ = loaded
    assert not first & set(HEAVY)
    assert took < 1.5


def test_public_names_load_no_plots_tables_or_tokenizers_and_no_device(loaded):
    *_, last, backends = loaded
    assert {"jax", "feddpa_jax.experiment", "feddpa_jax.report"} <= last
    assert not last & {"matplotlib", "orbax", "pandas", "torch", "transformers"}
    assert backends == []


def test_all_names_are_there_and_documented():
    assert sorted(fd.__all__) == dir(fd)
    assert len(set(fd.__all__)) == len(fd.__all__) >= 30
    for name in fd.__all__:
        found = getattr(fd, name)
        if name != "__version__":
            assert found.__doc__, name
    with pytest.raises(AttributeError, match="'feddpa_jax' has no attribute 'nothing'"):
        fd.nothing  # noqa: B018
    assert "feddpa_t" in fd.methods
    assert (ROOT / "feddpa_jax" / "py.typed").is_file()


def checked_names() -> set[str]:
    """The names that type checkers see."""
    tree = ast.parse(Path(str(fd.__file__)).read_text())
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
    names = set(fd.__all__) - {"__version__"}
    assert len(names) == len(fd.__all__) - 1
    assert checked_names() == names
    assert fd._HOMES.keys() == names
