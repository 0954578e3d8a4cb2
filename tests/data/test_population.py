"""A population gives what the same data give in memory, refuses damage, and is rebuilt."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feddpa_jax.data import opened
from feddpa_jax.data.folders import load_federation
from feddpa_jax.data.mapped_files import read_table
from feddpa_jax.data.population import Population
from feddpa_jax.data.population_writer import write_population
from feddpa_jax.data.selection import Selection
from feddpa_jax.types import Client, Example, Turn, UserError
from tests.data.flat_data import an_example, columns_of, flat_file, records


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDDPA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / f"data-{os.getuid()}"


def partition_folder(folder: Path) -> Path:
    import pandas

    folder.mkdir()
    rows = [{"client": name, **columns_of(example)} for name, example in records()]
    pandas.DataFrame(rows).to_parquet(folder / "train.parquet")
    pandas.DataFrame(rows[:5]).to_parquet(folder / "test.parquet")
    return folder


def talks(folder: Path) -> Path:
    file = folder / "talks.jsonl"
    lines = [
        {
            "client": name,
            "messages": [
                {"role": "user", "content": f"First {example.instruction}"},
                {"role": "assistant", "content": "Yes."},
                {"role": "user", "content": example.instruction},
                {"role": "assistant", "content": example.output},
            ],
        }
        for name, example in records()
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def client_folders(folder: Path) -> Path:
    for name, example in records():
        place = folder / "clients" / name
        place.mkdir(parents=True, exist_ok=True)
        for file in ("train.jsonl", "test.jsonl"):
            with (place / file).open("a") as text:
                text.write(json.dumps(columns_of(example)) + "\n")
    return folder


@pytest.mark.parametrize("max_train", [None, 3])
@pytest.mark.parametrize("validation", [0, 1])
@pytest.mark.parametrize("make", [flat_file, client_folders, partition_folder, talks])
def test_opened_data_are_those_in_memory(tmp_path, make, max_train, validation, monkeypatch):
    for module in ("population", "population_writer"):
        monkeypatch.setattr(f"feddpa_jax.data.{module}.BATCH", 5)
    made = make(tmp_path if make in (flat_file, talks) else tmp_path / "data")
    path = str(made) if make is client_folders else f"hf:{made}"
    settings = {"seed": 5, "max_train": max_train, "validation": validation, "max_test": 2}
    loaded = load_federation(path, cache="off", **settings)
    found = load_federation(path, cache="on", **settings)
    assert isinstance(loaded.clients, tuple) and isinstance(found.clients, Population)
    assert tuple(found.clients) == loaded.clients and found.names == loaded.names
    assert found.test == loaded.test and found.source == loaded.source
    assert found.clients[1:3] == loaded.clients[1:3] and found.clients[-1] == loaded.clients[-1]
    assert found.clients.counts_C.tolist() == [len(own.train) for own in loaded.clients]


def test_what_is_large_is_opened_unasked(tmp_path, monkeypatch):
    path = f"hf:{flat_file(tmp_path)}"
    assert isinstance(load_federation(path).clients, tuple)
    monkeypatch.setattr(opened, "LARGE_FILE", 10)
    assert isinstance(load_federation(path).clients, Population)
    monkeypatch.setattr(opened, "LARGE_FILE", 2**20)
    folder = str(client_folders(tmp_path / "folders"))
    assert isinstance(load_federation(folder).clients, tuple)
    monkeypatch.setattr(opened, "MANY_CLIENTS", 7)
    assert isinstance(load_federation(folder).clients, Population)


@pytest.mark.parametrize("make", [flat_file, client_folders, partition_folder])
def test_many_short_records_are_opened_unasked(tmp_path, make, monkeypatch):
    """There are 28; the bytes of Parquet say little of them."""
    made = make(tmp_path if make is flat_file else tmp_path / "data")
    path = str(made) if make is client_folders else f"hf:{made}"
    for least, kind in ((29, tuple), (28, Population)):
        monkeypatch.setattr(opened, "MANY_RECORDS", least)
        assert isinstance(load_federation(path).clients, kind)


def test_many_bytes_of_a_few_clients_are_opened_unasked(tmp_path, monkeypatch):
    folder = client_folders(tmp_path / "data")
    size = sum(file.stat().st_size for file in folder.glob("clients/*/train.jsonl"))
    for least, kind in ((size + 1, tuple), (size, Population)):
        monkeypatch.setattr(opened, "LARGE_FILE", least)
        assert isinstance(load_federation(str(folder)).clients, kind)


def a_population(folder: Path, **settings) -> Population:
    folder.mkdir()
    write_population(folder, records(), [an_example("test", 1)], **settings)
    return Population(folder)


def test_a_written_population_is_a_data_path(tmp_path):
    a_population(tmp_path / "people")
    found = load_federation(str(tmp_path / "people"), max_train=2)
    assert found.names == tuple(f"u{c}" for c in range(7)) and len(found.clients[0].train) == 2
    assert found.test == (an_example("test", 1),)


def damaged(file: Path, old: bytes, new: bytes) -> None:
    content = file.read_bytes()
    assert old in content and len(old) == len(new)
    file.write_bytes(content.replace(old, new))


def test_other_files_of_a_population_are_compared_at_once(tmp_path):
    for name, old in (("test.arrow", b"Say 1 of test."), ("clients.arrow", b"u3")):
        folder = tmp_path / name
        a_population(folder)
        damaged(folder / name, old, old[:-1] + b"4")
        with pytest.raises(UserError, match=f"{name} has changed"):
            Population(folder)


def test_files_that_are_none_of_ours_are_no_traceback(tmp_path):
    for name, old, new in (
        ("population.json", b'"sha256"', b'"sha257"'),
        ("rows.npy", b"NUMPY", b"NUMPX"),
    ):
        folder = tmp_path / name
        a_population(folder)
        damaged(folder / name, old, new)
        with pytest.raises(UserError, match="is no whole population"):
            Population(folder)


def test_a_broken_text_is_no_traceback(tmp_path):
    found = a_population(tmp_path / "people")
    damaged(tmp_path / "people" / "train.arrow", "3 ü".encode(), b"3 \xff\xff")
    with pytest.raises(UserError, match="damaged or changed"):
        found[4]


@pytest.mark.parametrize("name", ["../../evil", "a/b", ".hidden"])
def test_names_that_are_no_folders_are_refused(tmp_path, name, monkeypatch):
    with pytest.raises(UserError, match="cannot be a folder's name"):
        write_population(tmp_path / "people", [(name, an_example("x", 1))])
    assert not (tmp_path / "people").exists()
    # Nor are they read, whoever wrote them.
    monkeypatch.setattr(
        "feddpa_jax.data.population_writer.check_client_name", lambda name, source: name
    )
    write_population(tmp_path / "people", [(name, an_example("x", 1))])
    monkeypatch.undo()
    with pytest.raises(UserError, match="cannot be a folder's name"):
        Population(tmp_path / "people")


def test_a_folder_with_other_data_is_not_opened_in_part(tmp_path):
    folder = partition_folder(tmp_path / "data")
    assert isinstance(load_federation(f"hf:{folder}", cache="on").clients, Population)
    (folder / "more.parquet").write_bytes((folder / "train.parquet").read_bytes())
    loaded = load_federation(f"hf:{folder}", cache="on")
    assert isinstance(loaded.clients, tuple)


def test_new_clients_and_strays_are_seen(tmp_path):
    folder = client_folders(tmp_path / "data")
    load_federation(str(folder), cache="on")
    (folder / "clients" / "empty").mkdir()
    for cache in ("on", "off"):
        with pytest.raises(UserError, match=r"no train\.jsonl"):
            load_federation(str(folder), cache=cache)
    (folder / "clients" / "empty").rmdir()
    (folder / "test.jsonl").write_text("")
    for cache in ("on", "off"):
        with pytest.raises(UserError, match="looks like data, and is not read"):
            load_federation(str(folder), cache=cache)


def test_data_that_change_while_they_are_read(tmp_path, monkeypatch):
    file = flat_file(tmp_path)
    fill = opened.fill

    def slow(folder, *given, **more):
        fill(folder, *given, **more)
        with file.open("a") as text:
            text.write("\n")

    monkeypatch.setattr(opened, "fill", slow)
    with pytest.raises(UserError, match="changed while it was read; start again"):
        load_federation(f"hf:{file}", cache="on")


def test_columns_of_a_population_are_refused(tmp_path):
    a_population(tmp_path / "people")
    with pytest.raises(UserError, match=r"data.columns: .*people holds a population"):
        load_federation(str(tmp_path / "people"), columns={"output": "answer"})


def test_nothing_is_written_over(tmp_path):
    a_population(tmp_path / "people")
    with pytest.raises(UserError, match="people: is not empty; name a new folder"):
        write_population(str(tmp_path / "people"), records())


made: Any = Example


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        (("a", Example("x", "")), "client 'a', number 2: field 'output' is empty"),
        (("a", Example(" ", "y")), "client 'a', number 2: field 'instruction' is empty"),
        (("a", made("x", "y", input=None)), "number 2 has a field that is None"),
        (("a", made("x", "y", history=None)), "number 2 has a field that is None"),
        (("a", made("x", 3)), "field 'output' is 3, not text"),
        (("a", Example("x", "y", category="\ud800")), "'category' holds half of a surrogate pair"),
        (("a", Example("x", "y", history=(Turn("tool", "z"),))), "is by 'tool'"),
        (("a", Example("x", "y", available="soon")), "available 'soon', which names no rounds"),
        (("a", {"instruction": "x", "output": "y"}), "make it with Example"),
        (("a",), "is no pair of a client's name and an example"),
    ],
)
def test_what_no_file_could_hold_is_not_written(tmp_path, pair, said):
    with pytest.raises(UserError, match=said):
        write_population(tmp_path / "people", [("a", Example("x", "y")), pair])
    with pytest.raises(UserError, match="test: instance 2"):
        write_population(tmp_path / "people", records(), [an_example("test", 1), pair[-1]])
    assert not (tmp_path / "people").exists()


def test_a_test_instance_without_a_task_is_refused(tmp_path):
    with pytest.raises(UserError, match="test: instance 1 has no task; name it"):
        write_population(tmp_path / "people", records(), [Example("x", "y")])


def test_an_example_without_a_task_has_its_clients_name(tmp_path):
    given = [("anna", Example("x", "y")), ("anna", Example("x", "z", task="sums"))]
    write_population(tmp_path / "people", [*given, ("ben", Example("x", "y"))])
    people = Population(tmp_path / "people")
    assert [client.tasks for client in people] == [("anna", "sums"), ("ben",)]
    stored = read_table(tmp_path / "people" / "train.arrow").column("task").to_pylist()
    assert stored == ["anna", "sums", "ben"]
    # So it is in memory.
    own = Client("anna", (given[0][1],), (Example("x", "z"),))
    assert (own.tasks, own.validation[0].task) == (("anna",), "anna")


def test_the_order_of_clients(tmp_path):
    given = a_population(tmp_path / "given", by_name=False)
    assert given.names == ("u0", "u3", "u6", "u2", "u5", "u1", "u4")
    assert given[1] == Client("u3", tuple(an_example("u3", n) for n in range(4)))


def test_damage_is_refused(tmp_path):
    found = a_population(tmp_path / "people")
    file = tmp_path / "people" / "train.arrow"
    content = file.read_bytes().replace(b"Say 2 of u4.", b"Say 3 of u4.")
    with file.open("r+b") as opened_file:
        opened_file.write(content)
    assert found[0].train[0] == an_example("u0", 0)
    with pytest.raises(UserError, match="the examples of client 'u4' are damaged or changed"):
        found[4]
    file.write_bytes(content[:-8])
    with pytest.raises(UserError, match=r"is no whole population .*train.arrow has"):
        Population(tmp_path / "people")


@pytest.mark.parametrize("name", ["rows.npy", "first.npy", "train.arrow", "population.json"])
def test_a_missing_file_is_named(tmp_path, name):
    a_population(tmp_path / "people")
    (tmp_path / "people" / name).unlink()
    said = f"people: is no whole population \\({name} is missing\\); write it again"
    with pytest.raises(UserError, match=said):
        Population(tmp_path / "people")


@pytest.mark.parametrize(
    ("name", "old"), [("rows.npy", b"NUMPY"), ("train.arrow", b"\xff\xff\xff\xff")], ids=repr
)
def test_a_damaged_file_is_named_and_made_anew(tmp_path, cache, name, old):
    """Its size is right, so it is found when it is opened; a cache's entry is not opened twice."""
    a_population(tmp_path / "people")
    damaged(tmp_path / "people" / name, old, bytes(255 - byte for byte in old))
    with pytest.raises(UserError, match=f"{name} is damaged\\); write it again"):
        Population(tmp_path / "people")
    path = f"hf:{flat_file(tmp_path)}"
    before = tuple(load_federation(path, cache="on").clients)
    (entry,) = cache.glob("population-*/")
    damaged(entry / name, old, bytes(255 - byte for byte in old))
    with pytest.raises(UserError, match=f"{name} is damaged\\); start the command again"):
        load_federation(path, cache="on")
    assert tuple(load_federation(path, cache="on").clients) == before


