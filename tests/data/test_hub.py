"""Hugging Face data sets on disk: files, folders, client columns, splits, and what is refused."""

import json
from pathlib import Path

import pytest

from feddpa_jax.data.folders import load_federation
from feddpa_jax.types import UserError

ROW = {"instruction": "Add 1 and 2.", "output": "3", "task": "sum"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def json_lines(path: Path, *rows: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_json_and_parquet_files_are_the_same(tmp_path):
    import datasets

    rows = [{**ROW, "who": name} for name in ("b", "a", "b")]
    file = json_lines(tmp_path / "rows.jsonl", *rows)
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "rows.parquet"))
    federation = load_federation(f"hf:{file}?client_column=who")
    assert [(c.name, len(c.train)) for c in federation.clients] == [("a", 1), ("b", 2)]
    assert federation.test == ()
    assert load_federation(f"hf:{tmp_path / 'rows.parquet'}?client_column=who") == federation


def test_clients_may_be_numbers_from_zero(tmp_path):
    rows = [{"instruction": "a", "output": "b", "client": k} for k in (0, 1)]
    json_lines(tmp_path / "set" / "train.jsonl", *rows)
    json_lines(tmp_path / "set" / "test.jsonl", *rows)
    federation = load_federation(f"hf:{tmp_path / 'set'}")
    assert [(c.name, c.tasks) for c in federation.clients] == [("0", ("0",)), ("1", ("1",))]
    assert [example.task for example in federation.test] == ["0", "1"]


@pytest.mark.parametrize("value", [None, "", 1.5, True])
def test_clients_without_a_name(tmp_path, value):
    file = json_lines(tmp_path / "rows.jsonl", {**ROW, "client": value})
    with pytest.raises(UserError, match=r"record 1: column 'client' is .*, not a client's name"):
        load_federation(f"hf:{file}")


def test_a_record_without_the_client_column(tmp_path):
    file = json_lines(tmp_path / "rows.jsonl", {**ROW, "client": "a"}, ROW)
    with pytest.raises(UserError, match=r"record 2: column 'client' is None, not a client's name"):
        load_federation(f"hf:{file}")


def test_named_splits_must_exist(tmp_path):
    file = json_lines(tmp_path / "rows.jsonl", {**ROW, "client": "a"})
    for option in ("split", "test_split"):
        with pytest.raises(UserError, match=rf"no split 'tset'.*\['train'\] as {option}"):
            load_federation(f"hf:{file}?{option}=tset")


def test_test_instance_of_no_task(tmp_path):
    json_lines(tmp_path / "set" / "train.jsonl", {**ROW, "client": "a"})
    nameless = {**ROW, "task": None, "client": None}
    json_lines(tmp_path / "set" / "test.jsonl", {**ROW, "client": None}, nameless)
    with pytest.raises(UserError, match="split test, record 2: names no 'task'"):
        load_federation(f"hf:{tmp_path / 'set'}")


@pytest.mark.parametrize(
    ("path", "words"),
    [("hf:", "names no data set"), ("hf:x?colour=1", "unknown option 'colour'")],
)
def test_bad_names(path, words):
    with pytest.raises(UserError, match=words):
        load_federation(path)


def test_nothing_is_said_where_nobody_watches(tmp_path, capfd):
    load_federation(f"hf:{json_lines(tmp_path / 'rows.jsonl', {**ROW, 'client': 'a'})}")
    (tmp_path / "rows.parquet").write_bytes(b"PAR1xxxx")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_federation(f"hf:{tmp_path / 'rows.parquet'}")
    said = capfd.readouterr()
    assert said.out + said.err == ""


TEXTS = [
    "007",
    "NA",
    "1e5",
    "null",
    "NaN",
    "true",
    " x ",
    "a,b",
    'say ""hi""',
    "two\nlines",
    "2024-01-01",
]


