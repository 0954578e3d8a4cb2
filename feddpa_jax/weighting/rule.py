"""The registry of weighting rules, and rules in users' own files.

A rule is a pure function of fields of `Evidence`, by name, to one similarity a row:

    def gate(query_BD, support_BMD): ...          # [B, D], [B, M, D] -> [B]
    def apart(query_BLD, support_MLD): ...        # [B, L, D], [M, L, D] -> [B, L], a weight a layer

Adding one is writing it under `@register`, or in a file of your own, which
`weighting.rule: my_rules.py:gate` names.
"""

import functools
import importlib.util
import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import cast

import jax
import jax.numpy as jnp

from feddpa_jax.types import UserError
from feddpa_jax.weighting.evidence import OF_INSTANCES, Evidence, trial

Rule = Callable[..., jax.Array]

RULES: dict[str, Rule] = {}


def register(name: str) -> Callable[[Rule], Rule]:
    """Decorator: makes a rule known as `weighting.rule: name`."""

    def add(rule: Rule) -> Rule:
        if name in RULES:
            raise ValueError(f"a weighting rule named {name!r} exists already")
        RULES[name] = rule
        return rule

    return add


def sees(rule: Rule) -> tuple[str, ...]:
    """The fields of `Evidence` that a rule is a function of.

    Raises:
      UserError: it has a parameter that is none of them, or none that is an instance's own.
    """
    called = getattr(rule, "__name__", str(rule))
    try:
        names = tuple(inspect.signature(rule).parameters)
    except ValueError as error:
        raise _fails(called, error) from None
    for name in names:
        if name not in Evidence._fields:
            raise UserError(
                f"weighting.rule: {called} asks for {name!r}; a rule's parameters are among "
                f"{', '.join(Evidence._fields)}"
            )
    if not set(names) & set(OF_INSTANCES):
        raise UserError(
            f"weighting.rule: {called} does not look at the instance; one of its parameters must "
            f"be among {', '.join(OF_INSTANCES)}"
        )
    return names


def own_file(name: str) -> Path | None:
    """The user's own file that a rule is from, which is neither looked for nor run here.

    Args:
      name: as of `find_rule`.

    Returns:
      None for a registered rule.

    Raises:
      UserError: the name is neither a registered one nor FILE.py:FUNCTION.
    """
    if name in RULES:
        return None
    file, colon, _ = name.rpartition(":")
    if not colon or not file.endswith(".py"):
        known = ", ".join(sorted(RULES))
        raise UserError(
            f"weighting.rule: {name!r} is unknown; known: {known}; or FILE.py:FUNCTION of your own"
        )
    return Path(file).expanduser()


def find_rule(name: str) -> Rule:
    """A registered rule, or one of the user's own.

    Args:
      name: a name in `RULES`, or "FILE.py:FUNCTION" with a path from the working directory.

    Returns:
      The rule; one of the user's own raises UserError wherever it fails or gives something else
      than a number a row.

    Raises:
      UserError: there is none of that name, its file fails, it asks for what no rule may see, or it
        fails on a trial.
    """
    path, function = own_file(name), name.rpartition(":")[2]
    if path is None:
        return RULES[name]
    if not path.is_file():
        raise UserError(
            f"weighting.rule: {path} does not exist; name a file from here as "
            f"--weighting.rule FILE.py:{function or 'FUNCTION'}, or another rule"
        )
    rule = _load(path, path.stat().st_mtime_ns, function)
    sees(rule)
    rule = _guarded(name, rule)
    _trial(rule)
    return rule


def sources(names: Iterable[str]) -> dict[str, bytes]:
    """The content of every file of the user's own that rules are from, by its path."""
    files = {Path(name.rpartition(":")[0]) for name in names if name not in RULES}
    return {str(file): file.expanduser().read_bytes() for file in sorted(files)}


def weighs_layers(name: str) -> bool:
    """Whether a rule gives each layer its own weight."""
    return len(_trial(find_rule(name)).shape) == 2


def _trial(rule: Rule) -> jax.ShapeDtypeStruct:
    """What a rule gives for made-up evidence, without computing it."""
    return jax.eval_shape(lambda seen: rule(**seen), trial().pick(sees(rule)))


def _guarded(name: str, rule: Rule) -> Rule:
    """A rule of the user's own whose mistakes are told as such."""

    @functools.wraps(rule)
    def guarded(**seen: jax.Array) -> jax.Array:
        try:
            given = rule(**seen)
        except UserError:
            raise
        except Exception as error:
            raise _fails(name, error) from None
        sizes = {
            letter: size
            for key, part in seen.items()
            for letter, size in zip(key.rpartition("_")[2], part.shape, strict=True)
        }
        allowed = [(sizes["B"],), *([(sizes["B"], sizes["L"])] if "L" in sizes else [])]
        dtype = getattr(given, "dtype", None)
        if (
            getattr(given, "shape", None) in allowed
            and dtype is not None
            and jnp.issubdtype(dtype, jnp.floating)
        ):
            return given
        shown = jax.tree.map(lambda leaf: f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}", given)
        raise UserError(
            f"weighting.rule: {name} gave {shown} for "
            f"{', '.join(f'{key} {list(part.shape)}' for key, part in seen.items())}; a rule gives "
            f"one floating-point similarity a row, here float32[{sizes['B']}]"
        )

    return guarded


@functools.lru_cache
def _load(file: Path, changed: int, function: str) -> Rule:
    """A function of a user's file, which is run once as long as it is not changed."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise _fails(str(file), error) from None
    rule = getattr(module, function, None)
    if not callable(rule):
        own = [
            name
            for name, value in vars(module).items()
            if getattr(value, "__module__", None) == module.__name__ and callable(value)
        ]
        has = ", ".join(own) or "none"
        raise UserError(f"weighting.rule: {file} has no function {function!r}; it has {has}")
    return cast(Rule, rule)


def _fails(name: str, error: BaseException) -> UserError:
    reason = (str(error).strip() or "no message").splitlines()[0]
    return UserError(f"weighting.rule: {name} fails with {type(error).__name__}: {reason}; fix it")


def named(rule: Rule | str) -> str:
    """The name of a rule; a function of a notebook is registered under its own.

    Raises:
      UserError: a function without a name, or with that of a built-in rule.
    """
    if isinstance(rule, str):
        return rule
    for name, known in RULES.items():
        if known is rule:
            return name
    name = getattr(rule, "__name__", "")
    theirs = getattr(RULES.get(name), "__module__", "").startswith("feddpa_jax.")
    if not name.isidentifier() or theirs:
        raise UserError(f"weighting.rule: {name or rule!r} is no name for a rule; use another")
    sees(rule)
    RULES[name] = rule
    return name
