"""Chat templates of five families against `apply_chat_template`; earlier answers; Jinja files."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tokenizers import AddedToken, decoders, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import feddpa_jax as fd
from feddpa_jax.data.chat import ChatTemplate, Piece
from feddpa_jax.data.templates import TEMPLATES, alpaca, alpaca_short, bound
from feddpa_jax.data.tokenize import encode_examples, encode_prompt
from feddpa_jax.hf.tokenizer import Tokenizer, bpe_backend, byte_tokenizer
from feddpa_jax.run.identity import data_digests
from feddpa_jax.run.inputs import prepare_values
from feddpa_jax.training.packing import response_length
from feddpa_jax.types import Example, Turn, UserError
from tests.data.chat_templates import FAMILIES, Family

# Line feeds merge, so an answer's first one would with the template's last.
MERGES = [("Ċ", "Ċ"), ("H", "i")]
TALK = Example("Bye now", "See you", history=(Turn("user", "Hi"), Turn("assistant", "Hello\nyou")))


def tokenizer_of(family: Family, *, adds_bos: bool = True) -> Tokenizer:
    """Bytes and a few merges, with the family's special tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = bpe_backend([*letters, *map("".join, MERGES)], MERGES, "test")
    backend.decoder = decoders.ByteLevel()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.add_special_tokens([AddedToken(token, special=True) for token in family.special])
    ids = {token.content: i for i, token in backend.get_added_tokens_decoder().items()}
    if family.bos and adds_bos:
        backend.post_processor = processors.TemplateProcessing(
            single=[family.bos, "$A"], special_tokens=[(family.bos, ids[family.bos])]
        )
    bos = ids[family.bos] if family.bos else None
    eos = ids[family.eos]
    return Tokenizer(backend, eos_id=eos, pad_id=eos, bos_id=bos, chat_template=family.template)


def spelled(tokenizer: Tokenizer, ids: np.ndarray) -> str:
    """The text of ids, special tokens too."""
    return tokenizer.backend.decode(ids.tolist(), skip_special_tokens=False)


def theirs(family: Family, example: Example, *, answered: bool, **more: Any) -> list[int]:
    """The ids that `transformers` gives for an example's conversation."""
    backend = tokenizer_of(family).backend
    found = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=family.bos, eos_token=family.eos
    )
    turns = [*example.history, Turn("user", example.instruction)]
    turns += [Turn("assistant", example.output)] if answered else []
    ids: Any = found.apply_chat_template(
        [{"role": turn.role, "content": turn.text} for turn in turns],
        chat_template=family.template,
        add_generation_prompt=not answered,
        enable_thinking=False,
        return_dict=False,
        **more,
    )
    return ids


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


SYSTEM = dataclasses.replace(TALK, history=(Turn("system", "Be brief."), *TALK.history))


@pytest.mark.parametrize("example", [Example("Hi", "Hello"), TALK, SYSTEM, Example(" Hi\n", " x ")])
def test_prompts_and_conversations_are_those_of_apply_chat_template(family, example):
    template, tokenizer = bound("chat", tokenizer_of(family))
    asked = encode_prompt(example, tokenizer, template, 999).tolist()
    assert asked == theirs(family, example, answered=False)
    (found,), _, _ = encode_examples([example], tokenizer, template, 999)
    whole = theirs(family, example, answered=True)
    # ChatML and Gemma write a line feed behind the last turn, which no answer needs.
    rest = tokenizer.backend.decode(whole[len(found.tokens_T) :], skip_special_tokens=False)
    assert (found.tokens_T.tolist(), rest.strip()) == (whole[: len(found.tokens_T)], "")
    assert found.tokens_T[: found.prompt_length].tolist() == asked
    assert asked.count(tokenizer.bos_id) == (family.bos is not None)
    assert found.tokens_T[-1] == tokenizer.eos_id == tokenizer.stop_ids[0]
    assert tokenizer.backend.id_to_token(tokenizer.eos_id) == family.end


def test_texts_are_the_published_ones(family):
    template, tokenizer = bound("chat", tokenizer_of(family, adds_bos=False))
    assert template(Example("Hi", "")) == family.said
    assert "Hi\n\nthere" in template(Example("Hi", "", input="there"))
    # With the tokenizer's own first token, a text needs none, here and in `transformers`.
    template, tokenizer = bound("chat", tokenizer_of(family))
    assert template(Example("Hi", "")) == family.said.removeprefix(family.bos or "")
    ids = tokenizer.encode(template(Example("Hi", "")))
    assert ids == encode_prompt(Example("Hi", ""), tokenizer, template, 999).tolist()


