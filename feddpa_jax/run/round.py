"""A completed round, and its line in metrics.jsonl."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from feddpa_jax.federated.method import FedState, Metrics
from feddpa_jax.short_repr import short_repr


@dataclasses.dataclass(frozen=True)
class Round:
    """A completed round.

    Attributes:
      number: counted from 0; the personalization after the last round has the next number.
      state: the federation's state after the round.
      line: the round's line of metrics.jsonl: `loss`, `validation_loss`, `phases` (by phase and
        client the first, mean and last loss; with early stopping also `epochs`, `best_epoch` and
        the `validation` loss), tokens, `seconds`, the bytes that a client would send and
        receive, and with `fed.dropout` who `dropped_out`. Those are in no phase.

    Example:
      ```
      for done in run.rounds():
          print(done.number, done.loss, done.real_tokens, done.client_bytes)
      ```
    """

    number: int
    state: FedState
    line: Mapping[str, Any]

    def __repr__(self) -> str:
        """In a line; see `short_repr`."""
        return short_repr(
            self,
            number=self.number,
            loss=self.loss,
            validation_loss=self.validation_loss,
            clients=len(self.state.clients.names),
            dropped_out=self.dropped_out or None,
            tokens=self.line.get("real_tokens"),
            seconds=self.line.get("seconds"),
        )

    @property
    def loss(self) -> float | None:
        """Mean over clients of the mean loss in the last phase, in nats per response token.

        None where all participants dropped out.
        """
        return self.line["loss"]

    @property
    def validation_loss(self) -> float | None:
        """Mean over clients of the loss of their held-out examples after the round, in nats.

        None where nothing is held out (`data.validation`). Clients answer with what their method
        answers with, instance-wise mixing at its fixed weight; at most 32 clients are asked.
        """
        return self.line.get("validation_loss")

    @property
    def dropped_out(self) -> Sequence[str]:
        """The participants that dropped out: they sent nothing, and kept what they had before."""
        return self.line.get("dropped_out", ())

    @property
    def losses(self) -> Mapping[str, Mapping[str, Mapping[str, float]]]:
        """By phase and client the `first`, `mean` and `last` loss of an update, in nats."""
        return self.line["phases"]

    @property
    def real_tokens(self) -> int:
        """Tokens of examples that were trained on."""
        return self.line["real_tokens"]

    @property
    def computed_tokens(self) -> int:
        """Tokens computed, padding included."""
        return self.line["computed_tokens"]

    @property
    def seconds(self) -> float:
        """Wall-clock time."""
        return self.line["seconds"]

    @property
    def client_bytes(self) -> tuple[int, int]:
        """Bytes that a client would receive, and send if it did not drop out."""
        return self.line["client_bytes_received"], self.line["client_bytes_sent"]


def metrics_line(
    number: int,
    metrics: Metrics,
    moved: tuple[int, int],
    seconds: float,
    validation: float | None = None,
    dropped_out: Sequence[str] | None = None,
) -> dict[str, Any]:
    """A round's line in metrics.jsonl; `loss` is the mean over clients of the last phase's mean.

    It is null where all participants dropped out.

    Args:
      number: the round.
      metrics: of its phases.
      moved: bytes that a client would receive and send.
      seconds: wall-clock time.
      validation: the loss of held-out examples after the round, if there are any.
      dropped_out: the names of the participants that did, where clients may drop out.
    """
    phases = {
        phase: {
            name: {
                "first": curve[0],
                "mean": float(np.mean(curve)),
                "last": curve[-1],
                **(done.stopped[name]._asdict() if name in done.stopped else {}),
            }
            for name, curve in done.losses.items()
        }
        for phase, done in metrics.items()
    }
    last_phase = list(phases.values())[-1].values()
    return {
        "round": number,
        "loss": float(np.mean([client["mean"] for client in last_phase])) if last_phase else None,
        **({} if validation is None else {"validation_loss": validation}),
        "phases": phases,
        # A search has losses, before and after it, but trains on nothing.
        "updates": sum(
            len(curve)
            for done in metrics.values()
            if done.real_tokens
            for curve in done.losses.values()
        ),
        "real_tokens": sum(done.real_tokens for done in metrics.values()),
        "computed_tokens": sum(done.computed_tokens for done in metrics.values()),
        "seconds": round(seconds, 3),
        "client_bytes_received": moved[0],
        "client_bytes_sent": moved[1],
        **({} if dropped_out is None else {"dropped_out": list(dropped_out)}),
    }


def told_losses(line: Mapping[str, Any]) -> str:
    """A round's losses in words.

    >>> told_losses({"loss": 1.25, "validation_loss": 1.5})
    'loss 1.250, held out 1.500'
    """
    held_out = line.get("validation_loss")
    told = "all dropped out" if line["loss"] is None else f"loss {line['loss']:.3f}"
    return told + ("" if held_out is None else f", held out {held_out:.3f}")
