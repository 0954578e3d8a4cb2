"""What lies beside or in the place of data: read, refused by name, or left alone."""

import json
import os
from pathlib import Path

import pytest

from feddpa_jax.data.folders import load_federation
from feddpa_jax.types import UserError
from tests.data.small_folders import GOOD, client_folder, paper


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
