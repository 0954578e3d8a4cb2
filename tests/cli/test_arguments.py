"""Arguments that are no text, paths that can be no path, and what the system says at last."""

import errno
import os
from pathlib import Path

import pytest

from feddpa_jax.cli import fields
from feddpa_jax.cli.program import main
from feddpa_jax.config import describe_fields

GENERATE = ["generate", "--run-dir", "run", "--client", "a", "--prompt", "b"]


def says(capsys, *arguments: str) -> str:
    """The one line of a command that fails."""
    assert main(list(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return captured.err.removeprefix("feddpa: error: ").rstrip("\n")


@pytest.mark.parametrize(
    ("option", "arguments"),
    [
        ("--prompt", [*GENERATE, "--prompt", "a\udcff"]),
        ("--client", [*GENERATE, "--client", "a\udcff"]),
        ("--input", [*GENERATE, "--input", "a\udcff"]),
        ("--data.path", ["data", "--data.path", "a\udcff"]),
        ("--seed", ["data", "--seed=a\udcff"]),
        (r"--se\udcffed", ["data", "--se\udcffed", "a"]),
    ],
)
def test_bytes_that_are_no_text(capsys, option: str, arguments: list[str]):
    line = says(capsys, *arguments)
    assert line.startswith(f"{option}: not UTF-8 from character ")


def test_a_path_may_be_any_bytes(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = Path(os.fsdecode(b"a\xff.yaml"))
    config.write_text("seed: x\n")
    assert "seed" in says(capsys, "data", "--config", str(config))


OPTIONS = {
    "--run-dir": ["train", "--run-dir"],
    "--config": ["train", "--run-dir", "run", "--config"],
    "--make": ["data", "--make"],
    "--out": ["export", "--run-dir", "run", "--out"],
    "": ["report", "--out", "x.html"],
}


@pytest.mark.parametrize("option", OPTIONS)
def test_paths_that_can_be_none(capsys, option: str, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    Path("loop").symlink_to("loop")
    given = OPTIONS[option]
    start = f"{option}: " if option else ""
    long = "a" * 300
    assert says(capsys, *given, long).startswith(f"{start}{long}: File name too long; name a")
    deep = "a/" * 3000
    assert "File name too long; name a shorter path" in says(capsys, *given, deep)
    assert says(capsys, *given, "file/x").startswith(f"{start}file/x: Not a directory; a part")
    assert "Too many levels of symbolic links; its" in says(capsys, *given, "loop")
    assert "embedded null byte" in says(capsys, *given, "a\0b")


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_path_is_not_the_current_folder(capsys, option: str, empty: str):
    """As of a variable of the shell that is not set."""
    line = says(capsys, *OPTIONS[option], empty)
    assert f"{option or 'R'}: is empty; name a path, . for this folder" in line


def test_home_folders_are_resolved_where_the_shell_did_not(capsys, tmp_path, monkeypatch):
    """Shells leave `~` as it is in --make=~/x."""
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    assert main(["data", "--make=~/sample"]) == 0
    assert str(home) in capsys.readouterr().out
    assert (home / "sample" / "8").is_dir() and not Path("~").exists()
    assert f"{home / 'x'}: holds no run" in says(capsys, "report", "~/x", "--out=~/a.html")


@pytest.mark.parametrize("option", ["--prompt", "--client", "--run-dir"])
def test_two_dashes_are_no_value(capsys, option: str):
    assert says(capsys, *GENERATE, f"{option}=--").startswith(f"{option}: '--' is no value")


def test_a_file_is_no_run(capsys, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("")
    ask = ["--client", "a", "--prompt", "b"]
    assert f"{file} holds no run" in says(capsys, "generate", "--run-dir", str(file), *ask)
    assert f"{file}: holds no run" in says(capsys, "report", str(file), "--out", "a.html")


@pytest.mark.parametrize(
    "field", ["data.path", "model.path", "init.global_adapter", "init.local_adapter"]
)
def test_paths_of_the_configuration(capsys, field: str, tmp_path):
    line = says(capsys, "train", "--run-dir", str(tmp_path / "run"), f"--{field}", "a" * 300)
    assert line.startswith(f"command line: {field}: {'a' * 300}: File name too long")
    line = says(capsys, "train", "--run-dir", str(tmp_path / "run"), f"--{field}", "~nobody.x/a")
    assert line.startswith(f"command line: {field}: '~nobody.x/a': ")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "/x: Permission denied; allow"),
        (OSError(errno.EROFS, "Read-only file system", b"/x"), "/x: Read-only file system; name"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; make room"),
        (OSError(errno.EIO, "Input/output error", "/x"), "/x: Input/output error"),
        (MemoryError("Unable to allocate 9 GiB"), "out of memory: Unable to allocate 9 GiB; use"),
        (MemoryError(), "out of memory; use less"),
        (ValueError("embedded null byte"), "embedded null byte: a name or path"),
    ],
)
def test_what_the_system_says_at_last(capsys, monkeypatch, error: Exception, line: str):
    monkeypatch.setattr(fields, "run", lambda *given: (_ for _ in ()).throw(error))
    assert says(capsys, "fields").startswith(line)


def test_a_fault_of_the_program_is_not_hidden(monkeypatch):
    monkeypatch.setattr(fields, "run", lambda *given: {}["x"])
    with pytest.raises(KeyError):
        main(["fields"])


def test_fields_are_aligned_lines_with_nothing_broken(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["fields"]) == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    starts = [heading.index(name) for name in ("field", "type", "default", "what it is")]
    cells = [
        tuple(line[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True))
        for line in lines
    ]
    assert cells == describe_fields()
