"""The tutorial is a notebook that runs, on the tiny model."""

import jupytext
import nbformat
import pytest

from tests.docs.pages import ROOT

PAGE = ROOT / "docs/tutorial.md"


def test_it_runs_from_top_to_bottom(tmp_path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    notebook = jupytext.read(PAGE)
    nbformat.validate(notebook)
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) > 10
    names: dict = {}
    for number, cell in enumerate(cells):
        exec(compile(cell, f"tutorial.md, cell {number}", "exec"), names)
    printed = capsys.readouterr().out
    assert printed.count("local weight") == 2 and "round 1: loss" in printed
    assert "fed.rounds" in printed, "what is wrong with a configuration"
    assert (tmp_path / "p_against_ttp.svg").stat().st_size > 1000
    assert (tmp_path / "exports/tutorial/clients/client_0-mixed").is_dir()
    assert {"metric", "mode", "P", "TTP"} <= set(names["table"].columns)
