"""Partitioners by name and settings: what is typed, what is refused, and users' own."""

import re

import numpy as np
import pytest

import feddpa_jax as fd
from feddpa_jax.cli.program import main
from feddpa_jax.files.call_text import parse_call
from feddpa_jax.partitioning.specification import make_specification
from feddpa_jax.types import UserError
from tests.partitioning.flat_examples import flat


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("iid", "iid"),
        ("iid()", "iid"),
        (" dirichlet( task , alpha = .1 )", "dirichlet(task, alpha=0.1)"),
        ("dirichlet(alpha=0.1, column='my, task')", "dirichlet('my, task', alpha=0.1)"),
        ("dirichlet(task, alpha=1, sizes=equal)", "dirichlet(task, alpha=1.0, sizes=equal)"),
        ("iid(sizes=[3, 4])", "iid(sizes=[3, 4])"),
        ("pathological(task)", "pathological(task, k=2)"),
    ],
)
def test_what_is_typed_is_told_in_one_form(text, told):
    made = make_specification(text, {})
    assert str(made) == told
    assert make_specification(told, {}).settings == made.settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dirichlt(task)", "'dirichlt' is unknown; did you mean 'dirichlet'?"),
        ("", "'' is no name with options; write name(column, option=value)"),
        ("iid)", "'iid)' is no name with options"),
        ("iid(sizes=[1)", "lacks a closing ']'"),
        ("dirichlet", "dirichlet: needs column; write it as in dirichlet(task)"),
        ("dirichlet(task, 3)", "dirichlet: 3 has no name; it takes column, alpha, sizes,"),
        ("dirichlet(alpha=1, task)", "dirichlet: 'task' follows a named option"),
        ("dirichlet(task, column=user)", "dirichlet: column is there twice"),
        ("dirichlet(task, alpha=1, alpha=2)", "dirichlet: alpha is there twice"),
        ("dirichlet(task, beta=1)", "dirichlet: 'beta' is unknown; it takes column, alpha,"),
        ("dirichlet(task, alpha=)", "dirichlet: 'alpha=' is no option"),
        ("dirichlet(task, alpha=0)", "dirichlet: alpha: 0: input should be greater than 0"),
        ("dirichlet(task, alpha=-1)", "dirichlet: alpha: -1: input should be greater than 0"),
        ("dirichlet(task, alpha=x)", "dirichlet: alpha: 'x': input should be a valid number"),
        ("dirichlet(7)", "dirichlet: column: 7: input should be a valid string; quote it"),
        ("iid(sizes=log)", "iid: sizes: 'log': input should be 'equal', 'uniform' or 'lognormal'"),
        ("iid(sizes=[1, 0])", "iid: sizes: 0: input should be greater than or equal to 1"),
        ("iid(sizes=[1.5, 2])", "iid: sizes: 1.5: input should be a valid integer"),
        ("iid(sizes=[])", "iid: sizes: is empty; give each client's number of examples"),
        ("iid(sizes=[1, 2])", "iid: sizes: has 2 numbers for 3 clients"),
        ("iid(sizes=[1, 2, 900])", "iid: sizes: are 903 examples together, and there are 240"),
        ("pathological(task, k=0)", "pathological: k: 0: "),
    ],
)
def test_wrong_specifications_are_told(text, message):
    with pytest.raises(UserError, match=f"^partition: .*{re.escape(message)}"):
        fd.partition(flat(), text, clients=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clients": 0}, "clients: 0: "),
        ({}, "clients: this partition needs a number of clients"),
        ({"clients": 81, "minimum": 3}, "clients: 81 with .* too many; lower it to 80 at most"),
        ({"clients": 1, "minimum": 241}, "clients: 1 with .* too many; lower minimum"),
        ({"clients": 2, "minimum": 0}, "minimum: 0: "),
        ({"clients": 2, "test": 1.0}, "test: 1.0: input should be less than 1"),
        ({"clients": 2, "seed": -1}, "seed: -1: "),
        ({"clients": 2, "label": "tsk"}, "label: the data have no column 'tsk'; name one of ins"),
    ],
)
def test_wrong_numbers_are_told(options, message):
    with pytest.raises(UserError, match=message):
        fd.partition(flat(), "iid", **options)


OWN = """
import numpy as np

def by_length(pool, rng, column="output", *, longest_first=False):
    lengths = np.array([len(text) for text in pool.values(column)])
    client_I = np.empty(pool.examples, int)
    order = np.argsort(-lengths if longest_first else lengths, kind="stable")
    client_I[order] = np.sort(np.arange(pool.examples) % pool.clients)
    return client_I

def named(pool, rng):
    return np.arange(pool.examples) % 2, ("even", "odd")

def one(pool, rng):
    return np.zeros(pool.examples, int)

def broken(pool, rng):
    raise KeyError("lost")

def halves(pool, rng):
    return np.full(pool.examples, 0.5)

def many(pool, rng):
    return np.arange(pool.examples)

def alone():
    return None
"""


