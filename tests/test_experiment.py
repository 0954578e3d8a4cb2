"""Experiments: the command's bits from Python, in memory and on disk, stopped and resumed."""

import copy
import dataclasses
import logging
import weakref
from pathlib import Path
from typing import Any

import jax
import pytest

import feddpa_jax as fd
from feddpa_jax.cli.program import main
from feddpa_jax.evaluate.own_tests import without_own_tests
from feddpa_jax.files.lock import holder_of
from feddpa_jax.run import loop
from feddpa_jax.run.folder import TRAINING
from tests.small_experiment import Small, bits, saved, small

pytestmark = pytest.mark.usefixtures("shared_steps")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return small(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def commanded(made: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `feddpa train` leaves."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", "--run-dir", str(folder), *made.options]) == 0
    return folder


@pytest.fixture(scope="module")
def expected(made: Small, commanded: Path) -> dict:
    found = saved(made, commanded)
    assert found["rounds"] == 3
    assert list(found["eval"]) == ["instances.jsonl", "manifest.json", "summary.json"]
    return found


def test_an_experiment_in_memory_has_the_commands_bits(made: Small, expected: dict):
    experiment = made.experiment()
    rounds = list(experiment.rounds())
    assert [done.number for done in rounds] == [0, 1, 2] == list(range(experiment.total_rounds))
    lines = [{**done.line, "seconds": None} for done in rounds]
    assert lines == expected["metrics.jsonl"]
    assert [done.loss for done in rounds] == [line["loss"] for line in lines]
    adapters = experiment.adapters
    assert bits(adapters.global_C) == expected["global"]
    assert bits(adapters.local_C) == expected["local"]
    assert all(len(leaf) == 2 for leaf in jax.tree.leaves(adapters.local_C))
    assert experiment.run is None
    # The state is the last round's, and earlier rounds keep their own.
    assert (
        bits(experiment.state.server["global"])
        == bits(rounds[2].state.server["global"])
        == expected["global"]
    )
    assert bits(rounds[1].state.server["global"]) != expected["global"]
    assert list(experiment.rounds()) == []


def test_an_experiment_with_a_folder_writes_what_the_command_writes(
    made: Small, expected: dict, tmp_path: Path
):
    found = made.experiment(run_dir=tmp_path / "run").train_and_evaluate()
    assert found is not None
    assert saved(made, tmp_path / "run") == expected
    opened = fd.Experiment.open(tmp_path / "run")
    assert opened.clients == ("anna", "ben")
    assert bits(opened.adapters.local_C) == expected["local"]
    # One client's adapter is read alone.
    alone = fd.Experiment.open(tmp_path / "run", only="ben")
    assert alone.weigh("ben", "Hi") == opened.weigh("ben", "Hi")
    with pytest.raises(fd.UserError, match=r"'carl'.*anna, ben"):
        opened.weigh("carl", "Hi")


def test_an_experiment_resumes_the_commands_run(
    made: Small, expected: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = loop.play_round

    def stopped(*given, **named):
        if given[-1] == 2:
            raise KeyboardInterrupt
        return whole(*given, **named)

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "play_round", stopped)
        assert main(["train", "--run-dir", str(folder), *made.options]) == 130
    experiment = made.experiment(run_dir=folder)
    # Looking at the state changes nothing.
    assert bits(experiment.state.server["global"]) != expected["global"]
    numbers = [done.number for done in experiment.rounds()]
    assert numbers == [2]
    experiment.evaluate()
    assert saved(made, folder) == expected


def test_the_command_resumes_an_experiments_run(made: Small, expected: dict, tmp_path: Path):
    folder = tmp_path / "run"
    for done in made.experiment(run_dir=folder).rounds():
        if done.number == 1:
            break
    assert saved(made, folder)["rounds"] == 2
    assert main(["train", "--run-dir", str(folder), *made.options]) == 0
    assert saved(made, folder) == expected


@pytest.mark.parametrize("on_disk", [False, True])
def test_rounds_are_stopped_and_continued(
    made: Small, expected: dict, tmp_path: Path, on_disk: bool
):
    experiment = made.experiment(run_dir=tmp_path / "run" if on_disk else None)
    for done in experiment.rounds():
        assert done.number == 0
        break
    kept = experiment.rounds()
    assert next(kept).number == 1
    assert [done.number for done in experiment.rounds()] == [2]
    # The kept iterator ended when the next began: no round is played twice.
    assert list(kept) == []
    assert bits(experiment.adapters.global_C) == expected["global"]
    assert bits(experiment.adapters.local_C) == expected["local"]
    if on_disk:
        experiment.evaluate()
        assert saved(made, tmp_path / "run") == expected