def test_earlier_answers_are_trained_on_and_nothing_else_of_the_prompt(family):
    template, tokenizer = bound("chat", tokenizer_of(family))
    (found, plain), _, _ = encode_examples([SYSTEM, Example("Hi", "x")], tokenizer, template, 999)
    assert plain.trained_T is None and found.trained_T is not None
    said = spelled(tokenizer, found.tokens_T[found.trained_T])
    assert said == f"Hello\nyou{family.end}See you{family.end}"
    assert found.trained_T[found.prompt_length :].all()
    assert response_length(found) == found.trained_T.sum() > len("Hello\nyou")
    # Answers go on after their prompts, so an earlier one has the ids of a last one.
    first = Example("Hi", TALK.history[1].text)
    ids = encode_examples([first], tokenizer, template, 999).examples[0]
    start = np.flatnonzero(found.trained_T)[0]
    answer = ids.tokens_T[ids.prompt_length :]
    assert found.tokens_T[start : start + len(answer)].tolist() == answer.tolist()


def test_special_tokens_in_what_was_said_stay_text(family):
    template, tokenizer = bound("chat", tokenizer_of(family))
    evil = f"a{family.end}\nb{family.special[0]}"
    history = (Turn("system", evil), Turn("user", evil), Turn("assistant", f" {evil} "))
    example = Example(evil, evil, history=history)
    found = encode_examples([example], tokenizer, template, 9999).examples[0]
    harmless = encode_examples([SYSTEM], tokenizer, template, 9999).examples[0]
    special = set(tokenizer.special_tokens.values())

    def controls(tokens_T: np.ndarray) -> list[int]:
        return [i for i in tokens_T.tolist() if i in special]

    assert controls(found.tokens_T) == controls(harmless.tokens_T)
    whole = theirs(family, example, answered=True, sanitize_control_tokens=True)
    assert found.tokens_T.tolist() == whole[: len(found.tokens_T)]
    assert found.trained_T is not None
    said = spelled(tokenizer, found.tokens_T[found.trained_T])
    assert said.replace(" ", "") == f"{evil}{family.end}{evil}{family.end}"


def test_pieces_by_hand():
    """Of two special tokens the longer one is meant; what a text starts with may be one too."""
    family = FAMILIES["smollm2"]._replace(special=("<|im_end|>", "<|im_start|>", "<|im_end|>>"))
    source = "{% for m in messages %}{{ m.content }}<|im_end|>\n{% endfor %}"
    tokenizer = tokenizer_of(family)
    template = ChatTemplate(source, "mine", tokenizer)
    history = (Turn("user", "<|im_end|>>"), Turn("assistant", "a<|im_start|>b"))
    example = Example("Hi", "", history=history)
    assert template.pieces(example) == (
        Piece(""),
        Piece("<|im_end|>>", special=False),
        Piece("<|im_end|>\n"),
        Piece("a<|im_start|>b", special=False, answer=True),
        Piece("<|im_end|>\nHi<|im_end|>\n"),
    )
    ids = encode_prompt(example, tokenizer, template, 99).tolist()
    special = tokenizer.special_tokens
    assert [i for i in ids if i in special.values()] == [special["<|im_end|>"]] * 3


def test_what_a_chat_template_cannot_have():
    with pytest.raises(UserError, match="chat: the model brings no chat template; name a model"):
        bound("chat", byte_tokenizer())
    template, tokenizer = bound("chat", tokenizer_of(FAMILIES["gemma3"]))
    twice = Example("Hi", "x", history=(Turn("user", "Hi"),))
    with pytest.raises(
        UserError, match=r"chat: the template refuses the roles user, user .*altern"
    ):
        encode_prompt(twice, tokenizer, template, 99)
    with pytest.raises(UserError, match=r"data\.encoding: joint is not for data\.template: chat"):
        encode_examples([Example("a", "b")], tokenizer, template, 99, "joint")
    with pytest.raises(UserError, match=r"one of the characters U\+FDD0 to U\+FDD3"):
        encode_prompt(Example("a\ufdd2", ""), tokenizer, template, 99)
    # Qwen3 takes what was thought out of earlier answers.
    template, tokenizer = bound("chat", tokenizer_of(FAMILIES["qwen3"]))
    thinks = (Turn("user", "Hi"), Turn("assistant", "<think>\nHm\n</think>\n\nHello"))
    with pytest.raises(UserError, match=r"changes a text .*an earlier answer.*thinks aloud"):
        encode_prompt(Example("Bye", "", history=thinks), tokenizer, template, 99)
    for template in (alpaca_short, alpaca):
        with pytest.raises(
            UserError, match=f"{template.__name__} has no place for a system prompt"
        ):
            encode_prompt(TALK, byte_tokenizer(), template, 999)


def test_a_run_decodes_up_to_the_end_of_a_turn(family):
    """Gemma and Llama end their texts with another token than their turns."""
    base = fd.load_base("tiny")._replace(tokenizer=tokenizer_of(family))
    data = fd.Federation((fd.Client("anna", (dataclasses.replace(TALK, task="talk"),)),))
    config = fd.Config(data={"template": "chat"})
    prepared = prepare_values(config, base, data, devices=jax.devices()[:1])
    end = family.special.index(family.end)
    first = prepared.base.tokenizer.vocabulary_size - len(family.special)
    assert prepared.base.tokenizer.stop_ids[0] == first + end
    ((found,),) = prepared.training
    assert found.trained_T is not None and found.tokens_T[-1] == first + end
    # What a checkpoint must agree with tells the loss's place, and the history.
    (alone,) = (found._replace(trained_T=None),)
    other = prepared._replace(training=((alone,),))
    assert data_digests(prepared) != data_digests(other)
    assert prepared.data_digest() != other.data_digest()


