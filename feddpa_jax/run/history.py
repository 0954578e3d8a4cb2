"""metrics.jsonl: a line a round, whose digests the run's manifest lists.

A line is appended before its digest is listed, and unlisted before it is removed. So what a kill
leaves has all listed lines, perhaps others behind them, and perhaps a last one that was cut short.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from feddpa_jax.files.disk import append_line, write_whole, writing
from feddpa_jax.files.manifest import Manifest, digest_of, read_bytes, read_manifest
from feddpa_jax.files.strict_json import parse_json
from feddpa_jax.types import UserError

NAME = "metrics.jsonl"
_LOST = "restore the file from a copy, or train again into a new --run-dir"


def parse_lines(file: Path, content: bytes, remedy: str, *, cut: bool) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, which end at line feeds and at nothing else.

    Args:
      file: its name, for messages.
      content: what is in it.
      remedy: what to do if it is damaged.
      cut: whether the last line may be cut short, as one that was just being written; it is left
        out then.

    Raises:
      UserError: a line is no JSON object.
    """
    lines = content.split(b"\n")
    last = lines.pop()
    if last:
        lines.append(last)
    found = []
    for number, line in enumerate(lines, start=1):
        value = _object(line)
        if value is not None:
            found.append(value)
            continue
        if cut and last and number == len(lines) and _is_beginning(line):
            break
        if not _is_text(line):
            raise UserError(f"{file}: cannot be read as text: line {number} is not UTF-8; {remedy}")
        raise UserError(f"{file}:{number}: not valid JSON; {remedy}")
    return found


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        value = parse_json(line.decode(), "a line", finite=False)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _is_text(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_beginning(line: bytes) -> bool:
    """Whether bytes may be the beginning of a line, perhaps cut within a character."""
    return line.startswith(b"{") and bool(line.decode(errors="ignore"))


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The line of every round, from 0.

    Raises:
      UserError: a line is missing, repeated or damaged.
    """
    file = folder / NAME
    manifest = read_manifest(folder, _LOST)
    digests = () if manifest is None else manifest.rounds
    content = read_bytes(file, _LOST)
    if content is None:
        if digests:
            raise UserError(f"{file}: is missing; {_LOST}")
        return []
    raw = content.split(b"\n")
    for number, digest in enumerate(digests):
        if number >= len(raw) or digest_of(raw[number]) != digest:
            raise UserError(
                f"{file}: the line of round {number} is missing or not as it was written; {_LOST}"
            )
    found = parse_lines(file, content, _LOST, cut=True)
    for place, line in enumerate(found):
        number = line.get("round")
        if number == place:
            continue
        if isinstance(number, int) and 0 <= number < place:
            raise UserError(
                f"{file}:{place + 1}: round {number} appears twice, as if two processes had "
                "trained at once; rerun the training command to repair this"
            )
        raise UserError(f"{file}:{place + 1}: the line of round {place} is missing; {_LOST}")
    return found


def append_round(folder: Path, line: dict[str, Any]) -> None:
    """Adds a round's line.

    Raises:
      UserError: it cannot be written.
    """
    text = json.dumps(line)
    manifest = read_manifest(folder, _LOST) or Manifest()
    with writing(folder / NAME):
        append_line(folder / NAME, text)
        rounds = (*manifest.rounds, digest_of(text.encode()))
        dataclasses.replace(manifest, rounds=rounds).write(folder)


def keep_rounds(folder: Path, count: int) -> None:
    """Keeps one line of each of the first rounds, and no other line.

    Lines of later rounds, whose rounds are played again, go; so do a last line that was cut short
    and lines of a round that stand there twice.

    Args:
      folder: the run's; it is there.
      count: how many rounds are kept.

    Raises:
      UserError: the line of a round that is kept is missing or damaged, or nothing can be written.
    """
    file = folder / NAME
    content = read_bytes(file, _LOST) or b""
    manifest = read_manifest(folder, _LOST) or Manifest()
    by_round: dict[Any, list[bytes]] = {}
    for line in content.split(b"\n"):
        value = _object(line)
        number = None if value is None else value.get("round")
        if isinstance(number, int):
            by_round.setdefault(number, []).append(line)
    kept = []
    for number in range(count):
        lines = by_round.get(number, [])
        if number < len(manifest.rounds):
            lines = [line for line in lines if digest_of(line) == manifest.rounds[number]]
        if not lines:
            raise UserError(f"{file}: the line of round {number} is missing or damaged; {_LOST}")
        kept.append(lines[-1])
    whole = b"".join(line + b"\n" for line in kept)
    fewer, listed = manifest.rounds[:count], tuple(map(digest_of, kept))
    with writing(file):
        if fewer != manifest.rounds:
            dataclasses.replace(manifest, rounds=fewer).write(folder)
        if content != whole:
            write_whole(file, whole)
        if listed != fewer:
            dataclasses.replace(manifest, rounds=listed).write(folder)
