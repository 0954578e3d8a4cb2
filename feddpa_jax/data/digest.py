"""Digests of what a client trains on, and of many clients at once."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from feddpa_jax.types import Client, TokenizedExample

# More clients than this are not named one by one in every checkpoint.
NAMED = 4096
ALL = "some client"


def digest_of_parts(parts: Iterable[bytes]) -> str:
    """A digest of some parts, which tells where one ends: 16 hexadecimal digits."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(len(part).to_bytes(8, "little"))
        whole.update(part)
    return whole.hexdigest()[:16]


def client_digest(client: Client, training: Sequence[TokenizedExample]) -> str:
    """A digest of a client's examples: order, tokens, prompts, tasks; and what is held out.

    When it can take part is in it too, if they say it.
    """

    def parts() -> Iterable[bytes]:
        for tokens_T, prompt_length, trained_T in training:
            yield np.append(tokens_T, prompt_length).astype("<i8").tobytes()
            if trained_T is not None:
                yield trained_T.tobytes()
        for example in client.train:
            yield example.task.encode()
        for example in client.validation:
            for text in (example.instruction, example.input, example.output, example.task):
                yield text.encode()
            for turn in example.history:
                yield f"{turn.role} {turn.text}".encode()
        if client.available:
            yield f"available {client.available}".encode()

    return digest_of_parts(parts())


class DigestOfAll:
    """One digest of many clients', in their order."""

    def __init__(self) -> None:
        """Of no client yet."""
        self._whole = hashlib.sha256()

    def add(self, name: str, digest: str) -> None:
        """Takes a client's name and digest in."""
        self._whole.update(f"{name} {digest}\n".encode())

    def hexdigest(self) -> str:
        """16 hexadecimal digits."""
        return self._whole.hexdigest()[:16]


def names_in_short(names: Sequence[str]) -> list[str]:
    """The clients' names; of more than `NAMED`, their number and a digest.

    >>> names_in_short(["anna", "ben"])
    ['anna', 'ben']
    """
    if len(names) <= NAMED:
        return list(names)
    return [f"{len(names)} clients", digest_of_parts(name.encode() for name in names)]


def digests_in_short(names: Sequence[str], digest_of: Mapping[str, str]) -> dict[str, str]:
    """The digests of clients by name; of more than `NAMED` one of all, and none if some have none.

    Args:
      names: of all clients, in their order.
      digest_of: of those that have a digest.
    """
    if len(names) <= NAMED:
        return dict(digest_of)
    if len(digest_of) < len(names):
        return {}
    whole = DigestOfAll()
    for name in names:
        whole.add(name, digest_of[name])
    return {ALL: whole.hexdigest()}
