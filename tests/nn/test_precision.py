"""Settings of reduced precision are off inside `full_float32`, and as before after the last call in progress."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from codec.nn.precision import full_float32

if not hasattr(torch.backends, "fp32_precision"):
    pytest.skip("a torch before 2.9 has other settings", allow_module_level=True)

BACKENDS: Any = torch.backends
CPU = BACKENDS.mkldnn
CUDA = BACKENDS.cuda.matmul, BACKENDS.cudnn.conv


@pytest.fixture(autouse=True)
def reduced() -> Iterator[None]:
    before = [each.fp32_precision for each in CUDA]
    CPU.matmul.fp32_precision = "bf16"
    for each in CUDA:
        each.fp32_precision = "tf32"
    yield
    CPU.matmul.fp32_precision = "none"
    for each, value in zip(CUDA, before, strict=True):
        each.fp32_precision = value


def test_calls_overlap() -> None:
    first, second = full_float32("cpu"), full_float32("cpu")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert CPU.matmul.fp32_precision == "ieee"  # the second call is still in progress
    second.__exit__(None, None, None)
    assert CPU.matmul.fp32_precision == "bf16"


def test_errors_restore_the_settings() -> None:
    def fail() -> None:
        with full_float32("cuda"):
            assert {each.fp32_precision for each in CUDA} <= {"ieee", "none"}
            assert CPU.matmul.fp32_precision == "bf16"
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail()
    assert {each.fp32_precision for each in CUDA} == {"tf32"}


def test_other_devices_have_no_settings() -> None:
    with full_float32("meta"):
        assert CPU.matmul.fp32_precision == "bf16"


@pytest.mark.parametrize("value", ["high", "medium"])
def test_old_settings_can_be_read_inside(value: str) -> None:
    """As compiled modules do; torch refuses it where an old and a new setting contradict each other."""
    torch.set_float32_matmul_precision(value)
    torch.backends.cudnn.allow_tf32 = True
    try:
        with full_float32("cuda"):
            assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("highest", False)
            assert not torch.backends.cuda.matmul.allow_tf32
        with full_float32("cpu"):
            assert CPU.matmul.fp32_precision == "ieee"
            assert torch.get_float32_matmul_precision() == value
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == (value, True)
        assert {each.fp32_precision for each in CUDA} == {"tf32"}
    finally:
        torch.set_float32_matmul_precision("highest")
