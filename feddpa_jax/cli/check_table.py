"""What a check has found, on the screen."""

import itertools

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table

from feddpa_jax.cli.console import duration
from feddpa_jax.preflight.expected_work import ExpectedWork
from feddpa_jax.preflight.lengths import Lengths
from feddpa_jax.preflight.preflight import Preflight
from feddpa_jax.training.memory import in_words

# Bins of the lengths.
_BINS = 8


def render(found: Preflight) -> Group:
    """The lengths, the work and the remarks."""
    parts: list[RenderableType] = []
    if found.lengths is not None:
        parts += [_of_clients(found.lengths), *_lengths(found.lengths)]
    if found.there_N is not None:
        parts.append(_there(found.there_N))
    if found.work is not None:
        parts += _work(found.work)
    return Group(*parts, *(f"remark: {remark}" for remark in found.remarks))


def _lengths(lengths: Lengths) -> list[RenderableType]:
    """How many examples have how many tokens."""
    tokens_E = lengths.tokens
    if not len(tokens_E):
        return []
    table = Table()
    for name in ("tokens", "examples", "share"):
        table.add_column(name, justify="right")
    edges = np.linspace(tokens_E.min() - 1, tokens_E.max(), _BINS + 1).round().astype(int)
    edges = np.unique(edges).tolist()
    for low, high in itertools.pairwise(edges):
        count = int(((tokens_E > low) & (tokens_E <= high)).sum())
        table.add_row(f"{low + 1} to {high}", f"{count:,}", f"{count / len(tokens_E):.1%}")
    quantiles = np.percentile(tokens_E, (0, 5, 50, 95, 100)).round().astype(int).tolist()
    named = zip(("least", "5 %", "median", "95 %", "most"), quantiles, strict=True)
    told = ", ".join(f"{name} {value:,}" for name, value in named)
    return [f"tokens of a training example, prompt and response: {told}", table]


def _of_clients(lengths: Lengths) -> str:
    counts, held = lengths.counts, len(lengths.measured) + len(lengths.empty)
    who = (
        f"{held:,} of {lengths.clients:,} clients (a sample)"
        if lengths.sampled
        else (f"{lengths.clients:,} clients")
    )
    return (
        f"{who}: {counts.examples:,} training examples, {counts.truncated:,} cut, "
        f"{counts.dropped:,} dropped; clients with nothing left: {len(lengths.empty):,}; "
        f"{lengths.tests.examples:,} test instances"
    )


def _there(there_N: np.ndarray) -> str:
    """How many clients are available: the fewest and the most."""
    least, most = int(there_N.min()), int(there_N.max())
    rounds = "round" if len(there_N) == 1 else f"{len(there_N):,} rounds"
    return (
        f"clients that are available in a round: at least {least:,}, at most {most:,}, on average "
        f"{there_N.mean():,.1f} (of the first {rounds})"
    )


def _work(work: ExpectedWork) -> list[str]:
    out = f", of which {work.returning:,.1f} return" if work.returning < work.participants else ""
    time = work.time
    told = (
        f"about {duration(time.seconds)} in all, at the {time.pace:,.0f} tokens/s of the rounds "
        "that are done"
        if time.measured
        else f"at least {duration(time.seconds)} in all: a bound, from how fast this device "
        f"multiplies matrices of the model's sizes (at most {time.pace:,.0f} tokens/s); the pace "
        "is not known before a round is done"
    )
    received = work.participants * work.rounds * work.received
    sent = work.returning * work.rounds * work.sent
    return [
        f"{work.rounds} rounds of {work.participants:,.4g} clients{out}: {work.round_tokens:,.0f} "
        f"tokens a round, {work.tokens:,.0f} in all; {work.real_share:.1%} of the computed tokens "
        "are real",
        f"a client receives {_size(work.received)} and sends {_size(work.sent)} a round; all "
        f"together, in all rounds, {_size(received)} and {_size(sent)}",
        f"memory of each device, estimated: {work.memory.line()}"
        + (f"; too much: {remedy}" if (remedy := work.memory.remedy()) else ""),
        f"time of the training, without evaluation: {told}",
    ]


def _size(size: float) -> str:
    return in_words(size) if size >= 1e5 else f"{size:,.0f} bytes"
