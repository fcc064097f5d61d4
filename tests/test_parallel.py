"""parallel.py: the same results on every engine, also when processes are killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest

from codec import parallel
from codec.errors import CodecError, MissingDependency, UnsupportedAudio, UsageError
from codec.parallel import Engine, each


def work(folder: Path, task: int) -> int:
    """Square the task; 1 and 2 fail, 3 kills its process the first time, 4 every time."""
    if task == 1:
        raise UnsupportedAudio("no audio")
    if task == 2:
        raise ZeroDivisionError("division by zero")
    started = folder / f"{task}.started"
    if task == 4 or (task == 3 and not started.exists()):
        started.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return task * task


def outcomes(folder: Path, tasks: list[int], *, jobs: int, engine: Engine = "local") -> dict[int, object]:
    done = list(each(partial(work, folder), tasks, jobs=jobs, engine=engine))
    assert sorted(task for task, _ in done) == tasks
    return {
        task: f"{type(result).__name__}: {result}" if isinstance(result, CodecError) else result
        for task, result in done
    }


EXPECTED = {
    0: 0,
    1: "UnsupportedAudio: no audio",
    2: "CodecError: ZeroDivisionError: division by zero",
    3: 9,
    5: 25,
}


def test_in_this_process_in_order(tmp_path: Path) -> None:
    (tmp_path / "3.started").touch()
    assert list(outcomes(tmp_path, [0, 1, 2, 3, 5], jobs=1).items()) == list(EXPECTED.items())


@pytest.mark.usefixtures("forked_processes")
def test_tasks_of_a_killed_process_are_repeated(tmp_path: Path) -> None:
    assert outcomes(tmp_path, [0, 1, 2, 3, 5], jobs=2) == EXPECTED
    assert (tmp_path / "3.started").exists()


@pytest.mark.usefixtures("forked_processes")
def test_a_task_that_always_kills_its_process_becomes_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "ATTEMPTS", 1)
    (result,) = outcomes(tmp_path, [4], jobs=2).values()
    assert str(result).startswith("CodecError: its process was killed 1 times")


def test_processes_exit_with_their_parent(tmp_path: Path) -> None:
    code = """
import os, pathlib, time
from functools import partial
from codec.parallel import each
from tests.test_parallel import linger
if __name__ == "__main__":
    list(each(partial(linger, pathlib.Path.cwd()), [0, 1], jobs=2))
"""
    (tmp_path / "main.py").write_text(code)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen([sys.executable, "main.py"], cwd=tmp_path, env=environment) as process:
        wait_for(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
        children = [int(path.stem) for path in tmp_path.glob("*.pid")]
        process.kill()
    wait_for(lambda: not any(is_alive(child) for child in children))


def linger(folder: Path, task: int) -> int:
    (folder / f"{os.getpid()}.pid").touch()
    while len(list(folder.glob("*.pid"))) < 2:  # one process must not take both tasks
        time.sleep(0.01)
    time.sleep(600)
    return task


def is_alive(pid: int) -> bool:
    return bool(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_invalid_arguments_raise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="0 jobs"):
        outcomes(tmp_path, [0], jobs=0)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependency, match=r"'.\[cluster\]'"):
        outcomes(tmp_path, [0], jobs=1, engine="ray")


@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_on_ray(tmp_path: Path, ray_cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ray_cluster
    monkeypatch.setattr(parallel, "ATTEMPTS", 1)
    (tmp_path / "3.started").touch()
    found = outcomes(tmp_path, [0, 1, 2, 3, 4, 5], jobs=2, engine="ray")
    assert str(found.pop(4)).startswith("CodecError: its process was killed 1 times")
    assert found == EXPECTED
