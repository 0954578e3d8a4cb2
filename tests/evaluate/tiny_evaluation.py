"""The tiny model with random adapters of two clients, and what it is evaluated on."""

import jax
import jax.numpy as jnp

from feddpa_jax.adapters.dual import Adapters
from feddpa_jax.adapters.lora import bank_of, init_adapter
from feddpa_jax.data.templates import alpaca_short
from feddpa_jax.data.tokenize import encode_examples
from feddpa_jax.evaluate.evaluation import Decoding, Setting, evaluate
from feddpa_jax.hf.load import load_base
from feddpa_jax.types import Client, Example
from feddpa_jax.weighting.settings import WeightingSettings

BASE = load_base("tiny", "float32")
MODEL, TOKENIZER = BASE.model, BASE.tokenizer
SCALE = 2.0


@jax.jit
def random_adapter(seed: int) -> dict:
    sizes = {t: MODEL.config.target_sizes()[t] for t in ("q_proj", "v_proj")}
    fresh = init_adapter(jax.random.key(seed), sizes, layers=2, rank=2)
    return jax.tree.map(
        lambda leaf: leaf + 0.3 * jax.random.normal(jax.random.key(seed + 9), leaf.shape), fresh
    )


GLOBAL = random_adapter(0)
LOCAL_C = jax.tree.map(lambda *leaves: jnp.stack(leaves), random_adapter(1), random_adapter(2))
ADAPTERS = Adapters(bank_of(GLOBAL), LOCAL_C, SCALE)
TRAIN = (
    tuple(Example(f"add {i}", f"{i + 1}", task="add") for i in range(6)),
    tuple(Example(f"say {i} twice", f"{i}{i}", task="twice") for i in range(7)),
)
TEST = (
    Example("add 9", "10", task="add"),
    Example("say 8 twice", "88", task="twice"),
    Example("add a longer one, 11", "12", task="add"),
    Example("name it", "it", task="other"),
)


def tokenize(examples):
    return encode_examples(examples, TOKENIZER, alpaca_short, 200).examples


def setting() -> Setting:
    clients = (Client("anna", TRAIN[0]), Client("ben", TRAIN[1]))
    return Setting(
        clients,
        TEST,
        training=tuple(map(tokenize, TRAIN)),
        tokenized=tokenize(TEST),
        tokenizer=TOKENIZER,
    )


def run(**changes):
    options = {
        "modes": None,
        "metrics": ("rouge1", "exact_match", "nll"),
        "weighting": WeightingSettings(support=3),
        "fixed": 0.25,
        "decoding": Decoding(max_new_tokens=4, batch_tokens=512),
    }
    return evaluate(MODEL, ADAPTERS, setting(), **(options | changes))
