"""What the cards of an export have in common: where it comes from, data, results."""

from collections.abc import Sequence
from typing import Any

from feddpa_jax.data.statistics import ClientStatistics, FederationStatistics
from feddpa_jax.data.templates import bound
from feddpa_jax.evaluate.interval import LEGEND, Estimate, missing_notes
from feddpa_jax.evaluate.metrics import told, without_words_note
from feddpa_jax.export.trained import BASE, Trained
from feddpa_jax.federated.method import METHODS
from feddpa_jax.files.escape import json_text, markdown, markdown_code, python_text
from feddpa_jax.hf.render import VARIABLES
from feddpa_jax.types import Example

_PAPER = (
    "Yang, Long, Shen, Jiang, Blumenstein: *Dual-Personalizing Adapter for Federated Foundation "
    "Models*, NeurIPS 2024, [arXiv 2403.19211](https://arxiv.org/abs/2403.19211)"
)


def method_title(trained: Trained) -> str:
    """The method's name in texts."""
    return markdown(METHODS.find(trained.config.fed.method).title)


def _source(trained: Trained) -> str:
    """Where the method is published, of those that the package brings."""
    build = METHODS.find(trained.config.fed.method).build
    return f" ({_PAPER})" if build.__module__.startswith("feddpa_jax.federated.") else ""


def front_matter(trained: Trained, library: str) -> str:
    """The head that the hub reads."""
    lines = ["---", f"library_name: {library}", "pipeline_tag: text-generation"]
    # Only a hub id may stand here.
    if trained.base_hub_id is not None:
        lines.append(f"base_model: {json_text(trained.base_hub_id)}")
    tags = "[lora, federated-learning, feddpa]"
    return "\n".join([*lines, f"tags: {tags}", "---"])


def origin(trained: Trained) -> str:
    """Where an adapter comes from: base, method, checkpoint."""
    config, base = trained.config, trained.prepared.base
    fed, lora = config.fed, config.lora
    lines = [
        f"- Base: {markdown_code(trained.base_name)} ({base.precision()}; "
        f"fingerprint `{base.fingerprint}`)",
        f"- Method: {method_title(trained)}{_source(trained)}",
        f"- Checkpoint: round {trained.round_number} (counted from 0; {fed.rounds} rounds in all), "
        f"{fed.local_epochs} local epochs, batch {fed.batch_size}, learning rate "
        f"{fed.learning_rate:g}, LoRA dropout {lora.dropout:g}, seed {config.seed}",
        f"- Prompts: {_prompts(trained)}",
        "- Made with feddpa_jax, which read this back and compared every tensor with the run's",
    ]
    if base.quantize is not None:
        lines.insert(1, f"- {quantized_note(trained)}")
    return "## Where it comes from\n\n" + "\n".join(lines)


def quantized_note(trained: Trained) -> str:
    """Which weights the adapters were trained against, of a quantized base."""
    base = trained.prepared.base
    return (
        f"Trained against a quantized base (`model.quantize: {base.quantize}`): the layers' maps "
        f"were held in {' and '.join(base.layouts)}. The folder `{BASE}/` of the export has the "
        f"same weights as plain {base.model.dtype}; on the weights before quantization answers "
        "differ a little"
    )


def _prompts(trained: Trained) -> str:
    """How the adapter wants to be asked."""
    name = trained.config.data.template
    if name != "chat":
        return f"in the template {markdown_code(name)}, as the code below has them"
    asked = "tokenizer.apply_chat_template(messages, add_generation_prompt=True"
    told = "".join(f", {variable}={value}" for variable, value in VARIABLES.items())
    return (
        f"in the base's own chat template, `{asked}{told})`; a context follows its instruction "
        "after an empty line"
    )


def paths_note() -> str:
    """What the code's paths are relative to."""
    return "Paths are those of the export that this folder is a part of.\n\n"


def ask_model(trained: Trained) -> str:
    """Code that asks a loaded model."""
    template = bound(trained.config.data.template, trained.prepared.base.tokenizer)[0]
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


def data_table(clients: Sequence[ClientStatistics], statistics: FederationStatistics) -> str:
    """What was trained on."""
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


def results_table(trained: Trained) -> str:
    """The evaluation of the checkpoint, if there is one."""
    if trained.summary is None:
        return "## Results\n\nThis checkpoint was not evaluated."
    modes: dict[str, Any] = trained.summary["modes"]
    own = trained.summary.get("metrics", {})
    metrics = {name: told(name, own) for name in next(iter(modes.values()))}
    columns = [f"{z}: {metric.title}" for metric in metrics.values() for z in ("P", "TTP")]
    lines = ["| mode | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    shown: list[Estimate] = []
    for mode, by_metric in modes.items():
        cells = []
        for name, metric in metrics.items():
            for measure in ("P", "TTP"):
                shown.append(Estimate.from_json(by_metric[name][measure]))
                cells.append(metric.cell(shown[-1]))
        star = " *" if mode == trained.summary.get("answers_with") else ""
        lines.append(f"| {markdown(mode)}{star} | " + " | ".join(cells) + " |")
    note = (
        f"P is the mean over clients of the score on the own task, TTP on all tasks. {LEGEND} * is "
        "what the method answers with. ROUGE-1 and exact match: higher is better; NLL of the "
        "response in nats: lower is better."
    )
    note = " ".join([note, *map(markdown, missing_notes(shown))])
    wordless = without_words_note(trained.summary.get("targets_without_words", 0))
    if wordless and "rouge1" in metrics:
        note += f" {wordless}"
    return "\n".join(["## Results", "", *lines, "", note])
