"""The oracles of personalization methods against laws, hand numbers and other libraries."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.parity import unequal_clients as tiny
from tests.parity.reference_mix import (
    MixedLlama,
    alone,
    average,
    fixed,
    local_trainings,
    proximal,
)
from tests.parity.reference_personal import (
    fused,
    fusion_by_grid,
    fusion_objective,
    run_ditto,
    run_fdlora,
    run_fedalt,
)
from tests.parity.unequal_clients import ALPHA, RATE, TARGETS, filled, gap, gate, pair

EVERYBODY = [(0, 1, 2)] * 3
SOME = [(0, 1, 2), (1, 2), (0, 1)]
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


def test_one_branch_is_the_loop_of_feddpa(model, llama):
    done = llama.train({"only": pair(1)}, alone("only"), ["only"], tiny.updates_of(1), RATE)
    assert gap(done.parts["only"], local(model, pair(1), 1, 1)[0]) < 1e-6
    assert gap(done.parts["only"], pair(1)) > 1e-3
    assert done.penalties == [0.0] * len(tiny.updates_of(1))


def test_only_trained_parts_change(llama):
    parts = {"own": pair(1), "other": pair(2)}
    done = llama.train(parts, fixed({"own": 0.4, "other": 0.6}), ["own"], tiny.updates_of(0), RATE)
    assert gap(done.parts["other"], parts["other"]) == 0
    assert gap(done.parts["own"], parts["own"]) > 1e-3


def test_the_gradient_of_the_proximal_penalty(llama):
    llama.put({"near": pair(1), "far": pair(2)}, alone("near"))
    tensors = {name: llama.tensors(name) for name in ("near", "far")}
    a = tensors["near"]["q_proj"]["a"][0].requires_grad_(True)
    far = tensors["far"]["q_proj"]["a"][0].requires_grad_(True)
    value = proximal("near", "far", 0.5)(tensors)
    value.backward()
    np.testing.assert_allclose(a.grad, 0.5 * (a - far).detach(), atol=1e-6)
    assert far.grad is None
    squares = sum(
        float(((pair(1)[t][leaf] - pair(2)[t][leaf]) ** 2).sum()) for t in TARGETS for leaf in "ab"
    )
    assert value.item() == pytest.approx(0.25 * squares, rel=1e-4)


@pytest.mark.parametrize("participants", [EVERYBODY, SOME])
def test_ditto_without_a_penalty_is_local_and_fedavg(model, participants):
    locals_ = [pair(s) for s in (1, 2, 3)]
    batches = tiny.rounds_of(("local", "global"), participants)
    free = run_ditto(model, pair(0), locals_, batches, strength=0.0, **RATES)
    near = run_ditto(model, pair(0), locals_, batches, strength=2.0, **RATES)
    for client in range(3):
        times = sum(client in members for members in participants)
        expected = local(model, locals_[client], client, times)[-1]
        assert gap(free.clients[-1][client]["local"], expected) < 1e-6
        assert gap(near.clients[-1][client]["local"], expected) > 1e-3
    for one, other in zip(free.server, near.server, strict=True):
        assert gap(one["global"], other["global"]) == 0
    copies = [local(model, pair(0), client, 1)[0] for client in participants[0]]
    assert gap(free.server[0]["global"], average(copies)) < 1e-6


def test_a_strong_ditto_stays_near_the_global_part(model):
    batches = tiny.rounds_of(("local", "global"), EVERYBODY[:1])
    start = [pair(0)] * 3
    moved = {
        strength: gap(
            run_ditto(model, pair(0), start, batches, strength=strength, **RATES).clients[0][1][
                "local"
            ],
            pair(0),
        )
        for strength in (0.0, 1e4)
    }
    assert moved[1e4] < moved[0.0] / 2


def test_ditto_keeps_a_personal_part_to_itself(model):
    batches = tiny.rounds_of(("local", "global"), EVERYBODY[:2])
    locals_ = [pair(s) for s in (1, 2, 3)]
    clean = run_ditto(model, pair(0), locals_, batches, strength=0.5, **RATES)
    spoilt = run_ditto(
        model,
        pair(0),
        [locals_[0], filled(pair(2), np.nan), locals_[2]],
        batches,
        strength=0.5,
        **RATES,
    )
    assert gap(clean.server[-1]["global"], spoilt.server[-1]["global"]) == 0
    for client in (0, 2):
        assert gap(clean.clients[-1][client]["local"], spoilt.clients[-1][client]["local"]) == 0


def fdlora(model, participants=tuple(EVERYBODY), **given):
    settings = {"sync_every": 2, "outer_learning_rate": 0.7, "outer_momentum": 0.9} | given
    return run_fdlora(
        model,
        [pair(s) for s in (1, 2, 3)],
        [tiny.updates_of(client) for client in range(3)],
        tiny.rounds_of(("global",), participants),
        **RATES,
        **settings,
    )


def test_fdlora_seeds_the_global_part_with_the_mean(model):
    found = fdlora(model)
    personals = [local(model, pair(c + 1), c, 1)[0] for c in range(3)]
    for client in range(3):
        assert gap(found.first[1][client], personals[client]) < 1e-6
    assert gap(found.first[0], average(personals)) < 1e-6


def test_fdlora_with_a_plain_outer_step_is_fedavg(model):
    found = fdlora(model, outer_learning_rate=1.0, outer_momentum=0.0, sync_every=9)
    global_ = found.first[0]
    for server in found.rounds.server:
        global_ = average([local(model, global_, client, 1)[0] for client in range(3)])
        assert gap(server["global"], global_) < 1e-5
    for client in range(3):
        assert gap(found.rounds.clients[-1][client]["personal"], found.first[1][client]) == 0


def test_the_outer_step_of_fdlora_is_that_of_torch(model):
    found = fdlora(model)
    start = found.first[0]
    weight = torch.nn.Parameter(torch.from_numpy(start["q_proj"]["a"].copy()))
    sgd = torch.optim.SGD([weight], lr=0.7, momentum=0.9, nesterov=True)
    global_ = start
    for server in found.rounds.server:
        mean = average([local(model, global_, client, 1)[0] for client in range(3)])
        change = global_["q_proj"]["a"] - mean["q_proj"]["a"]
        weight.grad = torch.from_numpy(change)
        sgd.step()
        global_ = server["global"]
        np.testing.assert_allclose(global_["q_proj"]["a"], weight.detach(), atol=1e-5)


def test_fdlora_overwrites_personal_parts_every_second_round(model):
    found = fdlora(model, SOME)
    one, two, three = (
        [client["personal"] for client in clients] for clients in found.rounds.clients
    )
    assert [gap(one[c], found.first[1][c]) for c in range(3)] == [0, 0, 0]
    before = found.rounds.server[0]["global"]
    for client in (1, 2):
        assert gap(two[client], local(model, before, client, 1)[0]) < 1e-6
    assert gap(two[0], one[0]) == 0, "client 0 is absent in the second round"
    assert [gap(three[c], two[c]) for c in range(3)] == [0, 0, 0]


def test_the_fused_part_of_fdlora(llama):
    personal, global_ = pair(1), pair(2)
    assert gap(fused(personal, global_, (1.0, 0.0)), personal) == 0
    assert gap(fused(personal, global_, (0.0, 1.0)), global_) == 0
    examples = tiny.examples_of(0)
    zero = fusion_objective(llama, personal, global_, (0.0, 0.0), examples)
    base = llama.mean_loss({}, fixed({}), examples)
    assert zero == pytest.approx(base, abs=1e-6)
    both = fusion_objective(llama, personal, global_, (0.5, -0.5), examples)
    part = {
        t: {leaf: 0.5 * (personal[t][leaf] - global_[t][leaf]) for leaf in "ab"} for t in TARGETS
    }
    loss = llama.mean_loss({"x": part}, alone("x"), examples)
    assert both == pytest.approx(loss + 0.05 * 0.5, abs=1e-5)
    weights, best = fusion_by_grid(llama, personal, global_, examples, step=0.5)
    assert best <= min(zero, fusion_objective(llama, personal, global_, (0.5, 0.5), examples))
    assert set(weights) <= {-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5}


def fedalt(model, participants=tuple(EVERYBODY), gates=None, **given):
    return run_fedalt(
        model,
        [pair(s) for s in (1, 2, 3)],
        gates or [gate(s, 2) for s in (4, 5, 6)],
        tiny.rounds_of(("local",), participants),
        **RATES,
        **given,
    )


def test_fedalt_with_its_gate_at_one_half_is_a_fixed_mix(model, llama):
    found = fedalt(model, gates=[gate(0, 2, size=0.0)] * 3, trains_gate=False)
    owns = [pair(s) for s in (1, 2, 3)]
    rows = [filled(pair(1), 0.0)] * 3
    for clients in found.clients:
        owns = [
            llama.train(
                {"own": owns[c], "row": rows[c]},
                fixed({"row": 0.5, "own": 0.5}),
                ["own"],
                tiny.updates_of(c),
                RATE,
            ).parts["own"]
            for c in range(3)
        ]
        rows = [average([owns[m] for m in range(3) if m != c]) for c in range(3)]
        for c in range(3):
            assert gap(clients[c]["own"], owns[c]) < 1e-6
            assert gap(clients[c]["row"], rows[c]) < 1e-6
            assert gap(clients[c]["gate"], gate(0, 2, size=0.0)) == 0


def test_fedalt_trains_its_gate_and_keeps_it(model):
    found = fedalt(model)
    for client, start in enumerate((4, 5, 6)):
        assert gap(found.clients[0][client]["gate"], gate(start, 2)) > 1e-3
    one = fedalt(model, EVERYBODY[:1])
    other = fedalt(model, EVERYBODY[:1], gates=[gate(4, 2), gate(9, 2), gate(6, 2)])
    for client in (0, 2):
        assert gap(one.clients[0][client]["own"], other.clients[0][client]["own"]) == 0
    assert gap(one.clients[0][1]["own"], other.clients[0][1]["own"]) > 1e-4


def test_the_rest_of_the_world_under_partial_participation(model):
    """By hand: 0, then {1, 2}, then {0, 1} train."""
    participants = [(0,), (1, 2), (0, 1)]
    kept, last = fedalt(model, participants), fedalt(model, participants, absent="left_out")

    def own(found, round_, *clients):
        return average([found.clients[round_][client]["own"] for client in clients])

    assert not any(leaf.any() for t in kept.clients[0][0]["row"].values() for leaf in t.values())
    for found in (kept, last):
        assert gap(found.clients[0][1]["row"], own(found, 0, 0)) == 0
    assert gap(kept.clients[1][1]["row"], own(kept, 1, 0, 2)) < 1e-7
    assert gap(last.clients[1][1]["row"], own(last, 1, 2)) < 1e-7
    assert gap(last.clients[1][0]["row"], own(last, 1, 1, 2)) < 1e-7
    assert gap(kept.clients[2][2]["row"], own(kept, 2, 0, 1)) < 1e-7
    assert gap(kept.clients[2][0]["row"], own(kept, 2, 1, 2)) < 1e-7
    assert gap(last.clients[2][0]["row"], own(last, 2, 1)) < 1e-7

    every = fedalt(model, participants, absent="initial")
    assert gap(every.clients[0][1]["row"], average([own(every, 0, 0), pair(3)])) < 1e-7
    assert gap(every.clients[1][0]["row"], own(every, 1, 1, 2)) < 1e-7
