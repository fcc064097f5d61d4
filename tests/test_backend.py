"""backend.py"""

import platform
import subprocess
import sys

import pytest

from codec.backend import VARIABLE, may_compile
from codec.errors import UsageError


def test_loops_are_compiled_unless_torch_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE)
    assert may_compile()
    monkeypatch.setenv(VARIABLE, "auto")
    assert may_compile()
    monkeypatch.setenv(VARIABLE, "torch")
    assert not may_compile()


def test_an_unknown_backend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "tensorflow")
    with pytest.raises(UsageError, match=r"CODEC_BACKEND is 'tensorflow': set it to auto or torch"):
        may_compile()


FAULTS = """
import resource
import torch
from codec.backend import keep_freed_memory

keep_freed_memory()
for _ in range(10):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(1 << 20) for _ in range(6)]
    del tensors
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have other thresholds")
def test_freed_memory_is_used_again_without_page_faults() -> None:
    """After some rounds; without `keep_freed_memory`, about every second run has 6 000 faults in each round."""
    found = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    assert all(int(faults) < 10 for faults in found.stdout.split()[7:])