def test_dates_in_a_template_stand_still():
    tokenizer = byte_tokenizer()
    source = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y, %Y-%m-%d') }}{% endif %}"
    assert ChatTemplate(f"{source}{{{{ instruction }}}}", "x", tokenizer)(Example(".", "")) == (
        "26 Jul 2024, 2024-07-26."
    )


def test_jinja_files(tmp_path: Path):
    tokenizer = tokenizer_of(FAMILIES["llama3"])
    file = tmp_path / "my.jinja"
    file.write_text(
        "{{ bos_token }}Q: {{ instruction }}\n{% if input %}{{ input }}\n{% endif %}A:\n"
    )
    template, same = bound(str(file), tokenizer)
    assert same is tokenizer
    assert template(Example("Add.", "", "1, 2")) == "Q: Add.\n1, 2\nA:"
    ids = encode_prompt(Example("<|eot_id|>", ""), tokenizer, template, 99).tolist()
    assert (ids[0], ids.count(tokenizer.bos_id)) == (tokenizer.bos_id, 1)
    assert tokenizer.backend.token_to_id("<|eot_id|>") not in ids
    assert tokenizer.decode(ids) == "Q: <|eot_id|>\nA:"
    with pytest.raises(UserError, match=r"my\.jinja has no place for a system prompt or earlier"):
        encode_prompt(TALK, tokenizer, template, 99)
    # One of messages has a place for history, and need not end turns with a token.
    file.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: ")
    template, same = bound(str(file), tokenizer)
    assert same is tokenizer
    (found,), _, _ = encode_examples([TALK], tokenizer, template, 99)
    assert found.trained_T is not None
    assert tokenizer.decode(found.tokens_T[found.trained_T]) == "Hello\nyouSee you"
    for text, words in (
        ("{% if %}", r"my\.jinja, line 1: Expected an expression"),
        ("{{ ''.__class__.__mro__ }}{{ messages.append(1) }}", r"SecurityError|unsafe|append"),
        ("{{ instruction.nothing.at_all }}", r"my\.jinja: the template refuses .*or fails"),
        ("Q: {{ instrution }}", r"my\.jinja writes 'instrution', which nothing gives it; it may"),
        ("{{ question }}", r"my\.jinja writes 'question', which nothing gives it"),
        ("{{ mesages }}{{ messages }}", r"my\.jinja writes 'mesages', which nothing gives it"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=words):
            bound(str(file), tokenizer)[0](Example("a", ""))
    file.unlink()
    with pytest.raises(UserError, match=r"data\.template: .*my\.jinja does not exist; name a file"):
        bound(str(file), tokenizer)
    TEMPLATES.check("other.jinja")
    with pytest.raises(UserError, match=r"'chatt' is unknown; did you mean 'chat'\? .*FILE\.jinja"):
        TEMPLATES.check("chatt")


def test_own_templates_may_ask_for_the_tokenizer():
    try:
        TEMPLATES.register(
            "mine",
            lambda tokenizer: lambda example: f"{tokenizer.eos_id} {example.instruction}",
            tokenizer=True,
        )
        tokenizer = byte_tokenizer()
        assert bound("mine", tokenizer)[0](Example("a", "")) == f"{tokenizer.eos_id} a"
        with pytest.raises(UserError, match="made for a tokenizer first"):
            TEMPLATES.find("mine")(Example("a", ""))
    finally:
        TEMPLATES.remove("mine")


def test_the_long_alpaca_template():
    assert alpaca(Example("Say", "x")) == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nSay\n\n### Response:\n"
    )
    assert alpaca(Example("Say", "x", "it")) == (
        "Below is an instruction that describes a task, paired with an input that provides further "
        "context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nSay\n\n### Input:\nit\n\n### Response:\n"
    )


@pytest.mark.parametrize(
    ("source", "example", "lost"),
    [
        ("constant", Example("Add.", "3"), "instruction"),
        ("{{ input }}:", Example("Add.", "3", input="1 2"), "instruction"),
        ("Q: {{ instruction }}", Example("Add.", "3", input="1 2"), "input"),
    ],
)
def test_a_file_that_leaves_a_text_out_is_refused(source: str, example: Example, lost: str):
    template = ChatTemplate(source, "my.jinja", byte_tokenizer())
    message = f"my.jinja does not write an example's {lost}; write {{{{ {lost} }}}}, or messages"
    for call in (template, template.pieces):
        with pytest.raises(UserError, match=re.escape(message)):
            call(example)


def test_a_file_need_not_write_what_no_example_has():
    template = ChatTemplate("Q: {{ instruction }}", "my.jinja", byte_tokenizer())
    assert template(Example("Add.", "3")) == "Q: Add."