def test_a_folder_is_for_one_experiment_at_a_time(made: Small, expected: dict, tmp_path: Path):
    folder = tmp_path / "run"
    experiment, second = (made.experiment(run_dir=folder) for _ in range(2))
    assert not holder_of(folder / TRAINING)
    rounds = experiment.rounds()
    next(rounds)
    assert holder_of(folder / TRAINING)
    busy = r"^\S+/run: .*; wait for it, or use another --run-dir$"
    with pytest.raises(fd.UserError, match=busy):
        made.experiment(run_dir=folder)
    with pytest.raises(fd.UserError, match=busy):
        next(iter(second.rounds()))
    # Results may be read meanwhile.
    reader = fd.Experiment.open(folder)
    before = (folder / "metrics.jsonl").read_bytes()
    assert reader.state.server["global"] is not None
    assert (folder / "metrics.jsonl").read_bytes() == before
    rounds.close()
    assert not holder_of(folder / TRAINING)
    assert next(iter(second.rounds())).number == 1
    assert not holder_of(folder / TRAINING)
    dropped = experiment.rounds()
    assert next(dropped).number == 2
    gone = weakref.ref(dropped)
    del dropped
    assert gone() is None
    assert not holder_of(folder / TRAINING)
    experiment.evaluate()
    assert saved(made, folder) == expected


def test_a_base_is_loaded_once_and_shared(made: Small, expected: dict):
    before = copy.deepcopy(jax.device_get(made.base.model.params))
    first, second = made.experiment(), made.experiment()
    mine = first.prepared.base.model.params
    for leaf, other, own in zip(
        *map(jax.tree.leaves, (mine, second.prepared.base.model.params, made.base.model.params)),
        strict=True,
    ):
        place = {
            shard.device: shard.data.unsafe_buffer_pointer() for shard in own.addressable_shards
        }
        for array in (leaf, other):
            for shard in array.addressable_shards:
                if shard.device in place:
                    assert shard.data.unsafe_buffer_pointer() == place[shard.device]
    assert [done.number for done, _ in zip(first.rounds(), range(2), strict=False)] == [0, 1]
    second.train()
    assert bits(second.adapters.global_C) == expected["global"]
    assert bits(made.base.model.params) == bits(before)


def test_settings_come_from_base_and_data(made: Small, caplog: pytest.LogCaptureFixture):
    config = dataclasses.replace(made.config, model=fd.Config().model, data=fd.Config().data)
    with caplog.at_level(logging.INFO, "feddpa_jax"):
        experiment = fd.Experiment(made.base, made.data, config)
    assert (experiment.config.model.path, experiment.config.model.dtype) == ("tiny", "float32")
    assert experiment.config.data.path == made.config.data.path
    assert experiment.config.data.validation == 1
    assert not caplog.records
    with caplog.at_level(logging.INFO, "feddpa_jax"):
        fd.Experiment(made.base, made.data, dataclasses.replace(config, seed=5))
    assert "loaded with seed 0" in caplog.text


# Of any values: what a type checker would refuse.
Client: Any = fd.Client
Example: Any = fd.Example
Federation: Any = fd.Federation


def in_memory(made: Small) -> fd.Federation:
    """The clients as somebody's own code makes them, in lists."""
    return Federation(
        clients=[Client(c.name, list(c.train), list(c.validation)) for c in made.data.clients],
        test=list(made.data.test),
    )


