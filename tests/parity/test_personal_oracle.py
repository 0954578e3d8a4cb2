"""Personalization methods in experiments against the oracles: losses and parts of each round."""

from pathlib import Path

import jax
import numpy as np
import pytest

from feddpa_jax.run.opening import at_hand
from tests.parity.personal_experiment import (
    ALPHA,
    NAMES,
    RATE,
    TARGETS,
    TOLERANCE,
    check_losses,
    check_part,
    follow,
    moved,
)
from tests.parity.reference_clusters import run_fedlease
from tests.parity.reference_mix import MixedLlama
from tests.parity.reference_personal import (
    fused,
    fusion_by_grid,
    fusion_objective,
    run_ditto,
    run_fdlora,
    run_fedalt,
)

pytestmark = pytest.mark.usefixtures("shared_steps")

RATES = {"alpha": ALPHA, "learning_rate": RATE}
CLIENTS = range(len(NAMES))


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


@pytest.mark.parametrize("participation", [1.0, 0.5, 0.25])
def test_fedalt(folder, participation):
    ours = follow(folder, "fedalt", participation=participation)
    oracle = run_fedalt(
        ours.model,
        [own["local"] for own in ours.start[1]],
        [own["gate"] for own in ours.start[1]],
        ours.batches({"local": "local"}, range(3)),
        absent="sent",
        alpha=ALPHA,
        learning_rate=RATE,
    )
    for number in range(3):
        check_losses(ours.losses[number]["local"], oracle.losses[number], "local")
        for c in CLIENTS:
            own, theirs = ours.rounds[number][1][c], oracle.clients[number][c]
            check_part(own["local"], theirs["own"], f"own {c}")
            check_part(own["gate"], theirs["gate"], f"gate {c}")
    experiment = ours.experiment
    row_C = at_hand(experiment.config, experiment.prepared, experiment.state).global_C
    for c in CLIENTS:
        row = jax.tree.map(lambda leaf, c=c: np.asarray(leaf)[c], row_C)
        check_part(row, oracle.clients[-1][c]["row"], f"rest of the world {c}")
    if participation == 1.0:
        for c in CLIENTS:
            assert min(moved(ours.start[1][c], ours.rounds[-1][1][c])) > 1e-3


def test_the_fusion_of_fdlora(folder):
    """The weights of every client are as good as those of a grid, on what it holds out."""
    ours = follow(folder, "fdlora", validation=3, rounds=2, options={"fusion_examples": 2})
    server, own = ours.rounds[-1]
    experiment = ours.experiment
    answers = at_hand(experiment.config, experiment.prepared, experiment.state).others["fused"]
    llama = MixedLlama(ours.model, TARGETS, ALPHA)
    for c in CLIENTS:
        examples = ours.held_out(c)[:2]
        weights = tuple(own[c]["fusion"]["all"]["weights"].tolist())
        personal, global_ = own[c]["local"], server["global"]
        found = fusion_objective(llama, personal, global_, weights, examples)
        _, least = fusion_by_grid(llama, personal, global_, examples, step=0.5)
        assert found < least + TOLERANCE, f"client {c}: {found} at {weights}, grid {least}"
        assert max(map(abs, weights)) <= 1.5
        part = jax.tree.map(lambda leaf, c=c: np.asarray(leaf)[c], answers)
        check_part(part, fused(personal, global_, weights), f"fused {c}")


def of_experts(routers: dict, cluster: int, experts: int, most: int) -> dict:
    """A cluster's router over the slots that are there: of 2 M - 1 the M own, then the others."""
    slots = [*range(experts), *range(most, most + experts - 1)]
    return {
        target: {"gate": next(iter(leaves.values()))[cluster][..., slots]}
        for target, leaves in routers.items()
    }


@pytest.mark.parametrize(
    ("clusters", "of_one", "participation"),
    [(0, False, 1.0), (0, True, 0.5), (3, False, 0.5), (1, False, 1.0), (3, True, 1.0)],
)
def test_fedlease(folder, clusters, of_one, participation):
    most = clusters or 3
    options = {"clusters": clusters, "of_one": of_one, "most_clusters": most}
    ours = follow(folder, "fedlease", participation=participation, options=options)
    oracle = run_fedlease(
        ours.model,
        [own["warm"] for own in ours.start[1]],
        [ours.updates(c, 0, "warm") for c in CLIENTS],
        {
            m: [of_experts(ours.start[0]["router"], e, m, most) for e in range(m)]
            for m in range(1, most + 1)
        },
        ours.batches({"expert": "expert"}, range(3)),
        largest=most,
        count=clusters or None,
        renormalized=of_one,
        **RATES,
    )
    of_client = {c: e for e, group in enumerate(oracle.clusters) for c in group}
    for number in range(3):
        server = ours.rounds[number][0]
        assert server["clusters"]["all"]["of"].tolist() == [of_client[c] for c in CLIENTS]
        check_losses(ours.losses[number]["expert"], oracle.rounds.losses[number], "expert")
        experts = len(oracle.clusters)
        for e in range(experts):
            part = jax.tree.map(lambda leaf, e=e: leaf[e], server["expert"])
            check_part(part, oracle.rounds.server[number][f"expert_{e}"], f"expert {e}")
            router = of_experts(server["router"], e, experts, most)
            check_part(router, oracle.rounds.server[number][f"router_{e}"], f"router {e}")
    warm = {c: {"x": oracle.warm_losses[c]} for c in CLIENTS}
    check_losses(ours.losses[0]["warm"], warm, "x")
    for c in CLIENTS:
        check_part(ours.rounds[0][1][c]["warm"], oracle.warm[c], f"warm {c}")
