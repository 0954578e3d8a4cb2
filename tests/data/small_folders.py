"""Small folders of data in the paper's layout and in that of clients' folders."""

import json
from pathlib import Path

GOOD = {"instruction": "Add 1 and 2.", "output": "3", "task": "sum"}


def paper(folder: Path, *clients: object, test: str | None = None) -> Path:
    (folder / str(len(clients))).mkdir(parents=True)
    for k, content in enumerate(clients):
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / str(len(clients)) / f"local_training_{k}.json").write_text(text)
    (folder / "some_test.jsonl").write_text(json.dumps(GOOD) + "\n" if test is None else test)
    return folder


def client_folder(folder: Path) -> Path:
    (folder / "clients" / "a").mkdir(parents=True)
    for file in ("train.jsonl", "test.jsonl"):
        (folder / "clients" / "a" / file).write_text(json.dumps(GOOD) + "\n")
    return folder
