"""The oracle of FedLEASE against laws, hand numbers and scipy."""

import itertools

import numpy as np
import pytest
import scipy.cluster.hierarchy
import scipy.spatial.distance
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.parity import unequal_clients as tiny
from tests.parity.reference_clusters import (
    allocate,
    clusters_of,
    distances,
    run_fedlease,
    silhouette,
    slots,
    top_slots,
)
from tests.parity.reference_mix import MixedLlama, average, local_trainings
from tests.parity.unequal_clients import ALPHA, RATE, TARGETS, gap, gate, pair

EVERYBODY = [(0, 1, 2)] * 3
RATES = {"alpha": ALPHA, "learning_rate": RATE}


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.set_num_threads(1)
    torch.manual_seed(1)
    return LlamaForCausalLM(LlamaConfig(**tiny.LLAMA))


@pytest.fixture(scope="module")
def llama(model: LlamaForCausalLM) -> MixedLlama:
    return MixedLlama(model, TARGETS, ALPHA)


def local(model: LlamaForCausalLM, part: dict, client: int, times: int) -> list[dict]:
    """A client alone: its adapter after each training."""
    return local_trainings(model, part, [tiny.updates_of(client)] * times, ALPHA, RATE)


def test_clusters_are_those_of_scipy():
    draw = np.random.default_rng(0)
    points = draw.normal(size=(9, 3))
    condensed = scipy.spatial.distance.pdist(points)
    square = scipy.spatial.distance.squareform(condensed)
    tree = scipy.cluster.hierarchy.linkage(condensed, "average")
    for count in range(1, 10):
        labels = scipy.cluster.hierarchy.fcluster(tree, count, "maxclust")
        theirs = sorted(np.flatnonzero(labels == label).tolist() for label in set(labels))
        assert clusters_of(square, count) == theirs


def test_silhouette_and_distances_by_hand():
    # 0 and 1 are 1 apart, 2 is 4 from both: a = 1, b = 4 for each of the pair, 0 for the loner.
    square = np.array([[0, 1, 4], [1, 0, 4], [4, 4, 0]], float)
    assert silhouette(square, [[0, 1], [2]]) == pytest.approx((0.75 + 0.75 + 0) / 3)
    near = np.kron(np.eye(3), np.ones((2, 2)))
    assert allocate(1 - near + 0.01 * (1 - np.eye(6)), 5) == [[0, 1], [2, 3], [4, 5]]
    parts = [pair(1), pair(1), {t: {leaf: -x for leaf, x in p.items()} for t, p in pair(1).items()}]
    np.testing.assert_allclose(distances(parts), [[0, 0, 2], [0, 0, 2], [2, 2, 0]], atol=1e-6)


@pytest.mark.parametrize("renormalized", [False, True])
def test_top_slots_by_hand(renormalized):
    # Three experts, own 1: outputs lead to 1, 1, 1, 0, 2; of these the three largest count.
    assert slots(1, 3) == [1, 1, 1, 0, 2]
    weight = np.array([0.1, 0.4, 0.05, 0.1, 0.35])
    x_BTD, router = torch.ones(1, 1, 1), torch.tensor(np.log(weight)[None, :] + [1e-6, 0, 0, 0, 0])
    rule = top_slots(1, 3, renormalized=renormalized)
    found = rule(x_BTD.double(), {"router": {"gate": router}})
    total = 0.85 if renormalized else 1.0
    for name, expected in {"expert_0": 0.0, "expert_1": 0.5, "expert_2": 0.35}.items():
        assert torch.as_tensor(found[name]).item() == pytest.approx(expected / total, abs=1e-5)


def fedlease(model, participants=tuple(EVERYBODY), **given):
    return run_fedlease(
        model,
        [pair(s) for s in (1, 2, 3)],
        [tiny.updates_of(client) for client in range(3)],
        {m: [gate(10 + e, 2 * m - 1) for e in range(m)] for m in (1, 2, 3)},
        tiny.rounds_of(("expert",), participants),
        largest=3,
        **RATES,
        **given,
    )


def test_fedlease_with_one_expert_is_fedavg(model):
    found = fedlease(model, count=1)
    global_ = average([local(model, pair(c + 1), c, 1)[0] for c in range(3)])
    assert gap(found.experts[0], global_) < 1e-6
    for server in found.rounds.server:
        global_ = average([local(model, global_, client, 1)[0] for client in range(3)])
        assert gap(server["expert_0"], global_) < 1e-5
        assert gap(server["router_0"], gate(10, 1)) < 1e-6


def test_fedlease_by_cluster(model, llama):
    found = fedlease(model)
    groups = found.clusters
    assert sorted(itertools.chain(*groups)) == [0, 1, 2] and len(groups) == 2
    routers = [gate(10, 3), gate(11, 3)]
    for number, group in enumerate(groups):
        assert gap(found.experts[number], average([found.warm[c] for c in group])) < 1e-6
        trained = []
        for client in group:
            parts = {"expert_0": found.experts[0], "expert_1": found.experts[1]}
            done = llama.train(
                {**parts, "router": routers[number]},
                top_slots(number, 2, renormalized=False),
                [f"expert_{number}", "router"],
                tiny.updates_of(client),
                RATE,
            )
            assert gap(done.parts[f"expert_{1 - number}"], parts[f"expert_{1 - number}"]) == 0
            trained.append(done.parts)
        for name, key in ((f"expert_{number}", f"expert_{number}"), (f"router_{number}", "router")):
            mean = average([parts[key] for parts in trained])
            assert gap(found.rounds.server[0][name], mean) < 1e-6


def test_a_cluster_without_participants_keeps_its_expert(model):
    (pairs,) = [group for group in fedlease(model).clusters if len(group) == 2]
    (single,) = set(range(3)) - set(pairs)
    found = fedlease(model, [(0, 1, 2), pairs, (single,)])
    number = [len(group) for group in found.clusters].index(1)
    before, without, with_ = found.rounds.server
    for name in (f"expert_{number}", f"router_{number}"):
        assert gap(before[name], without[name]) == 0
        assert gap(without[name], with_[name]) > 1e-4
    other = f"expert_{1 - number}"
    assert gap(before[other], without[other]) > 1e-4
    assert gap(without[other], with_[other]) == 0


def test_renormalized_weights_change_the_numbers(model):
    ends = [fedlease(model, renormalized=given).rounds.server[-1] for given in (False, True)]
    assert gap(ends[0]["expert_0"], ends[1]["expert_0"]) > 1e-4
