"""The tokens of a population's training examples: written once, mapped into memory, read by client.

A folder holds `tokens.bin` (all tokens, one example after the other, int32), `first.npy` (where
each example's begin), `prompts.npy` (each example's prompt length), `clients.npy` (where each
client's examples begin), `trained.bin` and `masked.npy` (which tokens are trained on, and of which
examples that is said), `sums.npy` (a checksum of each client's) and `tokens.json`, written last.
"""

import contextlib
import functools
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from feddpa_jax.data.digest import DigestOfAll, client_digest
from feddpa_jax.data.mapped_files import open_array
from feddpa_jax.data.population import Population
from feddpa_jax.data.seal import UnsealedError, seal, unseal
from feddpa_jax.data.tokenize import TokenCounts, Tokenized
from feddpa_jax.files.problems import reason
from feddpa_jax.types import Client, Example, TokenizedExample, UserError

SEAL, VERSION = "tokens.json", 1
_FILES = (
    *("tokens.bin", "first.npy", "prompts.npy", "clients.npy", "sums.npy"),
    *("trained.bin", "masked.npy"),
)
# About how many examples are tokenized at once.
_AT_ONCE = 4096


class TokenizedClients(Sequence[tuple[TokenizedExample, ...]]):
    """Each client's tokenized training examples, read as they are asked for.

    Attributes:
      counts_C: each client's number of examples, int64 [C].
      tokens_C: and of tokens, int64 [C].
      longest: most tokens of an example.
      counts: examples, truncated, dropped, of all clients together.
      digest: of all clients' names, tokens and tasks, and what they hold out.
    """

    def __init__(self, folder: Path):
        """Opens a folder.

        Raises:
          UserError: it is not whole.
        """
        self.folder = folder
        try:
            about = unseal(folder / SEAL, VERSION)
            self.counts = TokenCounts(*about["counts"])
            self.digest: str = about["digest"]
            self.longest: int = about["longest"]
            self._tokens = np.memmap(folder / "tokens.bin", "<i4", "r")
            self._trained = np.memmap(folder / "trained.bin", bool, "r")
            self._masked_I = open_array(folder / "masked.npy")
            self._first_I = open_array(folder / "first.npy")
            self._prompt_I = open_array(folder / "prompts.npy")
            self._first_C = open_array(folder / "clients.npy", mapped=False)
            self._sum_C = open_array(folder / "sums.npy", mapped=False)
            self.counts_C = np.diff(self._first_C)
            self.tokens_C = np.diff(self._first_I[self._first_C])
        except (UnsealedError, KeyError, TypeError, IndexError) as error:
            raise self._damaged(f"not whole ({reason(error)})") from None

    @functools.cached_property
    def pooled(self) -> tuple[TokenizedExample, ...]:
        """All clients' examples, which stay in memory."""
        return tuple(example for own in self for example in own)

    def __len__(self) -> int:
        """The number of clients."""
        return len(self.counts_C)

    @overload
    def __getitem__(self, place: int) -> tuple[TokenizedExample, ...]: ...

    @overload
    def __getitem__(self, place: slice) -> tuple[tuple[TokenizedExample, ...], ...]: ...

    def __getitem__(
        self, place: int | slice
    ) -> tuple[TokenizedExample, ...] | tuple[tuple[TokenizedExample, ...], ...]:
        """A client's examples, or several clients'.

        Raises:
          UserError: they are damaged.
        """
        if isinstance(place, slice):
            return tuple(self[i] for i in range(*place.indices(len(self))))
        at = range(len(self))[place]
        begin, end = self._first_C[at], self._first_C[at + 1]
        first = self._first_I[begin : end + 1]
        if not len(first):
            raise self._damaged("damaged")
        tokens = np.array(self._tokens[first[0] : first[-1]])
        trained = np.array(self._trained[first[0] : first[-1]])
        prompts = np.array(self._prompt_I[begin:end])
        masked = np.array(self._masked_I[begin:end])
        if _sum(tokens, trained, np.diff(first), prompts, masked) != self._sum_C[at]:
            raise self._damaged("damaged")
        starts = (first - first[0]).tolist()
        return tuple(
            TokenizedExample(tokens[a:b], prompt, trained[a:b] if mask else None)
            for a, b, prompt, mask in zip(
                starts[:-1], starts[1:], prompts.tolist(), masked.tolist(), strict=True
            )
        )

    def _damaged(self, what: str) -> UserError:
        """The error that says so; the tokens are not opened again."""
        with contextlib.suppress(OSError):
            (self.folder / SEAL).unlink(missing_ok=True)
        return UserError(f"{self.folder}: {what}; start the command again, which writes it anew")


