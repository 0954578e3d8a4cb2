"""A mutant: the package with one small change of meaning, and the tests that should notice it."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "feddpa_jax"


class Edit(NamedTuple):
    """A change of a file.

    Attributes:
      old: text that stands in the file exactly once.
      new: what stands there instead.
      tests: where they differ from the rest of the file's, as in `Mutant`.
      survives: why no test can notice it; empty where one should.
    """

    old: str
    new: str
    tests: str = ""
    survives: str = ""


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One changed file of the package.

    Attributes:
      area: the part of the package that it is counted under.
      file: below `feddpa_jax/`.
      name: what was changed, for the list of survivors.
      source: the whole changed file.
      tests: test files or ids, below `tests/`.
      survives: why no test can notice it; empty where one should.
    """

    area: str
    file: str
    name: str
    source: str
    tests: tuple[str, ...]
    survives: str = ""


@dataclasses.dataclass(frozen=True)
class Entry:
    """An edit of the list, before it is looked up in its file."""

    file: str
    edit: Edit
    tests: tuple[str, ...]

    def found(self) -> int:
        """How often the old text stands in the file."""
        return (PACKAGE / self.file).read_text(encoding="utf-8").count(self.edit.old)

    def mutant(self, area: str) -> Mutant:
        """The changed file.

        Raises:
          ValueError: the old text does not stand there exactly once.
        """
        if (count := self.found()) != 1:
            raise ValueError(f"{self.file}: {self.edit.old!r} stands there {count} times, not once")
        source = (PACKAGE / self.file).read_text(encoding="utf-8")
        return Mutant(
            area,
            self.file,
            f"{_short(self.edit.old)} -> {_short(self.edit.new)}",
            source.replace(self.edit.old, self.edit.new),
            self.tests,
            self.edit.survives,
        )


def edits(file: str, tests: str, *changes: Edit | tuple[str, ...]) -> list[Entry]:
    """Entries for one file.

    Args:
      file: below `feddpa_jax/`.
      tests: files or ids below `tests/`, quick ones first, with spaces between them.
      changes: the fields of an `Edit`, of which the last two may be left out.
    """
    entries = []
    for change in changes:
        edit = change if isinstance(change, Edit) else Edit(*change)
        entries.append(Entry(file, edit, tuple((edit.tests or tests).split())))
    return entries


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 70 else f"{line[:67]}..."
