"""A benchmark's results as tables."""

from typing import Any

from rich.console import Group
from rich.table import Table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(columns[0])
    for column in columns[1:]:
        table.add_column(column, justify="right")
    return table


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def render(results: dict[str, Any]) -> Group:
    """Training, scaling and generation, and what they were measured on."""
    parts: list[Any] = [_training(results["training"])]
    if results["scaling"]:
        parts.append(_scaling(results["scaling"]))
    if results["generation"]:
        parts.append(_generation(results["generation"]))
    lines = _notes(results)
    return Group(*parts, "\n".join(lines))


def _training(training: dict[str, Any]) -> Table:
    title = (
        f"training: {training['clients']} clients, {training['updates_per_client']} updates each, "
        "medians of interleaved passes"
    )
    table = _table(title, "", "real tokens/s", "seconds", "real share", "ratio")
    for side in ("ours", "torch"):
        own = training[side]
        if own:
            table.add_row(
                {"ours": "feddpa_jax", "torch": "torch + peft, one by one"}[side],
                f"{own['tokens_per_second']:,.0f}",
                f"{own['median_seconds']:.1f}",
                f"{own['real_share']:.1%}",
                _ratio(training["ratio"]) if side == "ours" else "1",
            )
    return table


def _scaling(rows: list[dict[str, Any]]) -> Table:
    title = "scaling: clients that train at once"
    table = _table(title, "clients", "real tokens/s", "s a client and update", "real share")
    for row in rows:
        table.add_row(
            str(row["clients"]),
            f"{row['tokens_per_second']:,.0f}",
            f"{row['seconds_per_client_update']:.3f}",
            f"{row['real_share']:.1%}",
        )
    return table


def _generation(generation: dict[str, Any]) -> Table:
    title = (
        f"answers with instance weights: {generation['clients']} clients x "
        f"{generation['instances']} instances, greedy"
    )
    table = _table(title, "", "tokens/s", "seconds", "ratio")
    names = {
        "ours": "feddpa_jax, batched",
        "torch": "torch + peft, one at a time",
        "torch_support_once": "the same, support embedded once",
    }
    ratios = {"torch": "ratio", "torch_support_once": "ratio_support_once"}
    for side, name in names.items():
        own = generation[side]
        if own:
            table.add_row(
                name,
                f"{own['tokens_per_second']:,.1f}",
                f"{own['median_seconds']:.1f}",
                f"ours is {_ratio(generation[ratios[side]])} times" if side in ratios else "",
            )
    return table


def _notes(results: dict[str, Any]) -> list[str]:
    training = results["training"]
    ours = training["ours"]
    lines = [
        f"first pass {ours['first_pass_seconds']:.1f} s, of which compiling "
        f"{ours['compile_seconds']:.1f} s ({ours['step_compilations']} programs of the step; "
        f"{ours['later_compilations']} later)",
        f"peak memory of ours {ours['peak_memory_bytes'] / 1e9:.2f} GB; a client receives and "
        f"sends {training['client_bytes_sent'] / 1e6:.3f} MB a round",
    ]
    peak = "" if ours["peak_share"] is None else f", {ours['peak_share']:.1%} of the peak"
    lines.append(f"the model's products: {ours['model_flops_per_second'] / 1e12:.3g} TFLOP/s{peak}")
    if results["check"]:
        check = results["check"]
        lines.append(
            f"same work: {check['compared']} losses in float32 without dropout agree within "
            f"{check['largest']:.1e} (allowed {check['tolerance']:g})"
        )
    generation = results["generation"]
    if generation and generation["agreement"]:
        own = generation["agreement"]
        lines.append(
            f"answers: {own['identical_answers']:.1%} identical, weights within "
            f"{own['largest_weight_difference']:.1e}"
        )
    if results["without_torch"]:
        lines.append(f"torch was not measured: {results['without_torch']}")
    return lines
