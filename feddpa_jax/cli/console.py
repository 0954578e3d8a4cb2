"""The terminal: lines, tables, and progress as a bar with a rate and time left, or plain lines."""

import io
import logging
import re
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.segment import Segment, Segments
from rich.text import Text

from feddpa_jax.files import escape
from feddpa_jax.progress import Advance
from feddpa_jax.progress import Progress as Event

# Where there is no terminal, a line at most so often, in seconds.
LINE_EVERY = 15.0
# Columns of a table: at least so many on a terminal, for in fewer cells would vanish; and more than
# any table needs elsewhere, so that no line is wrapped and no name broken.
NARROWEST = 60
UNBOUNDED = 10_000


def duration(seconds: float) -> str:
    """Seconds as people write them.

    >>> duration(75.2)
    '1:15'
    >>> duration(3600)
    '1:00:00'
    """
    whole = max(0, round(seconds))
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def silent() -> "Reporter":
    """A reporter that says nothing: of a process that is not the first of its run."""
    return Reporter(Console(file=io.StringIO(), quiet=True))


class _PlainConsole(Console):
    """A console to which every text is text: no markup, no names of emojis, nothing hidden."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Texts of cells, titles and headings, which come here all."""
        options |= {"markup": False, "emoji": False, "highlight": False}
        return super().render_str(escape.terminal(text), **options)


class Reporter:
    """Where a command tells what it does.

    What it is told may hold names and answers: nothing in them controls the terminal.
    """

    def __init__(self, console: Console | None = None):
        """Args: the console to write to; standard output if None."""
        self.console = console or Console(highlight=False, soft_wrap=True)
        # FORCE_COLOR makes rich take a file for a terminal, and one that is dumb cannot go back.
        real = console is not None or sys.stdout.isatty()
        self._terminal = real and self.console.is_terminal
        self._bars = real and self.console.is_interactive
        self._tasks: dict[str, _Task] = {}

    def say(self, message: str) -> None:
        """Prints a line; line feeds in it are shown as such."""
        self.answer(escape.one_line(message))

    def answer(self, text: str) -> None:
        """Prints a text of any number of lines as it is, but for control characters."""
        # A segment, unlike rich's texts, keeps its tabs and its blanks.
        whole = Segments([Segment(f"{escape.terminal(text)}\n")])
        self.console.print(whole, soft_wrap=True)

    def show(self, renderable: RenderableType) -> None:
        """Prints a table or another renderable: within the terminal, or a line a row elsewhere.

        Texts in it are printed as they are, but for control characters, unless they are
        `rich.text.Text`, which is taken as made by the program.
        """
        here = self.console
        console = _PlainConsole(
            file=here.file,
            width=max(here.width, NARROWEST) if self._terminal else UNBOUNDED,
            force_terminal=here.is_terminal,
            quiet=here.quiet,
        )
        if self._terminal:
            console.print(renderable)
            return
        with console.capture() as shown:
            console.print(renderable)
        # Cells are padded to the widest, also in the last column.
        here.file.write(re.sub(" +\n", "\n", shown.get()))

    def on_progress(self, event: Event) -> None:
        """Draws how far a task is; the callback that the library's functions take."""
        if event.task not in self._tasks:
            self._tasks[event.task] = self._start(event)
        task = self._tasks[event.task]
        if event.finished:
            del self._tasks[event.task]
            task.end()
        else:
            task.go_on(event)

    def close(self) -> None:
        """Takes the bars of unfinished tasks off the screen."""
        while self._tasks:
            self._tasks.popitem()[1].drop()

    @contextmanager
    def logs(self) -> Iterator[None]:
        """Says what the library logs, from INFO on, as lines."""
        handler = _Lines(self)
        logger = logging.getLogger("feddpa_jax")
        before = logger.level, logger.propagate
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        # Orbax's logging gives the root a handler of its own, which would print the lines again.
        logger.propagate = False
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(before[0])
            logger.propagate = before[1]
            self.close()

    def _start(self, event: Event) -> "_Task":
        drawn = self._bar if self._bars else self._lines
        return _Task(drawn(escape.one_line(event.task), event.total, event.unit))

    def _bar(self, name: str, total: float, unit: str) -> Generator[Advance]:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]}", markup=False),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}", markup=False),
        )
        start = time.perf_counter()
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(name, total=total, note="", rate="")
            done = 0.0

            def advance(amount: float, note: str = "") -> None:
                nonlocal done
                done += amount
                rate = f"{done / (time.perf_counter() - start):,.0f} {unit}/s"
                progress.update(task, advance=amount, note=escape.one_line(note), rate=rate)

            yield advance
        self._finish(name, done, unit, time.perf_counter() - start)

    def _lines(self, name: str, total: float, unit: str) -> Generator[Advance]:
        start = time.perf_counter()
        last, done = start, 0.0

        def advance(amount: float, note: str = "") -> None:
            nonlocal last, done
            done += amount
            now = time.perf_counter()
            if now - last >= LINE_EVERY and 0 < done < total:
                last = now
                rate = done / (now - start)
                left = duration((total - done) / rate)
                remark = f", {note}" if note else ""
                self.say(f"{name}: {done / total:.0%}, {rate:,.0f} {unit}/s, {left} left{remark}")

        yield advance
        self._finish(name, done, unit, time.perf_counter() - start)

    def _finish(self, name: str, done: float, unit: str, seconds: float) -> None:
        rate = done / seconds if seconds else 0.0
        self.say(f"{name}: {done:,.0f} {unit} in {duration(seconds)} ({rate:,.0f} {unit}/s)")


class _Task:
    """A task that is being drawn."""

    def __init__(self, drawn: Generator[Advance]):
        self._drawn = drawn
        self._advance = next(drawn)
        self._done = 0.0

    def go_on(self, event: Event) -> None:
        if event.done > self._done or event.note:
            self._advance(event.done - self._done, event.note)
            self._done = event.done

    def end(self) -> None:
        next(self._drawn, None)

    def drop(self) -> None:
        self._drawn.close()


class _Lines(logging.Handler):
    """Log records as lines of a reporter."""

    def __init__(self, reporter: Reporter):
        super().__init__(logging.INFO)
        self._reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        self._reporter.say(record.getMessage())