def test_a_users_own_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.py").write_text(OWN)
    found = fd.partition(flat(), "my.py:by_length(instruction)", clients=4)
    assert list(np.bincount(found.client_I)) == [60] * 4
    short = fd.partition(flat(), "my.py:by_length(longest_first=true)", clients=2)
    lengths = np.array([len(str(row["output"])) for row in flat()])
    assert lengths[short.client_I == 0].min() >= lengths[short.client_I == 1].max()
    assert fd.partition(flat(), "my.py:named").names == ("even", "odd")
    for text, message in (
        ("my.py:one", "my.py:one gives client 1 0 examples, fewer than the minimum of 1"),
        ("my.py:broken", "partition: my.py:broken fails with KeyError: 'lost'; fix it"),
        ("my.py:halves", r"my.py:halves gives float64 of shape \(240,\), not a client's number"),
        ("my.py:many", "my.py:many gives client 239, and there are 2"),
        ("my.py:alone", "is no partitioner: a partitioner takes a pool and a random generator"),
        ("my.py:by_length(longest_first=3)", "longest_first: 3: input should be a valid boolean"),
        ("my.py:other", "my.py has no function 'other'"),
    ):
        with pytest.raises(UserError, match=message):
            fd.partition(flat(), text, clients=2)


def test_a_function_and_a_registered_name():
    def halves(pool, rng):
        return (np.arange(pool.examples) >= pool.examples // 2).astype(int)

    found = fd.partition(flat(), halves, clients=2)
    assert list(found.client_I) == [0] * 120 + [1] * 120
    assert found.settings["partition"] == "halves"
    assert set(fd.partitioners) == {"dirichlet", "iid", "natural", "pathological"}
    again = fd.partition(flat(), fd.partitioners.dirichlet, column="task", clients=4)
    assert again.settings["partition"] == "dirichlet(task, alpha=0.5)"


def test_calls_keep_quotes_and_brackets_whole():
    call = parse_call("f('a, b=c', [1, 2], d='x, y', e={z: 1})", "field", "write it")
    assert call == ("f", ("'a, b=c'", "[1, 2]"), {"d": "'x, y'", "e": "{z: 1}"})


@pytest.fixture
def file(tmp_path, monkeypatch):
    import json

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "flat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in flat()))


def test_the_command(file, capsys):
    data = ["data", "--data.path", "flat.jsonl", "--partition", "dirichlet(task, alpha=0.3)"]
    more = ["--clients", "6", "--test", "0.1", "--seed", "3"]
    assert main([*data, *more]) == 0
    assert "nothing is written; name a folder with --out DIR" in capsys.readouterr().out
    assert main([*data, *more, "--out", "out"]) == 0
    said = capsys.readouterr().out
    found = fd.partition(
        "flat.jsonl", "dirichlet(task, alpha=0.3)", clients=6, test=0.1, seed=3
    ).statistics
    assert "dirichlet(task, alpha=0.3)" in said and "use --data.path hf:out" in said
    (row,) = [line for line in said.splitlines() if "training examples" in line]
    assert re.findall(r"[\d.]+", row) == [
        f"{number:.10g}"
        for number in (found.examples, found.sizes.least, found.sizes.median, found.sizes.most)
    ]
    assert f"that of all by {found.distance:.2f} on" in " ".join(said.split())
    small = ["--model.path", "tiny", "--data.max_train", "1", "--data.max_test", "1"]
    assert main(["data", "--data.path", "hf:out", *small]) == 0
    assert "client_5" in capsys.readouterr().out
    assert main([*data, *more, "--out", "out"]) == 2
    assert "error: --out: out is not empty; name a new folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--partition iid", "--clients: this partition needs a number of clients"),
        ("--partition iid --clients 241", "--clients: 241 with at least 1 of the 240"),
        ("--partition dirichlet(tsk) --clients 2", "--partition: the data have no column 'tsk'"),
        ("--partition iid --clients 2 --test 1", "--test: 1.0: input should be less than 1"),
        ("--clients 5", "--clients: is for --partition; name a partition too, or leave it out"),
        ("--partition iid --make x", "--make: writes the sample; leave it or --partition out"),
    ],
)
def test_the_command_refuses(file, capsys, arguments, message):
    assert main(["data", "--data.path", "flat.jsonl", *arguments.split()]) == 2
    said = capsys.readouterr().err
    assert f"feddpa: error: {message}" in said and said.count("\n") == 1
