"""Experiments in memory and in a folder: stopped, continued, and asked with other settings."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import pytest

from feddpa_jax.config import Config
from feddpa_jax.experiment import Experiment
from feddpa_jax.federated.method import FedState
from feddpa_jax.hf.load import Base, load_base
from feddpa_jax.run.session import Session
from feddpa_jax.run.trackers import of_round
from feddpa_jax.types import Client, Example, Federation, UserError
from feddpa_jax.weighting.settings import WeightingSettings

pytestmark = pytest.mark.usefixtures("shared_steps")

GREET = tuple(Example(f"Greet {name}.", f"Hi {name}!", task="greet") for name in ("Al", "Bo"))
SUM = tuple(Example(f"1 + {n}?", str(n + 1), task="sum") for n in (1, 2, 3))
DATA = Federation((Client("anna", GREET[:1]), Client("ben", SUM[:2])), (GREET[1], SUM[2]))
CONFIG = Config(
    # One of the two clients takes part in a round: the other keeps its fresh adapter.
    fed={"rounds": 2, "local_epochs": 1, "batch_size": 2, "participation": 0.5},
    lora={"rank": 2},
    eval={"max_new_tokens": 2, "modes": ["global"], "metrics": ["nll"]},
)


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base("tiny")


@pytest.fixture(scope="module")
def trained(base: Base) -> Experiment:
    """In memory, stopped after its first round and continued."""
    made = Experiment(base, DATA, CONFIG)
    for done in made.rounds():
        assert done.number == 0
        break
    assert [done.number for done in made.rounds()] == [1]
    assert list(made.rounds()) == []
    return made


def values(state: FedState) -> list[bytes]:
    """The bits of all adapters."""
    leaves = jax.tree.leaves((state.server, state.clients.all()))
    return [np.asarray(x).tobytes() for x in leaves]


def test_settings_are_those_of_base_and_data(trained: Experiment) -> None:
    assert (trained.config.model.path, trained.config.data.path) == ("tiny", "in memory")
    assert trained.config.model.dtype == str(trained.prepared.base.model.dtype)
    assert (trained.clients, trained.total_rounds) == (("anna", "ben"), 2)


def test_a_folder_is_continued_to_the_same_bits(
    base: Base, trained: Experiment, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for done in Experiment(base, DATA, CONFIG, run_dir=run).rounds():
        assert (done.number, done.line["round"]) == (0, 0)
        break
    again = Experiment(base, DATA, CONFIG, run_dir=run)
    assert values(again.train()) == values(trained.state)
    assert list(again.rounds()) == []
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [0, 1]
    read = Experiment(base, DATA, CONFIG, run_dir=run).adapters
    for ours, theirs in zip(jax.tree.leaves(read), jax.tree.leaves(trained.adapters), strict=True):
        assert np.array_equal(ours, theirs)
    other = dataclasses.replace(CONFIG, seed=7)
    with pytest.raises(UserError, match="seed"):
        Experiment(base, DATA, other, run_dir=run)


def test_a_finished_training_tells_its_followers(base: Base, monkeypatch) -> None:
    told: dict[int, Mapping[str, float]] = {}
    made = Experiment(base, DATA, CONFIG)
    monkeypatch.setattr(made._session, "_begin", lambda held: told.__setitem__)
    rounds = list(made.rounds())
    assert told == {done.number: of_round(done.line) for done in rounds}
    found = made.train_and_evaluate()
    assert found is not None and set(found.summaries) == {"global"}
    assert told.keys() == {0, 1} and told[1] != of_round(rounds[1].line)


def test_answers_with_other_settings(trained: Experiment) -> None:
    found = trained.evaluate(rule="constant", modes=["instance"], metrics=["exact_match"])
    assert list(found.summaries) == ["instance"]
    assert list(found.summaries["instance"]) == ["exact_match"]
    assert found.settings["weighting"]["rule"] == "constant"
    assert found.settings["round"] == 1
    one = trained.weigh("ben", "1 + 4?", weighting=WeightingSettings(scale=0.0))
    assert one.local_weight == 0.0
    for client, mode in (("anna", "global"), ("ben", None)):
        answer = trained.generate(client, "Greet Bo.", mode=mode)
        assert answer.mode == (mode or "instance")
    with pytest.raises(UserError, match="carl"):
        trained.generate("carl", "Greet Bo.")


def test_a_clients_adapters_are_its_own(trained: Experiment) -> None:
    every = trained.adapters.local_C
    for place, name in enumerate(trained.clients):
        own = jax.tree.leaves(trained._of(name).local_C)
        wanted = [leaf[place] for leaf in jax.tree.leaves(every)]
        assert all(np.array_equal(a[0], b) for a, b in zip(own, wanted, strict=True))


def test_an_open_session_is_not_opened_again() -> None:
    session = Session(CONFIG, None)
    with session.open() as log, session.open() as inner:
        assert inner is log
    with session.open() as later:
        assert later is not log
