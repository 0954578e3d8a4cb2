"""Partitions on disk and in memory: read back whole, whatever the file was, and the test share."""

import collections
import csv
import json

import numpy as np
import pandas
import pytest

import feddpa_jax as fd
from feddpa_jax.cli.program import main
from feddpa_jax.data.folders import load_federation
from feddpa_jax.types import UserError
from tests.partitioning.flat_examples import examples, flat


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def write_flat(folder, ending, rows):
    path = folder / f"flat{ending}"
    if ending == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif ending == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        pandas.DataFrame(rows).to_parquet(path)
    return path


def told(federation):
    return sorted(
        [(client.name, example) for client in federation.clients for example in client.train]
        + [("", example) for example in federation.test],
        key=repr,
    )


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_what_is_written_is_loaded(tmp_path, ending):
    file = write_flat(tmp_path, ending, flat())
    found = fd.partition(file, "dirichlet(task, alpha=0.3)", clients=7, test=0.25, seed=3)
    place = found.write(tmp_path / "out")
    loaded = load_federation(place)
    assert told(loaded) == told(found.federation())
    assert [client.name for client in loaded.clients] == list(found.names)
    everything = [e for c in loaded.clients for e in c.train] + list(loaded.test)
    assert sorted(everything, key=repr) == sorted(examples(), key=repr)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("train.parquet", "test.parquet", "partition.json", "clients.svg"),
    }
    about = json.loads((tmp_path / "out/partition.json").read_text())
    assert about["partition"] == "dirichlet(task, alpha=0.3)"
    assert (about["seed"], about["test"], about["source"]) == (3, 0.25, f"flat{ending}")
    assert about["statistics"]["examples"] == sum(len(c.train) for c in loaded.clients)


def test_all_columns_stay_and_clients_lie_together(tmp_path):
    found = fd.partition(flat(), "iid", clients=5)
    found.write(tmp_path / "out")
    table = pandas.read_parquet(tmp_path / "out/train.parquet")
    assert list(table.columns) == ["client", "instruction", "output", "task", "user", "number"]
    assert list(table["client"]) == sorted(table["client"])
    by_instruction = {row["instruction"]: row for row in flat()}
    assert len(table) == 240 == len(set(table["instruction"]))
    for row in table.to_dict("records"):
        assert {**row} == {"client": row["client"], **by_instruction[row["instruction"]]}
    assert not (tmp_path / "out/test.parquet").exists()


def test_examples_of_no_client_are_not_written(tmp_path):
    found = fd.partition(flat(), "iid(sizes=[5, 9])")
    found.write(tmp_path / "out")
    table = pandas.read_parquet(tmp_path / "out/train.parquet")
    assert collections.Counter(table["client"]) == {"client_0": 5, "client_1": 9}
    assert [len(client.train) for client in found.federation().clients] == [5, 9]