def csv_file(path: Path, texts: list[str], separator: str = ",") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [f'"{text}"{separator}"{text}"{separator}{k:03d}' for k, text in enumerate(texts)]
    path.write_text("\n".join([separator.join(["instruction", "output", "client"]), *rows]))
    return path


def outputs(federation) -> list[str]:
    return [example.output for client in federation.clients for example in client.train]


@pytest.mark.parametrize("kind", ["file", "folder", "tsv", "tsv folder"])
def test_csv_texts_stay_as_they_are(tmp_path, kind):
    """Digits, NA and dates are text, and clients keep their leading zeros."""
    separator = "\t" if "tsv" in kind else ","
    name = "train.tsv" if "tsv" in kind else "train.csv"
    file = csv_file(tmp_path / "set" / name, TEXTS, separator)
    found = load_federation(f"hf:{file.parent if 'folder' in kind else file}")
    assert outputs(found) == [text.replace('""', '"') for text in TEXTS]
    assert [c.name for c in found.clients] == [f"{k:03d}" for k in range(len(TEXTS))]


def test_unquoted_texts_and_empty_fields(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text(
        "instruction,output,input,task,client\r\n007,NA,,,a\r\n\r\nx,00,1.50,null,a\r\n"
    )
    (client,) = load_federation(f"hf:{file}").clients
    assert [(e.instruction, e.output, e.input, e.task) for e in client.train] == [
        ("007", "NA", "", "a"),
        ("x", "00", "1.50", "null"),
    ]


def test_dates_in_json_are_text(tmp_path):
    row = {"instruction": "2024-01-01", "output": "2024-01-02T10:00:00", "client": "2024"}
    for place in (
        json_lines(tmp_path / "rows.jsonl", row),
        json_lines(tmp_path / "set" / "train.jsonl", row).parent,
    ):
        (client,) = load_federation(f"hf:{place}").clients
        assert client.train[0].output == "2024-01-02T10:00:00"
        assert client.name == "2024"
    (tmp_path / "rows.json").write_text(json.dumps([row, {**row, "client": 2024}], indent=1))
    (client,) = load_federation(f"hf:{tmp_path / 'rows.json'}").clients
    assert len(client.train) == 2


@pytest.mark.parametrize("kind", ["jsonl", "folder", "parquet"])
def test_numbers_are_no_texts(tmp_path, kind):
    import datasets

    rows = [{**ROW, "client": "a", "output": 7}] * 2
    place = json_lines(tmp_path / "set" / "train.jsonl", {**rows[0], "output": "7"}, rows[0])
    number = 2
    if kind == "folder":
        place = place.parent
    if kind == "parquet":
        place = tmp_path / "rows.parquet"
        datasets.Dataset.from_list(rows).to_parquet(str(place))
        number = 1
    with pytest.raises(UserError, match=f"split train, record {number}: field 'output' is 7, not"):
        load_federation(f"hf:{place}")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", r"rows.csv: is empty"),
        ("instruction,output,client\n", "split 'train' has no record"),
        ("instruction,output,output,client\na,b,c,d\n", "column 'output' appears twice"),
        (
            "instruction,output,client\na,b,c\na,b,c,d\n",
            "line 3: has 4 fields, and the header has 3",
        ),
        ("instruction,output,client\na,b\n", "line 2: has 2 fields, and the header has 3"),
        ('instruction,output,client\na,"b,c\n', "line 2: broken CSV: unexpected end of data"),
        ("instruction;output;client\na;b;c\n", "no column 'client'"),
        ("instruction,output,client\na,b,\n", "record 1: column 'client' is ''"),
    ],
)
def test_bad_csv(tmp_path, content, words):
    file = tmp_path / "rows.csv"
    file.write_text(content)
    with pytest.raises(UserError, match=words):
        load_federation(f"hf:{file}")


def test_tables_as_spreadsheets_write_them(tmp_path):
    """Columns without a name at the end, and rows of separators alone."""
    file = tmp_path / "rows.csv"
    file.write_bytes(b"\xef\xbb\xbf,instruction,output,client,,\r\n0,say,3,x,,\r\n,,,,,\r\n\r\n")
    (client,) = load_federation(f"hf:{file}").clients
    assert (client.name, client.train[0].output, len(client.train)) == ("x", "3", 1)