def write_tokens(
    folder: Path,
    population: Population,
    encode: Callable[[Sequence[Example]], Tokenized],
    told: Callable[[int], None] = lambda examples: None,
) -> None:
    """Tokenizes a population's training examples into a folder that is there and empty.

    Args:
      folder: the folder.
      population: the clients, with what each trains on.
      encode: tokenizes examples.
      told: called with the number of examples of every batch.

    Raises:
      UserError: no example of a client is left.
      OSError: something cannot be written.
    """
    # Of machine numbers: there may be tens of millions.
    first_I, first_C, sums = array("q", [0]), array("q", [0]), array("L")
    prompt_I, masked_I = array("i"), array("b")
    total, digest = TokenCounts(), DigestOfAll()
    longest = 0
    with (folder / "tokens.bin").open("wb") as file, (folder / "trained.bin").open("wb") as masks:
        for clients in _groups(population):
            found = encode([example for client in clients for example in client.train])
            total = TokenCounts(*map(sum, zip(total, found.counts, strict=True)))
            for client, own in zip(clients, _shared_out(clients, found), strict=True):
                if not own:
                    raise UserError(
                        f"client {client.name!r}: no example is left within data.max_length; "
                        "raise it"
                    )
                for tokens_T, prompt_length, trained_T in own:
                    file.write(tokens_T.astype("<i4").tobytes())
                    masks.write(_mask(tokens_T, trained_T).tobytes())
                    masked_I.append(trained_T is not None)
                    first_I.append(first_I[-1] + len(tokens_T))
                    prompt_I.append(prompt_length)
                    longest = max(longest, len(tokens_T))
                first_C.append(len(prompt_I))
                sums.append(
                    _sum(
                        np.concatenate([e.tokens_T for e in own]),
                        np.concatenate([_mask(e.tokens_T, e.trained_T) for e in own]),
                        np.array([len(e.tokens_T) for e in own]),
                        np.array([e.prompt_length for e in own]),
                        np.array([e.trained_T is not None for e in own]),
                    )
                )
                digest.add(client.name, client_digest(client, own))
            told(sum(len(client.train) for client in clients))
    np.save(folder / "first.npy", np.array(first_I, np.int64))
    np.save(folder / "prompts.npy", np.array(prompt_I, np.int32))
    np.save(folder / "masked.npy", np.array(masked_I, bool))
    np.save(folder / "clients.npy", np.array(first_C, np.int64))
    np.save(folder / "sums.npy", np.array(sums, np.uint32))
    about = {"counts": list(total), "digest": digest.hexdigest(), "longest": longest}
    seal(folder / SEAL, VERSION, _FILES, about)


def _groups(population: Population) -> Iterator[list[Client]]:
    """The clients, some at a time: tokenizers are fast with many texts."""
    group: list[Client] = []
    examples = 0
    for client in population:
        group.append(client)
        examples += len(client.train)
        if examples >= _AT_ONCE:
            yield group
            group, examples = [], 0
    if group:
        yield group


def _shared_out(clients: Sequence[Client], found: Tokenized) -> Iterator[list[TokenizedExample]]:
    """By client its own of the examples that are left."""
    kept = list(zip(found.kept, found.examples, strict=True))
    begin, at = 0, 0
    for client in clients:
        end = begin + len(client.train)
        own = []
        while at < len(kept) and kept[at][0] < end:
            own.append(kept[at][1])
            at += 1
        yield own
        begin = end


def _mask(tokens_T: np.ndarray, trained_T: np.ndarray | None) -> np.ndarray:
    """Which tokens are trained on, where an example says so."""
    return np.zeros(len(tokens_T), bool) if trained_T is None else trained_T


def _sum(tokens: np.ndarray, *parts: np.ndarray) -> int:
    """A checksum of a client's tokens and of what is known of them."""
    found = zlib.crc32(np.asarray(tokens, "<i4").tobytes())
    for part in parts:
        found = zlib.crc32(np.asarray(part, "<i8").tobytes(), found)
    return found
