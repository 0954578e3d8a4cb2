"""A trained federation, as what is exported."""

from typing import Any, NamedTuple

import jax

from feddpa_jax.adapters.dual import Adapters, is_shared
from feddpa_jax.adapters.lora import Adapter
from feddpa_jax.config import Config
from feddpa_jax.files.problems import with_home
from feddpa_jax.run.inputs import Prepared

# Where the base lies in an export, if `transformers` can load it from nowhere else.
BASE = "base"


class Trained(NamedTuple):
    """A trained federation.

    Attributes:
      config: the run's.
      prepared: base, clients, tokenized examples.
      adapters: global, local, LoRA scale, and those of the method's own modes.
      round_number: the round of the checkpoint that they come from.
      summary: the evaluation's summary.json, or None if there is none of this checkpoint.
      uploads: whether clients send the server a part of their own.
    """

    config: Config
    prepared: Prepared
    adapters: Adapters
    round_number: int
    summary: dict[str, Any] | None
    uploads: bool = False

    @property
    def base_hub_id(self) -> str | None:
        """The base's hub id; None if it is from elsewhere: paths of this machine say nothing."""
        base, path = self.prepared.base, self.config.model.path
        return None if base.folder is None or with_home(path).exists() else path

    @property
    def base_name(self) -> str:
        """What the base is called: hub id, alias, or the name of its folder or file."""
        place = with_home(self.config.model.path)
        return place.resolve().name if place.exists() else self.config.model.path

    @property
    def brings_base(self) -> bool:
        """Whether the export holds the base: nowhere else are the weights that were trained on."""
        base = self.prepared.base
        return base.folder is None or base.quantize is not None

    @property
    def base_reference(self) -> str:
        """What to load the base from, for a reader: `base/` of the export, hub id, or a folder."""
        if self.brings_base:
            return BASE
        return self.base_hub_id or f"path/to/{self.base_name}"

    @property
    def rank(self) -> int:
        """The rank that the LoRA scale, alpha / rank, is of."""
        return max(self.config.lora.ranks or (self.config.lora.rank,))

    def shared(self) -> Adapter | None:
        """The adapter that all clients share, if there is one."""
        # One of no targets stands for the bare base.
        bank = self.adapters.global_C
        return _first(bank) if bank and is_shared(bank) else None

    def shared_by(self, client: str) -> Adapter | None:
        """The server's adapter that a client answers with, if there is one; it may be empty."""
        bank = self._of(client).global_C
        return None if bank is None else _first(bank)

    def local(self, client: str) -> Adapter:
        """A client's local adapter."""
        bank = self._of(client).local_C
        assert bank is not None
        return _first(bank)

    def other(self, client: str, mode: str) -> Adapter:
        """What a client answers with in a mode of the method's own."""
        return _first(self._of(client).others[mode])

    def is_for_all(self, mode: str) -> bool:
        """Whether all clients answer with the same adapter in a mode of the method's own."""
        # One client's bank looks shared, and is its own.
        return len(self.prepared.names) > 1 and is_shared(self.adapters.others[mode])

    def _of(self, client: str) -> Adapters:
        return self.adapters.of(self.prepared.names.index(client))


def _first(bank: Adapter) -> Adapter:
    return jax.tree.map(lambda leaf: leaf[0], bank)
