"""Federations from disk: every layout, and every mistake named on one line."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from feddpa_jax.data.folders import load_federation
from feddpa_jax.data.sample import TASKS, sample_federation, write_sample
from feddpa_jax.types import UserError

GOOD = {"instruction": "Add 1 and 2.", "output": "3", "task": "sum"}


def paper(folder: Path, *clients: object, test: str | None = None) -> Path:
    (folder / str(len(clients))).mkdir(parents=True)
    for k, content in enumerate(clients):
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / str(len(clients)) / f"local_training_{k}.json").write_text(text)
    (folder / "some_test.jsonl").write_text(json.dumps(GOOD) + "\n" if test is None else test)
    return folder


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


def client_folder(folder: Path) -> Path:
    (folder / "clients" / "a").mkdir(parents=True)
    for file in ("train.jsonl", "test.jsonl"):
        (folder / "clients" / "a" / file).write_text(json.dumps(GOOD) + "\n")
    return folder


@pytest.mark.parametrize(
    ("layout", "name", "words"),
    [
        ("clients", "clients/a/TEST.JSONL", "looks like data, and is not read; a client's files"),
        ("clients", "clients/a/tests.json", "looks like data, and is not read; a client's files"),
        ("clients", "clients/a/tests.jsonl", "looks like data, and is not read; a client's files"),
        ("clients", "clients/a/Train.jsonl.gz", "looks like data, and is not read; a client's"),
        ("clients", "clients/a/train_2.csv", "looks like data, and is not read; a client's files"),
        ("clients", "clients/a/more.jsonl", "looks like data, and is not read; a client's files"),
        ("clients", "clients/b.jsonl", "looks like data, and is not read; records go into"),
        ("clients", "test.jsonl", "looks like data, and is not read; records go into"),
        ("clients", "local_training_0.json", "looks like data, and is not read; records go into"),
        ("paper", "2/local_training_01.json", "looks like data, and is not read; files are"),
        ("paper", "2/local_training_٣.json", "looks like data, and is not read; files are"),
        ("paper", "2/Local_Training_2.json", "looks like data, and is not read; files are"),
        ("paper", "2/local_training_2.jsonl", "looks like data, and is not read; files are"),
        ("paper", "2/Test.JSONL", "looks like data, and is not read; files are"),
        ("paper", "SOME_TEST.JSONL", "looks like data, and is not read; files are"),
        ("paper", "test.csv", "looks like data, and is not read; files are"),
        ("paper", "flan_test.json", "looks like data, and is not read; files are"),
    ],
)
def test_what_looks_like_data_is_read_or_refused(tmp_path, layout, name, words):
    folder = client_folder(tmp_path) if layout == "clients" else paper(tmp_path, [GOOD], [GOOD])
    assert len(load_federation(str(folder)).test) == 1
    (folder / name).write_text(json.dumps(GOOD) + "\n")
    with pytest.raises(UserError, match=f"{name}: {words}"):
        load_federation(str(folder))


def test_another_format_alone_is_refused(tmp_path):
    """Beside the file that is read it is passed over: one was made from the other."""
    folder, name = client_folder(tmp_path), "test.jsonl.gz"
    (folder / "clients" / "a" / name).write_text("{")
    assert len(load_federation(str(folder)).test) == 1
    (folder / "clients" / "a" / "test.jsonl").unlink()
    with pytest.raises(UserError, match=f"{name}: looks like data, and is not read"):
        load_federation(str(folder))


@pytest.mark.parametrize(
    "name", [".ipynb_checkpoints", ".git", "__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN"]
)
def test_folders_of_systems_are_no_clients(tmp_path, name):
    folder = client_folder(tmp_path)
    (folder / "clients" / name).mkdir()
    (folder / "clients" / name / "._train.jsonl").write_bytes(b"\xff")
    assert [client.name for client in load_federation(str(folder)).clients] == ["a"]


@pytest.mark.parametrize("name", ["train.jsonl", "train.parquet", "raw.jsonl"])
def test_what_the_clients_were_made_from(tmp_path, name):
    folder = client_folder(tmp_path)
    (folder / name).write_text("{")
    assert len(load_federation(str(folder)).test) == 1


def test_what_the_papers_clients_were_made_from(tmp_path):
    folder = paper(tmp_path, [GOOD], [GOOD])
    (folder / "2" / "global_training.json").write_text("{")
    assert len(load_federation(str(folder)).test) == 1


@pytest.mark.parametrize(
    "name",
    [
        *("README.json", "latest.csv", "contest.json", "notes.txt", "8.json", "README.md"),
        *("validation.jsonl", "dev.jsonl", "val.json", "metadata.jsonl", "train_loss.csv"),
        *("test_results.json", "training_args.json", "train_ids.csv"),
    ],
)
def test_other_files_may_lie_beside_data(tmp_path, name):
    for folder in (client_folder(tmp_path / "one"), paper(tmp_path / "two", [GOOD], [GOOD])):
        (folder / name).write_text("{")
        (folder / ("clients/a" if (folder / "clients").is_dir() else "2") / name).write_text("{")
        (folder / f".{name}").write_text("{")
        (folder / "._some_test.jsonl").write_bytes(b"\xff")
        assert len(load_federation(str(folder)).test) == 1


@pytest.mark.parametrize("name", ["clients/a/train.jsonl", "clients/a/test.jsonl"])
@pytest.mark.parametrize("kind", ["folder", "link", "pipe", "empty"])
def test_what_stands_for_a_clients_file(tmp_path, name, kind):
    file = client_folder(tmp_path) / name
    _replace(file, kind)
    with pytest.raises(UserError, match=f"{name}: {SAID[kind]}"):
        load_federation(str(tmp_path))


@pytest.mark.parametrize("name", ["2/local_training_0.json", "some_test.jsonl"])
@pytest.mark.parametrize("kind", ["folder", "link", "pipe", "empty"])
def test_what_stands_for_a_file_of_the_paper(tmp_path, name, kind):
    file = paper(tmp_path, [GOOD], [GOOD]) / name
    _replace(file, kind)
    said = "broken JSON" if file.suffix == ".json" and kind == "empty" else SAID[kind]
    with pytest.raises(UserError, match=f"{name}(, line 1)?: {said}"):
        load_federation(str(tmp_path))


SAID = {
    "folder": "is a folder, not a file",
    "link": "cannot be read: No such file",
    "pipe": "is a special file, not a file",
    "empty": "(client 'a' has no training example|holds no test instance)",
}


def _replace(file: Path, kind: str) -> None:
    file.unlink()
    if kind == "folder":
        file.mkdir()
    elif kind == "link":
        file.symlink_to("nowhere")
    elif kind == "pipe":
        os.mkfifo(file)
    else:
        file.write_text("")


def test_a_client_that_is_a_broken_link(tmp_path):
    (client_folder(tmp_path) / "clients" / "b").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"clients/b: is neither file nor folder, or a broken link"):
        load_federation(str(tmp_path))


def test_clients_in_a_folder_and_below_it(tmp_path):
    paper(tmp_path, [GOOD])
    (tmp_path / "local_training_0.json").write_text(json.dumps([GOOD]))
    with pytest.raises(UserError, match=r"holds clients' files, and so does .*/1; name the one"):
        load_federation(str(tmp_path))


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


def test_limits_choose_by_seed_and_keep_order(tmp_path):
    some = load_federation("sample", seed=1, max_train=10, max_test=3)
    whole = load_federation("sample", seed=1)
    assert whole == load_federation("sample", seed=1) != load_federation("sample", seed=0)
    for own, client in zip(some.clients, whole.clients, strict=True):
        places = [client.train.index(example) for example in own.train]
        assert len(places) == 10
        assert places == sorted(places) != list(range(10))
    assert len(some.test) == 3 * len(TASKS)
    assert load_federation("sample", seed=1, max_train=10, max_test=3) == some


def test_validation_is_held_out_of_what_a_client_trains_on():
    whole = load_federation("sample", seed=1, max_train=10)
    split = load_federation("sample", seed=1, max_train=10, validation=4)
    for before, after in zip(whole.clients, split.clients, strict=True):
        assert (len(after.train), len(after.validation)) == (6, 4)
        places = {e: i for i, e in enumerate(before.train)}
        assert len(places) == 10
        train, held = ([places[e] for e in part] for part in (after.train, after.validation))
        assert train == sorted(train) and held == sorted(held)
        assert sorted(train + held) == list(range(10))
        assert after.tasks == before.tasks
    assert load_federation("sample", seed=1, max_train=10, validation=4) == split
    other = load_federation("sample", seed=2, max_train=10, validation=4)
    assert [c.validation for c in other.clients] != [c.validation for c in split.clients]
    assert split.test == whole.test


def test_every_choice_follows_the_seed(tmp_path):
    """Of files, which the seed does not make: what max_train, max_test and validation choose."""
    write_sample(tmp_path / "data", 0)
    limits: dict[str, Any] = {"max_train": 10, "max_test": 3, "validation": 4}

    def chosen(seed: int):
        found = load_federation(str(tmp_path / "data"), seed=seed, **limits)
        return [c.train for c in found.clients], [c.validation for c in found.clients], found.test

    whole = load_federation(str(tmp_path / "data"))
    first, again, other = chosen(1), chosen(1), chosen(2)
    assert first == again
    for one, two in zip(first, other, strict=True):
        assert one != two
    # Clients and tasks are not all given the same places.
    places = [
        tuple(client.train.index(example) for example in own)
        for client, own in zip(whole.clients, first[0], strict=True)
    ]
    held = [
        tuple(client.train.index(example) for example in own)
        for client, own in zip(whole.clients, first[1], strict=True)
    ]
    assert len(set(places)) == len(set(held)) == 8
    tests = [whole.test.index(example) for example in first[2]]
    assert tests == sorted(tests)
    assert len({tuple(place % 24 for place in tests[k : k + 3]) for k in range(0, 24, 3)}) > 4
    for limit, count in (("max_train", 96), ("max_test", 24)):
        given: dict[str, Any] = {limit: count}
        exact = load_federation(str(tmp_path / "data"), seed=1, **given)
        assert exact == whole


def test_what_is_held_out_follows_the_seed_and_the_name(tmp_path):
    """Of files, and without `max_train`, which chooses by both as well."""
    write_sample(tmp_path / "data", 0)
    whole = load_federation(str(tmp_path / "data"))

    def held(seed: int) -> list[tuple[int, ...]]:
        found = load_federation(str(tmp_path / "data"), seed=seed, validation=4)
        pairs = zip(whole.clients, found.clients, strict=True)
        return [tuple(map(before.train.index, after.validation)) for before, after in pairs]

    assert held(1) == held(1)
    assert all(one != two for one, two in zip(held(1), held(2), strict=True))
    assert len(set(held(1))) == 8


def test_a_validation_in_the_datas_order(tmp_path):
    """Of 60 examples 40, which a set of numbers would not keep in order."""
    whole = load_federation("sample", seed=1, max_train=90)
    split = load_federation("sample", seed=1, max_train=90, validation=40)
    for before, after in zip(whole.clients, split.clients, strict=True):
        held = [before.train.index(example) for example in after.validation]
        assert held == sorted(held) and len(held) == 40


def test_validation_must_leave_something_to_train_on():
    with pytest.raises(UserError, match=r"data\.validation: client .* below 10"):
        load_federation("sample", seed=1, max_train=10, validation=10)


def test_sample_is_deterministic_disjoint_and_balanced():
    federation = sample_federation(3)
    assert federation == sample_federation(3)
    assert federation != sample_federation(4)
    assert len(federation.clients) == 8
    for client, (task, _, labels, _) in zip(federation.clients, TASKS, strict=True):
        assert client.tasks == (task,)
        trained = {example.instruction for example in client.train}
        assert len(trained) == 96
        tests = [example for example in federation.test if example.task == task]
        assert len(tests) == 24
        assert trained.isdisjoint(example.instruction for example in tests)
        answers = {example.output for example in client.train}
        if len(answers) == labels:
            counts = [sum(e.output == a for e in client.train) for a in answers]
            assert max(counts) - min(counts) <= 1
        assert max(len(e.instruction + e.output) for e in client.train) < 170


def test_sample_answers_are_right():
    """Checked against the words of the question by other rules than those that made it."""
    by_task = {client.tasks[0]: client.train for client in sample_federation(0).clients}
    for example in by_task["fit_coreference"]:
        item, box = (part.split()[0] for part in example.instruction.split(" the ")[0:2])
        words = example.instruction.replace(".", "").replace("?", "").split()
        item, box = words[1], words[words.index("because") - 1]
        big = words[words.index("too") + 1] in ("big", "large", "wide")
        assert example.output == f"the {item if big else box}"
    for example in by_task["has_entailment"]:
        premise, rest = example.instruction.split(". Does it follow that ")
        claim = rest.rstrip("?").split()
        thing = claim[-1]
        expected = "it is not possible to tell"
        if thing == premise.split()[-1]:
            expected = "no" if claim[2] == "no" else "yes"
        assert example.output == expected
    for example in by_task["fix_punctuation"]:
        plain = "".join(c for c in example.output if c not in ".,?").lower()
        assert example.instruction.endswith(f": {plain}")
        assert example.output[-1] in ".?"


def test_written_sample_loads_equal(tmp_path):
    write_sample(tmp_path / "data", 5)
    assert load_federation(str(tmp_path / "data")) == sample_federation(5)


@pytest.mark.parametrize("number", [1, 2])
def test_data_of_the_paper(shared_data, number):
    federation = load_federation(str(shared_data / f"dataset{number}"))
    assert [len(client.train) for client in federation.clients] == [300] * 8
    assert len(federation.test) == 800
    assert all(len(client.tasks) == 1 for client in federation.clients)
