"""Clients that drop out of a round: nobody's bits depend on them, and they keep what they had."""

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from feddpa_jax.adapters.lora import init_adapter
from feddpa_jax.federated.method import METHODS, FedState
from feddpa_jax.federated.traffic import traffic
from feddpa_jax.models.decoder import random_model
from feddpa_jax.models.model_config import ModelConfig
from feddpa_jax.run.round import metrics_line, told_losses
from feddpa_jax.run.trackers import of_round
from feddpa_jax.training.engine import Engine, make_engine
from feddpa_jax.training.rounds import TrainingData
from feddpa_jax.types import TokenizedExample
from tests.federated.player import Player, lora_for, player_for
from tests.federated.three_clients import bits, experiment

pytestmark = pytest.mark.usefixtures("shared_steps")

CONFIG = ModelConfig(31, 8, 1, 2, 1, 4, 12)
NEW = functools.partial(
    init_adapter, sizes={"q_proj": CONFIG.target_sizes()["q_proj"]}, layers=1, rank=2
)
NAMES = tuple("uvwxyz")
DROPOUT = 0.4
# A plain mean, two phases, leave-one-out sums, clusters with a phase of everybody, and a stack.
METHODS_HERE: dict[str, dict[str, Any]] = {
    "feddpa_t": {},
    "fedalt": {},
    "fedlease": {"clusters": 2},
    "fedex_lora": {},
}


class _Drawn(TrainingData):
    """The same, but those who would return are all who take part."""

    def participants(self, number: int) -> np.ndarray:
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return TrainingData(**{**fields, "dropout": DROPOUT}).returning(number)


@pytest.fixture(scope="module")
def data() -> TrainingData:
    draw = np.random.default_rng(0)
    examples = tuple(
        tuple(TokenizedExample(draw.integers(1, 31, 6).astype(np.int32), 3) for _ in range(count))
        for count in (4, 2, 3, 5, 1, 2)
    )
    return TrainingData(NAMES, examples, 0, 1, 2, 2, cohort=5, dropout=DROPOUT)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return make_engine(
        random_model(CONFIG, jax.random.key(0)), scale=2.0, learning_rate=1e-2, dropout=0.1
    )


@pytest.fixture
def player(engine: Engine, data: TrainingData, tmp_path: Path) -> Callable[..., Player]:
    folders = (tmp_path / str(number) for number in itertools.count())

    def make(name: str, own: TrainingData = data) -> Player:
        options = METHODS_HERE.get(name, {})
        folder = next(folders)
        return player_for(
            name, engine, NEW, own, folder, "examples", options=options, rounds=3, cohort=5
        )

    return make


def lost(data: TrainingData, number: int) -> list[int]:
    return np.setdiff1d(data.participants(number), data.returning(number)).tolist()


def test_some_drop_out_here(data):
    counts = [(len(data.participants(n)), len(lost(data, n))) for n in range(3)]
    assert all(members == 5 and 0 < out < 5 for members, out in counts)


@pytest.mark.parametrize("name", METHODS_HERE)
def test_a_client_that_drops_out_changes_nobodys_bits(player, data, name):
    """Its own parts are NaN and its examples others, and it keeps the NaN.

    And a round is that of the clients that return, so shares are by their examples alone.
    """
    clean = player(name)
    fields = {field.name: getattr(data, field.name) for field in dataclasses.fields(data)}
    alone = clean._replace(data=_Drawn(**{**fields, "dropout": 0.0}))
    state, theirs = (each.play(1)[-1] for each in (clean, alone))
    assert bits(state.server) == bits(theirs.server)
    expected, theirs = (each.round(state, 1)[0] for each in (clean, alone))
    assert bits(expected.server) == bits(theirs.server)
    assert bits(expected.clients.all()) == bits(theirs.clients.all())
    victims = lost(data, 1)
    others = [c for c in range(len(NAMES)) if c not in victims]
    own_C = state.clients.take(victims)
    nan_C = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), own_C)
    parts = state.clients.put(victims, nan_C, 0) if nan_C else state.clients
    short = TokenizedExample(np.arange(1, 5, dtype=np.int32), 2)
    examples = [(short,) if c in victims else own for c, own in enumerate(data.examples)]
    spoilt = clean._replace(data=dataclasses.replace(data, examples=tuple(examples)))
    found, metrics = spoilt.round(FedState(state.server, parts), 1)
    assert bits(found.server) == bits(expected.server) != bits(state.server)
    assert bits(found.clients.take(others)) == bits(expected.clients.take(others))
    assert bits(found.clients.take(victims)) == bits(nan_C)
    back = {NAMES[c] for c in data.returning(1)}
    assert all(set(done.losses) == back for done in metrics.values())


