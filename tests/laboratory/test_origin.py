"""Evidence counts as another's once any code has changed that it is computed by."""

import ast
from collections.abc import Collection
from pathlib import Path

import feddpa_jax
from feddpa_jax.laboratory.origin import CODE

PACKAGE = Path(feddpa_jax.__path__[0])
# Reached from there, but what evidence is does not follow from them: rules themselves, which are
# scored anew every time; what only tells people, reads settings, or checks.
APART = {
    *("weighting/weights.py", "weighting/rule.py", "weighting/rules", "weighting/descent.py"),
    "weighting/alone.py",
    *(
        "progress.py",
        "registry.py",
        "hyperparameters.py",
        "config",
        "devices",
        "federated",
        "run",
        "evaluate/metrics.py",
    ),
    *(
        "checked_settings.py",
        "short_repr.py",
        "weighting/settings.py",
        "files",
        "laboratory/evidence_cache.py",
        "training/memory.py",
    ),
}


def imported(file: Path) -> set[Path]:
    """The package's files that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("feddpa_jax"):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    places = (PACKAGE.parent / str(name).replace(".", "/") for name in names)
    return {place.with_suffix(".py") for place in places if place.with_suffix(".py").is_file()}


def within(name: str, places: Collection[str]) -> bool:
    """Whether a file is one of some files, or lies in one of some folders."""
    return any(name == place or name.startswith(f"{place}/") for place in places)


def test_all_code_that_evidence_is_computed_by_counts():
    reached, open_ = set(), [PACKAGE / "laboratory/collect.py"]
    while open_:
        file = open_.pop()
        if file not in reached:
            reached.add(file)
            open_ += imported(file)
    assert len(reached) > 20
    names = {str(file.relative_to(PACKAGE)) for file in reached}
    counted = {name for name in names if within(name, CODE)}
    apart = {name for name in names if within(name, APART)}
    assert not names - counted - apart
    for name in CODE:
        assert (PACKAGE / name).exists(), name
