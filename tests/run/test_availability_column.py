"""Runs whose data say when clients are available: the same opened as in memory, or refused."""

import dataclasses
import json
import os
import re
from pathlib import Path

import pytest

import feddpa_jax as fd
from feddpa_jax.cli.program import main
from feddpa_jax.data import opened
from feddpa_jax.data.glimpse import FewClients
from feddpa_jax.preflight.preflight import Preflight, check
from feddpa_jax.preflight.some_data import NOT_COUNTED, look_at
from feddpa_jax.run.inputs import prepare, training_data
from feddpa_jax.types import UserError
from tests.run.test_populations import files_of

pytestmark = pytest.mark.usefixtures("shared_steps")

# Of a period of 4 rounds. Nobody else is there in round 2.
HOURS = {"u0": "0", "u1": "1,3", "u2": "2", "u3": "3-0", "u4": [0, "1 - 1"]}
THERE = [["u0", "u3", "u4"], ["u1", "u4"], ["u2"], ["u1", "u3"]]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDDPA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / f"data-{os.getuid()}"


def lines_of(hours: dict) -> list[dict]:
    """Records that are apart by client, of whom the first alone says when it is there."""
    return [
        {
            **{"client": name, "instruction": f"Say {n}.", "output": f"{n}", "task": "say"},
            "hours": own if n == 0 else None,
        }
        for n in range(3)
        for name, own in hours.items()
    ]


def written(folder: Path, records: list[dict], name: str = "flat.jsonl") -> Path:
    file = folder / name
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def configured(path: str, cache: str = "auto", **more) -> fd.Config:
    return fd.Config(
        model={"path": "tiny"},
        data={
            **{"path": path, "cache": cache, "max_length": 64, "max_train": 2},
            "columns": {"available": "hours"},
        },
        lora={"rank": 2},
        fed={
            **{"method": "fedit", "rounds": 5, "local_epochs": 1, "availability": "column"},
            **{"availability_period": 4, "keep_checkpoints": 1, **more},
        },
    )


def test_the_data_say_who_takes_part(tmp_path):
    """In memory as opened, and the same bits."""
    file = written(tmp_path, lines_of(HOURS))
    runs = []
    for cache in ("off", "on"):
        runs.append(tmp_path / cache)
        experiment = fd.Experiment.from_config(configured(f"hf:{file}", cache), run_dir=runs[-1])
        data = training_data(experiment.config, experiment.prepared)
        named = [[data.names[c] for c in data.participants(n)] for n in range(5)]
        assert named == [*THERE, THERE[0]]
        experiment.train()
    assert files_of(runs[0]) == files_of(runs[1])
    tests = written(tmp_path, [{"instruction": "a", "output": "b", "task": "t"}], "tests.jsonl")
    named = {"columns": {"available": "hours"}, "test_path": str(tests)}
    assert len(fd.load_federation(f"hf:{file}", **named).test) == 1
    # Other hours are other data.
    written(tmp_path, lines_of(HOURS | {"u0": "0-1"}))
    for cache in ("off", "on"):
        with pytest.raises(UserError, match="the training data changed since the run began"):
            fd.Experiment.from_config(configured(f"hf:{file}", cache), run_dir=runs[0])


def test_every_layout_says_it(tmp_path):
    """Folders of clients, the paper's layout, a population, and examples made in memory."""
    by_client: dict[str, list[dict]] = {}
    for record in lines_of(HOURS):
        by_client.setdefault(record["client"], []).append(record)
    (tmp_path / "paper" / "5").mkdir(parents=True)
    for k, (name, own) in enumerate(by_client.items()):
        place = tmp_path / "folders" / "clients" / name
        place.mkdir(parents=True)
        written(place, own, "train.jsonl")
        (tmp_path / "paper" / "5" / f"local_training_{k}.json").write_text(json.dumps(own))
    examples = [
        (
            name,
            fd.Example(f"Say {n}.", f"{n}", available=(text if isinstance(text, str) else "0,1")),
        )
        for name, text in HOURS.items()
        for n in range(2)
    ]
    # Tests say nothing of clients.
    said = json.dumps({"instruction": "Say 9.", "output": "9", "task": "say"}) + "\n"
    (tmp_path / "folders" / "clients" / "u0" / "test.jsonl").write_text(said)
    (tmp_path / "paper" / "some_test.jsonl").write_text(said)
    fd.write_population(tmp_path / "people", examples)
    made = fd.Federation(
        tuple(fd.Client(n, tuple(e for m, e in examples if m == n)) for n in HOURS)
    )
    paths = [str(tmp_path / name) for name in ("folders", "paper", "people")]
    for path, cache in [(paths[0], "off"), (paths[0], "on"), (paths[1], "off"), (paths[2], "auto")]:
        config = configured(path, cache)
        if path == paths[2]:
            config = dataclasses.replace(config, data=dataclasses.replace(config.data, columns={}))
        data = training_data(config, prepare(config, weights=False))
        assert [len(data.participants(n)) for n in range(4)] == [3, 2, 1, 2], path
    config = configured("sample").fed
    run = fd.Experiment(fd.load_base("tiny"), made, fd.Config(fed=vars(config), lora={"rank": 2}))
    data = training_data(run.config, run.prepared)
    assert [len(data.participants(n)) for n in range(4)] == [3, 2, 1, 2]


