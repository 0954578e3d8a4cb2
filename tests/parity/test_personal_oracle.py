"""Personalization methods in experiments against the oracles: losses and parts of each round."""

from pathlib import Path

import pytest

from feddpa_jax.federated.method import METHODS
from tests.parity.personal_experiment import (
    ALPHA,
    NAMES,
    RATE,
    check_losses,
    check_part,
    follow,
    moved,
)
from tests.parity.reference_personal import run_ditto, run_fdlora, run_fedalt

RATES = {"alpha": ALPHA, "learning_rate": RATE}
CLIENTS = range(len(NAMES))


def needs(method: str) -> pytest.MarkDecorator:
    """Skips a test of a method that is not there yet."""
    return pytest.mark.skipif(method not in METHODS, reason=f"there is no {method} yet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("base")


@pytest.mark.parametrize("participation", [1.0, 0.5])
def test_fedit_and_local_follow_the_oracle(folder, participation):
    """The harness itself: Ditto without its penalty is FedIT and local training, side by side."""
    shared = follow(folder, "fedit", participation=participation)
    alone = follow(folder, "local", participation=participation)
    batches = [
        {
            c: {"global": phases["global"], "local": alone.updates(c, number, "local")}
            for c, phases in of.items()
        }
        for number, of in enumerate(shared.batches({"global": "global"}, range(3)))
    ]
    assert [len(of) for of in batches] == [4 * participation] * 3
    oracle = run_ditto(
        shared.model,
        shared.start[0]["global"],
        [own["local"] for own in alone.start[1]],
        batches,
        strength=0.0,
        **RATES,
    )
    for number in range(3):
        check_losses(shared.losses[number]["global"], oracle.losses[number], "global")
        check_losses(alone.losses[number]["local"], oracle.losses[number], "local")
        check_part(shared.rounds[number][0]["global"], oracle.server[number]["global"], "global")
        for c in CLIENTS:
            ours = alone.rounds[number][1][c]["local"]
            check_part(ours, oracle.clients[number][c]["local"], f"local {c}")
    assert min(moved(shared.start[0], shared.rounds[-1][0])) > 1e-2


@needs("ditto")
@pytest.mark.parametrize("participation", [1.0, 0.5])
def test_ditto(folder, participation):
    strength = 0.8
    ours = follow(folder, "ditto", participation=participation, options={"strength": strength})
    oracle = run_ditto(
        ours.model,
        ours.start[0]["global"],
        [own["local"] for own in ours.start[1]],
        ours.batches({"global": "global", "local": "local"}, range(3)),
        strength=strength,
        **RATES,
    )
    for number in range(3):
        for phase in ("global", "local"):
            check_losses(ours.losses[number][phase], oracle.losses[number], phase)
        server, own = ours.rounds[number]
        check_part(server["global"], oracle.server[number]["global"], "global")
        for c in CLIENTS:
            check_part(own[c]["local"], oracle.clients[number][c]["local"], f"local {c}")


@needs("fdlora")
@pytest.mark.parametrize("sync_every", [1, 2, 9])
def test_fdlora(folder, sync_every):
    options = {"sync_every": sync_every, "outer_learning_rate": 0.7, "outer_momentum": 0.9}
    ours = follow(folder, "fdlora", rounds=4, options=options)
    (first, *played) = [(number, phase) for number in range(4) for phase in ours.losses[number]]
    oracle = run_fdlora(
        ours.model,
        [own["local"] for own in ours.start[1]],
        [ours.updates(c, *first) for c in CLIENTS],
        [{c: {"global": ours.updates(c, *at)} for c in CLIENTS} for at in played],
        **RATES,
        **options,
    )
    told = ours.losses[first[0]][first[1]]
    check_losses(told, {c: {"x": oracle.personal_losses[c]} for c in CLIENTS}, "x")
    for t, (number, phase) in enumerate(played):
        check_losses(ours.losses[number][phase], oracle.rounds.losses[t], "global")
        if t + 1 < len(played) and played[t + 1][0] == number:
            continue
        server, own = ours.rounds[number]
        check_part(server["global"], oracle.rounds.server[t]["global"], "global")
        for c in CLIENTS:
            theirs = oracle.rounds.clients[t][c]["personal"]
            check_part(own[c]["local"], theirs, f"personal {c}")


@needs("fedalt")
@pytest.mark.parametrize("participation", [1.0, 0.5])
def test_fedalt(folder, participation):
    ours = follow(folder, "fedalt", participation=participation)
    oracle = run_fedalt(
        ours.model,
        [own["local"] for own in ours.start[1]],
        [own["gate"] for own in ours.start[1]],
        ours.batches({"local": "local"}, range(3)),
        absent="sent",
        **RATES,
    )
    for number in range(3):
        check_losses(ours.losses[number]["local"], oracle.losses[number], "local")
        for c in CLIENTS:
            own, theirs = ours.rounds[number][1][c], oracle.clients[number][c]
            check_part(own["local"], theirs["own"], f"own {c}")
            check_part(own["gate"], theirs["gate"], f"gate {c}")
    for c in CLIENTS:
        assert min(moved(ours.start[1][c], ours.rounds[-1][1][c])) > 1e-3
