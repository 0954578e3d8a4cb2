"""Command lines of any content: done, or one line on stderr and the code 2; never a traceback.

Arguments and configurations are read as they are by every command; what follows, which would load a
model, is replaced by an error that says so.
"""

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from feddpa_jax.cli import program as cli
from feddpa_jax.config import Config, describe_fields, to_yaml
from feddpa_jax.types import UserError
from tests.fuzz.conftest import fuzz
from tests.fuzz.test_yaml import SCALARS

REACHED = "reached the work"
# Where a command's work begins, once its arguments and its configuration are read.
WORK = (
    "experiment.prepare",
    "experiment.prepare_together",
    "run.inputs.load_data",
    "comparison.comparing.load_base",
    "plan.ahead.plan",
    "data.sample.write_sample",
)
COMMANDS = [
    "train",
    "eval",
    "generate",
    "export",
    "weigh",
    "compare",
    "data",
    "plan",
    "report",
    "fields",
]
OPTIONS = {
    "--config": ["good.yaml", "bad.yaml", "folder", "none.yaml", "a" * 300],
    "--run-dir": ["run", "folder", "good.yaml", "new", "a" * 300, "run/../run"],
    "--client": ["a", "", "ü", "\udcff"],
    "--prompt": ["Hi", "", " ", "\udcff", "\u2028"],
    "--input": ["x", ""],
    "--mode": ["global", "instance", "x"],
    "--out": ["new", "folder", "page.html", "good.yaml", "a" * 300],
    "--mixed": ["0.5", "nan", "x", "-1", "1e400", "1_0"],
    "--merged": ["global", "a", "a:0.5", "a:x", ":", ""],
    "--step": ["last", "best", "1", "-1", "x", "1" * 5000, "٣"],
    "--rules": ["cosine", "cosine,,l2", "x", "my.py:f", ","],
    "--scales": ["1,2", "nan", "1e400", "", ","],
    "--supports": ["1,2", "0", "1e3", "9" * 5000],
    "--layers": ["0,1", "-1", "x"],
    "--by": ["nll", "exact_match,nll", "x", ""],
    "--exact": ["2", "-1", "x", "9" * 5000],
    "--methods": ["fedit", "fedit,local(fed.rounds=2)", "fedit(", "local(x=1)", "a.py:b", ",", "ü"],
    "--seeds": ["0,1", "", "0,0", "-1", "9" * 5000, "٣", "1_0"],
    "--against": ["fedit", "x"],
    "--equal": ["tokens", "x"],
    "--modes": ["all", "x"],
    "--make": ["new", "folder", "good.yaml"],
    "--clients": ["1,2", "3", "0", "1000000000000", "x", ""],
    "--topology": ["x"],
}
FLAGS = [
    "--no-eval",
    "--check",
    "--fresh",
    "--",
    "-h",
    "--x",
    "-",
    "stray",
    "\udcff",
    "",
]
FIELDS = [name for name, *_ in describe_fields()]


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """A command with some of its own options, those of others, and fields."""
    words = [draw(st.sampled_from([*COMMANDS, *COMMANDS, "x", ""]))]
    if words[0] in COMMANDS[:5] and draw(st.integers(0, 3)):
        words += ["--run-dir", draw(st.sampled_from(OPTIONS["--run-dir"][:4]))]
    if words[0] == "report":
        words += draw(st.lists(st.sampled_from(OPTIONS["--run-dir"]), max_size=2))
    for _ in range(draw(st.integers(0, 3))):
        kind = draw(st.integers(0, 4))
        if kind < 2:
            name = draw(st.sampled_from(sorted(OPTIONS)))
            value = draw(st.sampled_from(OPTIONS[name]))
        elif kind < 4:
            name, value = f"--{draw(st.sampled_from(FIELDS))}", draw(st.sampled_from(SCALARS))
        else:
            words.append(draw(st.sampled_from(FLAGS)))
            continue
        words += [f"{name}={value}"] if draw(st.booleans()) else [name, value]
    return words


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a run's configuration and a few other things."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "good.yaml").write_text("seed: 3\n")
    (folder / "bad.yaml").write_text("seed: [")
    (folder / "folder").mkdir()
    (folder / "run").mkdir()
    (folder / "run" / "config.yaml").write_text(to_yaml(Config()))
    return folder


def _stop(*_: Any, **__: Any) -> None:
    raise UserError(REACHED)


def run(words: list[str]) -> tuple[int, str]:
    """The code and stderr of a command, in this process."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = cli.main(words)
        except SystemExit as leave:  # Of --help.
            assert {"-h", "--help"} & set(words)
            code = int(leave.code or 0)
    return code, said.getvalue()


@fuzz(250)
@given(words=command_lines())
@example(words=[])
@example(words=["fields"])
@example(words=["train", "--run-dir", "new", "--config", "good.yaml"])
@example(words=["train", "--run-dir", "new", "--lora.rank", "1000000000000"])
@example(words=["generate", "--run-dir", "run", "--client", "a", "--prompt", "\udcff"])
@example(words=["report", "run", "--out", "a" * 300])
@example(words=["data", "--data.path", "a" * 5000])
def test_command_lines(place, words):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for name in WORK:
            patch.setattr(f"feddpa_jax.{name}", _stop)
        code, said = run(words)
    assert code in (0, 2), said
    lines = said.splitlines()
    assert len(lines) == (1 if code else 0), said
    assert all(line.startswith("feddpa: error: ") for line in lines)
    assert len(said) < 1000 + sum(map(len, words))


def test_good_command_lines_reach_the_work(place, monkeypatch):
    """The fuzzer's commands are not all refused for the same reason."""
    monkeypatch.chdir(place)
    for name in WORK:
        monkeypatch.setattr(f"feddpa_jax.{name}", _stop)
    for words in (
        ["train", "--run-dir", "new", "--config", "good.yaml", "--fed.rounds", "3"],
        ["eval", "--run-dir", "run", "--eval.beams", "2"],
        ["generate", "--run-dir", "run", "--client", "a", "--prompt", "Hi"],
        ["export", "--run-dir", "run", "--out", "new"],
        ["weigh", "--run-dir", "run", "--scales", "1,2"],
        ["compare", "--methods", "fedit,feddpa_t(fed.rounds=2)", "--seeds", "0,1", "--out", "new"],
        ["data", "--config", "good.yaml"],
        ["plan", "--model.path", "tiny"],
    ):
        code, said = run(words)
        assert (code, REACHED in said) == (2, True), said
