"""Model cards: a README.md for every folder of an export."""

from collections.abc import Sequence
from typing import Any

from feddpa_jax.data.statistics import ClientStatistics, FederationStatistics
from feddpa_jax.data.templates import TEMPLATES
from feddpa_jax.evaluate.metrics import told, without_words_note
from feddpa_jax.evaluate.personalization import Interval
from feddpa_jax.export.contents import AdapterOut, ModelOut, Plan, Trained
from feddpa_jax.export.instance_weights import SETTINGS_FILE, SUPPORT_FILE, Weighting
from feddpa_jax.federated.method import METHODS
from feddpa_jax.files.escape import json_text, markdown, markdown_code, python_text
from feddpa_jax.types import Example

_PAPER = (
    "Yang, Long, Shen, Jiang, Blumenstein: *Dual-Personalizing Adapter for Federated Foundation "
    "Models*, NeurIPS 2024, [arXiv 2403.19211](https://arxiv.org/abs/2403.19211)"
)


def _title(trained: Trained) -> str:
    """The method's name in texts."""
    return markdown(METHODS.find(trained.config.fed.method).title)


def _source(trained: Trained) -> str:
    """Where the method is published, of those that the package brings."""
    build = METHODS.find(trained.config.fed.method).build
    return f" ({_PAPER})" if build.__module__.startswith("feddpa_jax.federated.") else ""


def adapter_card(
    trained: Trained,
    place: str,
    out: AdapterOut,
    statistics: FederationStatistics,
    weighting: Weighting | None,
) -> str:
    """The card of a PEFT folder."""
    method = _title(trained)
    if out.client is None:
        title, what = "the global adapter", "It was trained by all clients and averaged."
        clients = statistics.clients
    elif out.local_weight is None:
        title = f"the local adapter of {markdown(out.client)}"
        what = "It was trained on this client's data alone and never left the client."
        clients = [c for c in statistics.clients if c.name == out.client]
    else:
        title = f"both adapters of {markdown(out.client)} as one"
        what = (
            f"It equals {1 - out.local_weight:g} of the global and {out.local_weight:g} of the "
            "client's local adapter, exactly: it has twice their rank."
        )
        clients = [c for c in statistics.clients if c.name == out.client]
    sections = [
        _front_matter(trained, "peft"),
        f"# {method}: {title}\n\n{what} LoRA of rank {out.rank}, alpha {out.alpha:g}, on "
        f"{markdown(', '.join(out.adapter))}.",
        _origin(trained),
        "## How to load it\n\n" + _paths_note() + _code(trained, place),
        _data(clients, statistics),
        _results(trained),
    ]
    if weighting is not None:
        sections.insert(4, _weighting(weighting))
    return "\n\n".join(sections) + "\n"


def model_card(
    trained: Trained, place: str, out: ModelOut, statistics: FederationStatistics
) -> str:
    """The card of a full model."""
    title = "the base model" if not out.parts else "a merged model"
    sections = [
        _front_matter(trained, "transformers"),
        f"# {_title(trained)}: {title}\n\n"
        f"The weights are {markdown(out.what)}, in {trained.prepared.base.model.dtype}, exactly as "
        "the run computed with them.",
        _origin(trained),
        "## How to load it\n\n" + _paths_note() + _model_code(trained, place),
    ]
    if out.parts:
        sections += [_data(statistics.clients, statistics), _results(trained)]
    return "\n\n".join(sections) + "\n"


def export_card(trained: Trained, plan: Plan, statistics: FederationStatistics) -> str:
    """The card of the whole export."""
    rows = [_row(place, _in_words(out)) for place, out in plan.adapters.items()]
    rows += [_row(place, out.what) for place, out in plan.models.items()]
    first = next(iter(plan.adapters))
    sections = [
        _front_matter(trained, "peft"),
        f"# {_title(trained)} on {len(statistics.clients)} clients\n\n"
        "Every client keeps the same frozen language model and two LoRA adapters: a global one, "
        "averaged over all clients, and a private local one.",
        "| folder | what |\n|---|---|\n" + "\n".join(rows),
        _origin(trained),
        "## How to load an adapter\n\n" + _code(trained, first),
        _data(statistics.clients, statistics),
        _results(trained),
    ]
    return "\n\n".join(sections) + "\n"


def _row(place: str, what: str) -> str:
    return f"| {markdown_code(f'{place}/')} | {markdown(what)} |"


def _in_words(out: AdapterOut) -> str:
    if out.client is None:
        return "the global adapter (PEFT)"
    if out.local_weight is None:
        return f"the local adapter of {out.client} (PEFT)"
    return f"both adapters of {out.client} at local weight {out.local_weight:g}, as one (PEFT)"


def _front_matter(trained: Trained, library: str) -> str:
    lines = ["---", f"library_name: {library}", "pipeline_tag: text-generation"]
    # Only a hub id may stand here.
    if trained.base_hub_id is not None:
        lines.append(f"base_model: {json_text(trained.base_hub_id)}")
    tags = "[lora, federated-learning, feddpa]"
    return "\n".join([*lines, f"tags: {tags}", "---"])


