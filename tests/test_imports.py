"""What `import feddpa_jax` offers, and what it leaves alone until it is needed."""

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
    # The registry, though the package has a folder of that name.
    assert "feddpa_t" in fd.methods
    assert (ROOT / "feddpa_jax" / "py.typed").is_file()
