"""Standard output that is ASCII, closed, full or without a reader."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from feddpa_jax.cli import streams
from feddpa_jax.cli.program import main
from feddpa_jax.cli.streams import OutputLostError
from tests.e2e.test_commands import train

ROOT = Path(__file__).parents[2]


def shell(command: str, **environment: str) -> tuple[int, str, str]:
    """What a command for bash does, where $F is the program: code, standard output and error."""
    ran = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        cwd=ROOT,
        env=os.environ | {"F": f"{sys.executable} -m feddpa_jax"} | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return ran.returncode, ran.stdout, ran.stderr


@pytest.mark.parametrize(
    ("command", "code", "error"),
    [
        ("$F fields | true", 141, ""),
        ("$F --help | true", 141, ""),
        ("$F fields >/dev/full", 2, "standard output: No space left on device\n"),
        ("$F --help >/dev/full", 2, "standard output: No space left on device\n"),
        ("$F fields >&- 2>&- <&-", 0, ""),
        ("$F fields --x 2>&-", 2, ""),
        ("$F fields --x 2>/dev/full", 2, ""),
    ],
)
def test_a_command_that_prints(command: str, code: int, error: str):
    found = shell(command)
    assert found == (code, "", f"feddpa: error: {error}" if error else "")


def test_ascii():
    code, out, error = shell("$F fields", PYTHONIOENCODING="ascii", COLUMNS="60")
    assert (code, error) == (0, "") and out.isascii() and "fed.rounds" in out


def test_what_ascii_lacks(monkeypatch, tmp_path):
    with (tmp_path / "said").open("w", encoding="ascii") as file:
        monkeypatch.setattr(sys, "stdout", streams.wrap(file.fileno(), file, needed=True))
        monkeypatch.setattr(sys, "stderr", streams.wrap(file.fileno(), file, needed=False))
        assert main(["data", "--data.path", "日本\ud800…"]) == 2
        assert main(["data", "--data.path", "日本…"]) == 2
        sys.stdout.flush()
        sys.stderr.flush()
    assert r"\u65e5\u672c\u2026" in (tmp_path / "said").read_text(encoding="ascii")


def test_training_goes_on_without_output(monkeypatch, capsys, tmp_path):
    full = os.open("/dev/full", os.O_WRONLY)
    monkeypatch.setattr(sys, "stdout", streams.wrap(full, None, needed=True))
    assert train(tmp_path / "run", "--no-eval", "--fed.rounds", "1") == 0
    os.close(full)
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count("\n") == 1
    said = "feddpa: standard output: No space left on device; the command went on\n"
    assert capsys.readouterr().err == said


def test_a_pipe_without_a_reader():
    read, write = os.pipe()
    os.close(read)
    needed = streams.wrap(write, None, needed=True)
    with pytest.raises(OutputLostError) as lost:
        print("x", file=needed, flush=True)
    assert lost.value.reader_gone
    print("said once", file=needed, flush=True)
    other = streams.wrap(write, None, needed=False)
    print("x" * 100_000, file=other, flush=True)
    os.close(write)


def test_making_the_sample_is_work(monkeypatch, tmp_path):
    full = os.open("/dev/full", os.O_WRONLY)
    monkeypatch.setattr(sys, "stdout", streams.wrap(full, None, needed=True))
    assert main(["data", "--make", str(tmp_path / "sample")]) == 0
    assert (tmp_path / "sample").is_dir()
    monkeypatch.setattr(sys, "stdout", streams.wrap(full, None, needed=True))
    assert main(["data", "--model.path", "tiny"]) == 2
    os.close(full)
