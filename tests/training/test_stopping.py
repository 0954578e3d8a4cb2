"""Early stopping against a loop by hand: one client, one update, one epoch at a time."""

import functools
import itertools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import feddpa_jax as fd
from feddpa_jax.adapters.dual import dual_branches
from feddpa_jax.cli.program import main
from feddpa_jax.models.decoder import Model, causal_mask
from feddpa_jax.run.inputs import training_data
from feddpa_jax.types import Client, Example
from tests.e2e.small_runs import SETTINGS, write_data

pytestmark = pytest.mark.usefixtures("shared_steps")

NAMES = ("anna", "ben", "cleo")
EPOCHS, RATE, RANK, ALPHA = 6, 0.08, 2, 4.0


def client(number: int, name: str) -> Client:
    """Its held-out examples are answered like its training ones for some clients, not for all."""
    train = tuple(Example(f"{name} {i}", f"{name} says {i % 2}") for i in range(3 + number))
    other = tuple(Example(f"{name} {i}", "so? " * (number + 1) + "no") for i in range(7, 9))
    same = tuple(Example(f"{name} {i}", f"{name} says {i % 2}") for i in range(7, 9))
    return Client(name, train, validation=(other, same, (*same[:1], *other[:1]))[number])


CLIENTS = tuple(client(number, name) for number, name in enumerate(NAMES))


@pytest.fixture(scope="module")
def base() -> fd.Base:
    return fd.load_base("tiny", dtype="float32")


def experiment(base: fd.Base, clients: Any = CLIENTS, **given: Any) -> fd.Experiment:
    run_dir = given.pop("run_dir", None)
    fed = {"method": "local", "rounds": 1, "local_epochs": EPOCHS, "batch_size": 2}
    fed |= {"micro_batch_size": None, "learning_rate": RATE, "early_stopping": 1, **given}
    lora = {"rank": RANK, "alpha": ALPHA, "dropout": 0.0}
    config = fd.Config(fed=fed, lora=lora, data={"max_length": 64})
    return fd.Experiment(base, fd.Federation(clients, ()), config, run_dir=run_dir)


@functools.partial(jax.jit, static_argnums=3)  # Examples of one length are one program.
def total(model: Model, adapter: Any, tokens_T: jax.Array, prompt: int) -> jax.Array:
    """The sum over an example's response tokens."""
    bank = jax.tree.map(lambda leaf: leaf[None], adapter)
    tokens_1T, one = tokens_T[None], jnp.zeros(1, jnp.int32)
    branches = dual_branches(None, bank, one, jnp.ones(1), scale=ALPHA / RANK)
    position = jnp.arange(tokens_1T.shape[1])[None]
    mask = causal_mask(jnp.ones_like(tokens_1T))
    hidden, _ = model.hidden(tokens_1T, position, mask, branches)
    logits = jax.nn.log_softmax(model.logits(hidden[0, prompt - 1 : -1]))
    return -logits[jnp.arange(logits.shape[0]), tokens_1T[0, prompt:]].sum()


slope = jax.jit(jax.grad(total, argnums=1), static_argnums=3)


def by_hand(made: fd.Experiment, place: int) -> tuple[Any, dict[str, Any]]:
    """A client's best adapter; its epochs, best epoch and validation loss."""
    model, config = made.prepared.base.model, made.config
    data = training_data(config, made.prepared)
    adapter = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), made.state.clients.take([place]))
    adapter = adapter["local"]
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(0.9, 0.999, 1e-8))
    moments = tx.init(adapter)

    def mean(of: Any, adapter: Any, examples: Any) -> Any:
        """Over all response tokens, one example at a time; of the loss, or of its gradient."""
        found = [
            of(model, adapter, jnp.asarray(tokens_T), prompt) for tokens_T, prompt, _ in examples
        ]
        count = sum(len(tokens_T) - prompt for tokens_T, prompt, _ in examples)
        return jax.tree.map(lambda *leaves: sum(leaves) / count, *found)

    updates = data.updates_of(place, 0, "local")
    size = len(updates) // EPOCHS
    held = data.held_out(place)
    best = adapter
    told = {"epochs": 0, "best_epoch": 0, "validation": float(mean(total, adapter, held))}
    for number, update in enumerate(updates):
        chosen = [data.examples[place][i] for micro in update for i in micro]
        change, moments = tx.update(mean(slope, adapter, chosen), moments)
        rate = RATE * (len(updates) - number) / len(updates)
        adapter = jax.tree.map(lambda p, u, rate=rate: p - rate * u, adapter, change)
        if (number + 1) % size:
            continue
        epoch, now = (number + 1) // size, float(mean(total, adapter, held))
        told["epochs"] = epoch
        if now < told["validation"]:
            best, told = adapter, {"epochs": epoch, "best_epoch": epoch, "validation": now}
        if epoch - told["best_epoch"] >= config.fed.early_stopping:
            break
    return best, told


