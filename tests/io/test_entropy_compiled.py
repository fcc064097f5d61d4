"""io/entropy_compiled.py against the same coder in plain Python."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codec.backend import VARIABLE
from codec.io import entropy, entropy_compiled
from codec.io.entropy_model import FUTURE, EntropyModel, FramePredictor
from codec.io.range_coder import RangeDecoder
from tests.helpers.entropy import codes_of, random_tensors, thinned

pytestmark = pytest.mark.slow  # numba compiles for some seconds

SIZES = (20, 30, 2, *[7] * 10)
PLAIN, COMPILED = (EntropyModel(random_tensors(SIZES)) for _ in range(2))
KINDS = st.sampled_from(["random", "constant", "runs", "rows", "few"])


@pytest.fixture(scope="module", autouse=True)
def prepared() -> None:
    entropy_compiled.prepare(COMPILED)
    assert COMPILED.compiled
    assert PLAIN.compiled is None


@given(
    kind=KINDS, rows=st.integers(1, 3), count=st.integers(1, 13), frames=st.integers(1, 150), varying=st.booleans(),
    with_ends=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_compiled_loops_write_and_read_the_same_bytes(
    kind: str, rows: int, count: int, frames: int, varying: bool, with_ends: bool, seed: int
) -> None:
    codes = codes_of(kind, list(SIZES[:count]), rows=rows, frames=frames, seed=seed)
    codes = thinned(codes, seed) if varying else codes
    shape: Any = {"rows": rows, "frames": frames, "varying": entropy.varies(codes)}
    with_ends = with_ends and not entropy.varies(codes) and count > 1
    payload = entropy.encode_adaptive(codes, SIZES[:count], PLAIN, with_ends=with_ends)
    assert entropy.encode_adaptive(codes, SIZES[:count], COMPILED, with_ends=with_ends) == payload
    decoded = entropy.decode_adaptive(payload, SIZES[:count], model=COMPILED, with_ends=with_ends, **shape)
    np.testing.assert_array_equal(decoded, codes)


@given(kind=KINDS, rows=st.integers(1, 2), cuts=st.sets(st.integers(1, 99), max_size=6), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_compiled_loops_take_packets_in_pieces(kind: str, rows: int, cuts: set[int], seed: int) -> None:
    codes = codes_of(kind, list(SIZES), rows=rows, frames=100, seed=seed)
    modeled = entropy._Modeled(COMPILED, rows, len(SIZES))
    for cut in sorted(cuts):
        modeled.advance(codes[:, :, : cut + FUTURE], cut)
    modeled.advance(codes, 100)
    assert modeled.finish().finish()[0] == entropy.encode_adaptive(codes, SIZES, PLAIN)


@given(payload=st.binary(max_size=300), rows=st.integers(1, 2), frames=st.integers(1, 30))
@settings(max_examples=200, deadline=None)
def test_any_bytes_give_the_same_codes_or_error(payload: bytes, rows: int, frames: int) -> None:
    found: list[object] = []
    for model in (PLAIN, COMPILED):
        coder = RangeDecoder(payload)
        codes = [entropy._unknown(frames, rows) for _ in SIZES]
        predictors = [FramePredictor(model, frames) for _ in range(rows)]
        try:
            entropy._pass_codebooks(coder, codes, SIZES, None, model, predictors)
        except ValueError as error:
            found.append([str(error)])
        else:
            found.append([codes, coder.offset, coder.width, coder.shifts])
    assert found[0] == found[1]


def test_loops_are_compiled_after_many_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = codes_of("random", list(SIZES), rows=2, frames=10, seed=3)
    payload = entropy.encode_adaptive(codes, SIZES, PLAIN)
    monkeypatch.setattr(entropy, "_MOST_PLAIN", 3 * codes.size)
    for backend, packets in (("torch", 5), ("auto", 4)):
        monkeypatch.setenv(VARIABLE, backend)
        model = EntropyModel(random_tensors(SIZES))
        for _ in range(packets - 1):
            assert entropy.encode_adaptive(codes, SIZES, model) == payload
            assert model.compiled is None
        np.testing.assert_array_equal(entropy.decode_adaptive(payload, SIZES, rows=2, frames=10, model=model), codes)
        assert bool(model.compiled) == (backend == "auto")


def test_packets_of_many_rows_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = codes_of("random", list(SIZES[:2]), rows=9, frames=4, seed=5)
    monkeypatch.setattr(entropy_compiled, "_pass", None)
    payload = entropy.encode_adaptive(codes, SIZES[:2], COMPILED)
    assert payload == entropy.encode_adaptive(codes, SIZES[:2], PLAIN)