@pytest.mark.parametrize(
    ("hours", "more", "told"),
    [
        ({"u2": "noon"}, {}, "record 3: says that its client is available 'noon', which names no"),
        ({"u2": True}, {}, "record 3: says that its client is available True"),
        ({"u2": "-1"}, {}, "available '-1', which names no rounds; write them as \"8-17,20\""),
        (
            {"u2": "2-4"},
            {},
            r"client 'u2' is available '2-4', and round 4 is none of a period of 4",
        ),
        ({"u2": None}, {}, "no record of client 'u2' says when it is available; give it rounds"),
        ({"u2": "0"}, {}, "nobody is available in round 2 of each 4 .fed.availability_period."),
        ({}, {"availability_share": 0.3}, "fed.availability_share: the data say when clients"),
        ({}, {"availability": "always", "availability_period": 5}, "clients are always available"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, hours: dict, more: dict, told: str):
    file = written(tmp_path, lines_of(HOURS | hours))
    for cache in ("off", "on"):
        config = configured(f"hf:{file}", cache, **more)
        with pytest.raises(UserError, match=told):
            fd.Experiment.from_config(config).train()
    (problem,) = check(config).problems
    assert re.search(told, problem)


def test_a_client_says_one_thing(tmp_path):
    records = lines_of(HOURS)
    records[5]["hours"] = "2"
    file = written(tmp_path, records)
    for cache in ("off", "on"):
        with pytest.raises(UserError, match=r"client 'u0' is available '0' in one record and '2'"):
            fd.load_federation(f"hf:{file}", cache=cache, columns={"available": "hours"})
    other = fd.Client("u", tuple(fd.Example("a", "b", available=text) for text in ("0", "2")))
    with pytest.raises(UserError, match=r"client 'u' is available '0' in one record and '2'"):
        fd.Experiment(fd.load_base("tiny"), fd.Federation((other,)), fd.Config())


def test_a_column_that_nobody_named(tmp_path):
    file = written(tmp_path, lines_of(HOURS))
    config = configured(f"hf:{file}")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, columns={}))
    (problem,) = check(config).problems
    assert "name the column that does with data.columns, such as {available: hours}" in problem
    with pytest.raises(UserError, match=r"no column 'when', which data\.columns has for available"):
        fd.load_federation(f"hf:{file}", columns={"available": "when"})


def test_check_counts_who_is_there(tmp_path, monkeypatch, capsys):
    """All of them, also where the examples of a sample alone are read."""
    file = written(tmp_path, lines_of(HOURS))
    config = configured(f"hf:{file}", cohort=2)

    def found(config: fd.Config) -> Preflight:
        checked = check(config)
        assert checked.problems == () and checked.work is not None and checked.there_N is not None
        assert checked.there_N.tolist() == [3, 2, 1, 2, 3]
        assert checked.work.participants == (2 + 2 + 1 + 2 + 2) / 5
        return checked

    found(config)
    monkeypatch.setattr(opened, "LARGE_FILE", 10)
    monkeypatch.setattr("feddpa_jax.preflight.some_data.MOST_EXAMPLES", 3)
    monkeypatch.setattr("feddpa_jax.preflight.lengths.MOST_EXAMPLES", 3)
    looked, part = look_at(config)
    assert part and isinstance(looked.clients, FewClients) and len(looked.clients.some) == 2
    assert found(config).lengths.sampled  # type: ignore[union-attr]
    folder = tmp_path / "folders"
    for name, own in HOURS.items():
        (folder / "clients" / name).mkdir(parents=True)
        mine = [record for record in lines_of({name: own})]
        written(folder / "clients" / name, mine, "train.jsonl")
    monkeypatch.setattr(opened, "MANY_CLIENTS", 3)
    unknown = check(configured(str(folder)))
    assert unknown.there_N is None and NOT_COUNTED in unknown.remarks and unknown.problems == ()
    # Where all are read, it is known.
    monkeypatch.setattr("feddpa_jax.preflight.some_data.MOST_EXAMPLES", 99)
    assert check(configured(str(folder))).there_N.tolist() == [3, 2, 1, 2, 3]  # type: ignore[union-attr]
    daily = ["--model.path", "tiny", "--fed.availability", "daily", "--fed.rounds", "30"]
    assert main(["check", *daily, "--data.max_length", "256"]) == 0
    told = capsys.readouterr().out
    assert "clients that are available in a round: at least 2, at most " in told.replace("\n", " ")
