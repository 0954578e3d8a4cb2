"""What a method must be: checks on its parts, names and mixes, and on what its functions give.

Names and mixes are checked before anything is trained. What server steps and answers give is known
when they run, for they may compute on the host: those of a user's own method are checked then.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from feddpa_jax.adapters.mix import Term
from feddpa_jax.federated.leaves import by_part, sends
from feddpa_jax.federated.method import Answers, Entry, Lora, Method, Phase
from feddpa_jax.federated.shapes import part_shapes, phase_shapes
from feddpa_jax.files.own_files import fails
from feddpa_jax.training.step import together
from feddpa_jax.types import UserError

Refuse = Callable[[str], UserError]

# Phases that come in turns have met by then.
_FIRST_ROUNDS = 4


def check_method(method: Any, entry: Entry, name: str, lora: Lora) -> None:
    """Refuses a method that does not fit together, before anything is trained.

    Args:
      method: what the function gave.
      entry: its registration.
      name: as configured, for messages.
      lora: what it was made for.

    Raises:
      UserError: says what is wrong.
    """
    refuse = _refuse(name)
    if not isinstance(method, Method):
        raise refuse(f"gave {type(method).__name__}; a method's function gives a Method")
    if not method.phases:
        raise refuse("has no phase; give it one")
    if any(phase.after for phase in method.phases) != entry.personalizes:
        raise refuse("its phases after the last round differ from its registration's personalizes")
    for part, own in method.parts.items():
        if not part.isidentifier():
            raise refuse(f"part {part!r} has no plain name; use letters, digits and _")
        if own.scope not in ("server", "client"):
            raise refuse(f"part {part} has the scope {own.scope!r}; give it 'server' or 'client'")
        if own.scope == "server" and not callable(own.new):
            raise refuse(f"part {part} has no first value; give it a function of a key")
    for phase in method.phases:
        _check_names(method, phase, refuse)
        if not phase.train:
            raise refuse(f"phase {phase.name} trains nothing")
        if phase.server is not None and not sends(method, phase):
            raise refuse(f"phase {phase.name} has a server step, but sends nothing")
        _check_leaves(method, phase, refuse)
        _check_reduce(method, phase, refuse)
        _check_mix(method, phase, lora, refuse)
    # Losses and shuffles go by a phase's name.
    for number in range(_FIRST_ROUNDS):
        for rounds, where in ((number + 1, f"round {number}"), (0, "the end")):
            names = [phase.name for phase in method.phases_of(number, rounds)]
            twice = [phase for phase in names if names.count(phase) > 1]
            if twice:
                raise refuse(f"two phases of {where} are named {twice[0]!r}; rename one")


def _check_reduce(method: Method, phase: Phase, refuse: Refuse) -> None:
    """Refuses what no server can take."""
    if phase.reduce not in ("mean", "sum", "stack"):
        raise refuse(
            f"phase {phase.name} has reduce {phase.reduce!r}; give it 'mean', 'sum' or 'stack'"
        )
    sent = sends(method, phase)
    if phase.server is not None or not sent:
        return
    if phase.reduce == "stack":
        raise refuse(f"phase {phase.name} sends a stack, of which only a server step makes a part")
    # An upload names the server's parts itself.
    for part in by_part(sent) if phase.upload is None else ():
        if part not in method.parts or method.parts[part].scope != "server":
            raise refuse(
                f"phase {phase.name} sends {part!r}, which is no part of the server; give it a "
                "server step that says what becomes of it"
            )


def _check_leaves(method: Method, phase: Phase, refuse: Refuse) -> None:
    """Refuses leaves that are sent, and that nothing trains."""
    if phase.upload is not None:
        return
    trained, _ = phase_shapes(method, phase)
    for part, leaves in by_part(sends(method, phase)).items():
        there = {name for own in trained.get(part, {}).values() for name in own}
        if part not in trained or not there.issuperset(leaves):
            raise refuse(f"phase {phase.name} sends of {part} what it does not train")


def _check_names(method: Method, phase: Phase, refuse: Refuse) -> None:
    """Refuses names of parts and leaves that there are not, and parts without a value."""
    names = [*phase.train, *phase.beside, *phase.start.values(), *phase.start]
    if phase.upload is None:
        names += phase.sends or ()
    for name in names:
        if name.partition(".")[0] not in method.parts:
            raise refuse(
                f"phase {phase.name} names {name.partition('.')[0]!r}; its parts are "
                f"{', '.join(method.parts)}"
            )
    made = part_shapes(method)
    for name in names:
        part, _, leaf = name.partition(".")
        if part not in made and phase.receive is None:
            raise refuse(
                f"phase {phase.name} names {part!r}, which nothing makes; give the part a first "
                "value, or name in the phase's start what it starts as"
            )
        if leaf and part in phase.start:
            raise refuse(f"phase {phase.name} names {name!r}; {part} starts anew as a whole")
        if leaf and part in made:
            leaves = {known for target in made[part].values() for known in target}
            if leaf not in leaves:
                raise refuse(
                    f"phase {phase.name} names {name!r}; the part's leaves are "
                    f"{', '.join(sorted(leaves))}"
                )


def _check_mix(method: Method, phase: Phase, lora: Lora, refuse: Refuse) -> None:
    """Tries a phase's mix on shapes alone."""
    trained, frozen = phase_shapes(method, phase)

    def one(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype), tree)

    kinds: list[Any] = []

    def mixed(trained: Any, frozen: Any) -> None:
        kinds.append(phase.objective.mix(together(trained, frozen)))

    jax.eval_shape(mixed, one(trained), frozen._replace(own_C=one(frozen.own_C)))
    (terms,) = kinds
    what = f"the mix of phase {phase.name}"
    if not isinstance(terms, list | tuple) or not all(isinstance(t, Term) for t in terms):
        raise refuse(f"{what} gave {type(terms).__name__}, not Terms")
    if not terms:
        raise refuse(f"{what} is empty, so nothing is trained")
    # A client axis of another length would be read at the wrong place, without an error.
    for term in terms:
        weight = np.shape(term.weight)
        if weight not in ((), (1,), (1, lora.layers)):
            raise refuse(
                f"{what} has a weight of shape {weight} where there is one client; give a number, "
                f"[C] or [C, {lora.layers}], made of the parts"
            )
        for path, leaf in _leaves(term.bank).items():
            if leaf.shape[:2] != (1, lora.layers):
                raise refuse(
                    f"{what} has {path} of shape {leaf.shape} where there is one client; its first "
                    f"two axes are the clients and all {lora.layers} layers"
                )


