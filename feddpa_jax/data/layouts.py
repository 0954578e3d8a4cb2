"""Which layout a folder of data has: a folder for each client, or the paper's files."""

import os
import re
from pathlib import Path
from typing import NamedTuple

from feddpa_jax.data.client_folders import FOLDER, refuse_beside_clients
from feddpa_jax.data.strays import refuse_strays
from feddpa_jax.types import Example, UserError


class PaperFiles(NamedTuple):
    """The files of the paper's layout.

    Attributes:
      training: each client's, by its name, in their order; a JSON list each.
      tests: of test instances, as JSON lines.
    """

    training: dict[str, Path]
    tests: list[Path]


def find_layout(folder: Path) -> PaperFiles | None:
    """The files of the paper's layout; None of a folder that holds a folder for each client.

    Raises:
      UserError: it has neither layout, or one that is not whole.
    """
    if not folder.exists():
        raise UserError(f"data.path: {folder} does not exist; name a folder, sample, or hf:NAME")
    if not folder.is_dir():
        raise UserError(
            f"data.path: {folder} is not a folder; a file with a column of clients is named as "
            f"hf:{folder}?client_column=COLUMN, and one without is divided with --partition"
        )
    numbered = [p for p in folder.iterdir() if p.is_dir() and _is_number(p.name)]
    if (folder / FOLDER).is_dir():
        refuse_beside_clients(folder, ("test", "local"), all_lines=False)
        return None
    if os.path.lexists(folder / "local_training_0.json"):
        if inner := [p for p in numbered if (p / "local_training_0.json").is_file()]:
            raise UserError(
                f"data.path: {folder} holds clients' files, and so does {inner[0]}; name the one "
                "that you mean, and move the other elsewhere"
            )
        return _paper_files(folder)
    if len(numbered) > 1:
        names = ", ".join(sorted(p.name for p in numbered))
        raise UserError(f"data.path: {folder} holds several federations ({names}); name one")
    if numbered:
        return _paper_files(numbered[0])
    if (folder / "train.parquet").is_file():
        raise UserError(f"data.path: {folder} holds train.parquet; name it as hf:{folder}")
    raise UserError(
        f"data.path: {folder} has no <N>/local_training_0.json and no clients/<name>/train.jsonl; "
        "name another folder"
    )


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal()


_TRAINING = re.compile(r"local_training_(0|[1-9][0-9]*)\.json")


def _is_test(name: str) -> bool:
    return "test" in name and name.endswith(".jsonl") and not name.startswith(".")


def _paper_files(folder: Path) -> PaperFiles:
    numbers = sorted(
        int(match[1]) for path in folder.iterdir() if (match := _TRAINING.fullmatch(path.name))
    )
    # "." and ".." are called what they stand for.
    named = Path(os.path.abspath(folder))
    remedy = "files are local_training_<k>.json and *test*.jsonl; rename or remove it"
    refuse_strays(
        folder,
        lambda name: bool(_TRAINING.fullmatch(name)) or _is_test(name),
        remedy,
        words=("test", "local"),
        all_lines=True,
    )
    expected = int(named.name) if _is_number(named.name) else len(numbers)
    for k in range(max(expected, len(numbers))):
        if k not in numbers:
            raise UserError(
                f"{folder}: no local_training_{k}.json, though the folder is for {expected} clients"
            )
    if len(numbers) > expected:
        raise UserError(
            f"{folder}: holds {len(numbers)} clients, though the folder is for {expected}; "
            "rename the folder or take the others out"
        )
    # Only an <N> folder has its tests beside it; another folder's neighbours are strangers.
    places = (named.parent, named) if _is_number(named.name) else (named,)
    refuse_strays(places[0], _is_test, remedy, words=("test",), all_lines=False)
    files = sorted(file for place in places for file in place.iterdir() if _is_test(file.name))
    training = {f"client_{k}": folder / f"local_training_{k}.json" for k in numbers}
    return PaperFiles(training, files)


def check_test(example: Example, number: int, file: Path) -> None:
    """Refuses a test instance without a task.

    Raises:
      UserError: names the file and the instance's number.
    """
    if not example.task:
        raise UserError(f"{file}: test instance {number} names no 'task'; add the field")