def test_a_federation_made_in_memory(made: Small, expected: dict, tmp_path: Path, capsys):
    data = in_memory(made)
    folder = tmp_path / "run"
    experiment = fd.Experiment(made.base, data, made.config, run_dir=folder)
    for _ in experiment.rounds():
        break
    found = fd.Experiment(made.base, data, made.config, run_dir=folder).train_and_evaluate()
    assert found is not None
    with_path = saved(made, folder, experiment.config)
    for part in ("rounds", "global", "local", "metrics.jsonl", "eval"):
        assert with_path[part] == expected[part]
    for command in (
        ["eval", "--run-dir", str(folder)],
        ["weigh", "--run-dir", str(folder)],
        ["generate", "--run-dir", str(folder), "--client", "anna", "--prompt", "Hi"],
        ["export", "--run-dir", str(folder), "--out", str(tmp_path / "out")],
    ):
        assert main(command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "made in memory" in line and "Experiment(base, data, config, run_dir=...)" in line
    # The same data in a folder will do: a checkpoint knows them by their content.
    opened = fd.Experiment.open(folder, ["--data.path", made.config.data.path])
    assert opened.evaluate(metrics=["nll"])["nll"]["local"].p == found["nll"]["local"].p
    with pytest.raises(fd.UserError, match=r"another configuration \(data.max_length: 64 -> 65\)"):
        fd.Experiment.open(folder, ["--data.max_length", "65"])


def test_an_evaluation_without_a_task_of_anybodys_own_says_so(made: Small, caplog):
    """With a client's name as the task of its examples, P is a mean over this client."""
    anna, ben = (Client(name, (Example(f"Say {name}.", name),)) for name in ("anna", "ben"))
    note = "no client has a test instance of a task of its own, so P is empty"
    for task, warned in (("greet", True), ("ben", False)):
        data = Federation((anna, ben), (Example("Say hi.", "hi", task=task),))
        experiment = fd.Experiment(made.base, data, fd.Config(data={"max_length": 64}))
        caplog.clear()
        found = experiment.evaluate(modes="base", metrics="nll")
        assert found["nll"]["base"].p.known is not warned
        assert [note in said for said in caplog.messages if "P is" in said] == [True] * warned
    told = without_own_tests((anna, ben), (EXAMPLE,)) or ""
    assert "clients train on anna, ben, the test instances are of greet" in told


EXAMPLE = Example("Say hi.", "hi", task="greet")
ANNA = Client("anna", (EXAMPLE,))


@pytest.mark.parametrize(
    ("clients", "test", "words"),
    [
        ((), (EXAMPLE,), "federation has no client"),
        ((ANNA, Client("Anna", (EXAMPLE,))), (), "federation: client 'Anna' is there twice"),
        ((ANNA, ANNA), (), "federation: client 'anna' is there twice"),
        ((Client("../x", (EXAMPLE,)),), (), "federation: client name '../x' cannot be"),
        ((Client("", (EXAMPLE,)),), (), "federation: client name '' cannot be"),
        ((Client("anna", ()),), (), "federation: client 'anna' has no training example"),
        ((Client("anna", ("hi",)),), (), "federation: client 'anna', training example 1"),
        ((Client("anna", "hi"),), (), "federation: client 'anna', training example 1"),
        ((Client("anna", (Example("Hi", "hi", input=None),)),), (), ".*example 1 .*is None"),
        ((Client(3, (EXAMPLE,)),), (), "federation: client name 3 "),
        (("anna",), (), "federation: client 1 is 'anna'"),
        ((ANNA,), (Example("Say hi.", "hi"),), "federation: test instance 1 has no task"),
        ((ANNA,), (Example("", "hi", task="a"),), "federation: test instance 1: .*instruction"),
        ((ANNA,), (Example("Hi", 3, task="a"),), "federation: test instance 1: .*output"),
        (
            (Client("anna", (Example("Hi", ""),)),),
            (),
            "federation: client 'anna', training example 1: .*output",
        ),
        (
            (Client("anna", (EXAMPLE,), ({},)),),
            (),
            "federation: client 'anna', held-out example 1",
        ),
    ],
)
def test_bad_federations_are_refused(made: Small, clients, test, words: str):
    with pytest.raises(fd.UserError, match=f"^{words}") as error:
        fd.Experiment(made.base, Federation(clients, test), made.config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (("tiny", None), "base: str is none; make one with load_base"),
        ((None, "sample"), "data: str is none; make one with load_federation"),
        ((None, None, {"fed": {}}), "config: dict is none"),
        (
            (None, fd.load_federation("sample"), fd.Config(data={"max_train": 1})),
            "data.max_train: is 1, but what was loaded has None",
        ),
        ((None, None, fd.Config(model={"path": "elsewhere"})), "model.path: is 'elsewhere', but"),
    ],
)
def test_what_is_no_experiment(made: Small, values: tuple[Any, ...], words: str):
    right = (made.base, fd.Federation((fd.Client("a", (fd.Example("x", "y"),)),)), fd.Config())
    given: Any = [value or other for value, other in zip(values, right, strict=False)]
    with pytest.raises(fd.UserError, match=words):
        fd.Experiment(*given)


def test_numbers_of_examples_are_checked():
    load: Any = fd.load_federation
    for values in ({"max_train": 0}, {"max_test": -1}, {"validation": "2"}):
        (name,) = values
        with pytest.raises(fd.UserError, match=rf"data\.{name}: "):
            load("sample", **values)