def test_where_all_drop_out_everything_stays(player, data):
    nobody = dataclasses.replace(data, dropout=1.0 - 1e-9)
    assert not len(nobody.returning(0)) and nobody.most == 5
    for name in ("fedalt", "fedex_lora"):
        method = player(name, nobody)
        state = method.start()
        found, metrics = method.round(state, 0)
        assert bits(found.server) == bits(state.server)
        assert found.clients.saved == {}
        assert all(done.losses == {} and not done.real_tokens for done in metrics.values())
        line = metrics_line(0, metrics, (8, 0), 1.0, dropped_out=["u", "v"])
        assert json.loads(json.dumps(line))["loss"] is None
        assert (line["dropped_out"], line["updates"], line["real_tokens"]) == (["u", "v"], 0, 0)
        assert told_losses(line) == "all dropped out"
        assert "loss" not in of_round(line)


def test_the_same_places_whoever_is_missing(data):
    """Another number of places would be another program."""
    places = set()
    for number in range(6):
        for chunk in data.round(number, data.shapes(1)).chunks("global"):
            places.add(len(chunk.id_C))
            assert chunk.members.tolist() == data.returning(number).tolist()
    assert places == {5}
    everybody = data.round(0, data.shapes(1), everybody=True)
    assert everybody.participants.tolist() == list(range(6))


def test_bytes_of_those_that_drop_out(data):
    """They receive what the others do; of FedEx-LoRA as much as those before have sent."""
    lora = lora_for(NEW, data)
    method = METHODS.find("fedex_lora").build(lora, rounds=3, cohort=5)
    members = np.arange(5)

    def moved(returned: int, senders: int | None) -> tuple[int, int]:
        phases = method.phases
        return traffic(
            method, lora, phases, members, phases, returned=members[:returned], senders=senders
        )

    whole = moved(5, None)
    assert moved(2, 5) == whole and moved(0, 5) == (whole[0], 0)
    # One adapter and the residual, of rank (K - 1) R: 8 + 8 numbers for each rank.
    assert [moved(5, senders)[0] for senders in (1, 2, 3)] == [4 * 16 * 2 * k for k in (1, 2, 3)]
    mixed = lora._replace(ranks=(2, 1, 1, 1, 1, 1))
    phases = METHODS.find("flexlora").build(mixed).phases
    flex = METHODS.find("flexlora").build(mixed)
    received, sent = traffic(flex, mixed, phases, members, returned=members[1:])
    assert received / sent == pytest.approx(6 / 5, abs=0.01)


def test_a_stopped_run_goes_on_with_the_same_cohorts(tmp_path):
    """Bits, and who took part and dropped out, by number, by chance and with dropouts."""
    fed = {"participation": 1.0, "cohort": 2, "dropout": 0.4, "rounds": 3}
    fed |= {"availability": "markov", "availability_share": 0.7, "availability_period": 2}
    whole, stopped = (
        experiment("fedit", run_dir=tmp_path / name, **fed) for name in ("whole", "stopped")
    )
    whole.train()
    next(iter(stopped.rounds()))
    again = experiment("fedit", run_dir=tmp_path / "stopped", **fed)
    lines = [done.line for done in again.rounds()]
    assert [line["round"] for line in lines] == [1, 2]
    assert bits(again.state.server) == bits(whole.state.server)

    def cohorts(name: str) -> list[tuple[set[str], list[str]]]:
        text = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        found = map(json.loads, text)
        return [(set(line["phases"]["global"]), line["dropped_out"]) for line in found]

    assert cohorts("stopped") == cohorts("whole")
    assert any(out for _, out in cohorts("whole"))
    assert {len(back) + len(out) for back, out in cohorts("whole")} <= {1, 2}
