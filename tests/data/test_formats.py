"""Every format of data, in every kind of file: the same examples come out; mistakes are named."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

import feddpa_jax as fd
from feddpa_jax.data.columns import Columns
from feddpa_jax.data.folders import load_federation
from feddpa_jax.data.records import to_example
from feddpa_jax.types import Example, Turn, UserError

# 007 and NA are what readers that guess types change.
ASKED = [("Say 007.", "NA"), ("Add.", "3")]
EXAMPLES = tuple(Example(asked, said, task="sum") for asked, said in ASKED)
ONE_TURN = {
    "alpaca": [{"instruction": a, "output": b, "input": ""} for a, b in ASKED],
    "prompt": [{"prompt": a, "completion": b} for a, b in ASKED],
    "messages": [
        {"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": b}]}
        for a, b in ASKED
    ],
    "sharegpt": [
        {"conversations": [{"from": "human", "value": a}, {"from": "gpt", "value": b}], "id": 1}
        for a, b in ASKED
    ],
    "prompt of turns": [
        {
            "prompt": [{"role": "user", "content": a}],
            "completion": [{"role": "assistant", "content": b}],
        }
        for a, b in ASKED
    ],
}


def write(file: Path, records: list[dict]) -> Path:
    """A file of the records, in the kind that its ending says."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".json":
        file.write_text(json.dumps(records))
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(record) + "\n" for record in records))
    elif file.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), file)
    else:
        with file.open("w", newline="") as out:
            separator = "\t" if file.suffix == ".tsv" else ","
            writer = csv.DictWriter(out, list(records[0]), delimiter=separator)
            writer.writeheader()
            writer.writerows(records)
    return file


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "tsv", "parquet", "saved"])
@pytest.mark.parametrize("form", ONE_TURN)
def test_every_format_in_every_file(tmp_path, form, kind):
    """As a client's file, as a flat file with a column of clients, and as test instances."""
    records = [{**record, "task": "sum", "client": "anna"} for record in ONE_TURN[form]]
    if kind in ("csv", "tsv") and form not in ("alpaca", "prompt"):
        turns = json.dumps(ONE_TURN["messages"][0]["messages"])
        file = write(tmp_path / f"flat.{kind}", [{"messages": turns, "client": "anna"}])
        with pytest.raises(UserError, match=r"record 1: .*write CSV data as JSON lines"):
            load_federation(f"hf:{file}")
        return
    if kind == "saved":
        import datasets

        datasets.Dataset.from_list(records).save_to_disk(str(tmp_path / "set"))
        file = tmp_path / "set"
    else:
        write(tmp_path / "data/clients/anna" / f"train.{kind}", records)
        write(tmp_path / "data/clients/anna" / f"test.{kind}", records[:1])
        federation = load_federation(str(tmp_path / "data"))
        assert [(c.name, c.train) for c in federation.clients] == [("anna", EXAMPLES)]
        assert federation.test == EXAMPLES[:1]
        file = write(tmp_path / f"flat.{kind}", records)
    assert load_federation(f"hf:{file}").clients[0].train == EXAMPLES
    for name in (str(file), f"hf:{file}", f"hf:{file}?split=train"):
        assert load_federation("sample", max_train=1, test_path=name).test == EXAMPLES


def test_earlier_turns_are_an_examples_history():
    turns = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "!"}],
        },
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Bye"},
        {"role": "assistant", "content": "See you"},
    ]
    history = (Turn("system", "Be brief."), Turn("user", "Hi!"), Turn("assistant", "Hello"))
    found = to_example({"messages": turns}, "here", task="talk")
    assert found == Example("Bye", "See you", task="talk", history=history)
    record = {"prompt": turns[:-1], "completion": turns[-1:]}
    assert to_example(record, "here", task="talk") == found
    system = Columns({"system": "rule"})
    of_system = to_example({"rule": "Be.", **ONE_TURN["sharegpt"][0]}, "here", columns=system)
    assert of_system.history == (Turn("system", "Be."),)


