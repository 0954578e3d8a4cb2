"""Results as files; and file names from titles."""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from feddpa_jax.files import manifest
from feddpa_jax.files.disk import clear_leftovers, discard, make_folder, writing


def write_results(
    folder: Path, files: Mapping[str, str | Iterable[str]], rules: Mapping[str, bytes]
) -> None:
    """Writes a command's results, and copies of the user's files that its rules came from.

    Args:
      folder: of the results; its folder `rules` then holds the rules' files and no others.
      files: the results, by name; a large one is written part by part.
      rules: the rules' files, by path.

    Raises:
      UserError: something cannot be written.
    """
    own = {f"rules/{n}.py": text for n, text in zip(own_names(rules), rules.values(), strict=True)}
    with writing(folder):
        make_folder(folder)
        clear_leftovers(folder)
        discard(folder / "rules")
        if own:
            make_folder(folder / "rules")
        manifest.write_set(folder, {**own, **files})


def read_rules(folder: Path) -> dict[str, bytes]:
    """The copies of the rules' files in a folder that `write_results` wrote, by name."""
    place = folder / "rules"
    files = sorted(place.iterdir()) if place.is_dir() else []
    return {file.name: file.read_bytes() for file in files if file.suffix == ".py"}


def own_names(paths: Iterable[str]) -> list[str]:
    """Names for copies of users' Python files, without the ending.

    >>> own_names(["../my rules.py", "/a/b.py"])
    ['my_rules', 'a_b']
    """
    return file_names([Path(path).with_suffix("").as_posix().lstrip("./~") for path in paths])


def file_names(titles: Sequence[str]) -> list[str]:
    """Titles, which may hold names from data, as names of files, no two alike.

    They are short enough for an ending, and for file systems that take 255 bytes.

    >>> file_names(["scores ../nll", "a b", "a_b", "A/b"])
    ['scores_.._nll', 'a_b', 'a_b_2', 'A_b_3']
    """
    names: list[str] = []
    taken: set[str] = set()
    for title in titles:
        title = unicodedata.normalize("NFC", title)  # Some file systems do not tell é from e´.
        name = base = re.sub(r"[^\w.-]+", "_", title).encode()[:200].decode(errors="ignore")
        number = 1
        while name.casefold() in taken:  # Some file systems do not tell a from A.
            number += 1
            name = f"{base}_{number}"
        taken.add(name.casefold())
        names.append(name)
    return names