@pytest.mark.parametrize("in_turns", [True, False])
def test_the_client_whose_bytes_are_damaged_is_named(tmp_path, in_turns):
    """No text, or an offset that points elsewhere; who lies in the same batch is read all the same.

    Rows of clients in turns are taken one by one, others as a range.
    """
    given = records() if in_turns else sorted(records(), key=lambda pair: pair[0])
    write_population(tmp_path / "people", given)
    file = tmp_path / "people" / "train.arrow"
    content = file.read_bytes()
    text = "Say 2 of u4."
    place = [example.instruction for _, example in given].index(text)
    # Where each instruction ends; they are the first column.
    ends = np.cumsum([len(example.instruction) for _, example in given]).astype("<i8")
    offsets = np.array([0, *ends], "<i8").tobytes()
    assert content.count(offsets) == content.count(text.encode()) == 1
    wrong = np.array([0, *ends], "<i8")
    wrong[place + 1] = 2**40
    sharing = given[place + 1][0]
    for old, new, hit in (
        (text.encode(), b"Say 2 of \xff4.", {"u4"}),
        (offsets, wrong.tobytes(), {"u4", sharing}),
    ):
        file.write_bytes(content.replace(old, new))
        people = Population(tmp_path / "people")
        refused = set()
        for c, name in enumerate(people.names):
            try:
                assert people[c].train == tuple(an_example(name, n) for n in range(4))
            except UserError as error:
                refused.add(name)
                assert f"the examples of client {name!r} are damaged or changed" in str(error)
        assert refused == hit


