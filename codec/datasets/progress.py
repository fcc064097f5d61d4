"""Progress bar in bytes, shown if the console is a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

Show = Callable[[int, int | None], None]
"""Called with the bytes done and the total (None if unknown)."""


@contextmanager
def progress_bar(task: str, console: Console) -> Iterator[Show]:
    """Yield a function that updates the bar."""
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        number = progress.add_task(task, total=None)
        yield lambda done, total: progress.update(number, completed=done, total=total)
