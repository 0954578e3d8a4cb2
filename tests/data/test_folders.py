"""Federations from disk: every layout, and every mistake named on one line."""

import json

import pytest

from feddpa_jax.data.folders import load_federation
from feddpa_jax.types import UserError
from tests.data.small_folders import GOOD, paper


def test_paper_layout(tmp_path):
    federation = load_federation(str(paper(tmp_path, [GOOD], [GOOD, GOOD])))
    assert [client.name for client in federation.clients] == ["client_0", "client_1"]
    assert [len(client.train) for client in federation.clients] == [1, 2]
    assert federation.test[0].task == "sum"
    assert [client.tasks for client in federation.clients] == [("sum",), ("sum",)]
    assert load_federation(str(tmp_path / "2")) == federation


def test_client_folders_name_their_task(tmp_path):
    for name in ("north", "south"):
        (tmp_path / "clients" / name).mkdir(parents=True)
        record = {"instruction": f"in {name}", "output": "x", "input": "context"}
        for file in ("train.jsonl", "test.jsonl"):
            text = "\ufeff" + json.dumps(record) + "\r\n\r\n"
            (tmp_path / "clients" / name / file).write_text(text, encoding="utf-8")
    federation = load_federation(str(tmp_path))
    assert [client.tasks for client in federation.clients] == [("north",), ("south",)]
    assert [example.task for example in federation.test] == ["north", "south"]
    assert federation.test[0].input == "context"


def test_hugging_face_data_set(tmp_path):
    import datasets

    rows = [{**GOOD, "who": "b"}, {**GOOD, "who": "a"}, {**GOOD, "who": "b"}]
    saved = datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(rows), "test": datasets.Dataset.from_list(rows[:1])}
    )
    saved.save_to_disk(str(tmp_path / "set"))
    federation = load_federation(f"hf:{tmp_path / 'set'}?client_column=who")
    assert [(c.name, len(c.train)) for c in federation.clients] == [("a", 1), ("b", 2)]
    assert len(federation.test) == 1
    with pytest.raises(UserError, match="no column 'client'"):
        load_federation(f"hf:{tmp_path / 'set'}")


def line_two_is(text: str) -> str:
    return f"[\n{text}\n]"


@pytest.mark.parametrize(
    ("clients", "test", "words"),
    [
        ([line_two_is('{"instruction": ')], None, ["local_training_0.json, line 3", "broken JSON"]),
        ([[GOOD, {"instruction": "a"}]], None, ["record 2", "'output'"]),
        ([[{"instruction": " ", "output": "b"}]], None, ["record 1", "'instruction' is empty"]),
        ([[{"instruction": "a", "output": 3}]], None, ["'output' is 3, not text"]),
        ([[GOOD], []], None, ["local_training_1.json", "'client_1'", "no training example"]),
        ([[7]], None, ["record 1", "not an object"]),
        ([[{"instruction": "a\ud800", "output": "b"}]], None, ["[0].instruction", "surrogate"]),
        (["[" * 100_000], None, ["nested more than 100 deep"]),
        (["[" + "9" * 5000 + "]"], None, ["broken JSON"]),
        ([{"a": 1}], None, ["no JSON list"]),
        ([[GOOD]], '{"instruction": "a", "output": "b"}\n{oops\n', ["some_test.jsonl, line 2"]),
        (
            [[GOOD]],
            '{"instruction": "a", "output": "b"}\n',
            ["some_test.jsonl", "test instance 1", "'task'"],
        ),
    ],
)
def test_bad_data_is_named(tmp_path, clients, test, words):
    with pytest.raises(UserError) as error:
        load_federation(str(paper(tmp_path, *clients, test=test)))
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_missing_and_colliding_clients(tmp_path):
    folder = paper(tmp_path / "a", [GOOD], [GOOD])
    (folder / "2" / "local_training_0.json").unlink()
    with pytest.raises(UserError, match=r"no local_training_0\.json"):
        load_federation(str(folder))
    for name in ("Ann", "ann"):
        (tmp_path / "b/clients" / name).mkdir(parents=True)
        (tmp_path / "b/clients" / name / "train.jsonl").write_text(json.dumps(GOOD) + "\n")
    with pytest.raises(UserError, match="twice"):
        load_federation(str(tmp_path / "b"))
    with pytest.raises(UserError, match="does not exist"):
        load_federation(str(tmp_path / "nowhere"))


def test_n_folder_by_its_relative_name(tmp_path, monkeypatch):
    folder = paper(tmp_path, [GOOD], [GOOD]) / "2"
    monkeypatch.chdir(folder)
    for name in (".", "../2/."):
        federation = load_federation(name)
        assert len(federation.clients) == 2
        assert [example.task for example in federation.test] == ["sum"]
    (folder / "local_training_1.json").unlink()
    with pytest.raises(UserError, match=r"no local_training_1\.json"):
        load_federation(".")