def test_damage_anywhere_is_refused_or_changes_nothing(tmp_path):
    """Offsets, lengths and texts of Arrow: what they point at may be anywhere, or no text."""
    a_population(tmp_path / "people")
    file = tmp_path / "people" / "train.arrow"
    content, refused = file.read_bytes(), 0
    for place in range(0, len(content), max(1, len(content) // 60)):
        damaged = bytearray(content)
        damaged[place : place + 64] = (255 - byte for byte in content[place : place + 64])
        file.write_bytes(damaged)
        try:
            people = Population(tmp_path / "people")
            for c, name in enumerate(people.names):
                assert people[c].train == tuple(an_example(name, n) for n in range(4))
        except UserError as error:
            refused += 1
            assert str(error).startswith(str(tmp_path))
    assert refused > 40


def test_changed_data_are_read_anew(tmp_path, cache):
    file = flat_file(tmp_path)
    running = load_federation(f"hf:{file}", cache="on")
    with file.open("a") as text:
        text.write(json.dumps({"client": "new", **columns_of(an_example("new", 0))}) + "\n")
    assert load_federation(f"hf:{file}", cache="on").names == (*sorted((*running.names, "new")),)
    # What a run has opened stays what it was.
    assert running.clients[0].train == tuple(an_example("u0", n) for n in range(4))


def test_what_a_client_cannot_hold_out(tmp_path):
    a_population(tmp_path / "people")
    with pytest.raises(UserError, match="client 'u0' has 4 training examples, and 4 held out"):
        load_federation(str(tmp_path / "people"), validation=4)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"client": "a", "instruction": "x"}', "record 29: no field 'output'"),
        ('{"instruction": "x", "output": "y"}', "record 29: column 'client' is None"),
        ("{broken", "flat.jsonl, line 29: broken JSON"),
        ('{"client": "U1", "instruction": "x", "output": "y"}', "client 'U1' is there twice"),
    ],
)
def test_bad_records_leave_nothing(tmp_path, cache, line, said):
    file = flat_file(tmp_path)
    with file.open("a") as text:
        text.write(line + "\n")
    with pytest.raises(UserError, match=said):
        load_federation(f"hf:{file}", cache="on")
    assert not [place for place in cache.iterdir() if place.is_dir()]


