"""Followers of a run: what they are given, and that none of them can stop it."""

import importlib
import json
import struct
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from feddpa_jax.cli.program import main
from feddpa_jax.run import trackers
from feddpa_jax.run.trackers import of_evaluation, of_round, tracking
from feddpa_jax.types import UserError

SMALL = [
    *("--model.path", "tiny", "--model.dtype", "float32", "--fed.method", "feddpa_f"),
    *("--data.max_length", "256", "--data.max_train", "2", "--data.max_test", "1"),
    *("--lora.rank", "2", "--fed.local_epochs", "1"),
    *("--fed.batch_size", "2", "--fed.micro_batch_size", "null", "--fed.learning_rate", "1e-3"),
    *("--eval.max_new_tokens", "3", "--eval.modes", "[global]"),
]


class Fake:
    """A package with an `init`, as wandb and trackio have one; it may fail when it logs."""

    def __init__(self, fails: bool = False):
        self.inits, self.logged, self.finished, self.fails = [], [], 0, fails

    def init(self, **options):
        self.inits.append(options)
        return types.SimpleNamespace(log=self.log, finish=self.finish)

    def log(self, values, step):
        if self.fails:
            raise ConnectionError("the network is gone\nmore")
        self.logged.append((step, values))

    def finish(self):
        self.finished += 1


@pytest.fixture
def fake(monkeypatch):
    def install(name: str, **options) -> Fake:
        package = Fake(**options)
        module = types.ModuleType(name)
        module.__spec__ = types.SimpleNamespace(name=name)  # type: ignore[assignment]
        module.__dict__["init"] = package.init
        monkeypatch.setitem(sys.modules, name, module)
        return package

    return install


def follow(folder: Path, *names: str):
    return tracking(names, folder, project="p", config={"fed.rounds": 3})


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_values_arrive_and_a_resumed_run_is_the_same_one(tmp_path, fake, name):
    package = fake(name)
    for step in (0, 1):
        with follow(tmp_path / "run", name) as log:
            log(step, {"loss": 2.0 - step})
    assert package.logged == [(0, {"loss": 2.0}), (1, {"loss": 1.0})]
    assert package.finished == 2
    first, second = package.inits
    assert first == second
    assert first["project"] == "p"
    assert first["resume"] == "allow"
    assert first["config"] == {"fed.rounds": 3}


def test_a_tracker_that_fails_is_left_behind(tmp_path, fake, caplog):
    broken, sound = fake("wandb", fails=True), fake("trackio")
    with follow(tmp_path, "wandb", "trackio") as log:
        log(0, {"loss": 2.0})
        log(1, {"loss": 1.0})
    assert [step for step, _ in sound.logged] == [0, 1]
    assert broken.finished == 0
    assert (
        caplog.text.count(
            "wandb failed (ConnectionError: the network is gone); training continues without it"
        )
        == 1
    )


def test_what_cannot_be_opened_is_refused(tmp_path, monkeypatch):
    def fails(place):
        raise PermissionError("no key")

    monkeypatch.setitem(trackers.TRACKERS, "wandb", ("json", fails))
    with pytest.raises(UserError, match=r"track\.to: wandb cannot be opened \(.*no key\)"):
        follow(tmp_path, "wandb").__enter__()


def events(folder: Path) -> Iterator:
    """TensorBoard's records: length, its sum, an Event, its sum."""
    Event = importlib.import_module("tensorboardX.proto.event_pb2").Event
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            yield Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]


def test_a_run_in_tensorboard(tmp_path, capsys):
    folder = tmp_path / "run"
    command = ["train", "--run-dir", str(folder), *SMALL, "--track.to", "[tensorboard]"]
    assert main([*command, "--fed.rounds", "1"]) == 0
    found = {
        (event.step, value.tag): value.simple_value
        for event in events(folder / "tensorboard")
        for value in event.summary.value
    }
    for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
        assert found[line["round"], "loss"] == pytest.approx(line["loss"], rel=1e-6)
    summary = json.loads((folder / "eval" / "summary.json").read_text())
    ttp = summary["modes"]["global"]["nll"]["TTP"]["value"]
    assert found[1, "eval/global/nll/TTP"] == pytest.approx(ttp, rel=1e-6)
    assert found[0, "global/loss/client_3"] > 0
    # The same run without it, or with another: no other configuration.
    capsys.readouterr()
    assert main([*command[:-1], "[]", "--fed.rounds", "1", "--no-eval"]) == 0


def test_nothing_is_imported_unless_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with follow(tmp_path) as log:
        log(0, {"loss": 1.0})
    assert list(tmp_path.iterdir()) == []


def test_mistakes(tmp_path, capsys, monkeypatch):
    command = ["train", "--run-dir", str(tmp_path / "run"), *SMALL, "--track.to"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for value, words in (
        ("[wandb]", ["track.to", "pip install wandb"]),
        ("[tensorbord]", ["track.to", "tensorboard"]),
    ):
        assert main([*command, value]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        for word in words:
            assert word in error
    assert not (tmp_path / "run").exists()


def test_names_of_values():
    line = {
        "round": 4,
        "loss": 1.5,
        "phases": {"local": {"a": {"mean": 1.0, "last": 9.0}, "b": {"mean": 2.0}}, "global": {}},
        **{"real_tokens": 300, "seconds": 2.0},
    }
    assert of_round(line) == {
        **{"loss": 1.5, "real_tokens": 300, "seconds": 2.0, "tokens_per_second": 150.0},
        **{"local/loss/a": 1.0, "local/loss/b": 2.0, "local/loss": 1.5},
    }
    none = {"value": None}
    summary = {"modes": {"base": {"nll": {"P": none, "TTP": {"value": 2.0}}}}}
    assert of_evaluation(summary) == {"eval/base/nll/TTP": 2.0}
