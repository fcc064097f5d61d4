"""Settings of all tests: shapes in signatures are checked, and examples have no deadline on a busy machine."""

import gc
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: the workers of xdist share the cores
# compiling the loops of live streams takes 15 s after each change; tests/test_live.py compares them with torch
os.environ.setdefault("CODEC_BACKEND", "torch")

import numpy as np
import pytest
from hypothesis import settings

from tests.helpers import shapes
from tests.helpers.long_bytes import difference

# without `models.base`, which checks shapes itself and whose errors are tested
shapes.check("codec.nn", "codec.models.causal")

sys.dont_write_bytecode = False  # otherwise each worker of each run rewrites all assertions, half of its start
gc.disable()  # until all tests are collected: what collection makes stays, and looking for garbage took a quarter of it

settings.register_profile("fixed", deadline=None, derandomize=True)  # so that a commit passes each time or never
settings.register_profile("random", deadline=None, max_examples=1000)
settings.load_profile("fixed")


SLOW = {
    "test_shipped_weights.py",
    "test_tools.py",
    "test_parallel.py",
    "test_examples.py",
    "datasets/test_recipes.py",
    "recipes/test_recipes.py",
    "training/codec/test_task.py",
    "training/lm/test_task.py",
    "training/test_distributed.py",
    "training/test_engine.py",
    "training/codec/test_dry_run.py",
    "training/codec/test_crops.py",
    "nn/test_compiled.py",
    "evaluation/test_lm.py",
    "cli/test_train.py",
}
"""Files whose tests train, start processes or run the shipped models."""


FIRST = {
    "test_shipped_weights.py",
    "training/test_distributed.py",
    "export/test_browser.py",
    "export/test_onnx.py",
    "export/test_onnx_lm.py",
    "export/test_page.py",
}
"""Files with a fixture that takes many seconds. They and the tests on Ray run first, because what one worker of xdist
takes over from another is from the end of its list: so each fixture is made in one worker."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    folder = Path(__file__).parent
    names = {
        path: path.relative_to(folder).as_posix() for path in {item.path for item in items} if folder in path.parents
    }
    for item in items:
        is_long = item.get_closest_marker("nightly") or "ray_cluster" in getattr(item, "fixturenames", ())
        if is_long or names.get(item.path) in SLOW:
            item.add_marker(pytest.mark.slow)
    items.sort(
        key=lambda item: names.get(item.path) not in FIRST and "ray_cluster" not in getattr(item, "fixturenames", ())
    )


def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    """One line for long bytes that differ, instead of all of them."""
    lines = difference(left, right) if op == "==" else None
    return ["long bytes differ", *lines] if lines else None


def pytest_collection_finish() -> None:
    gc.freeze()  # so that later passes do not visit what was imported
    gc.enable()


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """Start a Ray cluster on this machine and yield its address; skip if Ray is not installed."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray warns of its imports and of files it does not close
        ray = pytest.importorskip("ray")
        pytest.importorskip("ray.data")
        ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
        yield ray.get_runtime_context().gcs_address
        ray.shutdown()


@pytest.fixture(scope="module")
def without_drawing() -> Iterator[None]:
    """Training runs log empty pictures, because drawing one takes longer than ten steps; tests of the logger draw."""
    from codec.training import logger

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logger, "draw_spectrograms", lambda panels, sample_rate: np.zeros((1, 1, 3), np.uint8))
        yield


@pytest.fixture
def forked_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker processes of `codec.parallel` have torch imported; tests of one module start new interpreters."""
    from codec import parallel
    from tests.helpers import processes

    monkeypatch.setattr(parallel, "get_context", lambda method: processes.context())


@pytest.fixture(params=["SIGINT", "SIGTERM", "SIGHUP"])
def interrupt(request: pytest.FixtureRequest) -> Iterator[signal.Signals]:
    """A signal that stops a training run; its handler is reset where nohup ignores it."""
    number = signal.Signals[request.param]
    before = signal.getsignal(number)
    if before is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)
    yield number
    signal.signal(number, before)
