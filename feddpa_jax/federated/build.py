"""A method as a configuration has it: its options, and the options of any method."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from feddpa_jax.adapters.mix import Term
from feddpa_jax.federated.leaves import by_part, pick, sends
from feddpa_jax.federated.method import METHODS, Entry, Lora, Method, Part, Phase
from feddpa_jax.federated.penalty import proximal
from feddpa_jax.federated.server_optimizer import PART, server_optimizer
from feddpa_jax.federated.shapes import part_shapes, phase_shapes
from feddpa_jax.files.own_files import fails
from feddpa_jax.hyperparameters import Value, check_values, defaults, signature
from feddpa_jax.training.step import together
from feddpa_jax.types import UserError


def options_of(entry: Entry, fields: Mapping[str, Any]) -> dict[str, Value]:
    """The options that are a method's own, and their defaults.

    Args:
      entry: the method.
      fields: of the configuration's `fed`, which a method may ask for by name.
    """
    found = dict(list(signature(entry.build).items())[1:])
    own = {name: parameter for name, parameter in found.items() if name not in fields}
    return defaults(own, "fed.options", f"the method {entry.title}")


def check_options(name: str, given: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
    """Refuses options that a method does not have; the user's own file is run.

    Raises:
      UserError: an unknown name, or a value of another type.
    """
    if given:
        known = options_of(METHODS.find(name), fields)
        check_values(given, known, "fed.options", f"the method {name}")


def build(name: str, lora: Lora, fields: Mapping[str, Any], given: Mapping[str, Any]) -> Method:
    """A method with its options, and with FedProx's pull if `fed.proximal` asks for it.

    Args:
      name: registered, or FILE.py:NAME.
      lora: what it knows of the adapters and the federation.
      fields: of the configuration's `fed`.
      given: its options.

    Raises:
      UserError: an option that it does not have, a method that does not fit together, or one
        without what `proximal` and `server_optimizer` act on.
    """
    entry = METHODS.find(name)
    asked = signature(entry.build)
    values = check_values(given, options_of(entry, fields), "fed.options", f"the method {name}")
    values |= {field: value for field, value in fields.items() if field in asked}
    theirs = inspect.getmodule(entry.build)
    own = theirs is None or not theirs.__name__.startswith("feddpa_jax.")
    try:
        method = entry.build(lora, **values)
        _check(method, entry, name)
    except UserError:
        raise
    except Exception as error:
        if not own:
            raise
        raise fails("fed.method", name, error) from None
    if fields["proximal"]:
        pulled = with_proximal(method, fields["proximal"])
        if pulled.phases == method.phases:
            raise UserError(
                f"fed.proximal: {name} trains no copy of a server's part that could be pulled; "
                "set it to 0, or use another fed.method"
            )
        method = pulled
    if fields["server_optimizer"] != "none":
        optimizer = server_optimizer(fields["server_optimizer"], fields["server_learning_rate"])
        method = with_server_optimizer(method, optimizer, name)
    return method


def with_proximal(method: Method, strength: float) -> Method:
    """A method whose clients' copies of the server's parts are pulled towards these (FedProx)."""

    def pulled(phase: Phase) -> Phase:
        parts = [p for p in by_part(phase.train) if method.parts[p].scope == "server"]
        if not parts:
            return phase
        pulls = [proximal(part, to=part, strength=strength) for part in parts]
        before = phase.penalty

        def penalty(trained: Any, frozen: Any) -> jax.Array:
            every = pulls if before is None else [*pulls, before]
            return jnp.stack([pull(trained, frozen) for pull in every]).sum()

        beside = tuple(dict.fromkeys([*phase.beside, *parts]))
        return dataclasses.replace(phase, penalty=penalty, beside=beside)

    return dataclasses.replace(method, phases=tuple(map(pulled, method.phases)))


def with_server_optimizer(
    method: Method, optimizer: optax.GradientTransformation, name: str
) -> Method:
    """A method whose server follows each plain mean with an optimizer.

    Args:
      method: has a phase whose server takes the mean.
      optimizer: as of `follow`.
      name: the method's, for messages.

    Raises:
      UserError: it has none.
    """
    means = [
        phase
        for phase in method.phases
        if phase.server is None
        and phase.upload is None
        and phase.reduce == "mean"
        and sends(method, phase)
    ]
    if not means:
        raise UserError(
            f"fed.server_optimizer: {name} has no mean that the server could follow; set it to "
            "none, or use another fed.method"
        )
    if PART in method.parts:
        raise UserError(f"fed.server_optimizer: {name} has a part named {PART}; rename it")
    shapes, sent = part_shapes(method), dict[str, dict[str, None]]()
    for phase in means:
        sent.setdefault(phase.name, {}).update(dict.fromkeys(sends(method, phase)))

    def new(key: jax.Array) -> dict[str, Any]:
        del key
        leaves = {phase: pick(shapes, tuple(names)) for phase, names in sent.items()}
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), leaves)
        return {phase: optimizer.init(tree) for phase, tree in zeros.items()}

    return dataclasses.replace(
        method,
        parts={**method.parts, PART: Part("server", new)},
        phases=tuple(
            dataclasses.replace(phase, optimizer=optimizer) if phase in means else phase
            for phase in method.phases
        ),
    )


def _check(method: Any, entry: Entry, name: str) -> None:
    """Refuses a method that does not fit together, before anything is trained.

    Raises:
      UserError: says what is wrong.
    """

    def refuse(what: str) -> UserError:
        return UserError(f"fed.method: {name}: {what}")

    if not isinstance(method, Method):
        raise refuse(f"gave {type(method).__name__}; a method's function gives a Method")
    if not method.phases:
        raise refuse("has no phase; give it one")
    if any(phase.after for phase in method.phases) != entry.personalizes:
        raise refuse("its phases after the last round differ from its registration's personalizes")
    for part in method.parts:
        if not part.isidentifier():
            raise refuse(f"the part {part!r}: a part's name is letters, digits and _")
    for phase in method.phases:
        named = [*by_part(phase.train), *phase.beside, *phase.start.values(), *phase.start]
        unknown = [part for part in named if part not in method.parts]
        if unknown:
            parts = ", ".join(method.parts)
            raise refuse(f"phase {phase.name} names {unknown[0]!r}; its parts are {parts}")
        if not phase.train:
            raise refuse(f"phase {phase.name} trains nothing")
        if phase.server is not None and not sends(method, phase):
            raise refuse(f"phase {phase.name} has a server step, but sends nothing")
        _check_leaves(method, phase, refuse)
        _check_mix(method, phase, refuse)


def _check_leaves(method: Method, phase: Phase, refuse: Callable[[str], UserError]) -> None:
    """Refuses leaves in training that there are not, and sent ones that nobody can take in."""
    trained, _ = phase_shapes(method, phase)
    there = {
        part: {n for leaves in tree.values() for n in leaves} for part, tree in trained.items()
    }
    for part, leaves in by_part(phase.train).items():
        if not there[part] or not there[part].issuperset(leaves):
            raise refuse(f"phase {phase.name} trains {part}.{'/'.join(leaves)}, which is no leaf")
        if leaves and part in phase.start:
            raise refuse(
                f"phase {phase.name} trains leaves of {part}, which starts anew as a whole"
            )
    for part, leaves in by_part(sends(method, phase) if phase.upload is None else ()).items():
        if part not in there or not there[part].issuperset(leaves):
            raise refuse(f"phase {phase.name} sends of {part} what it does not train")
        if phase.server is None and method.parts[part].scope != "server":
            raise refuse(f"phase {phase.name} sends {part}, a client's; give it a server step")


def _check_mix(method: Method, phase: Phase, refuse: Callable[[str], UserError]) -> None:
    """Tries a phase's mix on shapes alone."""
    trained, frozen = phase_shapes(method, phase)

    def one(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype), tree)

    kinds: list[Any] = []

    def mixed(trained: Any, frozen: Any) -> None:
        kinds.append(phase.objective.mix(together(trained, frozen)))

    jax.eval_shape(mixed, one(trained), frozen._replace(own_C=one(frozen.own_C)))
    (terms,) = kinds
    if not isinstance(terms, list | tuple) or not all(isinstance(t, Term) for t in terms):
        raise refuse(f"the mix of phase {phase.name} gave {type(terms).__name__}, not Terms")
    if not terms:
        raise refuse(f"the mix of phase {phase.name} is empty, so nothing is trained")