def said(record: dict, columns: dict[str, str] | None = None) -> str:
    with pytest.raises(UserError) as error:
        to_example(record, "here, line 1", columns=Columns(columns))
    assert "\n" not in str(error.value)
    return str(error.value)


def turns(*roles: str) -> dict:
    return {"messages": [{"role": role, "content": "x"} for role in roles]}


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"question": "a", "answer": "b"}, ["'question', 'answer'", "with data.columns, such as"]),
        ({}, ["it has none", "data.columns"]),
        ({"prompt": "a"}, ["no field 'completion'"]),
        ({"prompt": "a", "completion": " "}, ["'completion' is empty"]),
        ({"prompt": "a", "completion": ["b"]}, ["'completion' is ['b'], not text"]),
        (
            {"prompt": "a", "completion": "b", **turns("user", "assistant")},
            ["prompt and completion and also messages", "data.columns, such as {prompt: prompt,"],
        ),
        (turns("user", "assistant", "user"), ["'messages' does not end with a user's turn"]),
        (turns("user", "assistant", "assistant"), ["'messages' does not end with a user's turn"]),
        (turns(), ["'messages' does not end with a user's turn"]),
        (turns("assistant", "user", "assistant"), ["roles assistant, user, assistant"]),
        (turns("user", "system", "user", "assistant"), ["at most one system turn"]),
        (turns("user", "tool", "user", "assistant"), ["turn 2 is by 'tool'", "such as tools"]),
        ({"messages": [{"role": "user", "content": None}]}, ["turn 1 has no text"]),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, ["turn 1 has no text"]),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}, {"text": "this"}]}]},
            ["turn 1 has no text"],
        ),
        ({"messages": ["Hi"]}, ["turn 1 is not an object"]),
        ({"messages": "Hi"}, ["'messages' is not a list of turns"]),
    ],
)
def test_records_of_no_format_are_named(record, words):
    for word in words:
        assert word in said(record)


def test_a_map_of_columns_names_any_others(tmp_path):
    records = [
        {"input": a, "label": b, "output": "old", "subject": "sum", "who": "anna"} for a, b in ASKED
    ]
    columns = {"instruction": "input", "output": "label", "task": "subject"}
    file = write(tmp_path / "flat.csv", records)
    path, test = f"hf:{file}?client_column=who", f"hf:{file}?client_column=who"
    federation = load_federation(path, columns=columns, test_path=test)
    # What a column is taken for, it is alone: `input` is no context besides.
    assert federation.clients[0].train == federation.test == EXAMPLES
    write(tmp_path / "4/local_training_0.json", records)
    write(tmp_path / "data/clients/anna/train.jsonl", records)
    assert load_federation(str(tmp_path / "data"), columns=columns).clients[0].train == EXAMPLES
    with pytest.raises(
        UserError, match=r"no column 'subjekt', which data\.columns has for task; it"
    ):
        load_federation(path, columns={**columns, "task": "subjekt"})
    # Data sets put together have nulls where a record is of another format.
    nulls = {**ONE_TURN["alpaca"][0], "messages": None, "prompt": None, "completion": None}
    assert to_example(nulls, "").instruction == ASKED[0][0]
    # A map says which of two formats is meant.
    both = {**ONE_TURN["alpaca"][0], "prompt": "P", "completion": "C"}
    assert to_example(both, "", columns=Columns({"prompt": "prompt"})).instruction == "P"
    assert to_example(both, "", columns=Columns({"output": "output"})).instruction == ASKED[0][0]