def test_the_same_bytes_every_time(tmp_path):
    for name in ("a", "b"):
        fd.partition(flat(), "pathological(task)", clients=5, test=0.1).write(tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_the_test_share_is_of_each_client_and_right_on_average():
    found = fd.partition(flat(2000), "iid(sizes=lognormal, sigma=1)", clients=100, test=0.1)
    size_C = np.bincount(found.client_I)
    test_C = np.bincount(found.client_I[found.test_I], minlength=100)
    assert np.abs(test_C - 0.1 * size_C).max() < 1
    assert 180 <= test_C.sum() <= 220
    assert found.statistics.tests == test_C.sum() == 2000 - found.statistics.examples
    # What is left to train on is never below the minimum.
    few = fd.partition(flat(), "iid", clients=60, minimum=4, test=0.5)
    assert few.statistics.tests == 0 and few.statistics.sizes.least == 4
    half = fd.partition(flat(), "iid", clients=60, minimum=2, test=0.5)
    assert half.statistics.sizes.least == half.statistics.sizes.most == 2
    # Which ones they are is drawn.
    places = np.flatnonzero(fd.partition(flat(), "iid", clients=2, test=0.5).test_I)
    assert 90 < places.mean() < 150


def test_records_without_a_task_are_tests_of_their_client(tmp_path):
    rows = [{"instruction": f"a{n}", "output": "b", "who": f"w{n % 2}"} for n in range(20)]
    federation = load_federation(
        fd.partition(rows, "natural(who)", test=0.5).write(tmp_path / "out")
    )
    assert collections.Counter(e.task for e in federation.test) == {"w0": 5, "w1": 5}
    assert federation.clients[0].tasks == ("w0",)


def test_names_that_are_no_folders(tmp_path):
    users = ("anna@home", "anna/home", "Bo", "bo", "carl", "x" * 80)
    rows = [{"instruction": "a", "output": "b", "user": name} for name in users]
    found = fd.partition(rows, "natural(user)")
    assert "carl" in found.names and len(set(map(str.lower, found.names))) == 6
    loaded = load_federation(found.write(tmp_path / "out"))
    assert len(loaded.clients) == 6
    table = pandas.read_parquet(tmp_path / "out/train.parquet")
    assert set(table["user"]) == set(users)


@pytest.mark.parametrize("kind", ["examples", "pandas", "arrow", "datasets"])
def test_data_in_memory(kind):
    import datasets
    import pyarrow

    data = {
        "examples": examples,
        "pandas": lambda: pandas.DataFrame(flat()),
        "arrow": lambda: pyarrow.Table.from_pylist(flat()),
        "datasets": lambda: datasets.Dataset.from_list(flat()).select(range(240)),
    }[kind]()
    found = fd.partition(data, "iid", clients=5)
    assert told(found.federation()) == told(fd.partition(flat(), "iid", clients=5).federation())
    assert found.settings["source"] == "in memory"


def test_conversations_in_memory_stay_whole(tmp_path):
    """Earlier turns and inputs are those that were given, in memory and from the folder."""
    turns = (fd.Turn("system", "Be brief."), fd.Turn("user", "Hi"), fd.Turn("assistant", "Hello"))
    given = [
        fd.Example(f"ask {n}", f"say {n}", task="chat", history=turns[n % 2 * 3 :])
        for n in range(6)
    ]
    given.append(fd.Example("ask", "say", input="of this", task="chat"))
    divided = fd.partition(given, "iid", clients=2)
    out = divided.write(tmp_path / "out")
    for federation in (divided.federation(), fd.load_federation(out)):
        found = [one for client in federation.clients for one in client.train]
        assert sorted(found, key=repr) == sorted(given, key=repr)


def test_folders_and_columns_that_are_taken(tmp_path):
    found = fd.partition(flat(), "iid", clients=5)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/note").write_text("mine")
    with pytest.raises(UserError, match=r"out: .*full is not empty; name a new folder"):
        found.write(tmp_path / "full")
    assert (tmp_path / "full/note").read_text() == "mine"
    with pytest.raises(UserError, match=r"out: .*a\[1\]: the path holds \*, \? or \["):
        found.write(tmp_path / "a[1]")
    rows = [{**row, "client": row["user"]} for row in flat()]
    with pytest.raises(UserError, match=r"have a column 'client' that .* would replace; rename it"):
        fd.partition(rows, "iid", clients=5).write(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]
    loaded = load_federation(fd.partition(rows, "natural(client)").write(tmp_path / "out"))
    assert len(loaded.clients) == 16


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "data.path: in memory: has no record"),
        ([{"task": "a"}, "b"], 'data, record 2: "b" is no object with fields'),
        (
            [{}, {"task": "a"}, {"task": 1}],
            "data, record 3: column 'task' has 1, which is a number, and in record 2 a text; give",
        ),
        ([{"task": "a"}, {}], "partition: record 2 has no value in column 'task'"),
        ([{"task": "a"}, {"task": ""}], "partition: record 2 has no value in column 'task'"),
        ([{"task": 1.5}, {"task": float("nan")}], "record 2 has no value in column 'task'"),
        ([{"task": ["a"]}], "partition: column 'task' holds lists or objects"),
        ([{"user": "a", "x": 1}], "the data have no column 'task'; name one of user, x"),
        (7, "data: 7 is no data; give a file's path, a list of examples or mappings, or a table"),
    ],
)
def test_data_that_cannot_be_divided(rows, message):
    with pytest.raises(UserError, match=message):
        fd.partition(rows, "dirichlet(task)", clients=1)


def test_files_that_cannot_be_divided(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.parquet").write_text("x")
    with pytest.raises(UserError, match=r"data\.path: hf:dolly: only files are divided; save "):
        fd.partition("hf:dolly", "iid", clients=1)
    for name, message in (
        ("none.jsonl", "data.path: .*none.jsonl does not exist; name a flat file"),
        ("a.txt", "data.path: .*a.txt is no file to divide; name one of .json, .jsonl, .csv"),
        ("b.parquet", "data.path: .*b.parquet: no Parquet file"),
        (".", "is no file to divide"),
    ):
        with pytest.raises(UserError, match=message):
            fd.partition(tmp_path / name, "iid", clients=1)


def test_columns_of_other_names(tmp_path, capsys):
    rows = [
        {"question": row["instruction"], "answer": row["output"], "topic": row["task"]}
        for row in flat()
    ]
    file = write_flat(tmp_path, ".jsonl", rows)
    columns = {"instruction": "question", "output": "answer", "task": "topic"}
    named = "{instruction: question, output: answer, task: topic}"
    options = ["--data.path", str(file), "--data.columns", named, "--clients", "5"]
    out = tmp_path / "out"
    assert main(["data", *options, "--partition", "iid", "--out", str(out)]) == 0
    assert f"use --data.path hf:{out} --data.columns '{named}'" in capsys.readouterr().out
    found = fd.partition(file, "iid", clients=5, columns=columns)
    assert told(load_federation(f"hf:{out}", columns=columns)) == told(found.federation())
    about = json.loads((out / "partition.json").read_text())
    assert about["columns"] == columns and found.label == "topic"
    message = "data.columns: flat.jsonl has no column 'ask', which is named for instruction; it has"
    with pytest.raises(UserError, match=message):
        fd.partition(file, "iid", clients=5, columns={"instruction": "ask"})
