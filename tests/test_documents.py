"""What documents, scripts and configurations name exists: files, commands, fields."""

import re
from pathlib import Path

import pytest

from feddpa_jax.cli.program import main
from feddpa_jax.config import describe_fields
from feddpa_jax.federated.method import FedState

ROOT = Path(__file__).parents[1]
TEXTS = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *(
            path
            for place in ("launch", "configs", "examples")
            for path in (ROOT / place).rglob("*.*")
        ),
    ]
)
# A path of the project from its root: no part of a longer path, and no pattern.
NAMED = re.compile(
    r"(?<![\w/.-])(?:\.ci|benchmarks|configs|docs|examples|feddpa_jax|launch|results|tests)"
    r"(?:/[\w.-]+)+/?(?![\w*{])"
)


def named(text: str) -> set[str]:
    """The paths of the project that a text names; a sentence's full stop is no part of one."""
    return {found.rstrip("./") for found in NAMED.findall(text)}


def test_paths_are_found_in_texts():
    text = (
        "`launch/a.sh` [b](docs/b.md) tests/c/test_c.py::test_d configs/e/. x/configs/f.yaml "
        "results/g.svg, ../launch/h.sh https://a.b/docs/i launch/test.sh: launch/*.sh configs/x_*"
    )
    assert named(text) == {
        *("launch/a.sh", "docs/b.md", "tests/c/test_c.py", "configs/e", "results/g.svg"),
        "launch/test.sh",
    }


def all_of(pattern: str) -> set[str]:
    """Whatever matches, in any of the texts."""
    return {found for path in TEXTS for found in re.findall(pattern, path.read_text())}


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_are_named_exist(path: Path):
    missing = [name for name in named(path.read_text()) if not (ROOT / name).exists()]
    assert not missing


def test_files_of_the_package_that_are_named_exist():
    """Named from the package's folder, as in `hf/families.py`."""
    names = all_of(r"`([a-z_]+/[\w/]+\.py)`")
    places = (ROOT, ROOT / "feddpa_jax")
    assert names
    assert not {name for name in names if not any((place / name).exists() for place in places)}


def test_commands_that_are_named_exist(capsys):
    names = all_of(r"(?:bin/feddpa|`feddpa|FEDDPA\S*) ([a-z]+)")
    assert {"train", "fields", "weigh"} <= names
    for name in names:
        with pytest.raises(SystemExit):
            main([name, "--help"])
        assert capsys.readouterr().out.startswith(f"usage: feddpa {name} ")


def test_fields_that_are_named_exist():
    known = {name for name, *_ in describe_fields()}
    sections = "|".join(sorted({name.partition(".")[0] for name in known if "." in name}))
    assert not all_of(rf"--((?:{sections})\.[a-z_]+)") - known
    assert not all_of(rf"`((?:{sections})\.[a-z_]+)") - known
    states = all_of(r"`FedState\.(\w+)`")
    assert states and not states - set(FedState._fields)
