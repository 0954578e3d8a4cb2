"""Base prompts: instructions that the base model alone writes when it is given the template."""

import jax
import jax.numpy as jnp
import numpy as np

from feddpa_jax.data.templates import Template
from feddpa_jax.hf.tokenizer import Tokenizer
from feddpa_jax.inference.decode import decode, prefill
from feddpa_jax.models.decoder import Model
from feddpa_jax.types import Example, TokenizedExample

# How many prompts a rule is given, and the most tokens of an instruction.
DREAMS = 32
MOST_TOKENS = 64
_BLANK = "\x00"


def dream(
    model: Model,
    tokenizer: Tokenizer,
    template: Template,
    *,
    count: int,
    seed: int,
    max_length: int,
) -> tuple[TokenizedExample, ...]:
    """Base prompts: prompts that no client wrote, for rules that need examples of other prompts.

    The base continues the template's text before the instruction by drawing tokens, up to the end
    token or the text that the template has after the instruction. No client's data are looked at.

    Args:
      model: the frozen base, without adapters.
      tokenizer: the model's.
      template: makes prompts.
      count: how many.
      seed: of the draws.
      max_length: most tokens of a prompt.

    Returns:
      `count` prompts; each is followed by the end token in the response's place.
    """
    before, _, after = template(Example(_BLANK, "")).partition(_BLANK)
    # The template's own text comes on top of the instruction, and the end token.
    room = max_length - len(tokenizer.encode(before + after)) - 1
    start_T = np.array(tokenizer.encode(before), np.int32)

    @jax.jit
    def write(model: Model, key: jax.Array) -> jax.Array:
        tokens_NT = jnp.tile(start_T, (count, 1))
        length_N = jnp.full(count, len(start_T))
        most = max(1, min(room, MOST_TOKENS))
        prompt = prefill(model, (), tokens_NT, length_N)
        return decode(
            model,
            (),
            prompt,
            length_N,
            stop_ids=tokenizer.stop_ids,
            pad_id=tokenizer.eos_id,
            max_new_tokens=most,
            key=key,
        ).tokens_BT

    written_NT = np.asarray(write(model, jax.random.key(seed)))
    prompts = []
    for tokens_T in written_NT:
        ends = np.flatnonzero(tokens_T == tokenizer.eos_id)
        text = tokenizer.decode_continuation(tokens_T[: ends[0]] if len(ends) else tokens_T)
        # What follows the instruction in a prompt ends it, where anything does.
        end = (after.strip().splitlines() or ["\n"])[0]
        instruction = text.partition(end)[0].strip()
        ids = tokenizer.encode(template(Example(instruction, "")))[: max_length - 1]
        prompts.append(TokenizedExample(np.array([*ids, tokenizer.eos_id], np.int32), len(ids)))
    return tuple(prompts)
