"""A plan counts every round of a program's loops, and what leaves a chip's fast memory."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from feddpa_jax.models.decoder import random_model
from feddpa_jax.models.head import weighted_nll
from feddpa_jax.models.model_config import ModelConfig
from feddpa_jax.plan.fast_memory import traffic_of
from feddpa_jax.plan.loops import as_entry, cost_of, find_loops

V, D, P = 512, 64, 60


def compiled(function: Any, *arguments: Any) -> jax.stages.Compiled:
    return jax.jit(function).lower(*arguments).compile()


def test_loops_within_loops():
    """Five rounds of seven products of [32, 64] and [64, 64]."""

    def layer(x_RTD: jax.Array, w_DD: jax.Array) -> tuple[jax.Array, None]:
        return jax.lax.map(lambda x_TD: jnp.sin(x_TD @ w_DD), x_RTD), None

    def layers(x_RTD: jax.Array, w_LDD: jax.Array) -> jax.Array:
        return jax.lax.scan(layer, x_RTD, w_LDD)[0]

    found = compiled(layers, jnp.ones((7, 32, 64)), jnp.ones((5, 64, 64)))
    loops = list(find_loops(found.as_text() or ""))
    assert sorted(loop.rounds for loop in loops) == [5, 7]
    cost = cost_of(found)
    assert cost.flops == pytest.approx(5 * 7 * 2 * 32 * 64 * 64, rel=0.05)
    # Of each product the operands are read and the result is written, at the least.
    assert cost.traffic > 5 * 7 * 4 * (2 * 32 * 64 + 64 * 64)


def test_a_program_without_loops_is_as_the_compiler_says():
    found = compiled(lambda x, y: x @ y, jnp.ones((32, 64)), jnp.ones((64, 16)))
    costs: Any = found.cost_analysis()
    assert cost_of(found)[:3] == (costs["flops"], costs["bytes accessed"], costs["bytes accessed"])


def test_a_library_without_the_analysis_is_named(monkeypatch, caplog):
    """A program with loops looks cheaper than it is there, and is not refused for that."""
    found = compiled(lambda x_T: jax.lax.map(jnp.sin, x_T), jnp.ones(8))
    whole = cost_of(found)
    monkeypatch.delattr("jaxlib._hlo.hlo_module_from_text")
    assert 0 < cost_of(found).traffic < whole.traffic
    assert "does not tell what loops cost: FLOPs, traffic and seconds are too low" in caplog.text


def test_rounds_are_read_off_a_condition():
    """TPU programs tell them there alone."""
    text = """HloModule step, is_scheduled=true

%cond (p: (s32[], f32[4])) -> pred[] {
  %limit = s32[]{:T(128)} constant(30)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  ROOT %next = (s32[], f32[4]) tuple(%i, %x)
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %loop = (s32[], f32[4]) while(%start), condition=%cond, body=%body, metadata={op_name="a"}
}
"""
    assert list(find_loops(text)) == [("main", "body", 30)]
    lines = as_entry(text, "body").splitlines()
    assert lines[0] == "HloModule step"
    assert [line for line in lines if "ENTRY" in line] == [
        "ENTRY %body (p: (s32[], f32[4])) -> (s32[], f32[4]) {"
    ]


# Arrays, and parts of %stack, have 4 KB. %x is copied to fast memory (4 of 8 KB are there), read
# there and made into one there and one that is not (8 of 12); %sum is of arrays that are not (0 of
# 12), %back reads one that is (4 of 8), and a branch reads and writes main memory (0 of 8). %room
# is no traffic. A round of the loop reads and writes fast memory (8 of 8), and writes its part of
# the stack from there (4 of 8).
ON_A_TPU = """HloModule step, is_scheduled=true

%inner (p: f32[8,128]) -> (f32[8,128], f32[8,128]) {
  %p = f32[8,128]{1,0:T(8,128)S(1)} parameter(0)
  %never = f32[8,128]{1,0:T(8,128)S(1)} negate(%p)
  ROOT %both = (f32[8,128]{1,0:T(8,128)S(1)}, f32[8,128]{1,0:T(8,128)}) tuple(%never, %never)
}

%same (s: f32[8,128]) -> f32[8,128] {
  ROOT %s = f32[8,128]{1,0:T(8,128)} parameter(0)
}

%other (o: f32[8,128]) -> f32[8,128] {
  %o = f32[8,128]{1,0:T(8,128)} parameter(0)
  ROOT %turned = f32[8,128]{1,0:T(8,128)} negate(%o)
}

%cond (c: (s32[], f32[8,128], f32[5,8,128])) -> pred[] {
  %c = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}, f32[5,8,128]{2,1,0:T(8,128)}) parameter(0)
  %at = s32[]{:T(128)} get-tuple-element(%c), index=0
  %limit = s32[]{:T(128)} constant(5)
  ROOT %less = pred[]{:T(512)} compare(%at, %limit), direction=LT
}

