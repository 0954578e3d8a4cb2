"""Registries: rules, methods, templates, metrics and model families by name.

A thing is registered once, where it is defined, and there is no second list of names:

    @fd.rules.register
    def gate(query_BD, support_BMD): ...

The package's own things are registered when its modules are imported, on first use. Others come
from a notebook or script (as above; registering again replaces), from a user's file, named as
FILE.py:NAME wherever a name is expected, or from an entry point of an installed package.
"""

import contextlib
import difflib
import importlib
import inspect
import logging
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from feddpa_jax.files.own_files import load_own, split_name
from feddpa_jax.files.problems import with_home
from feddpa_jax.types import UserError

_logger = logging.getLogger(__name__)

T = TypeVar("T")
_Given = TypeVar("_Given")


def _as_given(thing: Any) -> Any:
    return thing


class Registry(Mapping[str, T], Generic[T]):
    """Things of one kind by name.

    It is a mapping; names that are identifiers are attributes too: `fd.rules.cosine`.

    >>> shouts = Registry("shout", "app.shout")
    >>> @shouts.register
    ... def loud(text): return text.upper()
    >>> shouts["loud"]("a"), shouts.loud("a"), list(shouts)
    ('A', 'A', ['loud'])
    """

    def __init__(
        self,
        kind: str,
        field: str,
        *,
        group: str | None = None,
        modules: Sequence[str] = (),
        wrap: Callable[..., T] = _as_given,
        files: Mapping[str, Callable[[Path], T]] | None = None,
    ):
        """Makes an empty registry.

        Args:
          kind: what the things are, in the singular, for messages.
          field: the configuration's field that names one, for messages.
          group: of the entry points of installed packages; None for none.
          modules: the package's modules that register things; of a package, all its modules. They
            are imported when the registry is first read.
          wrap: makes an entry of what is registered and of the options of its registration.
          files: by their ending, users' files that are a thing each, and what reads one.
        """
        self._kind, self._field, self._group = kind, field, group
        self._modules, self._wrap, self._files = tuple(modules), wrap, dict(files or {})
        self._entries: dict[str, T] = {}
        self._given: dict[str, tuple[Any, dict[str, Any]]] = {}
        self._read_modules = self._read_group = False

    def register(self, name: Any = None, thing: Any = None, /, **options: Any) -> Any:
        """Registers a thing; registering a name again replaces.

        Use it as a decorator, `@registry.register`, `@registry.register("name")` or
        `@registry.register(option=...)`, or call `registry.register("name", thing)`.

        Args:
          name: by default the thing's `__name__`.
          thing: what is registered, if it is not decorated.
          options: what else is registered about the thing.

        Returns:
          The thing itself, so that a decorated function stays what it is.

        Raises:
          ValueError: the name is empty or has a colon, which is for FILE.py:NAME.
          TypeError: an option that the kind does not have.
        """
        if name is not None and not isinstance(name, str):
            return self._add(name.__name__, name, options)
        if thing is not None:
            return self._add(name, thing, options)
        return lambda thing: self._add(name or thing.__name__, thing, options)

    def _add(self, name: Any, thing: _Given, options: dict[str, Any]) -> _Given:
        if not isinstance(name, str) or not name or ":" in name:
            raise ValueError(f"{name!r} is no name of a {self._kind}; use one without a colon")
        self._entries[name] = self._wrap(thing, **options)
        self._given[name] = (thing, options)
        return thing

    def remove(self, name: str) -> None:
        """Forgets a registered name.

        Raises:
          KeyError: there is none.
        """
        self[name]
        del self._entries[name], self._given[name]

    def __getitem__(self, name: str) -> T:
        """The entry of a registered name."""
        if name not in self:
            raise KeyError(name)
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        """Whether a name is registered, here or by an installed package."""
        self._import_modules()
        if name not in self._entries:
            self._import_group()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        """All names: the package's in the order of their registration, then the others."""
        self._import_modules()
        self._import_group()
        return iter(tuple(self._entries))

    def __len__(self) -> int:
        """How many there are."""
        return sum(1 for _ in self)

    def __getattr__(self, name: str) -> T:
        """The entry of a registered name."""
        if name.startswith("_") or name not in self:
            raise AttributeError(f"no {self.__dict__.get('_kind')} is named {name!r}")
        return self._entries[name]

    def __dir__(self) -> list[str]:
        """Methods and names."""
        return [*super().__dir__(), *(name for name in self if name.isidentifier())]

    def __repr__(self) -> str:
        """The kind and all names."""
        return f"<{self._kind}s: {', '.join(self)}>"

    def find(self, wanted: Any) -> T:
        """An entry by its name, from a user's file, or of the thing itself.

        Args:
          wanted: a registered name; "FILE.py:NAME", whose file is run; a file that is a thing by
            its ending; an entry; or what could be registered.

        Raises:
          UserError: an unknown name, or a file that does not work.
        """
        if not isinstance(wanted, str):
            return self._entry_of(wanted)
        file = self.own_file(wanted)
        if file is None:
            return self._entries[wanted]
        if file.suffix in self._files:
            if not file.is_file():
                raise UserError(f"{self._field}: {file} does not exist; name a file from here")
            return self._files[file.suffix](file)
        return self._entry_of(load_own(wanted, self._field))

    def _entry_of(self, thing: Any) -> T:
        name = self.name_of(thing)
        if name is not None:
            return self._entries[name]
        try:
            return self._wrap(thing)
        except (TypeError, ValueError) as error:
            raise UserError(f"{self._field}: {thing!r} is no {self._kind}: {error}") from None

    def name_of(self, thing: Any) -> str | None:
        """The name that a thing, or its entry, is registered under; None for none."""
        self._import_modules()
        for name, (given, _) in self._given.items():
            if given is thing or self._entries[name] is thing:
                return name
        return None

    def options(self, wanted: Any) -> Mapping[str, Any]:
        """The options that an entry was registered with; none for what is not registered.

        Args:
          wanted: as of `find`; a user's file is run.
        """
        if isinstance(wanted, str) and (file := self.own_file(wanted)) is not None:
            if file.suffix in self._files:
                return {}
            wanted = load_own(wanted, self._field)
        name = wanted if isinstance(wanted, str) else self.name_of(wanted)
        return self._given[name][1] if name is not None else {}

    def check(self, name: str) -> None:
        """Refuses an unknown name; a user's file is neither looked for nor run.

        Raises:
          UserError: the name is neither registered nor FILE.py:NAME.
        """
        if name in self or self._file_in(name) is not None:
            return
        known, own = sorted(self), " or ".join(["FILE.py:NAME", *(f"FILE{e}" for e in self._files)])
        close = difflib.get_close_matches(name, known, 1, 0.5)
        meant = f"did you mean {close[0]!r}? " if close else ""
        raise UserError(
            f"{self._field}: {name!r} is unknown; {meant}known: {', '.join(known)}; or {own} of "
            "your own"
        )

    def _file_in(self, name: str) -> Path | None:
        """The user's own file that a name spells, if it does."""
        found = split_name(name)
        if found is not None:
            return found[0]
        return with_home(name) if name.endswith(tuple(self._files)) else None

    def own_file(self, name: str) -> Path | None:
        """The user's own file that a name is from, which is neither looked for nor run here.

        Returns:
          None for a registered name.

        Raises:
          UserError: as of `check`.
        """
        self.check(name)
        return None if name in self._entries else self._file_in(name)

    def sources(self, names: Sequence[Any]) -> dict[str, bytes]:
        """The content of every file of the user's own that things are from, by its path.

        Args:
          names: as of `find`; what an installed package registered has no file, and of a function
        of a notebook its text stands for one.
        """
        paths = {self.own_file(name) for name in names if isinstance(name, str)} - {None}
        files = sorted(cast(set[Path], paths))
        return {str(file): file.read_bytes() for file in files} | self._of_notebooks(names)

    def _of_notebooks(self, names: Sequence[Any]) -> dict[str, bytes]:
        """The text of functions that were registered in a notebook or a script."""
        found: dict[str, bytes] = {}
        for name in names:
            thing = self._entries.get(name) if isinstance(name, str) else None
            if callable(thing) and getattr(thing, "__module__", None) == "__main__":
                with contextlib.suppress(OSError, TypeError):  # Typed where no text is kept.
                    found[f"{name}.py"] = inspect.getsource(thing).encode()
        return found

    def _import_modules(self) -> None:
        if self._read_modules:
            return
        self._read_modules = True
        before, given = dict(self._entries), dict(self._given)
        for name in self._modules:
            module = importlib.import_module(name)
            if hasattr(module, "__path__"):
                for _, inner, _ in pkgutil.iter_modules(module.__path__, f"{name}."):
                    importlib.import_module(inner)
        # What a notebook registered before comes last, and replaces.
        self._entries |= before
        self._given |= given

    def _import_group(self) -> None:
        if self._read_group or self._group is None:
            return
        self._read_group = True
        for point in entry_points(group=self._group):
            if point.name in self._entries:
                continue
            try:
                thing = point.load()
                # A module, or what a decorator registered already: nothing to do.
                if not inspect.ismodule(thing) and point.name not in self._entries:
                    self._add(point.name, thing, {})
            except Exception as error:
                # It belongs to another package: work that does not need it continues.
                _logger.warning(
                    "the %s %r of an installed package (%s) cannot be loaded: %s: %s; "
                    "update or uninstall the package",
                    *(self._kind, point.name, point.value, type(error).__name__, error),
                )
