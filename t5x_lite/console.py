"""Terminal output besides log lines: a live line, tables, examples, marked text."""

import contextlib
import functools
import logging
import time
from collections.abc import Iterator, Mapping, Sequence

import rich.console
from rich.box import SIMPLE
from rich.live import Live
from rich.table import Table
from rich.text import Text

PLAIN_WIDTH = 110  # columns of tables and examples where the output is not a terminal
_LOG = logging.getLogger(__name__)


@functools.cache
def terminal(stderr: bool) -> rich.console.Console:
    """Return the writer to standard error or standard output.

    All output to a stream goes through one writer, log lines too: a second one would print into
    the live line of the first.
    """
    writer = rich.console.Console(stderr=stderr, highlight=False, soft_wrap=True)
    if not writer.is_terminal:
        writer.width = PLAIN_WIDTH
    return writer


class Console:
    """Prints the results of a command and the live line of a long one.

    On a terminal the live line is rewritten in place; elsewhere each state of it is a log line.

    Args:
        silent: print nothing. In a run of several processes only the first one prints.
        stderr: write to standard error, because standard output carries the command's data.
    """

    def __init__(self, *, silent: bool = False, stderr: bool = False):
        self._rich = rich.console.Console(quiet=True) if silent else terminal(stderr)
        self._live: Live | None = None

    def print(self, text: str) -> None:
        """Print a result of the command; what happens on the way there is logged instead."""
        self._rich.print(Text(text))

    @contextlib.contextmanager
    def line(self) -> Iterator[None]:
        """Open the live line, which `update` writes."""
        if not self._rich.is_terminal:
            yield
            return
        with Live(console=self._rich, refresh_per_second=4) as self._live:
            yield
        self._live = None

    def update(self, text: str) -> None:
        """Show the newest state of a long command in the live line, and log it.

        A record that the live line shows carries `shown`, and the terminal does not print it again.
        """
        if self._live is not None:
            self._live.update(Text(text))
        _LOG.info(text, extra={"shown": self._live is not None})

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table whose first column is text and whose others are numbers."""
        table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE)
        for i, column in enumerate(columns):
            table.add_column(column, justify="right" if i else "left", no_wrap=True)
        for row in rows:
            table.add_row(*map(Text, row))
        self._rich.print(table, soft_wrap=False)

    def entries(self, title: str, entries: Sequence[Mapping[str, str]]) -> None:
        """Print entries of named texts, each text on a line of its own, cut to the width."""
        self._rich.print(Text(title, style="bold"))
        for entry in entries:
            self._rich.print()
            for name, text in entry.items():
                line = Text(f"  {name:<11}{' '.join(text.split())}")
                line.truncate(self._rich.width, overflow="ellipsis")
                self._rich.print(line)

    def marked(self, name: str, text: str, pattern: str) -> None:
        """Print a named text in full, with the matches of a pattern in color on a terminal."""
        shown = Text(" ".join(text.split()))
        shown.highlight_regex(pattern, style="bold magenta")
        self._rich.print(Text(f"  {name:<11}") + shown)


@contextlib.contextmanager
def logged_wait(logger: logging.Logger, what: str) -> Iterator[None]:
    """Log that something slow begins, and afterwards how long it took."""
    began = time.perf_counter()
    logger.info(f"{what} ...")
    yield
    logger.info(f"{what} took {duration(time.perf_counter() - began)}")


def training_line(step: int, steps: int, numbers: Mapping[str, float], eta: float) -> str:
    """Return the live line of training: progress, loss, speed and the time left."""
    mfu = f" | MFU {numbers['mfu']:.1%}" if "mfu" in numbers else ""
    return (
        f"step {step:,}/{steps:,} | loss {numbers['loss']:.3f}"
        f" | accuracy {numbers['accuracy']:.1%} | lr {numbers['learning_rate']:.2e}"
        f" | {numbers['tokens_per_second']:,.0f} tokens/s{mfu} | padding {numbers['padding']:.1%}"
        f" | data wait {numbers['data_wait']:.1%} | {duration(eta)} left"
    )


def count(number: int, noun: str) -> str:
    """Return a number with its noun in the singular or plural.

    >>> [count(n, "line") for n in (0, 1, 2_000)]
    ['0 lines', '1 line', '2,000 lines']
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Return seconds in units that are easy to read.

    >>> [duration(s) for s in (0.25, 12.34, 75, 7384)]
    ['0.2 s', '12.3 s', '1 min 15 s', '2 h 3 min']
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
