"""One function over many tasks, in local processes or on a Ray cluster; the only module that imports Ray.

A task whose process dies is started again, so its work must be idempotent: write outputs atomically.
"""

import logging
import os
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from itertools import islice
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import Any, Literal, TypeAlias, TypeVar

from codec.errors import CodecError, MissingDependency, UsageError, joined_lines

Engine: TypeAlias = Literal["local", "ray"]
Task = TypeVar("Task")
Result = TypeVar("Result")

ATTEMPTS = 3  # at a task whose processes are killed
MAX_RAY_BLOCKS = 4096  # tasks share blocks beyond this number, because Ray keeps metadata of each block


def each(
    work: Callable[[Task], Result],
    tasks: Sequence[Task],
    *,
    jobs: int = 1,
    engine: Engine = "local",
    gpu: bool = False,
) -> Iterator[tuple[Task, Result | CodecError]]:
    """Yield every task with its result, or the error that ended it, in the order in which they finish.

    "local" runs in this process, or in `jobs` processes with one thread each. "ray" runs in up to `jobs` processes,
    each with a GPU if `gpu`, on the cluster at RAY_ADDRESS, on the one of this machine, or on a new one. Every machine
    of it must be able to import `work` and to open the files it names; the working directory is that of this process.
    `work` is sent to each process once, so what it holds or caches serves all its tasks.

    Raises UsageError for `jobs` < 1, MissingDependency without the extra `cluster`.
    """
    if jobs < 1:
        raise UsageError(f"{jobs} jobs: give 1 or more")
    if engine == "ray":
        return _on_ray(work, tasks, jobs, gpu)
    return _here(work, tasks) if jobs == 1 else _in_processes(work, tasks, jobs)


def in_threads(
    work: Callable[[Task], Result], tasks: Iterable[Task], *, ahead: int = 256
) -> Iterator[tuple[Task, Result | CodecError]]:
    """Yield every task with its result or error, as `each`, but in order and from threads, for work that reads files.

    At most `ahead` tasks are read from `tasks` at a time.
    """
    remaining = iter(tasks)
    with ThreadPoolExecutor() as pool:
        while chunk := list(islice(remaining, ahead)):
            yield from zip(chunk, pool.map(partial(_attempt, work), chunk), strict=True)


def _attempt(work: Callable[[Task], Result], task: Task) -> Result | CodecError:
    try:
        return work(task)
    except CodecError as error:
        return error
    except Exception as error:  # must not stop the other tasks
        failure = CodecError(f"{type(error).__name__}: {joined_lines(error)}")
        failure.__cause__ = error
        return failure


def _killed(times: int) -> CodecError:
    return CodecError(f"its process was killed {times} times, perhaps because memory ran out: use fewer --jobs")


def _here(work: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[tuple[Task, Result | CodecError]]:
    for task in tasks:
        yield task, _attempt(work, task)


def _in_processes(
    work: Callable[[Task], Result], tasks: Sequence[Task], jobs: int
) -> Iterator[tuple[Task, Result | CodecError]]:
    waiting = list(tasks)
    pickled = pickle.dumps(work)
    for _ in range(ATTEMPTS):  # a killed process breaks the pool; a new pool takes its unfinished tasks
        lost = []
        pool = ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_start_process, initargs=(pickled,))
        try:
            futures = {pool.submit(_attempt, _work_of_this_process, task): task for task in waiting}
            for future in as_completed(futures):
                try:
                    yield futures[future], future.result()
                except BrokenProcessPool:
                    lost.append(futures[future])
        finally:
            pool.shutdown(cancel_futures=True)
        waiting = lost
    for task in waiting:
        yield task, _killed(ATTEMPTS)


_pickled_work = b""


def _start_process(pickled_work: bytes) -> None:
    """Keep the work, use one thread, and exit with the parent process, which a killed parent's pool would not do."""
    global _pickled_work
    _pickled_work = pickled_work
    _use_one_thread()
    parent = parent_process()
    assert parent is not None

    def exit_with_parent() -> None:
        parent.join()
        os._exit(1)

    Thread(target=exit_with_parent, daemon=True).start()


def _use_one_thread() -> None:
    import torch  # here, because preparing datasets does not need it

    torch.set_num_threads(1)


def _work_of_this_process(task: Any) -> Any:
    return _unpickled(_pickled_work)(task)


@lru_cache(maxsize=1)
def _unpickled(work: bytes) -> Callable[[Any], Any]:
    unpickled: Callable[[Any], Any] = pickle.loads(work)
    return unpickled


# on Ray


def _on_ray(
    work: Callable[[Task], Result], tasks: Sequence[Task], jobs: int, gpu: bool
) -> Iterator[tuple[Task, Result | CodecError]]:
    if not tasks:
        return
    with _ray() as ray:
        # Pickled, because Ray Data stores tables and would look for columns in a task.
        rows = [{"number": number, "task": pickle.dumps(task)} for number, task in enumerate(tasks)]
        attempts = ray.remote(num_cpus=0)(_Attempts).remote()
        results = ray.data.from_items(rows, override_num_blocks=min(len(rows), MAX_RAY_BLOCKS)).map(
            _Actor,
            fn_constructor_args=(pickle.dumps(work), os.getcwd(), attempts, ATTEMPTS),  # noqa: PTH109 (a string)
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=jobs),
            num_cpus=1,
            num_gpus=1 if gpu else None,
        )
        try:
            for row in results.iter_rows():
                yield tasks[row["number"]], pickle.loads(row["result"])
        except ray.exceptions.RayError as error:
            last = str(error).strip().splitlines()[-1]
            raise CodecError(
                f"the Ray cluster failed ({last}): check that codec is installed on every machine"
            ) from error


class _Attempts:
    """Count the starts of each unfinished task, because Ray restarts a task without limit."""

    def __init__(self) -> None:
        self._starts: Counter[int] = Counter()

    def start(self, number: int) -> int:
        self._starts[number] += 1
        return self._starts[number]

    def finish(self, number: int) -> None:
        del self._starts[number]


class _Actor:
    """A process of the cluster; it unpickles the work once for all its tasks."""

    def __init__(self, work: bytes, folder: str, attempts: Any, most: int) -> None:
        with suppress(OSError):  # a machine without this folder can work on absolute paths
            os.chdir(folder)
        _use_one_thread()
        self._work = pickle.loads(work)
        self._attempts = attempts
        self._most = most

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        import ray

        number = row["number"]
        if ray.get(self._attempts.start.remote(number)) > self._most:
            result = _killed(self._most)
        else:
            result = _attempt(self._work, pickle.loads(row["task"]))
        self._attempts.finish.remote(number)
        return {"number": number, "result": pickle.dumps(result)}


@contextmanager
def _ray() -> Iterator[Any]:
    """Connect to Ray, without its progress output; stop a cluster that was started here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingDependency(
            "the package ray is not installed: pip install '.[cluster]' in the project's folder, or leave --engine out"
        ) from error
    started = not ray.is_initialized()
    if started:
        ray.init(logging_level=logging.ERROR, log_to_driver=False)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield ray
    finally:
        if started:
            ray.shutdown()
