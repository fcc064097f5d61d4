"""For all tests: shapes in signatures are checked while they run, and no example has a deadline on a busy machine."""

import os
import signal
import warnings
from collections.abc import Iterator

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

# `models.base` checks the shapes users give by itself, with errors of its own, and is tested for them.
install_import_hook(["codec.nn", "codec.models.causal"], "beartype.beartype")

settings.register_profile("tests", deadline=None)
settings.load_profile("tests")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """A Ray cluster of this machine, by its address; skips where Ray is not installed."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own, of its imports and of files it leaves to the collector
        ray = pytest.importorskip("ray")
        pytest.importorskip("ray.data")
        ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
        yield ray.get_runtime_context().gcs_address
        ray.shutdown()


@pytest.fixture(params=["SIGINT", "SIGTERM", "SIGHUP"])
def interrupt(request: pytest.FixtureRequest) -> Iterator[signal.Signals]:
    """A signal that stops a training; heard also where nohup has it ignored."""
    number = signal.Signals[request.param]
    before = signal.getsignal(number)
    if before is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)
    yield number
    signal.signal(number, before)
