"""A tiny federation whose evidence is collected once: two clients, three tasks."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feddpa_jax.adapters.dual import Adapters
from feddpa_jax.adapters.lora import bank_of, init_adapter
from feddpa_jax.data.templates import alpaca_short
from feddpa_jax.data.tokenize import encode_examples
from feddpa_jax.evaluate.personalization import Tasks
from feddpa_jax.hf.load import load_base
from feddpa_jax.inference.base_prompts import dream
from feddpa_jax.inference.scorer import Scorer
from feddpa_jax.laboratory.collect import Collected, collect
from feddpa_jax.laboratory.evidence_cache import Cache
from feddpa_jax.laboratory.questions import Questions
from feddpa_jax.types import Example
from feddpa_jax.weighting.evidence import Evidence
from feddpa_jax.weighting.gathering import prompt_alone

TRAIN = (
    tuple(Example(f"add {i} and {i}", f"{i + i}", task="add") for i in range(7)),
    tuple(Example(f"say {i} twice", f"{i}{i}", task="twice") for i in range(6)),
)
VALIDATION = (
    Example("add 20 and 20", "40", task="add"),
    Example("say 31 twice", "3131", task="twice"),
    Example("add 21 and 21", "42", task="add"),
)
TEST = (
    Example("add 9 and 9", "18", task="add"),
    Example("say 8 twice", "88", task="twice"),
    Example("name it", "it", task="other"),
    Example("add a longer one, 11", "22", task="add"),
)
NAMES = ("add", "other", "twice")


@dataclasses.dataclass(frozen=True)
class Laboratory:
    """Everything that tests of the laboratory work on."""

    scorer: Scorer
    questions: Questions
    collected: Collected
    folder: Path
    test: slice
    tasks: Tasks


def tokenize(base: Any, examples: tuple[Example, ...]):
    return encode_examples(examples, base.tokenizer, alpaca_short, 200).examples


@pytest.fixture(scope="session")
def laboratory(tmp_path_factory) -> Laboratory:
    base = load_base("tiny", "float32")

    @jax.jit
    def adapter(seed: int) -> dict:
        sizes = {t: base.model.config.target_sizes()[t] for t in ("q_proj", "v_proj")}
        fresh = init_adapter(jax.random.key(seed), sizes, layers=2, rank=2)
        return jax.tree.map(
            lambda x: x + 0.3 * jax.random.normal(jax.random.key(seed + 9), x.shape), fresh
        )

    local_C = jax.tree.map(lambda *leaves: jnp.stack(leaves), adapter(1), adapter(2))
    questions = Questions(
        ids=[11, 12],
        training=[tokenize(base, own) for own in TRAIN],
        instances=[*tokenize(base, VALIDATION), *tokenize(base, TEST)],
        dreams=dream(base.model, base.tokenizer, alpaca_short, count=5, seed=3, max_length=200),
        layers=(1, 2),
        held=[np.array([0, 2]), np.array([1])],
        fields=frozenset(Evidence._fields),
        read=base.tokenizer.decode,
    )
    examples = [
        *questions.instances,
        *questions.dreams,
        *(e for own in questions.training for e in own),
    ]
    scorer = Scorer.for_examples(
        base.model,
        Adapters(bank_of(adapter(0)), local_C, 2.0),
        [*examples, *map(prompt_alone, examples)],
        block_tokens=512,
    )
    folder = tmp_path_factory.mktemp("weigh") / "evidence"
    cache = Cache(folder, {"checkpoint": "a", "data": "b"})
    cache.open(fresh=False)
    own_CK = np.array([[name == task for name in NAMES] for task in ("add", "twice")])
    return Laboratory(
        scorer,
        questions,
        collect(scorer, questions, cache),
        folder,
        slice(len(VALIDATION), len(VALIDATION) + len(TEST)),
        Tasks(NAMES, np.array([NAMES.index(e.task) for e in TEST]), own_CK),
    )
