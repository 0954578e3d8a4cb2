"""metrics.jsonl: nothing is lost or repeated without a word."""

import json
from pathlib import Path
from typing import Any

import pytest

from feddpa_jax.files.manifest import NAME, read_manifest
from feddpa_jax.run.history import append_round, keep_rounds, parse_lines, read_history
from feddpa_jax.types import UserError


def line(number: int, seconds: float = 0.5) -> dict[str, Any]:
    return {"round": number, "name": "a\u2028b\u0085c", "seconds": seconds}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Four rounds."""
    for number in range(4):
        append_round(tmp_path, line(number))
    return tmp_path


def rounds(folder: Path) -> list[int]:
    return [found["round"] for found in read_history(folder)]


def test_lines_are_read_as_they_were_written(run: Path) -> None:
    assert read_history(run) == [line(number) for number in range(4)]
    keep_rounds(run, 2)
    assert read_history(run) == [line(0), line(1)]
    append_round(run, line(2, seconds=7.0))
    assert read_history(run) == [line(0), line(1), line(2, seconds=7.0)]


def test_only_line_feeds_end_lines() -> None:
    text = '{"a": "x\u2028y"}\n{"a": "\x1c\x85"}\n'
    with pytest.raises(UserError, match="f:2: not valid JSON; do that"):
        parse_lines(Path("f"), text.encode(), "do that", cut=False)  # A control character.
    text = '{"a": "x\u2028y\u2029"}\n{"a": "\x85"}\n'
    found = parse_lines(Path("f"), text.encode(), "do that", cut=False)
    assert found == [{"a": "x\u2028y\u2029"}, {"a": "\x85"}]


@pytest.mark.parametrize("count", [1, 5, 30])
def test_a_line_that_a_kill_cut_short_is_left_out_and_removed(run: Path, count: int) -> None:
    whole = (run / "metrics.jsonl").read_bytes()
    next_line = json.dumps(line(4), ensure_ascii=False).encode()
    (run / "metrics.jsonl").write_bytes(whole + next_line[:count])
    assert rounds(run) == [0, 1, 2, 3]
    with pytest.raises(UserError, match=":5: not valid JSON"):
        parse_lines(Path("f"), (run / "metrics.jsonl").read_bytes(), "remedy", cut=False)
    keep_rounds(run, 4)
    assert (run / "metrics.jsonl").read_bytes() == whole


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def without_second(content: bytes) -> bytes:
    lines = content.split(b"\n")
    return b"\n".join([lines[0], *lines[2:]])


# What is seen without digests too, by whoever knows how many rounds there were.
VISIBLE = {
    "gone": without_second,
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "cut": lambda content: content[:-7],
    "renumbered": lambda content: content.replace(b'"round": 1', b'"round": 9'),
    "no text": lambda content: content.replace(b'"name"', b'"n\xffme"', 1),
    "joined": lambda content: content.replace(b"\n", b" ", 1),
}
DAMAGES = {
    **VISIBLE,
    "flip": flip,
    "another number": lambda content: content.replace(b"0.5", b"0.7", 1),
    "another run's": lambda content: content.replace(b"0.5", b"0.7"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_refused_and_nothing_is_lost(run: Path, name: str) -> None:
    file = run / "metrics.jsonl"
    damaged = DAMAGES[name](file.read_bytes())
    file.write_bytes(damaged)
    with pytest.raises(UserError, match=r"metrics\.jsonl.*restore the file"):
        read_history(run)
    with pytest.raises(UserError, match=r"the line of round \d is missing or damaged; restore"):
        keep_rounds(run, 4)
    assert file.read_bytes() == damaged


@pytest.mark.parametrize("name", VISIBLE)
def test_damage_to_a_run_of_an_older_version(run: Path, name: str) -> None:
    (run / NAME).unlink()
    file = run / "metrics.jsonl"
    damaged = VISIBLE[name](file.read_bytes())
    file.write_bytes(damaged)
    with pytest.raises(UserError, match=r"the line of round \d is missing or damaged; restore"):
        keep_rounds(run, 4)
    assert file.read_bytes() == damaged


def test_a_missing_file_is_refused(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    for read in (read_history, lambda folder: keep_rounds(folder, 4)):
        with pytest.raises(UserError, match="missing"):
            read(run)
    keep_rounds(run, 0)  # Nothing is kept: training begins anew.
    assert read_history(run) == []


@pytest.mark.parametrize("listed", [True, False])
def test_rounds_that_two_processes_wrote_are_repaired(run: Path, listed: bool) -> None:
    file = run / "metrics.jsonl"
    whole = file.read_bytes()
    lines = whole.split(b"\n")[:-1]
    others = [json.dumps(line(number, seconds=9.0)).encode() for number in range(4)]
    mixed = [one for pair in zip(others, lines, strict=True) for one in pair]
    file.write_bytes(b"\n".join(mixed) + b"\n")
    if not listed:
        (run / NAME).unlink()
        with pytest.raises(UserError, match=r"2: round 0 appears twice, .*rerun the training"):
            read_history(run)
    keep_rounds(run, 4)
    assert file.read_bytes() == whole
    assert rounds(run) == [0, 1, 2, 3]


def test_a_round_that_is_missing_in_an_older_run(run: Path) -> None:
    (run / NAME).unlink()
    file = run / "metrics.jsonl"
    file.write_bytes(without_second(file.read_bytes()))
    with pytest.raises(UserError, match="2: the line of round 1 is missing; restore"):
        read_history(run)


def test_the_manifest_follows(run: Path) -> None:
    before = read_manifest(run, "")
    keep_rounds(run, 3)
    after = read_manifest(run, "")
    assert before is not None and after is not None
    assert after.rounds == before.rounds[:3]
    assert len(before.rounds) == len(set(before.rounds)) == 4