def test_more_clients_than_the_folder_says(tmp_path):
    folder = paper(tmp_path, [GOOD], [GOOD])
    (folder / "2" / "local_training_2.json").write_text(json.dumps([GOOD]))
    with pytest.raises(UserError, match="holds 3 clients, though the folder is for 2"):
        load_federation(str(folder))


def test_tests_beside_a_folder_of_any_name_are_not_its_own(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "local_training_0.json").write_text(json.dumps([GOOD]))
    (tmp_path / "other_test.jsonl").write_text(json.dumps(GOOD) + "\n")
    assert load_federation(str(tmp_path / "mine")).test == ()
    (tmp_path / "mine" / "own_test.jsonl").write_text(json.dumps(GOOD) + "\n")
    assert len(load_federation(str(tmp_path / "mine")).test) == 1


@pytest.mark.parametrize("path", ["a" * 300, f"/{'b/' * 3000}", f"hf:{'c' * 300}"])
def test_paths_that_are_too_long(path):
    with pytest.raises(UserError, match=r"data\.path: .*cannot be (read|loaded)") as error:
        load_federation(path)
    assert len(str(error.value)) < 450


@pytest.mark.parametrize("name", ["Input", " task", "INSTRUCTION"])
def test_fields_that_are_hardly_called_so(tmp_path, name):
    folder = paper(tmp_path, [GOOD, {**GOOD, name: "x"}])
    with pytest.raises(UserError, match=f"record 2: field {name!r} is not read; call it"):
        load_federation(str(folder))
    assert load_federation(str(paper(tmp_path / "more", [{**GOOD, "source": 3}]))).clients


def test_data_frames_write_nan_where_there_is_nothing(tmp_path):
    nothing = {"input": float("nan"), "task": float("nan"), "category": None, "score": float("nan")}
    folder = paper(tmp_path, [{**GOOD, **nothing}], test=json.dumps({**GOOD, "x": 1e400}))
    (example,) = load_federation(str(folder)).clients[0].train
    assert (example.input, example.task, example.category) == ("", "client_0", "")
    folder = paper(tmp_path / "more", [{**GOOD, "output": float("nan")}])
    with pytest.raises(UserError, match="'output' is nan, not text"):
        load_federation(str(folder))


def test_home_folder_that_does_not_exist():
    for path in ("~no_such_user/data", "hf:~no_such_user/data"):
        with pytest.raises(UserError, match="no such home folder"):
            load_federation(path)


def test_empty_client_folder_names_its_file(tmp_path):
    (tmp_path / "clients" / "north").mkdir(parents=True)
    (tmp_path / "clients" / "north" / "train.jsonl").write_text("\n \n")
    with pytest.raises(UserError, match=r"train\.jsonl: client 'north' has no training example"):
        load_federation(str(tmp_path))


def test_a_client_name_has_64_letters_at_most(tmp_path):
    for place, count in (("a", 64), ("b", 65)):
        folder = tmp_path / place / "clients" / ("x" * count)
        folder.mkdir(parents=True)
        (folder / "train.jsonl").write_text(json.dumps(GOOD) + "\n")
    assert load_federation(str(tmp_path / "a")).clients[0].name == "x" * 64
    with pytest.raises(UserError, match="use up to 64 letters"):
        load_federation(str(tmp_path / "b"))


def test_only_line_feeds_end_a_record(tmp_path):
    """Other separators of lines may stand in a text as they are."""
    folder = tmp_path / "clients" / "north"
    folder.mkdir(parents=True)
    record = {**GOOD, "output": "one\u2028two\x85three", "category": "kind"}
    text = json.dumps(record, ensure_ascii=False) + "\n" + json.dumps(GOOD) + "\n"
    (folder / "train.jsonl").write_text(text, encoding="utf-8")
    first, second = load_federation(str(tmp_path)).clients[0].train
    assert (first.output, first.category, second.output) == (record["output"], "kind", "3")


@pytest.mark.parametrize("field", ["input", "task", "category"])
def test_optional_fields_are_texts_too(tmp_path, field):
    folder = paper(tmp_path, [{**GOOD, field: 7}])
    with pytest.raises(UserError, match=rf"record 1: field '{field}' is 7, not text"):
        load_federation(str(folder))


def test_client_names_cannot_leave_the_folder(tmp_path):
    (tmp_path / "clients" / "a ..").mkdir(parents=True)
    with pytest.raises(UserError, match="cannot be a folder's name"):
        load_federation(str(tmp_path))


@pytest.mark.parametrize("number", [1, 2])
def test_data_of_the_paper(shared_data, number):
    federation = load_federation(str(shared_data / f"dataset{number}"))
    assert [len(client.train) for client in federation.clients] == [300] * 8
    assert len(federation.test) == 800
    assert all(len(client.tasks) == 1 for client in federation.clients)
