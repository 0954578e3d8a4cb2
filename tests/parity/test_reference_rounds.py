"""The oracle's rounds: order of phases, mean of the server, clients apart from each other."""

import pytest
from transformers import LlamaForCausalLM

from tests.parity.random_examples import random_examples, updates_of
from tests.parity.reference_loop import (
    DualLlama,
    run_feddpa_f,
    run_feddpa_t,
    train,
)
from tests.parity.tiny_federation import (
    ALPHA,
    TARGETS,
    gap,
    random_adapter,
    tiny_llama,
)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    """The untied tiny Llama, which no test changes."""
    return tiny_llama()


def test_rounds_of_t_have_the_order_of_the_reference(model: LlamaForCausalLM):
    """Each local phase starts from the round's incoming global and the client's own last local."""
    start, fresh = random_adapter(model, 1), [random_adapter(model, seed) for seed in (2, 3)]
    own = [
        updates_of(random_examples(size, size), micro=2, accumulate=1, epochs=1) for size in (3, 5)
    ]
    settings = {
        "alpha": ALPHA,
        "learning_rate": 0.02,
        "local_weight": 0.3,
        "detached": False,
    }
    batches = [[{"global": updates} for updates in own]] + 2 * [
        [{"local": updates, "global": updates} for updates in own]
    ]
    two = run_feddpa_t(model, start, fresh, batches[:2], **settings)
    three = run_feddpa_t(model, start, fresh, batches, **settings)

    dual = DualLlama(model, start, ALPHA)
    for round_, globals_, locals_ in (
        (1, three.global_by_round[0], fresh),
        (2, two.global_, two.locals_),
    ):
        for client in range(2):
            dual.load("global", globals_)
            dual.load("local", locals_[client])
            dual.start("local", global_weight=0.7, local_weight=0.3)
            first = own[client][0]
            losses = three.losses[round_][client]
            assert losses["local"][0] == pytest.approx(dual.loss(first[0]).item(), abs=1e-9)
            dual.start("global", global_weight=1.0, local_weight=0.0)
            assert losses["global"][0] == pytest.approx(dual.loss(first[0]).item(), abs=1e-9)
            assert len(losses["local"]) == len(losses["global"]) == len(own[client])
    assert list(three.losses[0][0]) == ["global"]
    assert min(gap(three.locals_[k], two.locals_[k]) for k in range(2)) > 1e-3
    assert gap(two.global_by_round[1], three.global_by_round[1]) == 0.0


@pytest.mark.parametrize("detached", [False, True])
def test_local_phase_of_t_takes_the_gradient_asked_for(model: LlamaForCausalLM, detached: bool):
    start, fresh = random_adapter(model, 1), random_adapter(model, 2)
    own = updates_of(random_examples(5, 5), micro=2, accumulate=1)
    batches = [[{"global": own}], [{"local": own, "global": own}]]
    settings = {"alpha": ALPHA, "learning_rate": 0.02, "local_weight": 0.3}
    result = run_feddpa_t(model, start, [fresh], batches, **settings, detached=detached)
    gaps = []
    for detach_global in (detached, not detached):
        dual = DualLlama(model, start, ALPHA)
        dual.load("global", result.global_by_round[0])
        dual.load("local", fresh)
        trained = dual.start(
            "local", global_weight=0.7, local_weight=0.3, detach_global=detach_global
        )
        train(dual, trained, own, 0.02)
        gaps.append(gap(dual.adapter("local"), result.locals_[0]))
    assert gaps[0] < 1e-12
    assert gaps[1] > 1e-3


def test_clients_of_t_do_not_touch_each_other(model: LlamaForCausalLM):
    start, fresh = random_adapter(model, 1), [random_adapter(model, seed) for seed in (2, 3)]
    own = [updates_of(random_examples(size, size), micro=2, accumulate=2) for size in (3, 5)]
    batches = [
        [{"global": updates} for updates in own],
        [{"local": updates, "global": updates} for updates in own],
    ]
    settings = {"alpha": ALPHA, "learning_rate": 0.02, "local_weight": 0.5, "detached": True}
    result = run_feddpa_t(model, start, fresh, batches, **settings)
    turned = run_feddpa_t(model, start, fresh[::-1], [row[::-1] for row in batches], **settings)
    assert result.losses == [row[::-1] for row in turned.losses]
    assert gap(result.global_, turned.global_) < 1e-12
    assert gap(result.locals_[0], turned.locals_[1]) == 0.0
    assert gap(result.locals_[0], result.locals_[1]) > 1e-2


def test_server_takes_the_plain_mean_of_a_and_of_b(model: LlamaForCausalLM):
    start = random_adapter(model, 1)
    own = [updates_of(random_examples(size, size), micro=2, accumulate=1) for size in (1, 5)]
    settings = {"alpha": ALPHA, "learning_rate": 0.02}
    both = run_feddpa_f(model, start, [[{"global": updates} for updates in own]], [], **settings)
    alone = [
        run_feddpa_f(model, start, [[{"global": updates}]], [], **settings).global_
        for updates in own
    ]
    halves = {
        target: {name: 0.5 * alone[0][target][name] + 0.5 * alone[1][target][name] for name in "ab"}
        for target in TARGETS
    }
    assert gap(both.global_, halves) < 1e-12
    assert gap(both.global_, alone[0]) > 1e-3


def test_global_of_t_is_that_of_f_and_personalization_starts_there(model: LlamaForCausalLM):
    start = random_adapter(model, 1)
    own = [updates_of(random_examples(size, size), micro=2, accumulate=1) for size in (3, 5)]
    t_batches = [
        [{"global": updates} for updates in own],
        [{"local": updates, "global": updates} for updates in own],
    ]
    f_batches = 2 * [[{"global": updates} for updates in own]]
    settings = {"alpha": ALPHA, "learning_rate": 0.02}
    f = run_feddpa_f(model, start, f_batches, own, **settings)
    t = run_feddpa_t(
        model, start, [start, start], t_batches, **settings, local_weight=0.5, detached=True
    )
    assert gap(f.global_, t.global_) == 0.0

    third = run_feddpa_f(model, start, [*f_batches, [{"global": own[1]}]], [], **settings)
    assert gap(f.locals_[1], third.global_) == 0.0
    assert f.personalization_losses[1] == third.losses[2][0]["global"]
    assert gap(f.locals_[0], f.locals_[1]) > 1e-2