def guarded(method: Method, lora: Lora, name: str) -> Method:
    """The same method, whose mistakes are errors of the user.

    Args:
      method: the user's own.
      lora: what it was made for.
      name: the method's, for messages.
    """
    refuse = _refuse(name)
    phases = [_with_step(method, _own(phase, name), name, refuse) for phase in method.phases]
    answers = _with_answers(method, lora, name, refuse)
    return dataclasses.replace(method, phases=tuple(phases), answers=answers)


def _refuse(name: str) -> Refuse:
    return lambda what: UserError(f"fed.method: {name}: {what}")


def _own(phase: Phase, name: str) -> Phase:
    """A phase whose functions fail as the user's own."""

    def run(function: Callable[..., Any] | None) -> Any:
        return None if function is None else functools.partial(_run, name, function)

    return dataclasses.replace(
        phase,
        receive=run(phase.receive),
        penalty=run(phase.penalty),
        upload=run(phase.upload),
        keep=run(phase.keep),
    )


def _with_step(method: Method, phase: Phase, name: str, refuse: Refuse) -> Phase:
    """A phase whose server step gives values like those that the parts had."""
    step = phase.server
    if step is None:
        return phase
    where = f"the server step of phase {phase.name}"

    def checked(sent: Any, server: Mapping[str, Any], moment: Any) -> dict[str, Any]:
        found = _run(name, step, sent, server, moment)
        if not isinstance(found, Mapping):
            raise refuse(f"{where} gave {type(found).__name__}; give {{part: new value}}")
        for part, value in found.items():
            if part not in server:
                raise refuse(f"{where} gave {part!r}; the server's parts are {', '.join(server)}")
            if method.parts[part].change is None:
                _check_like(value, server[part], f"{where} gave {part}", refuse)
        return dict(found)

    return dataclasses.replace(phase, server=checked)


def _check_like(value: Any, before: Any, what: str, refuse: Refuse) -> None:
    """Refuses a part's new value of other leaves, shapes or types than it had."""
    new, old = _leaves(value), _leaves(before)
    for path in dict.fromkeys([*old, *new]):
        if path not in new:
            raise refuse(f"{what} without {path}; give every leaf, changed or not")
        if path not in old:
            raise refuse(f"{what} with {path}, which it did not have; leave it out")
        for kind in ("shape", "dtype"):
            is_, was = (getattr(tree[path], kind, None) for tree in (new, old))
            if is_ != was:
                raise refuse(f"{what} with {path} of {kind} {is_}; keep {was}")


def _leaves(tree: Any) -> dict[str, Any]:
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in found}


def _with_answers(method: Method, lora: Lora, name: str, refuse: Refuse) -> Callable[..., Answers]:
    """Answers that are adapters of all layers, of the clients asked for."""

    def checked(
        server: Mapping[str, Any], own_C: Mapping[str, Any], members: np.ndarray
    ) -> Answers:
        found = _run(name, method.answers, server, own_C, members)
        if not isinstance(found, Answers):
            raise refuse(f"its answers gave {type(found).__name__}, not Answers")
        banks = {"global_C": found.global_C, "local_C": found.local_C, **found.others}
        for place, bank in banks.items():
            for path, leaf in _leaves(bank).items():
                counts = {len(members)} if place == "local_C" else {1, len(members)}
                shape = np.shape(leaf)
                if shape[:1] not in {(c,) for c in counts} or shape[1:2] != (lora.layers,):
                    raise refuse(
                        f"its answers gave {place} with {path} of shape {shape}; its first two "
                        f"axes are the clients, {len(members)}, and the layers, {lora.layers}"
                    )
        return found

    return checked


def _run(name: str, function: Callable[..., Any], *given: Any) -> Any:
    try:
        return function(*given)
    except UserError:
        raise
    except Exception as error:
        raise fails("fed.method", name, error) from None
