"""Model cards: a README.md for every folder of an export."""

from feddpa_jax.data.statistics import FederationStatistics
from feddpa_jax.export.card_sections import (
    ask_model,
    data_table,
    front_matter,
    method_title,
    origin,
    paths_note,
    results_table,
)
from feddpa_jax.export.contents import AdapterOut, ModelOut, Plan, in_words
from feddpa_jax.export.instance_weights import SETTINGS_FILE, SUPPORT_FILE, Weighting
from feddpa_jax.export.trained import Trained
from feddpa_jax.files.escape import markdown, markdown_code, python_text


def adapter_card(
    trained: Trained,
    place: str,
    out: AdapterOut,
    statistics: FederationStatistics,
    weighting: Weighting | None,
) -> str:
    """The card of a PEFT folder."""
    everybody = out.client is None or out.mode == "shared"
    clients = [c for c in statistics.clients if everybody or c.name == out.client]
    title = in_words(out)
    if out.local_weight is not None:
        title = f"both adapters of {out.client} as one"
    sections = [
        front_matter(trained, "peft"),
        f"# {method_title(trained)}: {markdown(title)}\n\n{_what(trained, out)} LoRA of rank "
        f"{_ranks(out)}, alpha {out.alpha:g}, on {markdown(', '.join(out.adapter))}.",
        origin(trained),
        "## How to load it\n\n" + paths_note() + _code(trained, place),
        data_table(clients, statistics),
        results_table(trained),
    ]
    if weighting is not None:
        sections.insert(4, _weighting(weighting))
    return "\n\n".join(sections) + "\n"


def _what(trained: Trained, out: AdapterOut) -> str:
    """How an adapter came to be."""
    if out.expert is not None:
        return "It is a part of a routed adapter; the folder above says how to apply it."
    if out.mode == "shared":
        return "The server made it of the clients' training, for this client."
    if out.mode is not None:
        answers = "All clients answer" if out.client is None else "This client answers"
        return f"{answers} with it in the mode {markdown_code(out.mode)}, which the method has."
    if out.client is None:
        return "It was trained by all clients; the server put their work together."
    if out.local_weight is not None:
        return (
            f"It equals {1 - out.local_weight:g} of the global and {out.local_weight:g} of the "
            "client's local adapter, exactly: it has the sum of their ranks."
        )
    if out.common:
        theirs = " and ".join(name.upper() for name in out.common)
        own = " and ".join(name.upper() for name in "ab" if name not in out.common)
        return f"Its {theirs} is the server's, its {own} the client's."
    if trained.uploads:
        return "It was trained on this client's data; the method sends the server clients' parts."
    return "It was trained on this client's data alone and never left the client."


def _ranks(out: AdapterOut) -> str:
    if len(set(out.ranks.values())) == 1:
        return str(out.rank)
    own = ", ".join(f"{rank} on {target}" for target, rank in out.ranks.items())
    return f"{out.rank} at most ({markdown(own)}; the scale is the same)"


def model_card(
    trained: Trained, place: str, out: ModelOut, statistics: FederationStatistics
) -> str:
    """The card of a full model."""
    title = "the base model" if not out.parts else "a merged model"
    sections = [
        front_matter(trained, "transformers"),
        f"# {method_title(trained)}: {title}\n\n"
        f"The weights are {markdown(out.what)}, in {trained.prepared.base.model.dtype}, exactly as "
        "the run computed with them.",
        origin(trained),
        "## How to load it\n\n" + paths_note() + _model_code(trained, place),
    ]
    if out.parts:
        sections += [data_table(statistics.clients, statistics), results_table(trained)]
    return "\n\n".join(sections) + "\n"


def export_card(trained: Trained, plan: Plan, statistics: FederationStatistics) -> str:
    """The card of the whole export."""
    rows = [_row(place, f"{in_words(out)} (PEFT)") for place, out in plan.adapters.items()]
    rows += [
        _row(place, f"a routed adapter, for the mode {out.mode}: its router, and experts (PEFT)")
        for place, out in plan.routed.items()
    ]
    rows += [_row(place, out.what) for place, out in plan.models.items()]
    first = next(iter(plan.adapters))
    sections = [
        front_matter(trained, "peft"),
        f"# {method_title(trained)} on {len(statistics.clients)} clients\n\n"
        "Every client keeps the same frozen language model; what training changed are LoRA "
        "adapters, shared by all clients or a client's own.",
        "| folder | what |\n|---|---|\n" + "\n".join(rows),
        origin(trained),
        "## How to load an adapter\n\n" + _code(trained, first),
        data_table(statistics.clients, statistics),
        results_table(trained),
    ]
    return "\n\n".join(sections) + "\n"


def _row(place: str, what: str) -> str:
    return f"| {markdown_code(f'{place}/')} | {markdown(what)} |"


def _code(trained: Trained, place: str) -> str:
    base = python_text(trained.base_reference)
    return f"""```python
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({base})
base = AutoModelForCausalLM.from_pretrained({base}, dtype=torch.{trained.prepared.base.model.dtype})
model = PeftModel.from_pretrained(base, {python_text(place)}).eval()
{ask_model(trained)}
```"""


def _model_code(trained: Trained, place: str) -> str:
    return f"""```python
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({python_text(place)})
model = AutoModelForCausalLM.from_pretrained({python_text(place)}, dtype="auto").eval()
{ask_model(trained)}
```"""


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
