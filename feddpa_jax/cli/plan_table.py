"""A plan on the screen."""

from typing import Any

from rich.console import Group
from rich.table import Table

from feddpa_jax.training.memory import in_words

# Beside the seconds that are not the compiler's.
_MARKS = {"compiler": "", "roofline": " *"}


def render(plan: dict[str, Any]) -> Group:
    """A round's programs, its memory on each device, and a bound on its speed."""
    return Group(_programs(plan), _memory(plan), "\n".join(_notes(plan)))


def _programs(plan: dict[str, Any]) -> Table:
    table = Table(title="programs of a round, on one device", title_justify="left")
    for name in (
        "phase",
        "block",
        "calls",
        "GFLOP",
        "memory traffic",
        "of main memory",
        "ms at best",
        "of peak",
        "sent",
    ):
        table.add_column(name, justify="left" if name in ("phase", "block", "sent") else "right")
    for program in plan["programs"]:
        seconds = program["seconds"]
        table.add_row(
            program["phase"],
            "" if program["rows"] is None else f"{program['rows']} x {program['length']}",
            f"{program['calls']:,.0f}",
            f"{program['flops'] / 1e9:,.1f}",
            in_words(program["bytes_accessed"]),
            in_words(program["main_bytes_accessed"]),
            "-" if seconds is None else f"{seconds * 1e3:,.2f}{_MARKS[program['estimate']]}",
            "-" if program["peak_share"] is None else f"{program['peak_share']:.0%}",
            _sent(program["collectives"]),
        )
    return table


def _sent(collectives: dict[str, Any]) -> str:
    return (
        ", ".join(
            f"{own['count']} {kind} ({in_words(own['size'])})" for kind, own in collectives.items()
        )
        or "nothing"
    )


def _memory(plan: dict[str, Any]) -> Table:
    table = Table(title="memory of one device", title_justify="left")
    for name in ("phase", "block", "base", "adapters", "optimizer", "activations", "all", "there"):
        table.add_column(name, justify="left" if name in ("phase", "block") else "right")
    for program in plan["programs"]:
        memory = program["memory"]
        if memory is not None:
            table.add_row(
                program["phase"],
                f"{program['rows']} x {program['length']}",
                *("-" if size is None else in_words(size) for size in memory.values()),
            )
    return table


def _notes(plan: dict[str, Any]) -> list[str]:
    work = plan["round"]
    lines = [
        f"{plan['devices']['count']} x {plan['devices']['kind']}, mesh {plan['mesh']['clients']} x "
        f"{plan['mesh']['model']}; {plan['clients']} clients, {plan['participants']} in a round, "
        f"{plan['slots']} places on the client axis",
        f"a round: {work['real_tokens']:,.0f} real tokens, {work['real_share']:.1%} of those "
        f"computed; a client receives {in_words(plan['client_bytes_received'])} and sends "
        f"{in_words(plan['client_bytes_sent'])}",
    ]
    if plan["attention"] != "explicit":
        lines.append(
            f"attention is a fused kernel ({plan['attention']}), whose FLOPs the compiler does not "
            "count: they are in none of these numbers"
        )
    if work["seconds"] is not None:
        lines.append(
            f"at best {work['seconds']:,.3g} s a round, {work['tokens_per_second']:,.0f} real "
            f"tokens a second ({work['tokens_per_second'] / plan['devices']['count']:,.0f} a "
            f"device), an upper bound"
        )
        if any(program["estimate"] == "roofline" for program in plan["programs"]):
            lines.append(
                "* the longer of FLOPs by the peak rate and main memory's traffic by its "
                "bandwidth, where the compiler makes no estimate"
            )
    if plan["remedy"] is not None:
        lines.append(f"more than the device has: {plan['remedy']}")
    return lines