def _origin(trained: Trained) -> str:
    config, base = trained.config, trained.prepared.base
    fed, lora = config.fed, config.lora
    lines = [
        f"- Base: {markdown_code(trained.base_name)} ({config.model.dtype}, "
        f"fingerprint `{base.fingerprint}`)",
        f"- Method: {_title(trained)}{_source(trained)}",
        f"- Checkpoint: round {trained.round_number} (counted from 0; {fed.rounds} rounds in all), "
        f"{fed.local_epochs} local epochs, batch {fed.batch_size}, learning rate "
        f"{fed.learning_rate:g}, LoRA dropout {lora.dropout:g}, seed {config.seed}",
        "- Made with feddpa_jax, which read this back and compared every tensor with the run's",
    ]
    return "## Where it comes from\n\n" + "\n".join(lines)


def _paths_note() -> str:
    return "Paths are those of the export that this folder is a part of.\n\n"


def _code(trained: Trained, place: str) -> str:
    base = python_text(trained.base_reference)
    return f"""```python
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({base})
base = AutoModelForCausalLM.from_pretrained({base}, dtype=torch.{trained.prepared.base.model.dtype})
model = PeftModel.from_pretrained(base, {python_text(place)}).eval()
{_ask(trained)}
```"""


def _model_code(trained: Trained, place: str) -> str:
    return f"""```python
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({python_text(place)})
model = AutoModelForCausalLM.from_pretrained({python_text(place)}, dtype="auto").eval()
{_ask(trained)}
```"""


def _ask(trained: Trained) -> str:
    template = TEMPLATES.find(trained.config.data.template)
    prompt = python_text(template(Example("Name three colours.", "")))
    tokens = trained.config.eval.max_new_tokens
    # Not every base's own files name the token that training put behind an answer.
    ends = list(trained.prepared.base.tokenizer.stop_ids)
    return f"""inputs = tokenizer({prompt}, return_tensors="pt")
with torch.no_grad():
    tokens = model.generate(
        input_ids=inputs.input_ids,
        attention_mask=inputs.attention_mask,
        max_new_tokens={tokens},
        do_sample=False,
        eos_token_id={ends},
    )
prompt = tokenizer.decode(inputs.input_ids[0], skip_special_tokens=True)
print(tokenizer.decode(tokens[0], skip_special_tokens=True)[len(prompt) :])"""


def _weighting(weighting: Weighting) -> str:
    own = weighting.settings
    local, other = "local", "global"
    if own["scales"] == "global":
        local, other = other, local
    read_at = "at the last prompt token" if own["pooling"] == "last" else "averaged over the prompt"
    rule = markdown_code(own["rule"])
    under = "the bare base" if own["embed_with"] == "base" else f"the {own['embed_with']} adapter"
    return f"""## Instance-wise weights

Each instance gets its own mix of the global and this client's local adapter. The weight of the
{local} adapter is `clip({own["scale"]:g} * similarity, 0, 1)`, the {other} adapter gets the rest.
The similarity is the rule {rule} between the instance's embedding and those of
{len(weighting.support_MD)} of the client's training prompts, which `{SUPPORT_FILE}` holds (tensor
`support`, a row a prompt). An embedding is the final hidden state {read_at}, under {under} alone.
`{SETTINGS_FILE}` has all settings and the prompt's text. The project's
`examples/instance_weights.py` does this with `transformers` and `peft` alone."""


def _data(clients: Sequence[ClientStatistics], statistics: FederationStatistics) -> str:
    header = (
        "| client | tasks | examples | tokens: min / median / 95 % / max | response tokens | cut | "
        "dropped |\n|---|---|---|---|---|---|---|"
    )
    rows = [
        f"| {markdown(c.name)} | {markdown(', '.join(c.tasks))} | {c.counts.examples} | "
        f"{' / '.join(map(str, c.tokens))} | {c.response_tokens:.1f} | {c.counts.truncated} | "
        f"{c.counts.dropped} |"
        for c in clients
    ]
    tests = statistics.test_counts
    end = f"{tests.examples} test instances of {len(statistics.tests)} tasks were held out."
    return "\n".join(["## Training data", "", header, *rows, "", end])


def _results(trained: Trained) -> str:
    if trained.summary is None:
        return "## Results\n\nThis checkpoint was not evaluated."
    modes: dict[str, Any] = trained.summary["modes"]
    own = trained.summary.get("metrics", {})
    metrics = {name: told(name, own) for name in next(iter(modes.values()))}
    columns = [f"{z}: {metric.title}" for metric in metrics.values() for z in ("P", "TTP")]
    lines = ["| mode | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for mode, by_metric in modes.items():
        cells = [
            metric.cell(Interval.from_json(by_metric[name][measure]))
            for name, metric in metrics.items()
            for measure in ("P", "TTP")
        ]
        star = " *" if mode == trained.summary.get("answers_with") else ""
        lines.append(f"| {markdown(mode)}{star} | " + " | ".join(cells) + " |")
    note = (
        "P is the mean over clients of the score on the own task, TTP on all tasks; brackets are "
        "95 % bootstrap intervals; * is what the method answers with. ROUGE-1 and exact match: "
        "higher is better; NLL of the response in nats: lower is better."
    )
    wordless = without_words_note(trained.summary.get("targets_without_words", 0))
    if wordless and "rouge1" in metrics:
        note += f" {wordless}"
    return "\n".join(["## Results", "", *lines, "", note])
