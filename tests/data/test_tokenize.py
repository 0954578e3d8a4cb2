"""Prompts and responses as tokens: where the response starts, what is cut, what is dropped."""

import io

import pytest
from rich.console import Console

from feddpa_jax.cli.data_table import render
from feddpa_jax.data.statistics import describe
from feddpa_jax.data.templates import TEMPLATES, alpaca_short
from feddpa_jax.data.tokenize import encode_examples, encode_prompt
from feddpa_jax.hf.tokenizer import byte_tokenizer
from feddpa_jax.types import Client, Example, Federation, UserError

TOKENIZER = byte_tokenizer()
PROMPT = "### Instruction:\nSay\n\n### Response:\n"  # 36 bytes


def test_template_with_and_without_input():
    assert alpaca_short(Example("Say", "x")) == PROMPT
    with_input = alpaca_short(Example("Say", "x", "it"))
    assert with_input == "### Instruction:\nSay\n\n### Input:\nit\n\n### Response:\n"
    with pytest.raises(UserError, match="alpaca_short"):
        TEMPLATES.find("other")


def test_response_starts_after_the_prompt_and_ends_with_the_end_token():
    ((tokens_T, prompt, _),), kept, counts = encode_examples(
        [Example("Say", "hey")], TOKENIZER, alpaca_short, 100
    )
    assert prompt == len(PROMPT)
    assert TOKENIZER.decode(tokens_T[prompt:]) == "hey"
    assert tokens_T[-1] == TOKENIZER.eos_id
    assert kept == (0,)
    assert counts == (1, 0, 0, 0)


def test_cut_and_dropped_are_counted():
    examples = [Example("Say", "hey"), Example("Say", "x" * 50), Example("Say" * 30, "x")]
    tokenized, kept, counts = encode_examples(examples, TOKENIZER, alpaca_short, 40)
    assert kept == (0, 1)
    assert counts == (3, 2, 1, 0)
    # A cut response has no end token: 40 tokens, of which the last 4 are x.
    assert len(tokenized[1].tokens_T) == 40
    assert tokenized[1].tokens_T[-1] != TOKENIZER.eos_id


def test_what_is_too_long_is_cut_at_its_end():
    """The prompt stays whole, and of the response the beginning; the end token needs room too."""
    answer = "abcdefgh"
    for room, text, ends in ((3, "abc", False), (8, answer, False), (9, answer, True)):
        ((tokens_T, prompt, _),), _, counts = encode_examples(
            [Example("Say", answer)], TOKENIZER, alpaca_short, 36 + room
        )
        assert prompt == 36
        assert TOKENIZER.decode(tokens_T[:prompt]) == PROMPT
        assert TOKENIZER.decode(tokens_T[prompt : prompt + room][: len(text)]) == text
        assert (tokens_T[-1] == TOKENIZER.eos_id) == ends
        assert len(tokens_T) == 36 + len(text) + ends
        assert counts.truncated == (room == 3)


def test_indexes_of_what_is_kept():
    """The first and the third are too long for a response, the last one is cut."""
    long, short = "Say" * 9, "Say"
    examples = [
        Example(long, "x"),
        Example(short, "a"),
        Example(long, "y"),
        Example(short, "b" * 9),
    ]
    tokenized, kept, counts = encode_examples(examples, TOKENIZER, alpaca_short, 40)
    assert kept == (1, 3)
    assert [len(e.tokens_T) for e in tokenized] == [38, 40]
    assert (counts.examples, counts.truncated, counts.dropped) == (4, 3, 2)


def test_prompt_too_long():
    assert len(encode_prompt(Example("Say", ""), TOKENIZER, alpaca_short, 36)) == 36
    with pytest.raises(UserError, match=r"36 tokens, more than data\.max_length = 35"):
        encode_prompt(Example("Say", ""), TOKENIZER, alpaca_short, 35)


def test_statistics_tell_apart_what_they_count():
    """Two own tests of three, one test cut and none dropped; one example dropped, two cut."""
    train = (
        Example("Say", "x" * 3, task="t"),  # 36 + 3 + 1 = 40 tokens
        Example("Say", "x" * 4, task="t"),  # 41
        Example("Say", "x" * 50, task="u"),  # cut at 60: 24 of the response
        Example("Say" * 30, "x", task="u"),  # dropped
    )
    tests = (
        Example("a", "b", task="t"),
        Example("a", "b" * 90, task="u"),
        Example("a", "b", task="v"),
    )
    statistics = describe(
        Federation((Client("anna", train),), tests),
        lambda examples: encode_examples(examples, TOKENIZER, alpaca_short, 60),
    )
    (client,) = statistics.clients
    assert (client.counts.examples, client.counts.truncated, client.counts.dropped) == (4, 2, 1)
    assert client.tokens == (40, 41, 58, 60)  # 95 %: 41 + 0.9 * 19 = 58.1
    assert client.response_tokens == pytest.approx((4 + 5 + 24) / 3)
    assert client.own_tests == 2
    assert statistics.tests == {"t": 1, "u": 1, "v": 1}
    counts = statistics.test_counts
    assert (counts.examples, counts.truncated, counts.dropped) == (3, 1, 0)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(render(statistics))
    text = console.export_text().replace("│", " ")
    lines = [line.split() for line in text.splitlines()]
    values = ["4", "40", "41", "58", "60", "11.0", "2", "1", "2"]
    assert ["anna", "t,", "u", *values] in lines
    assert ["all", "4", "2", "1"] in lines
    assert "3 test instances of 3 tasks: 1 cut, 0 dropped." in text


def test_statistics_of_many_clients():
    """Client c has c + 1 examples of 40 tokens: quantiles by hand, and three at either end."""
    example = Example("Say", "hey", task="t")
    clients = [Client(f"c{c:02}", (example,) * (c + 1)) for c in range(41)]
    statistics = describe(
        Federation(clients), lambda own: encode_examples(own, TOKENIZER, alpaca_short, 60)
    )

    def lines(**given) -> list[list[str]]:
        console = Console(width=120, record=True, file=io.StringIO())
        console.print(render(statistics, **given))
        text = console.export_text().replace("│", " ")
        return [line.split() for line in text.splitlines()]

    told = lines()
    assert ["examples", "1", "3", "21", "39", "41", "21.0"] in told
    assert ["tokens", "40", "120", "840", "1,560", "1,640", "840.0"] in told
    named = [line[0] for line in told if line and line[0].startswith("c")]
    assert named == ["c00", "c01", "c02", "c38", "c39", "c40"]
    assert ["all", "861", "0", "0"] in told
    named = [line[0] for line in lines(every=True) if line and line[0].startswith("c")]
    assert named == [f"c{c:02}" for c in range(41)]


def test_statistics():
    train = (Example("Say", "hey", task="t"), Example("Say", "x" * 50, task="t"))
    federation = Federation((Client("anna", train),), (Example("a", "b", task="t"),))
    statistics = describe(
        federation, lambda examples: encode_examples(examples, TOKENIZER, alpaca_short, 60)
    )
    (client,) = statistics.clients
    assert client.counts == (2, 1, 0, 0)
    assert client.tokens == (40, 50, 59, 60)  # 36 + 3 + 1 = 40; cut at 60
    assert client.own_tests == 1
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(render(statistics))
    text = console.export_text().replace("│", " ")
    lines = [line.split() for line in text.splitlines()]
    assert ["anna", "t", "2", "40", "50", "59", "60", "14.0", "1", "0", "1"] in lines
    assert ["all", "2", "1", "0"] in lines
