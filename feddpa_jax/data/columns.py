"""Which columns of a record are what: the formats that data have, and a map of other names."""

from collections.abc import Mapping
from typing import Any

from feddpa_jax.files.escape import short
from feddpa_jax.types import UserError

# By format, the columns that a record of it has. `conversations` are ShareGPT's.
FORMATS = {
    "instruction and output": ("instruction", "output"),
    "prompt and completion": ("prompt", "completion"),
    "messages": ("messages",),
    "conversations": ("conversations",),
}
# What a record of any format may have; the last two are read only where `data.columns` names them.
OPTIONAL = ("input", "task", "category", "system", "available")
_OURS = (*(name for own in FORMATS.values() for name in own), *OPTIONAL)
_READ = ("instruction", "output", "input", "task", "category")


def wrong_columns(names: Mapping[Any, Any]) -> str | None:
    """What is wrong with a map of the data's columns by ours; None if nothing is.

    >>> wrong_columns({"input": "text", "task": "text"})
    "names one of the data's columns twice; name each once"
    """
    for ours, theirs in names.items():
        if ours not in _OURS:
            return f"{ours!r} is none of {', '.join(_OURS)}; correct it"
        if not isinstance(theirs, str):
            return f"{theirs!r} is no column's name; give names with a text each"
    if len(set(names.values())) < len(names):
        return "names one of the data's columns twice; name each once"
    return None


def check_columns(names: Mapping[str, str] | None) -> dict[str, str]:
    """A map of the data's columns by ours, as Python's functions take it; empty of None.

    Raises:
      UserError: what is no map, a name that is none of ours, or one of the data's twice.

    >>> check_columns({"instruction": "question"})
    {'instruction': 'question'}
    """
    if names is not None and not isinstance(names, Mapping):
        raise UserError(
            f"data.columns: is {short(repr(names))}; give a mapping, such as "
            '{"instruction": "question"}'
        )
    if wrong := wrong_columns(names or {}):
        raise UserError(f"data.columns: {wrong}")
    return dict(names or {})


def of_tests(names: Mapping[str, str] | None) -> dict[str, str]:
    """The map of columns for test instances, which say of no client when it is available.

    >>> of_tests({"output": "answer", "available": "hours"})
    {'output': 'answer'}
    """
    return {ours: theirs for ours, theirs in (names or {}).items() if ours != "available"}


class Columns:
    """Takes the fields of one file's records, which all have the format of the first.

    >>> columns = Columns({"instruction": "question", "output": "answer"})
    >>> columns.fields({"question": "1 + 1?", "answer": "2", "level": 3}, "here")
    {'instruction': '1 + 1?', 'output': '2', 'input': None, 'task': None, 'category': None}
    """

    def __init__(self, names: Mapping[str, str] | None = None):
        """Args: the data's name of a column by ours (`data.columns`)."""
        self.names = dict(names or {})
        self._format: str | None = None

    def fields(self, record: Mapping[str, Any], source: str) -> dict[str, Any]:
        """The record's values under our names, None where it has none.

        Args:
          record: by the data's own names.
          source: file and line, for messages.

        Raises:
          UserError: a column that `data.columns` names is missing; the record has no format, two,
            or another than those before it.
        """
        for ours, theirs in self.names.items():
            if theirs not in record:
                raise UserError(
                    f"{source}: no column {theirs!r}, which data.columns has for {ours}; it has "
                    f"{_listed(record)}"
                )
        _refuse_misspelled(record, self.names, source)
        taken = set(self.names.values())
        known = {
            name: record[name] for name in record if name not in taken and name not in self.names
        }
        known |= {ours: record[theirs] for ours, theirs in self.names.items()}
        form = self._form(known, record, source)
        if self._format not in (None, form):
            raise UserError(
                f"{source}: has {form}, and the records before it {self._format}; give each file "
                "one format"
            )
        self._format = form
        wanted = [
            *FORMATS[form],
            *OPTIONAL[:3],
            *(name for name in OPTIONAL[3:] if name in self.names),
        ]
        return {name: known.get(name) for name in wanted}

    def _form(self, known: Mapping[str, Any], record: Mapping[str, Any], source: str) -> str:
        """The format that the columns speak of: one that is whole, or else one that is begun."""
        named = [form for form, own in FORMATS.items() if set(own) & set(self.names)]
        forms = named or list(FORMATS)
        has = {name for name, value in known.items() if value is not None}
        whole = [form for form in forms if has.issuperset(FORMATS[form])]
        if len(whole) > 1 or len(named) > 1:
            raise UserError(
                f"{source}: has {' and also '.join(whole or named)}; say which is meant with "
                f"data.columns, such as {{{_first(whole or named)}}}"
            )
        begun = [form for form in forms if set(known) & set(FORMATS[form])]
        if whole or begun:
            return (whole or begun)[0]
        raise UserError(
            f"{source}: no field 'instruction', nor another format's; it has {_listed(record)}; "
            "say which is what with data.columns, such as {instruction: question, output: answer}"
        )


def _first(forms: list[str]) -> str:
    return ", ".join(f"{name}: {name}" for name in FORMATS[forms[0]])


def _listed(record: Mapping[str, Any]) -> str:
    return short(", ".join(map(repr, record)) or "none")


def _refuse_misspelled(record: Mapping[str, Any], names: Mapping[str, str], source: str) -> None:
    """Other fields are the user's own; one that differs in case is most likely a misspelling."""
    for name in record:
        meant = name.strip().lower() if isinstance(name, str) else name
        if name != meant and meant in _READ and not {name, meant} & {*names, *names.values()}:
            raise UserError(f"{source}: field {name!r} is not read; call it {meant!r}")
