"""Records that no run could train on are left out of a partition, and that is told."""

import contextlib
import json
import logging

import numpy as np
import pandas
import pyarrow
import pytest

import feddpa_jax as fd
from feddpa_jax.cli.program import main
from feddpa_jax.data.columns import Columns
from feddpa_jax.data.records import to_example
from feddpa_jax.partitioning.readable import readable
from feddpa_jax.types import UserError

ROWS = [{"q": f"Say {n}.", "a": f"{n}", "task": f"t{n % 3}"} for n in range(30)]
COLUMNS = {"instruction": "q", "output": "a"}


def test_they_are_left_out_with_a_count(tmp_path, caplog, capsys):
    rows: list[dict] = [dict(row) for row in ROWS]
    rows[3]["a"], rows[7]["a"], rows[8]["q"] = "", None, "  "
    with caplog.at_level(logging.WARNING):
        found = fd.partition(rows, "iid", clients=4, test=0.2, columns=COLUMNS)
    assert "3 of 30 records cannot be trained on and are left out; the first: " in caplog.text
    assert "in memory, record 4: field 'output' is empty" in caplog.text
    assert found.settings["left_out"] == 3
    data = found.federation()
    assert sum(len(client.train) for client in data.clients) + len(data.test) == 27
    loaded = fd.load_federation(found.write(tmp_path / "out"), columns=COLUMNS)
    assert {client.train for client in loaded.clients} == {c.train for c in data.clients}
    table = pandas.read_parquet(tmp_path / "out/train.parquet")
    assert not set(table["q"]) & {"Say 3.", "Say 7.", "  "}
    # Other records keep their numbers in messages.
    rows[20]["task"] = ""
    with pytest.raises(UserError, match="record 21 has no value in column 'task'"):
        fd.partition(rows, "natural(task)", columns=COLUMNS)
    rows[20]["task"] = "t2"
    # The fewest that a client may have are examples.
    with pytest.raises(UserError, match="lower it to 27 at most"):
        fd.partition(rows, "iid", clients=30, columns=COLUMNS)
    file = tmp_path / "flat.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["data", "--data.path", str(file), "--partition", "iid", "--clients", "2"]
    assert main([*command, "--data.columns", "{instruction: q, output: a}"]) == 0
    assert "3 of 30 records cannot be trained on" in "".join(capsys.readouterr()).replace("\n", " ")


def test_nothing_is_left_out_of_what_is_right(caplog):
    found = fd.partition(ROWS, "iid", clients=4, columns=COLUMNS)
    assert "left_out" not in found.settings and not caplog.records


def test_data_without_an_example_are_not_written(tmp_path, caplog):
    found = fd.partition(ROWS, "iid", clients=4)
    assert "no record can be trained on, so this division cannot be used; in memory" in caplog.text
    with pytest.raises(UserError, match=r"no record can be trained on: .*record 1: no field 'inst"):
        found.write(tmp_path / "out")
    assert not (tmp_path / "out").exists()


TEXTS = ["yes", "", " \t\x1c", None, "да", "是", "\u3000", "no\x00", "é", "\x7f"]


@pytest.mark.parametrize("named", ["plain", "mapped", "more", "numbers", "conversations"])
def test_a_quick_look_finds_what_a_slow_one_does(named: str):
    rng = np.random.default_rng(0)
    rows: list[dict] = [
        {"instruction": TEXTS[i], "output": TEXTS[o], "task": TEXTS[t], "level": int(i)}
        for i, o, t in rng.integers(0, len(TEXTS), (200, 3))
    ]
    columns: dict[str, str] = {}
    if named == "mapped":
        columns = {"instruction": "q", "input": "instruction"}
        rows = [row | {"q": row["output"]} for row in rows]
    if named == "more":
        rows = [row | {"prompt": row["task"], "completion": row["output"]} for row in rows]
    if named == "numbers":
        rows = [row | {"input": row["level"] % 2} for row in rows]
    if named == "conversations":
        turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
        rows = [{"messages": turns[: 1 + n % 2]} for n in range(20)]
    wanted = []
    own = Columns(columns)
    for number, row in enumerate(rows):
        with contextlib.suppress(UserError):
            to_example(row, "", columns=own)
            wanted.append(number)
    found = readable(pyarrow.Table.from_pylist(rows), "here", columns)
    if wanted:
        assert found.number_I.tolist() == wanted and found.left_out == len(rows) - len(wanted)
    assert bool(wanted) != bool(found.wrong)


def test_names_of_columns_are_checked_as_in_the_configuration():
    with pytest.raises(UserError, match=r"data.columns: 'instructions' is none of instruction, "):
        fd.partition(ROWS, "iid", clients=4, columns={**COLUMNS, "instructions": "q"})