@pytest.fixture(scope="module")
def done(base: fd.Base) -> tuple[fd.Experiment, Any, dict[str, Any]]:
    made = experiment(base)
    (played,) = made.rounds()
    return made, played.state.clients.all()["local"], dict(played.line)


def test_clients_stop_as_by_hand(base: fd.Base, done: Any):
    _, own_C, line = done
    fresh = experiment(base)
    endings = []
    for place, name in enumerate(NAMES):
        best, told = by_hand(fresh, place)
        found = line["phases"]["local"][name]
        assert (found["epochs"], found["best_epoch"]) == (told["epochs"], told["best_epoch"])
        assert found["validation"] == pytest.approx(told["validation"], abs=1e-4)
        jax.tree.map(
            lambda ours, theirs, place=place: np.testing.assert_allclose(
                ours[place], theirs, atol=1e-4, rtol=1e-4
            ),
            own_C,
            best,
        )
        endings.append((told["epochs"], told["best_epoch"]))
    # The case is no empty one: some stop before the end, others do not, and not all at once.
    assert len(set(endings)) > 1
    assert any(epochs < EPOCHS for epochs, _ in endings)


def test_a_stopped_client_costs_nothing_more(done: Any):
    made, _, line = done
    data = training_data(made.config, made.prepared)
    found = line["phases"]["local"]
    expected = sum(
        found[name]["epochs"] * data.tokens(place) // EPOCHS for place, name in enumerate(NAMES)
    )
    assert line["real_tokens"] == expected < sum(map(data.tokens, range(3)))


def test_a_client_depends_on_itself_alone(base: fd.Base, done: Any):
    _, own_C, line = done
    one = experiment(base, clients_per_step=1)
    (played,) = one.rounds()
    alone = experiment(base, CLIENTS[2:])
    (other,) = alone.rounds()
    for found, told, places in (
        (played.state.clients.all()["local"], played.line, [0, 1, 2]),
        (other.state.clients.all()["local"], other.line, [2]),
    ):
        for place in places:
            mine, theirs = (t["phases"]["local"][NAMES[place]] for t in (told, line))
            assert (mine["epochs"], mine["best_epoch"]) == (theirs["epochs"], theirs["best_epoch"])
        jax.tree.map(
            lambda a, b, places=places: np.testing.assert_allclose(a, b[places], atol=1e-5),
            found,
            own_C,
        )


def test_with_patience_to_the_end_only_the_best_epoch_is_chosen(base: fd.Base):
    """A client whose last epoch is its best has what it has without early stopping."""
    made, without = experiment(base, early_stopping=99), experiment(base, early_stopping=None)
    (played,), (other,) = made.rounds(), without.rounds()
    last = {n: t["best_epoch"] for n, t in played.line["phases"]["local"].items()}
    assert {t["epochs"] for t in played.line["phases"]["local"].values()} == {EPOCHS}
    assert other.line["phases"]["local"]["ben"].keys() == {"first", "mean", "last"}
    assert set(last.values()) > {EPOCHS}
    for place, name in enumerate(NAMES):
        a, b = (jax.tree.leaves(p.state.clients.take([place])["local"]) for p in (played, other))
        same = all(np.allclose(x, y, atol=1e-5) for x, y in zip(a, b, strict=True))
        assert same == (last[name] == EPOCHS)


