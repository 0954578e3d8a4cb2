"""Cards by hand: every number in its place, from an evaluation and data made up here."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from feddpa_jax.config import Config
from feddpa_jax.data.statistics import ClientStatistics, FederationStatistics
from feddpa_jax.data.tokenize import TokenCounts
from feddpa_jax.evaluate.interval import LEGEND, Estimate, Interval
from feddpa_jax.export.card import adapter_card, export_card, model_card
from feddpa_jax.export.contents import AdapterOut, ModelOut, Plan, Trained
from feddpa_jax.export.instance_weights import Weighting
from feddpa_jax.inference.scorer import Adapters
from tests.data.chat_templates import FAMILIES
from tests.data.test_chat import tokenizer_of


def estimate(value: float) -> Estimate:
    return Estimate(
        Interval(value, value - 0.125, value + 0.375),
        Interval(value, value - 0.25, value + 0.75),
        Interval.none(value, "too few"),
    )


def interval(value: float) -> dict[str, Any]:
    return estimate(value).to_json()


def counts(examples: int, truncated: int, dropped: int) -> TokenCounts:
    return TokenCounts()._replace(examples=examples, truncated=truncated, dropped=dropped)


SUMMARY = {
    "answers_with": "local",
    "modes": {
        "global": {
            "rouge1": {"P": interval(10), "TTP": interval(20)},
            "nll": {"P": interval(1), "TTP": interval(2)},
        },
        "local": {
            "rouge1": {"P": interval(30), "TTP": interval(40)},
            "nll": {"P": Estimate.none(math.nan, "").to_json(), "TTP": interval(4)},
        },
    },
}
STATISTICS = FederationStatistics(
    (
        ClientStatistics("anna", ("b", "a"), counts(11, 12, 13), (14, 15, 16, 17), 18.25, 19),
        ClientStatistics("ben", ("c",), counts(21, 22, 23), (24, 25, 26, 27), 28.5, 29),
    ),
    {"a": 2, "b": 3, "c": 4},
    counts(9, 1, 0),
)
ADAPTER: Any = {"q_proj": {"a": np.zeros((2, 8, 3))}, "v_proj": {"a": np.zeros((2, 8, 3))}}


def trained(summary=SUMMARY) -> Trained:
    base = SimpleNamespace(
        folder=None,
        fingerprint="f00",
        precision=lambda: "bfloat16, converted from a GGUF file of Q4_1",
        quantize=None,
        layouts=(),
        model=SimpleNamespace(dtype="float32"),
        hf_config=None,
        tokenizer=SimpleNamespace(stop_ids=(7, 2)),
    )
    prepared: Any = SimpleNamespace(base=base, names=("anna", "ben"))
    fed = {"method": "feddpa_f", "rounds": 7, "local_epochs": 3, "batch_size": 5}
    config = Config(
        seed=4,
        fed=type(Config().fed)(**fed, learning_rate=0.25),
        lora=type(Config().lora)(dropout=0.125),
    )
    return Trained(config, prepared, Adapters(None, None, 1.0), 6, summary)


def test_results():
    card = adapter_card(trained(), "global", AdapterOut(ADAPTER, 12.0), STATISTICS, None)
    lines = card.split("\n")
    start = lines.index(
        "| mode | P: ROUGE-1 | TTP: ROUGE-1 | P: response NLL, nats | TTP: response NLL, nats |"
    )
    assert lines[start + 2 : start + 4] == [
        "| global | 10.0 [9.9, 10.4] (9.8, 10.8) | 20.0 [19.9, 20.4] (19.8, 20.8) | "
        "1.00 [0.88, 1.38] (0.75, 1.75) | 2.00 [1.88, 2.38] (1.75, 2.75) |",
        "| local * | 30.0 [29.9, 30.4] (29.8, 30.8) | 40.0 [39.9, 40.4] (39.8, 40.8) | – | "
        "4.00 [3.88, 4.38] (3.75, 4.75) |",
    ]
    assert LEGEND in card and "No interval" not in card
    card = adapter_card(trained(None), "global", AdapterOut(ADAPTER, 12.0), STATISTICS, None)
    assert "This checkpoint was not evaluated." in card and "| mode |" not in card


def test_whose_data():
    anna = "| anna | b, a | 11 | 14 / 15 / 16 / 17 | 18.2 | 12 | 13 |"
    ben = "| ben | c | 21 | 24 / 25 / 26 / 27 | 28.5 | 22 | 23 |"
    heads = (
        "| client | tasks | examples | tokens: min / median / 95 % / max | response tokens | cut |"
    )
    for client, rows in ((None, [anna, ben]), ("anna", [anna]), ("ben", [ben])):
        out = AdapterOut(ADAPTER, 12.0, client)
        lines = adapter_card(trained(), "x", out, STATISTICS, None).split("\n")
        start = next(n for n, line in enumerate(lines) if line.startswith(heads))
        assert lines[start + 2 : start + 3 + len(rows)] == [*rows, ""]
        assert "9 test instances of 3 tasks were held out." in lines


def test_what_it_is():
    said = adapter_card(trained(), "x", AdapterOut(ADAPTER, 12.0), STATISTICS, None)
    assert "# FedDPA-F: the global adapter\n\nIt was trained by all clients" in said
    assert "LoRA of rank 3, alpha 12, on q_proj, v_proj." in said
    assert (
        "round 6 (counted from 0; 7 rounds in all), 3 local epochs, batch 5, learning rate 0.25"
        in said
    )
    assert "LoRA dropout 0.125, seed 4" in said
    # Of all tokens that end an answer the base's own files may lack one.
    assert "        do_sample=False,\n        eos_token_id=[7, 2],\n" in said
    said = adapter_card(trained(), "x", AdapterOut(ADAPTER, 12.0, "ben"), STATISTICS, None)
    assert (
        "# FedDPA-F: the local adapter of ben\n\nIt was trained on this client's data alone" in said
    )
    sends = trained()._replace(uploads=True)
    said = adapter_card(sends, "x", AdapterOut(ADAPTER, 12.0, "ben"), STATISTICS, None)
    assert "this client's data; the method sends the server clients' parts." in said
    said = adapter_card(trained(), "x", AdapterOut(ADAPTER, 12.0, "ben", 0.3), STATISTICS, None)
    assert "It equals 0.7 of the global and 0.3 of the client's local adapter" in said
    said = model_card(
        trained(), "merged", ModelOut([(ADAPTER, 1.0)], "the base with x"), STATISTICS
    )
    assert "a merged model\n\nThe weights are the base with x, in float32" in said
    said = model_card(trained(), "base", ModelOut([], "the base"), STATISTICS)
    assert "FedDPA-F: the base model" in said and "| mode |" not in said


def test_what_a_quantized_base_was():
    plain = trained()
    out = AdapterOut(ADAPTER, 6.0)
    assert "quantized" not in adapter_card(plain, "global", out, STATISTICS, None)
    held = {"folder": "there", "quantize": "nf4", "layouts": ("nf4", "q4_k")}
    vars(plain.prepared.base).update(held)
    card = adapter_card(plain, "global", out, STATISTICS, None)
    assert "quantized base (`model.quantize: nf4`): the layers' maps were held in nf4" in card
    assert "in nf4 and q4_k. The folder `base/` of the export has the same weights" in card
    assert "AutoModelForCausalLM.from_pretrained('base'" in card.replace('"', "'")


def test_whole_exports():
    adapters = {
        "global": AdapterOut(ADAPTER, 12.0),
        "clients/ben": AdapterOut(ADAPTER, 12.0, "ben"),
        "clients/ben-mixed": AdapterOut(ADAPTER, 24.0, "ben", 0.3),
    }
    plan = Plan(adapters, {"base": ModelOut([], "the base")})
    said = export_card(trained(), plan, STATISTICS)
    assert "# FedDPA-F on 2 clients" in said
    for row in (
        "| `global/` | the global adapter (PEFT) |",
        "| `clients/ben/` | the local adapter of ben (PEFT) |",
        "| `clients/ben-mixed/` | both adapters of ben at local weight 0.3, as one (PEFT) |",
        "| `base/` | the base |",
    ):
        assert row in said.split("\n")


def test_how_to_ask_an_adapter_of_a_chat_template():
    asked = trained()
    asked = asked._replace(config=Config(data={"template": "chat"}))
    family = FAMILIES["llama3"]
    base = SimpleNamespace(**{**vars(asked.prepared.base), "tokenizer": tokenizer_of(family)})
    prepared: Any = SimpleNamespace(base=base, names=("anna", "ben"))
    asked = asked._replace(prepared=prepared)
    out = AdapterOut(ADAPTER, 12.0, "ben")
    said = adapter_card(asked, "x", out, STATISTICS, None)
    assert (
        "- Prompts: in the base's own chat template, `tokenizer.apply_chat_template(messages, "
        "add_generation_prompt=True, enable_thinking=False)`; a context follows its instruction"
    ) in said
    # `transformers` puts the first token there.
    assert 'tokenizer("<|start_header_id|>user<|end_header_id|>\\n\\nName three colours.' in said
    said = adapter_card(trained(), "x", out, STATISTICS, None)
    assert "- Prompts: in the template `alpaca_short`, as the code below has them" in said


@pytest.mark.parametrize("scales", ["local", "global"])
def test_instance_weights(scales):
    settings = {"scales": scales, "scale": 0.75, "pooling": "mean", "embed_with": "base"}
    weighting = Weighting({**settings, "rule": "cosine"}, np.zeros((5, 8)))
    out = AdapterOut(ADAPTER, 12.0, "ben")
    said = " ".join(adapter_card(trained(), "x", out, STATISTICS, weighting).split())
    other = {"local": "global", "global": "local"}[scales]
    assert (
        f"The weight of the {scales} adapter is `clip(0.75 * similarity, 0, 1)`, the {other} "
        "adapter gets the rest. The similarity is the rule `cosine` between the instance's "
        "embedding and those of 5 of the client's training prompts"
    ) in said
    assert "hidden state averaged over the prompt, under the bare base alone." in said
    weighting = Weighting(
        {**settings, "rule": "l2", "pooling": "last", "embed_with": "local"}, np.zeros((5, 8))
    )
    said = " ".join(adapter_card(trained(), "x", out, STATISTICS, weighting).split())
    assert "hidden state at the last prompt token, under the local adapter alone." in said