def test_a_file_has_one_format_and_a_federation_may_have_several(tmp_path):
    mixed = [ONE_TURN["alpaca"][0], ONE_TURN["prompt"][0]]
    with pytest.raises(UserError, match=r"record 2: has prompt and completion, and the records"):
        load_federation(str(write(tmp_path / "a/local_training_0.json", mixed).parent))
    for name, form in zip("ab", ("alpaca", "sharegpt"), strict=True):
        write(tmp_path / "b/clients" / name / "train.jsonl", ONE_TURN[form])
    a, b = load_federation(str(tmp_path / "b")).clients
    assert [e.output for e in a.train] == [e.output for e in b.train] == ["NA", "3"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere.jsonl", r"data\.test_path: .*nowhere.jsonl does not exist; name a file"),
        ("hf:{0}/flat.jsonl?split=test", r"no split 'test'; name one of \['train'\] in hf:NAME"),
        ("hf:{0}/flat.jsonl?test_split=a", r"data\.test_path: .*is named as split here"),
        ("{0}/flat.jsonl", r"split train, record 1: names no 'task'.*with data\.columns"),
        ("{0}/empty.jsonl", r"data\.test_path: .*empty.jsonl holds no test instance"),
        ("{0}/flat.txt", r"data\.test_path: .*flat.txt is none of"),
        ("~no_such_user/a", r"data\.test_path: .*no such home folder"),
    ],
)
def test_mistakes_in_test_sets_name_their_field(tmp_path, name, words):
    write(tmp_path / "flat.jsonl", ONE_TURN["alpaca"])
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "flat.txt").touch()
    with pytest.raises(UserError, match=words):
        load_federation("sample", test_path=name.format(tmp_path))


def test_files_that_could_each_be_meant(tmp_path):
    folder = tmp_path / "clients/anna"
    for kind in ("csv", "parquet"):
        write(folder / f"train.{kind}", ONE_TURN["alpaca"])
    with pytest.raises(UserError, match=r"holds train.csv and train.parquet; keep the one"):
        load_federation(str(tmp_path))
    (folder / "train.csv").unlink()
    (folder / "train.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"train\.parquet: not a Parquet file that can be read"):
        load_federation(str(tmp_path))


def test_the_configuration_and_a_federation_in_memory(tmp_path):
    with pytest.raises(
        UserError, match=r"data\.columns: .*'instuction' is none of instruction, out"
    ):
        fd.Config(data={"columns": {"instuction": "q"}})
    with pytest.raises(UserError, match=r"data\.columns: .*twice; name each once"):
        fd.Config(data={"columns": {"task": "q", "output": "q"}})
    with pytest.raises(UserError, match=r"data\.columns: .*give names with a text each"):
        fd.Config(data={"columns": {"task": 3}})
    history = (Turn("user", "Hi"), Turn("assistant", "Hello"))
    example = Example("Bye", "See you", task="talk", history=history)
    anna = fd.Client("anna", (example,))
    base = fd.load_base("tiny")
    for bad, words in (
        ((("user", "Hi"),), r"turn 1 of its history is \('user', 'Hi'\); make it with Turn"),
        ((Turn("assistant", "Hi"),), "history has the roles assistant, user, assistant"),
    ):
        given: Any = bad
        wrong = fd.Client("bob", (Example("Bye", "See you", task="talk", history=given),))
        with pytest.raises(UserError, match=words):
            fd.Experiment(base, fd.Federation((anna, wrong)), fd.Config())
    config = fd.Config(data={"test_path": "a.jsonl"})
    with pytest.raises(UserError, match=r"data\.test_path: is 'a.jsonl', but .* load_federation"):
        fd.Experiment(
            base, fd.Federation((fd.Client("b", (Example("a", "b", task="c"),)),)), config
        )


@pytest.mark.parametrize("path", ["sample", "hf:nowhere.jsonl"])
@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"instructions": "q"}, "'instructions' is none of instruction, output, prompt, comp"),
        ({"input": "q", "task": "q"}, "names one of the data's columns twice; name each once"),
        ({"input": 3}, "3 is no column's name; give names with a text each"),
        (["question"], "is ['question']; give a mapping"),
    ],
)
def test_a_map_that_is_none_is_refused(path, columns, said):
    """By the check that the configuration has, before anything is read."""
    with pytest.raises(UserError) as error:
        load_federation(path, columns=columns)
    assert str(error.value).startswith(f"data.columns: {said}")
