"""All problems of data, in the words of loading, whose first problem is among them."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from feddpa_jax.data.folders import load_federation
from feddpa_jax.data.selection import Selection
from feddpa_jax.data.survey import problems_of
from feddpa_jax.types import UserError
from tests.data.small_folders import GOOD, paper

EMPTY, NO_TEXT = GOOD | {"output": ""}, GOOD | {"instruction": 3}
ASKED = {"instruction": "Add.", "task": "sum"}


def lines(file: Path, records: Sequence[dict | str]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{r if isinstance(r, str) else json.dumps(r)}\n" for r in records))
    return file


def found(path: str, validation: int = 0, **more) -> list[str]:
    """What the survey finds, with what loading says among it."""
    problems = list(problems_of(path, Selection(None, validation, 0), **more))
    with pytest.raises(UserError) as error:
        load_federation(path, validation=validation, **more)
    assert str(error.value) in problems
    return problems


def assert_told(problems: list[str], *told: str) -> None:
    assert len(problems) == len(told)
    for problem, text in zip(problems, told, strict=True):
        assert text in problem


def test_folders_of_clients(tmp_path: Path):
    place = tmp_path / "clients"
    lines(place / "a" / "train.jsonl", [GOOD, EMPTY, "{", GOOD, ASKED])
    lines(place / "a" / "test.jsonl", [NO_TEXT])
    lines(place / "b" / "train.jsonl", [])
    (place / "c").mkdir()
    (place / "d").mkdir()
    (place / "d" / "train.json").write_text("[1, ")
    lines(place / "e" / "train.jsonl", [GOOD])
    lines(place / "e" / "test.jsonl", [])
    problems = found(str(tmp_path), validation=1)
    assert_told(
        problems,
        f"{place}/a/train.jsonl, line 2: field 'output' is empty",
        f"{place}/a/train.jsonl, line 3: broken JSON",
        f"{place}/a/train.jsonl, line 5: no field 'output'",
        f"{place}/a/test.jsonl, line 1: field 'instruction' is 3, not text",
        f"{place}/b/train.jsonl: client 'b' has no training example",
        f"{place}/c: no train.jsonl",
        f"{place}/d/train.json, line 1: broken JSON",
        f"{place}/e/test.jsonl: holds no test instance",
        "data.validation: client 'e' has 1 training examples",
    )


def test_the_papers_layout(tmp_path: Path):
    folder = paper(tmp_path, [GOOD, EMPTY, NO_TEXT], "[", [GOOD], test='{"a": 1}\n{}\n')
    assert_told(
        found(str(folder)),
        "local_training_0.json, record 2: field 'output' is empty",
        "local_training_0.json, record 3: field 'instruction' is 3",
        "local_training_1.json, line 1: broken JSON",
        "some_test.jsonl, line 1: no field 'instruction'",
        "some_test.jsonl, line 2: no field 'instruction'",
    )
    (folder / "3" / "local_training_2.json").unlink()
    assert_told(found(str(folder)), "no local_training_2.json, though the folder is for 3")


@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_a_column_of_clients(tmp_path: Path, ending: str):
    records = [
        GOOD | {"client": "a", "hours": "1"},
        GOOD | {"client": "a", "hours": "2"},
        EMPTY | {"client": "A", "hours": None},
        GOOD | {"client": "A", "hours": None},
        GOOD | {"client": "a/b", "hours": None},
        GOOD | {"client": "c", "hours": "noon"},
    ]
    file = tmp_path / f"flat.{ending}"
    if ending == "jsonl":
        lines(file, [*records, "nothing"])
    else:
        file.write_text(json.dumps(records))
    tests = lines(tmp_path / "tests.jsonl", [EMPTY, GOOD, {"instruction": "a", "output": "b"}])
    more = {"columns": {"available": "hours"}, "test_path": str(tests)}
    problems = list(problems_of(f"hf:{file}", Selection(), **more))
    broken = [f"{file}, line 7: broken JSON"] if ending == "jsonl" else []
    assert_told(
        problems,
        "client 'a' is available '1' in one record and '2' in another",
        "record 3: field 'output' is empty",
        "record 5: client name 'a/b' cannot be a folder's name",
        "record 6: says that its client is available 'noon'",
        *broken,
        "client 'a' is there twice ('A')",
        f"{tests}, split train, record 1: field 'output' is empty",
        f"{tests}, split train, record 3: names no 'task'",
    )


def test_data_that_are_right_or_not_there(tmp_path: Path):
    assert list(problems_of("sample", Selection())) == []
    assert list(problems_of(str(paper(tmp_path, [GOOD])), Selection())) == []
    assert_told(found(str(tmp_path / "none")), "does not exist; name a folder")
    assert_told(found(f"hf:{tmp_path}/none.jsonl"), "none.jsonl: cannot be loaded")
