"""The tutorial is a notebook that runs, and the Python of the other pages runs after it."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import pytest

from tests.docs.pages import ROOT, blocks

TUTORIAL = ROOT / "docs/tutorial.md"
# Pages whose blocks use the tutorial's names. The guides on how to add something have own tests.
OTHERS = [
    *("docs/api/index.md", "docs/reference/configuration.md", "docs/reference/data.md"),
    *("docs/guides/simulating_at_scale.md", "docs/guides/studying_weighting_rules.md"),
    "docs/guides/hugging_face.md",
]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Where the tutorial was played, and the names that it left behind."""
    place, before = tmp_path_factory.mktemp("tutorial"), Path.cwd()
    os.chdir(place)
    names: dict[str, Any] = {}
    notebook = jupytext.read(TUTORIAL)
    nbformat.validate(notebook)
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) > 10
    try:
        for number, cell in enumerate(cells):
            exec(compile(cell, f"tutorial.md, cell {number}", "exec"), names)
        # What other pages name.
        Path("configs").symlink_to(ROOT / "configs")
        Path("exports/quickstart").symlink_to("tutorial")
        yield place, names
    finally:
        os.chdir(before)


def test_the_tutorial_does_what_it_says(played) -> None:
    place, names = played
    assert 0 < names["weight"].similarity < 1
    assert names["answer"].mode == "instance"
    assert set(names["ours"].modes) == {"base", "global", "local", "fixed", "instance"}
    assert {"metric", "mode", "P", "TTP"} <= set(names["table"].columns)
    assert names["settings"].scale in (0.5, 1.0)
    assert (place / "p_against_ttp.svg").stat().st_size > 1000
    assert (place / "exports/tutorial/clients/client_0-mixed/adapter_config.json").is_file()


@pytest.mark.parametrize("page", OTHERS)
def test_the_python_of_other_pages_runs(played, page: str) -> None:
    _, names = played
    names = dict(names)
    found = blocks(ROOT / page, "python")
    assert found
    for text in found:
        exec(compile(text, page, "exec"), names)
