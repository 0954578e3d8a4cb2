"""The card of a routed adapter, which explains how to apply what PEFT cannot express."""

from typing import Any

from feddpa_jax.adapters.router import EQUATIONS
from feddpa_jax.data.statistics import FederationStatistics
from feddpa_jax.data.templates import bound
from feddpa_jax.export.card_sections import (
    data_table,
    front_matter,
    method_title,
    origin,
    paths_note,
    results_table,
)
from feddpa_jax.export.routed import ROUTER_FILE, ROUTER_SETTINGS, RoutedOut
from feddpa_jax.export.trained import Trained
from feddpa_jax.files.escape import markdown, markdown_code
from feddpa_jax.types import Example


def router_settings(trained: Trained) -> dict[str, Any]:
    """What `router.json` says besides: how the base is asked."""
    template = bound(trained.config.data.template, trained.prepared.base.tokenizer)[0]
    return {
        "prompt": template(Example("{instruction}", "")),
        "max_new_tokens": trained.config.eval.max_new_tokens,
        "stop_ids": list(trained.prepared.base.tokenizer.stop_ids),
    }


def routed_card(
    trained: Trained, place: str, out: RoutedOut, statistics: FederationStatistics
) -> str:
    """The card of a routed adapter's folder."""
    whose = "all clients" if out.client is None else out.client
    answer = "answer" if out.client is None else "answers"
    clients = [c for c in statistics.clients if out.client in (None, c.name)]
    sections = [
        front_matter(trained, "peft"),
        f"# {method_title(trained)}: the routed adapter of {markdown(whose)}\n\n"
        f"What {markdown(whose)} {answer} with in the mode {markdown_code(out.mode)}: "
        f"{len(out.experts)} LoRA adapters, the experts, of which each adapted map takes a share "
        "that follows from its own input. No PEFT adapter alone can say this; each expert is a "
        f"PEFT folder, and `{ROUTER_FILE}` has the router.",
        origin(trained),
        _how(place, out),
        data_table(clients, statistics),
        results_table(trained),
    ]
    return "\n\n".join(sections) + "\n"


def _how(place: str, out: RoutedOut) -> str:
    names = ", ".join(f"`{name}/`" for name in out.experts)
    bias = "; NAME`.bias`, [outputs], is added to `G x`" if out.router.biases else ""
    return f"""## How to apply it

For each adapted module, with `x` its input at one token and `W` the base's weight,

```
y = W x + sum over k of share_k(x) * (alpha_k / r_k) * B_k A_k x
{EQUATIONS[out.router.kind]}
```

- `A_k`, `B_k`, `alpha_k` and `r_k` are those of expert k, counted from 0: {names}, in this order.
- `G` is the module's tensor in `{ROUTER_FILE}`, [outputs, inputs], named as the module is in
  `transformers`{bias}. The shares are computed in float32, of `x` without dropout, at every token.
- `{ROUTER_SETTINGS}` names the router's kind, the experts and the prompt's text.

{paths_note()}The project's `examples/routed_adapter.py` does this with `transformers` and `peft`:

```
python examples/routed_adapter.py --export . --adapter {place} --prompt "Say hello."
```"""
