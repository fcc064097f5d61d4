"""backend.py"""

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
