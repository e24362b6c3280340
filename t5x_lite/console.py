"""What a person sees: notes, one live line, announced waits, and tables at the end."""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence

import rich.console
from rich.box import SIMPLE
from rich.live import Live
from rich.table import Table
from rich.text import Text

PLAIN_WIDTH = 110  # of tables and samples where the output is no terminal


class Console:
    """Speaks for the first process of a run; all others are silent.

    On a terminal the training line is rewritten in place; elsewhere each line is printed.
    """

    def __init__(self, *, silent: bool = False, stderr: bool = False):
        self._rich = rich.console.Console(
            quiet=silent, stderr=stderr, highlight=False, soft_wrap=True
        )
        if not self._rich.is_terminal:
            self._rich.width = PLAIN_WIDTH
        self._live: Live | None = None

    def note(self, text: str) -> None:
        """Say one line."""
        self._rich.print(Text(text))

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Announce a wait before it begins, and say how long it took."""
        began = time.perf_counter()
        self.note(f"{what} ...")
        yield
        self.note(f"{what}: {duration(time.perf_counter() - began)}")

    @contextlib.contextmanager
    def line(self) -> Iterator[None]:
        """Open the live line; `update` writes it."""
        if not self._rich.is_terminal:
            yield
            return
        with Live(console=self._rich, refresh_per_second=4) as self._live:
            yield
        self._live = None

    def update(self, text: str) -> None:
        """Show the state of training."""
        if self._live is None:
            self.note(text)
        else:
            self._live.update(Text(text))

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
        """Print a named text in full, what matches a pattern in color on a terminal."""
        shown = Text(" ".join(text.split()))
        shown.highlight_regex(pattern, style="bold magenta")
        self._rich.print(Text(f"  {name:<11}") + shown)


def training_line(step: int, steps: int, numbers: Mapping[str, float], eta: float) -> str:
    """The live line: where the run is, how well it learns, how fast, and for how long yet."""
    mfu = f" | MFU {numbers['mfu']:.1%}" if "mfu" in numbers else ""
    return (
        f"step {step:,}/{steps:,} | loss {numbers['loss']:.3f}"
        f" | accuracy {numbers['accuracy']:.1%} | lr {numbers['learning_rate']:.2e}"
        f" | {numbers['tokens_per_second']:,.0f} tokens/s{mfu} | padding {numbers['padding']:.1%}"
        f" | data wait {numbers['data_wait']:.1%} | {duration(eta)} left"
    )


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> [duration(s) for s in (0.25, 12.34, 75, 7384)]
    ['0.2 s', '12.3 s', '1 min 15 s', '2 h 3 min']
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