def test_no_round_makes_held_out_answers_worse(base: fd.Base):
    """Where no epoch is better a client keeps what it began the round with, to the last bit.

    The loss of `local` changes with its own parts alone.
    """
    made = experiment(base, rounds=5, local_epochs=2)
    before: Any = None
    last, kept = dict.fromkeys(NAMES, np.inf), 0
    for played in made.rounds():
        own_C = jax.tree.map(np.asarray, played.state.clients.all()["local"])
        for place, (name, told) in enumerate(played.line["phases"]["local"].items()):
            assert told["validation"] <= last[name] + 1e-6
            last[name] = told["validation"]
            pairs = (
                [] if before is None else zip(*map(jax.tree.leaves, (own_C, before)), strict=True)
            )
            same = [np.array_equal(a[place], b[place]) for a, b in pairs]
            assert all(same) if told["best_epoch"] == 0 else not all(same) or before is None
            kept += told["best_epoch"] == 0
        before = own_C
    assert 0 < kept < 4 * len(NAMES)


def test_who_sends_what_it_trains_has_trained_it(base: fd.Base):
    """FedLEASE's warm-up: a client that sent B = 0 would be like nobody, itself included."""
    settings: dict[str, Any] = {"method": "fedlease", "local_epochs": 2, "learning_rate": 5.0}
    for played in experiment(base, rounds=2, **settings).rounds():
        for told in played.line["phases"].values():
            assert all(own["best_epoch"] >= 1 for own in told.values() if "best_epoch" in own)


def test_a_resumed_run_has_the_same_bits(base: fd.Base, tmp_path: Path):
    """FedDPA-T: the local phases stop early, the global ones do not."""
    settings: dict[str, Any] = {"method": "feddpa_t", "rounds": 3, "local_epochs": 4}
    whole = experiment(base, **settings)
    lines = [done.line for done in whole.rounds()]
    cut = experiment(base, **settings, run_dir=tmp_path / "run")
    rounds = cut.rounds()
    for _ in range(2):
        next(rounds)
    rounds.close()
    again = experiment(base, **settings, run_dir=tmp_path / "run")
    again.train()
    assert again.state.server.keys() == whole.state.server.keys()
    for a, b in zip(
        jax.tree.leaves((again.state.server, again.state.clients.all())),
        jax.tree.leaves((whole.state.server, whole.state.clients.all())),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    stored = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    for ours, theirs in zip(lines, map(json.loads, stored), strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}
    assert "epochs" in lines[2]["phases"]["local"]["ben"]
    assert "epochs" not in lines[2]["phases"]["global"]["ben"]


def test_held_out_examples_may_be_longer_than_all_others(base: fd.Base):
    long = Client("dora", (Example("a", "b"),), validation=(Example("say it", "b" * 40),))
    (played,) = experiment(base, (long,), local_epochs=1).rounds()
    assert played.line["phases"]["local"]["dora"]["epochs"] == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ["--data.validation", "0"],
            "fed.early_stopping: client 'anna' has no held-out example; set data.validation",
        ),
        (
            ["--fed.method", "fedit"],
            "fed.early_stopping: fedit trains no part of the clients' own; leave it null",
        ),
        (["--fed.early_stopping", "0"], "fed.early_stopping: 0: input should be greater than"),
    ],
)
def test_what_cannot_stop(tmp_path: Path, capsys: pytest.CaptureFixture, given: Any, said: str):
    write_data(tmp_path / "data")
    words = ["--data.path", str(tmp_path / "data"), *SETTINGS, "--fed.early_stopping", "1", *given]
    assert main(["train", "--run-dir", str(tmp_path / "run"), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line and not (tmp_path / "run").exists()


@pytest.mark.parametrize("calls", [0, 1])
def test_a_loss_on_held_out_examples_that_is_not_finite(
    base: fd.Base, monkeypatch: pytest.MonkeyPatch, calls: int
):
    """Before the first epoch, or after it."""
    made = experiment(base)
    from feddpa_jax.federated import play

    kept = play.train_until_best

    def broken(engine: Any, *rest: Any, **named: Any) -> Any:
        losses = itertools.chain(itertools.repeat(1.0, calls), itertools.repeat(np.nan))
        nan = engine._replace(loss=lambda *given: np.full(8, next(losses)))
        return kept(nan, *rest, **named)

    monkeypatch.setattr(play, "train_until_best", broken)
    with pytest.raises(fd.UserError, match=r"round 0, client 'anna', local phase: the loss or"):
        made.train()
