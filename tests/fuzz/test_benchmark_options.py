"""Options of launch/bench.sh of any content: one line on stderr and the code 2; never a traceback.

Options and configurations are read as they are by the program; what follows, which would load a
model, is replaced by an error that says so.
"""

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from benchmarks import comparison
from benchmarks.program import main
from feddpa_jax.types import UserError
from tests.fuzz.conftest import fuzz
from tests.fuzz.test_command_line import FIELDS
from tests.fuzz.test_yaml import SCALARS

REACHED = "reached the work"
OPTIONS = {
    "--config": ["good.yaml", "bad.yaml", "folder", "none.yaml", "a" * 300, ""],
    "--out": ["new", "folder", "good.yaml", "a" * 300, "\udcff", ""],
    "--updates": ["1", "0", "1000000000000", "x"],
    "--clients": ["1,2", "3", "0", "1000000000000", "x", "", "\udcff", "--"],
    "--instances": ["1", "-1", "1000000000000"],
    "--repeat": ["1", "0", "٣", "9" * 5000],
}
FLAGS = ["--no-torch", "--no-tor", "--", "--x", "-", "stray", "\udcff", ""]


@st.composite
def options(draw: st.DrawFn) -> list[str]:
    """Some options of the benchmark, fields of the configuration, and words that are neither."""
    words: list[str] = []
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(st.integers(0, 3))
        if kind == 0:
            words.append(draw(st.sampled_from(FLAGS)))
            continue
        if kind == 1:
            name, value = f"--{draw(st.sampled_from(FIELDS))}", draw(st.sampled_from(SCALARS))
        else:
            name = draw(st.sampled_from(sorted(OPTIONS)))
            value = draw(st.sampled_from(OPTIONS[name]))
        words += [f"{name}={value}"] if draw(st.booleans()) else [name, value]
    return words


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a configuration and a few other things."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "good.yaml").write_text("seed: 3\n")
    (folder / "bad.yaml").write_text("seed: [")
    (folder / "folder").mkdir()
    return folder


def run(place: Path, words: list[str]) -> str:
    """The line that ends a benchmark before its work."""

    def stop(*_: Any, **__: Any) -> None:
        raise UserError(REACHED)

    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said):
        patch.chdir(place)
        patch.setattr(comparison, "prepare", stop)
        assert main(words) == 2
    line = said.getvalue()
    assert line.startswith("launch/bench.sh: error: ") and line.count("\n") == 1
    return line


@fuzz(100)
@given(words=options())
@example(words=["--config", "bad.yaml"])
@example(words=["--lora.rank", "1000000000000"])
@example(words=["--out", "a" * 300])
def test_options(place: Path, words: list[str]):
    assert len(run(place, words)) < 1000 + sum(map(len, words))


def test_good_options_reach_the_work(place: Path):
    """The fuzzer's options are not all refused for the same reason."""
    fields = ["--model.path", "tiny", "--fed.rounds", "3"]
    for words in (
        [],
        ["--config", "good.yaml", "--out", "new", *fields],
        ["--clients", "", "--instances", "0", "--repeat=1", "--no-torch"],
    ):
        assert REACHED in run(place, words)