def test_one_record_without_a_client(tmp_path):
    file = json_lines(tmp_path / "rows.jsonl", {**ROW, "client": "a"}, ROW)
    with pytest.raises(UserError, match="record 2: column 'client' is None, not a client's name"):
        load_federation(f"hf:{file}")


def test_names_that_are_patterns_to_the_library(tmp_path):
    import datasets

    for name, client in (("a[1]", "right"), ("a1", "wrong"), ("b*", "star"), ("b0", "other")):
        rows = datasets.Dataset.from_list([{**ROW, "client": client}])
        rows.to_parquet(str(tmp_path / f"{name}.parquet"))
        json_lines(tmp_path / name / "train.jsonl", {**ROW, "client": client})
    for name, client in (("a[1]", "right"), ("b*", "star")):
        found = load_federation(f"hf:{tmp_path / name}.parquet")
        assert [own.name for own in found.clients] == [client]
        with pytest.raises(UserError, match="which are patterns to the library"):
            load_federation(f"hf:{tmp_path / name}")


def test_data_sets_without_records(tmp_path):
    import datasets

    empty = datasets.Dataset.from_dict({"instruction": [], "output": [], "client": []})
    empty.to_parquet(str(tmp_path / "rows.parquet"))
    empty.save_to_disk(str(tmp_path / "saved"))
    full = datasets.Dataset.from_list([{**ROW, "client": "a"}])
    json_lines(tmp_path / "both" / "train.jsonl", full[0])
    (tmp_path / "both" / "test.jsonl").write_text("")
    full.to_parquet(str(tmp_path / "parts" / "train.parquet"))
    empty.to_parquet(str(tmp_path / "parts" / "test.parquet"))
    (tmp_path / "nothing").mkdir()
    (tmp_path / "rows.jsonl").write_text("\n")
    (tmp_path / "rows.json").write_text("[]")
    for name in ("rows.parquet", "saved", "nothing", "rows.jsonl", "rows.json"):
        with pytest.raises(
            UserError, match=f"{name}: (cannot be loaded.*not empty|split 'train' has no rec)"
        ):
            load_federation(f"hf:{tmp_path / name}")
    for name in ("both", "parts"):
        with pytest.raises(UserError, match=r"not empty|split 'test' has no record; leave it out"):
            load_federation(f"hf:{tmp_path / name}")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("rows.jsonl?config=x", "config is for data sets of the hub; leave it out"),
        ("rows.jsonl?split=a&split=b", "an option appears twice"),
        ("rows.txt", "rows.txt is none of .jsonl, .json, .csv, .tsv, .parquet; convert it"),
        ("rows.jsonl?client_column", "no column ''; name one of"),
        ("list.json", "record 1: not an object"),
    ],
)
def test_what_would_be_ignored_is_refused(tmp_path, name, words):
    json_lines(tmp_path / "rows.jsonl", {**ROW, "client": "a"})
    (tmp_path / "rows.txt").write_text("x")
    (tmp_path / "list.json").write_text("[[1]]")
    with pytest.raises(UserError, match=words):
        load_federation(f"hf:{tmp_path / name}")


def test_splits_of_any_name(tmp_path):
    import datasets

    part = datasets.Dataset.from_list([{**ROW, "client": "a"}])
    datasets.DatasetDict({"a-b": part, "train.x": part}).save_to_disk(str(tmp_path / "odd"))
    found = load_federation(f"hf:{tmp_path / 'odd'}?split=a-b&test_split=train.x")
    assert (len(found.clients), len(found.test)) == (1, 1)
    with pytest.raises(UserError, match=r"no split 'train'; name one of \['a-b', 'train.x'\]"):
        load_federation(f"hf:{tmp_path / 'odd'}")
