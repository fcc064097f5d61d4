"""One function over many tasks, in processes of this machine or on a Ray cluster: the one place that knows Ray.

A task may be begun more than once where a process dies in the middle of it, so its work must be one that can be done
again: outputs that appear when they are whole.
"""

import logging
import os
import pickle
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import Any, Literal, TypeAlias, TypeVar

import torch

from codec.errors import CodecError, MissingDependency, UsageError

Engine: TypeAlias = Literal["local", "ray"]
Task = TypeVar("Task")
Result = TypeVar("Result")

ATTEMPTS = 3  # at a task whose processes are killed
RAY_BLOCKS = 4096  # most pieces that Ray keeps account of; with more tasks, several share one


def each(
    work: Callable[[Task], Result],
    tasks: Sequence[Task],
    *,
    jobs: int = 1,
    engine: Engine = "local",
    gpu: bool = False,
) -> Iterator[tuple[Task, Result | CodecError]]:
    """Every task with its result, or with the error it ended in, in the order in which they are done.

    "local" works in this process, or in `jobs` processes of one thread each; "ray" in up to `jobs` processes of the
    cluster at RAY_ADDRESS, of the one that runs on this machine, or of one started for the occasion, each with a GPU if
    `gpu`. There `work` and the files it names must be found on every machine; the working directory is this one's.

    Raises UsageError for fewer jobs than one, MissingDependency without the extra `cluster`.
    """
    if jobs < 1:
        raise UsageError(f"{jobs} jobs: ask for 1 or more")
    if engine == "ray":
        return _on_ray(work, tasks, jobs, gpu)
    return _here(work, tasks) if jobs == 1 else _in_processes(work, tasks, jobs)


def _attempt(work: Callable[[Task], Result], task: Task) -> Result | CodecError:
    try:
        return work(task)
    except CodecError as error:
        return error
    except Exception as error:  # the others go on, whatever one task does
        return CodecError(f"{type(error).__name__}: {error}")


def _killed(times: int) -> CodecError:
    return CodecError(f"its process was killed {times} times, perhaps for want of memory: ask for fewer --jobs")


def _here(work: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[tuple[Task, Result | CodecError]]:
    for task in tasks:
        yield task, _attempt(work, task)


def _in_processes(
    work: Callable[[Task], Result], tasks: Sequence[Task], jobs: int
) -> Iterator[tuple[Task, Result | CodecError]]:
    waiting = list(tasks)
    for _ in range(ATTEMPTS):  # a killed process breaks the pool: what it had is for the next one
        lost = []
        pool = ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_begin)
        try:
            futures = {pool.submit(_attempt, work, task): task for task in waiting}
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


def _begin() -> None:
    """One thread, and an end with the process that started this one: the pool leaves that open if it is killed."""
    torch.set_num_threads(1)
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    Thread(target=follow, daemon=True).start()


# Ray


def _on_ray(
    work: Callable[[Task], Result], tasks: Sequence[Task], jobs: int, gpu: bool
) -> Iterator[tuple[Task, Result | CodecError]]:
    if not tasks:
        return
    with _ray() as ray:
        # Pickled by us: Ray Data knows tables, and would look for columns in a task.
        rows = [{"number": number, "task": pickle.dumps(task)} for number, task in enumerate(tasks)]
        attempts = ray.remote(num_cpus=0)(_Attempts).remote()
        results = ray.data.from_items(rows, override_num_blocks=min(len(rows), RAY_BLOCKS)).map(
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
                f"the Ray cluster gave up ({last}): see that codec is installed on every machine"
            ) from error


class _Attempts:
    """How often each task was begun without coming to an end: Ray itself begins a task anew without limit."""

    def __init__(self) -> None:
        self._begun: Counter[int] = Counter()

    def begin(self, number: int) -> int:
        self._begun[number] += 1
        return self._begun[number]

    def end(self, number: int) -> None:
        del self._begun[number]


class _Actor:
    """A process of the cluster: unpickles the work once, so that what it caches serves every task."""

    def __init__(self, work: bytes, folder: str, attempts: Any, most: int) -> None:
        with suppress(OSError):  # a machine without that folder serves tasks whose paths are absolute
            os.chdir(folder)
        torch.set_num_threads(1)
        self._work = pickle.loads(work)
        self._attempts = attempts
        self._most = most

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        import ray

        number = row["number"]
        if ray.get(self._attempts.begin.remote(number)) > self._most:
            result = _killed(self._most)
        else:
            result = _attempt(self._work, pickle.loads(row["task"]))
        self._attempts.end.remote(number)
        return {"number": number, "result": pickle.dumps(result)}


@contextmanager
def _ray() -> Iterator[Any]:
    """Ray with its data library, connected and quiet; a cluster started here ends here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingDependency(
            "the package ray is not installed: `pip install 'codec[cluster]'`, or leave --engine out"
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
