"""What a client costs us when 1, 2, 4, ... of them train at once."""

from typing import Any

from benchmarks.our_loop import Pass
from benchmarks.training import Training, summary
from benchmarks.workload import alike_clients
from feddpa_jax.cli.console import Reporter


def time_scaling(
    training: Training, counts: tuple[int, ...], updates: int, repeat: int, reporter: Reporter
) -> list[dict[str, Any]]:
    """Times one global phase for every number of clients, in turns.

    Args:
      training: whose engine is used, and whose examples the clients are made of.
      counts: numbers of clients.
      updates: of each client.
      repeat: passes for each number, after a first one that compiles.
      reporter: gets a message for every pass.
    """
    sized: dict[int, Training] = {}
    compiled: dict[int, int] = {}
    for count in counts:
        data = alike_clients(training.data, count, updates)
        shapes = data.shapes(training.config.fed.rounds)
        sized[count] = training._replace(data=data, shapes=shapes)
        before = training.engine.compilations()
        sized[count].ours()
        compiled[count] = training.engine.compilations() - before
    passes: dict[int, list[Pass]] = {count: [] for count in counts}
    for number in range(repeat):
        for count, work in sized.items():
            passes[count].append(work.ours()[0])
            seconds = passes[count][-1].seconds / (count * updates)
            reporter.say(
                f"scaling, pass {number + 1} of {repeat}: {count} clients, {seconds:.3f} s a "
                "client and update"
            )
    rows = []
    for count in counts:
        row = summary(passes[count])
        row["seconds_per_client_update"] = row["median_seconds"] / (count * updates)
        shapes = [[shape.rows, shape.length] for shape in sized[count].shapes]
        own = {"clients": count, "step_compilations": compiled[count], "block_shapes": shapes}
        rows.append(own | row)
    return rows
