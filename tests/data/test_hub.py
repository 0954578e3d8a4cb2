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
    said = capfd.readouterr()
    assert said.out + said.err == ""
