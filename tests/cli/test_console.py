"""Progress and tables where the terminal is narrow, dumb, or no terminal at all."""

import io
import re
import sys

import pytest
from rich.console import Console
from rich.table import Table

from feddpa_jax.cli.console import Reporter
from feddpa_jax.progress import follow


@pytest.mark.parametrize("width", [0, 1, 20])
def test_no_cell_vanishes_on_a_narrow_terminal(width):
    table = Table()
    row = ["feddpa_t", "instance", "0.52 [0.41, 0.63]", "12.5", "99.0"]
    for name in row:
        table.add_column(name)
    table.add_row(*row)
    file = io.StringIO()
    Reporter(Console(file=file, force_terminal=True, color_system=None, width=width)).show(table)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue())
    assert [cell.strip() for cell in shown.splitlines()[3].split("│")[1:-1]] == row
    assert max(map(len, shown.splitlines())) <= 60


@pytest.mark.parametrize("coloured", [False, True])
def test_a_row_is_a_line_where_there_is_no_terminal(monkeypatch, coloured):
    """However wide it is, and whatever FORCE_COLOR makes rich take a file for."""
    if coloured:
        monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    table = Table(box=None, pad_edge=False)
    row = ["a" * 150, "b " * 100 + "b", "c"]
    for name in ("first", "second", "third"):
        table.add_column(name)
    table.add_row(*row)
    table.add_row("d", "e", "f" * 50)
    reporter = Reporter()
    reporter.show(table)
    file = reporter.console.file
    assert isinstance(file, io.StringIO)
    assert file.getvalue().splitlines()[1] == "  ".join(row)


def _said(reporter: Reporter) -> str:
    with follow("training", 2, "tokens", reporter.on_progress) as advance:
        advance(1, "loss 0.5")
        advance(1)
    file = reporter.console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


@pytest.mark.parametrize("name", ["FORCE_COLOR", "TTY_COMPATIBLE"])
def test_no_bar_in_a_file_that_may_have_colours(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    reporter = Reporter()
    assert reporter.console.is_terminal
    said = _said(reporter)
    assert "\x1b" not in said and said.startswith("training: 2 tokens in 0:00 (")
    assert said.count("\n") == 1


def test_a_bar_where_it_can_be_drawn(monkeypatch):
    for term, drawn in (("xterm", True), ("dumb", False), ("unknown", False)):
        monkeypatch.setenv("TERM", term)
        said = _said(Reporter(Console(file=io.StringIO(), force_terminal=True)))
        assert ("\x1b[2K" in said or "\x1b[?25l" in said) == drawn
        assert "training: 2 tokens in" in said


def test_a_note_before_anything_is_done(monkeypatch):
    """A comparison begins the task of all its runs long before the first of them trains."""
    monkeypatch.setattr("feddpa_jax.cli.console.LINE_EVERY", 0.0)
    reporter = Reporter(Console(file=io.StringIO()))
    with follow("all runs", 2, "tokens", reporter.on_progress) as advance:
        advance(0, "run 1 of 2")
        advance(1, "run 1 of 2")
    assert isinstance(reporter.console.file, io.StringIO)
    first, last = reporter.console.file.getvalue().splitlines()
    assert first.startswith("all runs: 50%")
    assert last.startswith("all runs: 1 tokens")