%body (b: (s32[], f32[8,128], f32[5,8,128])) -> (s32[], f32[8,128], f32[5,8,128]) {
  %b = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}, f32[5,8,128]{2,1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%b), index=0
  %there = f32[8,128]{1,0:T(8,128)S(1)} get-tuple-element(%b), index=1
  %stack = f32[5,8,128]{2,1,0:T(8,128)} get-tuple-element(%b), index=2
  %stays = f32[8,128]{1,0:T(8,128)S(1)} negate(%there)
  %part = f32[1,8,128]{2,1,0:T(8,128)S(1)} bitcast(%stays)
  %more = f32[5,8,128]{2,1,0:T(8,128)} dynamic-update-slice(%stack, %part, %i, %i, %i)
  ROOT %next = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}, f32[5,8,128]{2,1,0:T(8,128)}) tuple(%i, %stays, %more)
}

ENTRY %main (x: f32[8,128], n: s32[]) -> f32[8,128] {
  %x = f32[8,128]{1,0:T(8,128)} parameter(0)
  %n = s32[]{:T(128)} parameter(1)
  %room = f32[5,8,128]{2,1,0:T(8,128)} custom-call(), custom_call_target="AllocateBuffer"
  %start = (f32[8,128]{1,0:T(8,128)S(1)}, f32[8,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%x)
  %y = f32[8,128]{1,0:T(8,128)S(1)} copy-done(%start)
  %z = (f32[8,128]{1,0:T(8,128)S(1)}, /*index=1*/f32[8,128]{1,0:T(8,128)}) fusion(%y), kind=kLoop, calls=%inner
  %left = f32[8,128]{1,0:T(8,128)S(1)} get-tuple-element(%z), index=0
  %sum = f32[8,128]{1,0:T(8,128)} add(%x, %x)
  %back = f32[8,128]{1,0:T(8,128)} negate(%left)
  %begin = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}, f32[5,8,128]{2,1,0:T(8,128)}) tuple(%n, %back, %room)
  %loop = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}, f32[5,8,128]{2,1,0:T(8,128)}) while(%begin), condition=%cond, body=%body
  %out = f32[8,128]{1,0:T(8,128)} get-tuple-element(%loop), index=1
  ROOT %end = f32[8,128]{1,0:T(8,128)} conditional(%n, %out, %out), branch_computations={%same, %other}
}
"""  # noqa: E501


class OnATpu:
    """What `cost_of` asks of a compiled program."""

    def __init__(self, text: str):
        self.as_text = lambda: text

    def cost_analysis(self) -> dict[str, float]:
        return {"flops": 1.0, "bytes accessed": 600.0}


def test_traffic_within_fast_memory_is_not_main_memorys():
    entry, body = (ON_A_TPU[ON_A_TPU.index(start) :] for start in ("ENTRY", "%body"))
    kilo = 1024
    # A copy is awaited by a scalar of four bytes.
    assert traffic_of(entry) == (16 * kilo, 40 * kilo + 4)
    # The indexes of a part are three scalars.
    a_round = traffic_of(body[: body.index("ENTRY")], rounds=5)
    assert a_round == (12 * kilo, 16 * kilo + 12)
    cost = cost_of(OnATpu(ON_A_TPU))  # pyright: ignore[reportArgumentType]
    more = cost.traffic - 600.0
    assert more > 0  # four rounds, as XLA counts them
    expected = 600.0 * (1 - (16 + 12) / (40 + 16 + 8)) + more * (1 - 12 / 16)
    assert cost.main_traffic == pytest.approx(expected, rel=1e-3)


def test_without_tiles_it_is_another_memory():
    """XLA numbers the memories of every device in its own way."""
    text = "  %x = f32[8]{0:S(1)} parameter(0)\n  %y = f32[8]{0:S(1)} negate(%x)\n"
    assert traffic_of(text) == (0, 64)
    assert traffic_of(text.replace("0:S", "0:T(128)S")) == (64, 64)


def test_all_chunks_of_the_head_are_counted():
    """Two products of V x D for each position, and some operations for each logit."""
    model = random_model(ModelConfig(V, D, 1, 2, 1, 8, 16), jax.random.key(0))

    def loss(hidden_PD: jax.Array) -> jax.Array:
        # Four chunks of 15.
        ones_P = jnp.ones((P,))
        return weighted_nll(model, hidden_PD, ones_P.astype(int), ones_P, at_once=16).sum()

    cost = cost_of(compiled(jax.grad(loss), jnp.ones((P, D))))
    assert cost.flops == pytest.approx(P * 4 * V * D, rel=0.1)
    # The head's weights twice and the logits once at the least, for each chunk.
    assert cost.traffic > 4 * (2 * 4 * V * D + 4 * 15 * V)
