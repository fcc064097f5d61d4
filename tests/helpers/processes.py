"""Processes that have torch imported, for tests that need a process of its own but not the start of an interpreter.

A server, one for each process of pytest, imports torch and `codec` once, without the checks of shapes that the tests
add; the processes are forked from it. A new interpreter spends two to four seconds on these imports.
"""

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from subprocess import CompletedProcess

ROOT = Path(__file__).parents[2]
PRELOADED = ["torch", "codec.compression", "codec.models", "codec.training.codec.task", "tests.helpers.processes"]
LIMIT = 600  # s, after which a process is killed


@cache
def context() -> ForkServerContext:
    """Start method of these processes; the server starts in the project's root, where it finds `codec`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        forkserver.ensure_running()
    finally:
        os.chdir(before)
    return context


def start(
    code: str, *arguments: object, stdout: int, stderr: int, cwd: Path = ROOT, env: Mapping[str, str] | None = None
) -> ForkServerProcess:
    """Start `python -c code arguments`; `stdout` and `stderr` are file descriptors, `env` adds to the environment."""
    streams = [Connection(os.dup(stream)) for stream in (stdout, stderr)]
    process = context().Process(
        target=_main, args=(code, list(map(str, arguments)), streams, str(cwd), dict(env or {}))
    )
    process.start()
    for stream in streams:
        stream.close()
    return process


def _main(code: str, arguments: list[str], streams: list[Connection], cwd: str, env: dict[str, str]) -> None:
    for number, stream in enumerate(streams, 1):
        os.dup2(stream.fileno(), number)
        stream.close()
    os.environ |= env
    os.chdir(cwd)
    sys.argv = ["-c", *arguments]
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})


def run(code: str, *arguments: object, cwd: Path = ROOT, env: Mapping[str, str] | None = None) -> CompletedProcess[str]:
    """Run `python -c code arguments` to its end, at most `LIMIT`; the exit status is negative if a signal ended it."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = start(code, *arguments, stdout=out.fileno(), stderr=err.fileno(), cwd=cwd, env=env)
        process.join(LIMIT)
        if process.is_alive():
            process.kill()
            process.join()
        status = process.exitcode
        process.close()
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
    assert status is not None
    return CompletedProcess([code], status, *texts)