@pytest.mark.parametrize("suffix", [".csv", ".json", ".parquet"])
def test_other_files(tmp_path, suffix):
    import pandas

    file = tmp_path / f"flat{suffix}"
    table = pandas.DataFrame(
        [{"client": name, **columns_of(example)} for name, example in records()]
    )
    if suffix == ".csv":
        table.to_csv(file, index=False)
    elif suffix == ".parquet":
        table.to_parquet(file)
    else:
        table.to_json(file, orient="records")
    loaded = load_federation(f"hf:{file}", cache="off")
    assert tuple(load_federation(f"hf:{file}", cache="on").clients) == loaded.clients


def test_selection_counts_are_those_of_clients():
    own = [an_example("a", n) for n in range(5)]
    for most, held in ((None, 0), (3, 0), (3, 2), (None, 4)):
        selection = Selection(most, held, 1)
        found = selection.of("a", own)
        assert selection.counts(["a"], np.array([5])).tolist() == [len(found.train)]
        assert len(found.validation) == held
    with pytest.raises(UserError, match="client 'b' has 3"):
        Selection(4, 3).counts(["a", "b"], np.array([9, 3]))


def test_times_and_sizes_are_what_a_file_is_known_by(tmp_path):
    file = flat_file(tmp_path)
    load_federation(f"hf:{file}", cache="on")
    text = file.read_text().replace("Say 0 of u1.", "Say 9 of u1.")
    file.write_text(text)
    os.utime(file, ns=(1, 1))
    found = load_federation(f"hf:{file}", cache="on")
    assert found.clients[1].train[0].instruction == "Say 9 of u1."
