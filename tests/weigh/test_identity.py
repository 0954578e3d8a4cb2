"""Evidence counts as another's once any code has changed that it is computed by."""

import ast
from pathlib import Path

import feddpa_jax
from feddpa_jax.weigh.identity import CODE

PACKAGE = Path(feddpa_jax.__path__[0])
# Reached from there, but what evidence is does not follow from them: rules themselves, which are
# scored anew every time; what only tells people, reads settings, or checks.
APART = {
    *("weighting/rules.py", "weighting/registry.py", "weighting/similarity.py"),
    *("weighting/calibrated.py", "weighting/gate.py"),
    *("progress.py", "strict_yaml.py", "disk.py", "manifest.py", "lock.py", "runs.py"),
    *("metrics.py", "weigh/cache.py"),
    *("config", "prepare.py", "processes.py", "sharding.py", "devices.py", "memory.py", "fed"),
    *("checkpoint.py", "strict_json.py", "problems.py", "escape.py"),
}


def imported(file: Path) -> set[Path]:
    """The package's files that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("feddpa_jax"):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    places = (PACKAGE.parent / str(name).replace(".", "/") for name in names)
    return {place.with_suffix(".py") for place in places if place.with_suffix(".py").is_file()}


def test_all_code_that_evidence_is_computed_by_counts():
    reached, open_ = set(), [PACKAGE / "weigh/collect.py"]
    while open_:
        file = open_.pop()
        if file not in reached:
            reached.add(file)
            open_ += imported(file)
    assert len(reached) > 20
    names = {str(file.relative_to(PACKAGE)) for file in reached}
    counted = {name for name in names if name in CODE or name.split("/")[0] in CODE}
    apart = {name for name in names if name in APART or name.split("/")[0] in APART}
    assert not names - counted - apart
    for name in CODE:
        assert (PACKAGE / name).exists(), name
