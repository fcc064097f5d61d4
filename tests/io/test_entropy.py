"""io/entropy.py against large integers, the information content, and every payload that is not one of its own."""

import io
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from threadpoolctl import threadpool_limits

from codec.checkpoint import CodecCard
from codec.errors import UnsupportedAudio
from codec.io import bitstream, codebook_ends, entropy, entropy_model
from codec.io.bitstream import Header, Reader, Writer
from codec.io.entropy import ADAPTIVE, MAX_ADAPTIVE, MAX_MODELED, MODEL, NONE, START_FRAMES
from codec.io.entropy_files import SUFFIX
from codec.io.entropy_files import shipped as shipped_networks
from codec.io.entropy_model import EntropyModel, FramePredictor, Linear, PacketPredictor
from codec.io.range_coder import RangeDecoder, RangeEncoder
from codec.pretrained import shipped
from tests.helpers.entropy import codes_of, force_coder, random_tensors, thinned
from tests.helpers.memory import peak_memory

NETWORK = EntropyModel(random_tensors())
GOLDEN = bytes.fromhex("af9c3f4cdd8645d172944048039de2")
SIZES = st.lists(st.sampled_from([2, 3, 8, 1000, 1024, 1 << 16]), min_size=1, max_size=5)


KINDS = st.sampled_from(["random", "constant", "runs", "rows", "few"])


@given(kind=KINDS, sizes=SIZES, rows=st.integers(1, 3), frames=st.integers(1, 60), seed=st.integers(0, 99))
@example(kind="constant", sizes=[1 << 16, 2], rows=1, frames=1, seed=0)
@settings(max_examples=60)
def test_codes_come_back_and_never_take_more_than_packed(
    kind: str, sizes: list[int], rows: int, frames: int, seed: int
) -> None:
    codes = codes_of(kind, sizes, rows=rows, frames=frames, seed=seed)
    coder, payload = entropy.encode(codes, sizes)
    assert len(payload) <= entropy.bytes_for(sizes, rows * frames)
    decoded = entropy.decode(coder, payload, sizes, rows=rows, frames=frames)
    assert decoded.dtype == np.int64
    np.testing.assert_array_equal(decoded, codes)
    forced = entropy.encode_adaptive(codes, sizes)  # not only where it is smaller
    np.testing.assert_array_equal(entropy.decode_adaptive(forced, sizes, rows=rows, frames=frames), codes)


@given(kind=KINDS, sizes=SIZES, rows=st.integers(1, 3), frames=st.integers(1, 40), seed=st.integers(0, 99))
@settings(max_examples=40)
def test_frames_with_different_numbers_of_codebooks_come_back(
    kind: str, sizes: list[int], rows: int, frames: int, seed: int
) -> None:
    codes = thinned(codes_of(kind, sizes, rows=rows, frames=frames, seed=seed), seed)
    shape: Any = {"rows": rows, "frames": frames, "varying": True}
    packed = entropy.pack_varying(codes, sizes)
    counts = (codes >= 0).sum(axis=1).T
    for number, payload in ((NONE, packed), (ADAPTIVE, entropy.encode_adaptive(codes, sizes))):
        if entropy.varies(codes):
            found = entropy.codebook_counts(number, payload, len(sizes), rows=rows, frames=frames)
            np.testing.assert_array_equal(found, counts)
    np.testing.assert_array_equal(entropy.decode(NONE, packed, sizes, **shape), codes)
    bits = (
        rows * frames * entropy.bits(len(sizes)),
        sum(entropy.bits(size) * int((codes[:, codebook] >= 0).sum()) for codebook, size in enumerate(sizes)),
    )
    assert len(packed) == -(-bits[0] // 8) - (-bits[1] // 8)
    encoder = RangeEncoder()  # with the numbers even where they are all the same
    passed = entropy._pass_counts(encoder, counts.tolist(), len(sizes))
    entropy._pass_codebooks(encoder, codes.transpose(1, 2, 0).tolist(), sizes, passed, None, ())
    np.testing.assert_array_equal(entropy.decode_adaptive(encoder.finish()[0], sizes, **shape), codes)
    if entropy.varies(codes):
        chosen, payload = entropy.encode(codes, sizes)
        np.testing.assert_array_equal(entropy.decode(chosen, payload, sizes, **shape), codes)
    for wrong in (packed + b"\0", packed[:-1]):
        with pytest.raises(ValueError, match="bytes of codes"):
            entropy.decode(NONE, wrong, sizes, **shape)


MANY = entropy_model.EntropyModel(random_tensors((20, 30, 2, *[7] * 10)))


@given(
    kind=KINDS, model=st.sampled_from([None, MANY]), rows=st.integers(1, 2), count=st.integers(2, 13),
    frames=st.integers(1, 12), varying=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
@example(kind="runs", model=MANY, rows=2, count=13, frames=12, varying=False, seed=1)
@example(kind="random", model=MANY, rows=2, count=13, frames=12, varying=True, seed=1)
@example(kind="random", model=MANY, rows=2, count=11, frames=10, varying=False, seed=88)  # the last end lies further on
@settings(max_examples=30)
def test_payloads_with_ends_are_cut_after_any_codebook(
    kind: str, model: EntropyModel | None, rows: int, count: int, frames: int, varying: bool, seed: int
) -> None:
    codes = codes_of(kind, list(MANY.sizes[:count]), rows=rows, frames=frames, seed=seed)
    codes = thinned(codes, seed) if varying else codes
    varying = entropy.varies(codes)
    payload = entropy.encode_adaptive(codes, MANY.sizes[:count], model, with_ends=True)
    assert payload.endswith(entropy.encode_adaptive(codes, MANY.sizes[:count], model))
    shape: Any = {"rows": rows, "frames": frames, "with_ends": True}
    coder = RangeEncoder()
    entropy.pass_codes(coder, codes, MANY.sizes[:count], model)
    ends, step = coder.finish()[1], 8 + len(payload) // 128

    def cut(payload: bytes, count: int, kept: int) -> bytes:
        return entropy.thinned(MODEL, payload, count, kept, rows=rows, frames=frames, varying=varying)

    for kept in range(1, count + 1):
        more = min(kept + 2, count)
        once, twice = cut(payload, count, kept), cut(cut(payload, count, more), more, kept)
        for thinner in (once, twice):
            decoded = entropy.decode_adaptive(thinner, MANY.sizes[:kept], model=model, varying=varying, **shape)
            np.testing.assert_array_equal(decoded, codes[:, :kept])
            if varying:
                counts = entropy.codebook_counts(entropy.ADAPTIVE, thinner, kept, **shape)
                np.testing.assert_array_equal(counts, (codes[:, :kept] >= 0).sum(axis=1).T)
        data = len(once) - codebook_ends.stated(once, kept, varying=varying).size
        assert data >= ends[kept - 1]
        if kept != count - 1:  # the last end may lie further on, because its number fills up a byte
            assert data < ends[kept - 1] + step
    assert cut(payload, count, count + 1) == payload


@pytest.mark.parametrize("frames", [70, 1000])
def test_codebooks_that_a_packet_states_as_left_out_are_limited(frames: int) -> None:
    """Their numbers take time: 70 frames of 1000 codebooks are more than a packet by these coders has."""
    payload, message = b"\xff" * 124 + b"\xfe" + bytes(40), rf"1 x 1000 x {frames} codes: more than"
    with pytest.raises(ValueError, match=message):
        entropy.decode_adaptive(payload, [8], rows=1, frames=frames, varying=True, with_ends=True)
    with pytest.raises(ValueError, match=message):
        entropy.codebook_counts(MODEL, payload, 1, rows=1, frames=frames, with_ends=True)


@pytest.mark.parametrize("kind", ["random", "runs", "rows", "few"])
def test_frames_with_different_numbers_of_codebooks_by_the_network(kind: str) -> None:
    codes = thinned(codes_of(kind, list(NETWORK.sizes), rows=2, frames=40, seed=1), 1)
    payload = entropy.encode_adaptive(codes, NETWORK.sizes, NETWORK)
    decoded = entropy.decode_adaptive(payload, NETWORK.sizes, rows=2, frames=40, model=NETWORK, varying=True)
    np.testing.assert_array_equal(decoded, codes)


@pytest.mark.slow
@given(
    values=st.lists(
        st.integers(1, 1 << 32).flatmap(lambda total: st.tuples(st.integers(0, total - 1), st.just(total))), max_size=40
    )
)
@example(values=[((1 << 32) - 1, 1 << 32)] * 40)  # carries, and runs of bytes 255
@example(values=[(0, 1 << 32)] * 40)
def test_the_range_coder_is_arithmetic_with_large_integers(values: list[tuple[int, int]]) -> None:
    encoder = RangeEncoder()
    low, width, shifts = 0, 1 << 48, 0  # `low` keeps all its bytes, so that it needs no carries
    for value, total in values:
        encoder.uniform(value, total)
        low, width = low + value * (width // total), width // total
        while width < 1 << 40:
            low, width, shifts = low << 8, width << 8, shifts + 1
    payload, _ = encoder.finish()
    assert len(payload) in (shifts, shifts + 1)
    assert low <= int.from_bytes(payload.ljust(shifts + 6, b"\0"), "big") < low + width
    decoder = RangeDecoder(payload)
    assert [decoder.uniform(0, total) for _, total in values] == [value for value, _ in values]
    decoder.finish()
    assert 8 * len(payload) <= sum(math.log2(total) for _, total in values) * 1.001 + 9


def test_the_size_is_the_information_content() -> None:
    generator = np.random.default_rng(3)
    counts = {0: 1, 1: 5, 2: 30, 3: 220}
    values = generator.choice(4, 3000, p=np.array(list(counts.values())) / 256)
    encoder = RangeEncoder()
    for value in values:
        encoder.among(counts, int(value))
    content = sum(-math.log2(counts[int(value)] / 256) for value in values)
    assert content - 8 < 8 * len(encoder.finish()[0]) < content + 9


def test_constant_codes_cost_almost_nothing() -> None:
    codes = np.full((2, 12, 50), 700)
    coder, payload = entropy.encode(codes, [1024] * 12)
    assert coder == ADAPTIVE
    assert len(payload) < 12 * 10 / 8 + 13  # one frame of one row, and the answers: 1 % of 1500 bytes each
    assert entropy.encode(codes, [1024] * 12, coder=NONE)[0] == NONE


def test_random_codes_are_packed() -> None:
    codes = codes_of("random", [1024] * 12, rows=1, frames=50, seed=1)
    assert entropy.encode(codes, [1024] * 12) == (NONE, entropy.pack(codes, [1024] * 12))


def test_the_payload_of_this_release_is_that_of_every_release() -> None:
    codes = codes_of("runs", [8, 1000], rows=2, frames=20, seed=5)
    payload = entropy.encode_adaptive(codes, [8, 1000])
    assert payload == GOLDEN
    np.testing.assert_array_equal(entropy.decode_adaptive(GOLDEN, [8, 1000], rows=2, frames=20), codes)


@given(kind=KINDS, rows=st.integers(1, 2), count=st.integers(1, 3), frames=st.integers(1, 20), seed=st.integers(0, 99))
@settings(max_examples=30)
def test_codes_come_back_by_the_network(kind: str, rows: int, count: int, frames: int, seed: int) -> None:
    sizes = NETWORK.sizes[:count]
    codes = codes_of(kind, list(sizes), rows=rows, frames=frames, seed=seed)
    payload = entropy.encode_adaptive(codes, sizes, NETWORK)
    decoded = entropy.decode(MODEL, payload, sizes, rows=rows, frames=frames, model=NETWORK)
    np.testing.assert_array_equal(decoded, codes)


@pytest.mark.slow
@given(
    kind=KINDS, rows=st.integers(1, 2), cuts=st.sets(st.integers(1, 39), max_size=5), varying=st.booleans(),
    seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=30)
def test_packets_are_coded_in_pieces_as_at_once(kind: str, rows: int, cuts: set[int], varying: bool, seed: int) -> None:
    """However their frames arrive, packet after packet, and if the last ones are given up."""
    codes = codes_of(kind, list(NETWORK.sizes), rows=rows, frames=40, seed=seed)
    codes = thinned(codes, seed) if varying else codes
    for with_ends in (False, True):
        encoder = entropy.PacketEncoder(NETWORK.sizes, model=NETWORK, with_ends=with_ends)
        for end in (40, 23, 40):
            for cut in sorted(cuts):
                encoder.advance(codes[:, :, :cut])
            part = codes[:, :, :end]
            at_once = entropy.PacketEncoder(NETWORK.sizes, model=NETWORK, with_ends=with_ends)
            assert encoder.finish(part) == at_once.finish(part)
            with_model = entropy.encode_adaptive(part, NETWORK.sizes, NETWORK, with_ends=encoder.has_ends(part))
            if not varying:
                modeled = entropy._Modeled(NETWORK, rows, len(NETWORK.sizes))
                for cut in sorted(cut for cut in cuts if cut < end):
                    modeled.advance(part[:, :, : cut + 2], min(cut, end))
                modeled.advance(part, end)
                assert entropy._finished(modeled.finish(), part, with_ends=with_ends) == with_model


def test_many_rows_share_what_the_network_takes_for_one() -> None:
    network = entropy_model.EntropyModel(load_file(next(iter(shipped_networks().values()))))
    size = network.sizes[0]
    codes = np.arange(200 * 2).reshape(200, 1, 2) * 7 % size
    payload = entropy.encode_adaptive(codes, [size], network)

    def decode() -> None:
        decoded = entropy.decode(MODEL, payload, [size], rows=200, frames=2, model=network)
        np.testing.assert_array_equal(decoded, codes)

    assert peak_memory(decode) < 1 << 24


def test_the_network_gives_the_same_frequencies_frame_by_frame_in_any_arithmetic(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    codes = codes_of("random", list(MANY.sizes), rows=1, frames=150, seed=8)[0]
    codes[1:, 7:9] = codes[3:, 12] = -1
    first, last = 9, 140
    whole, part = PacketPredictor(MANY, codes), PacketPredictor(MANY, codes[:, : last + 2], first, last)
    single = FramePredictor(MANY, codes.shape[1])
    with monkeypatch.context() as patch:
        patch.setattr(Linear, "products", of_integers)
        exact = all_frequencies(codes)
    with monkeypatch.context() as patch:
        patch.setattr(Linear, "products", of_torch)
        torch_sums = all_frequencies(codes)
    for codebook, row in enumerate(codes):
        for predictor in (whole, part, single):
            predictor.begin_codebook()
        for frame, code in enumerate(row):
            expected = whole.frequencies(frame)
            np.testing.assert_array_equal(exact[codebook][frame], expected)
            np.testing.assert_array_equal(torch_sums[codebook][frame], expected)
            np.testing.assert_array_equal(single.frequencies(frame), expected)
            if first <= frame < last:
                np.testing.assert_array_equal(part.frequencies(frame), expected)
            single.push(frame, int(code))


def all_frequencies(codes: entropy.Codes) -> list[list[entropy_model.Frequencies]]:
    """Of codes [codebooks, frames], [codebooks][frames]."""
    predictor, found = PacketPredictor(MANY, codes), []
    for _ in codes:
        predictor.begin_codebook()
        found.append([predictor.frequencies(frame) for frame in range(codes.shape[1])])
    return found


def of_integers(layer: Linear, x: entropy_model.Floats, *, last: bool = False) -> entropy_model.Floats:
    sums: entropy_model.Floats = (x.astype(np.int64) @ used_weight(layer, x, last=last) * layer.unit).astype(np.float32)
    return sums


def of_torch(layer: Linear, x: entropy_model.Floats, *, last: bool = False) -> entropy_model.Floats:
    """In another order of summation."""
    order = np.random.default_rng(0).permutation(x.shape[-1])
    weight = torch.from_numpy(used_weight(layer, x, last=last)[order]).float()
    sums: entropy_model.Floats = (torch.from_numpy(x[..., order]) @ weight * float(layer.unit)).numpy()
    return sums


def used_weight(layer: Linear, x: entropy_model.Floats, *, last: bool) -> entropy.Codes:
    """The weight [inputs, outputs] of inputs x [..., inputs]."""
    weight = layer.weight.T.astype(np.int64)
    return weight[len(weight) - x.shape[-1] :] if last else weight[: x.shape[-1]]


def run_of(codes: list[int], entry: int) -> int:
    """How many codes at the end are this entry."""
    return next((length for length, code in enumerate(reversed(codes)) if code != entry), len(codes))


def test_frequencies_grow_with_what_occurred() -> None:
    """By the words of the file format, from the beginning of a packet for each frame."""
    generator = np.random.default_rng(0)
    gains, grow = generator.integers(0, 49, 6).tolist(), np.rint(256 * np.exp(np.arange(145) / 16)).astype(int).tolist()
    codes, lower = generator.integers(-1, 4, 150).tolist(), generator.integers(0, 3, 150).tolist()
    occurred = entropy._Occurred(5, gains, grow)
    for frame, code in enumerate(codes):
        frequencies = generator.integers(1, 1 << 16, 5)
        expected = []
        for entry, frequency in enumerate(frequencies.tolist()):
            gain = 0
            if times := codes[max(0, frame - 64) : frame].count(entry):
                gain += gains[min(times, 3) - 1]
            run = run_of(codes[:frame], entry)
            if run in (1, 2):
                gain += gains[2 + run]
            followed = [old for old, of in zip(codes[:frame], lower, strict=False) if of == lower[frame] and old >= 0]
            if followed and followed[-1] == entry:
                gain += gains[5]
            expected.append(frequency * grow[gain] // 256)
        assert occurred.grown(frequencies, lower[frame]).tolist() == expected
        before = codes[frame - 1] if frame else -1
        assert (occurred.before, occurred.run) == (before, min(run_of(codes[:frame], before), 3) if before >= 0 else 0)
        occurred.push(code, lower[frame])


def test_live_packets_do_not_wait_for_coder_1_where_coder_2_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    mild = random_tensors()
    mild["shift"][:, 2] = 9
    network = EntropyModel(mild)
    codes = codes_of("constant", list(network.sizes), rows=1, frames=60, seed=0)
    assert entropy.PacketEncoder(network.sizes, model=network).finish(codes)[0] == ADAPTIVE
    live = entropy.PacketEncoder(network.sizes, model=network, is_live=True)
    assert live.finish(codes)[0] == MODEL
    wrong = entropy.PacketEncoder(NETWORK.sizes, model=NETWORK, is_live=True)  # takes more than coder 0
    assert wrong.finish(codes_of("rows", list(network.sizes), rows=2, frames=60, seed=0))[0] == ADAPTIVE
    assert entropy.PacketEncoder(network.sizes, is_live=True).finish(codes)[0] == ADAPTIVE


def test_threads_do_not_matter() -> None:
    codes = codes_of("random", list(NETWORK.sizes), rows=2, frames=30, seed=4)
    with threadpool_limits(1):
        payload = entropy.encode_adaptive(codes, NETWORK.sizes, NETWORK)
    with threadpool_limits(2):
        assert entropy.encode_adaptive(codes, NETWORK.sizes, NETWORK) == payload
        decoded = entropy.decode_adaptive(payload, NETWORK.sizes, rows=2, frames=30, model=NETWORK)
    np.testing.assert_array_equal(decoded, codes)


def test_a_network_whose_sums_may_not_be_exact_is_refused() -> None:
    tensors = random_tensors()
    tensors["weight_bias.1"][0] = 1 << 24
    with pytest.raises(ValueError, match="must stay below 16777216"):
        EntropyModel(tensors)


def test_codes_by_a_network_that_is_missing_ask_for_an_upgrade(monkeypatch: pytest.MonkeyPatch) -> None:
    header = Header(
        model="tiny",
        weights_hash="ab" * 32,
        source_rate=8000,
        channels=1,
        sample_rate=8000,
        hop=80,
        decoder_delay=80,
        codebook_sizes=NETWORK.sizes,
        frames_per_packet=20,
    )
    codes = codes_of("random", list(NETWORK.sizes), rows=1, frames=20, seed=0)
    monkeypatch.setattr(bitstream, "find_network", lambda weights_hash, sizes: NETWORK)
    force_coder(monkeypatch, MODEL)
    file = io.BytesIO()
    writer = Writer(file, header)
    writer.write(codes)
    writer.close(time=1500)
    reader = Reader(io.BytesIO(file.getvalue()), label="x.codec")
    assert reader.header.network == NETWORK.digest
    np.testing.assert_array_equal(next(reader.packets()), codes)
    monkeypatch.setattr(bitstream, "find_network", lambda weights_hash, sizes: None)
    with pytest.raises(UnsupportedAudio, match="coder 2: pass --model"):
        list(Reader(io.BytesIO(file.getvalue()), label="x.codec").packets())


def test_a_network_comes_back_from_its_file_whatever_the_order_of_its_arrays(tmp_path: Path) -> None:
    tensors = {name: np.asfortranarray(tensor) for name, tensor in random_tensors().items()}
    path = tmp_path / f"tiny{SUFFIX}"
    entropy_model.save(path, tensors, weights_hash="ab" * 32)
    assert entropy_model._load(path, 0)[1].digest == NETWORK.digest
    for name, tensor in entropy_model._load(path, 0)[1]._tensors.items():
        np.testing.assert_array_equal(tensor, tensors[name])


def test_shipped_networks_are_those_of_shipped_codecs() -> None:
    cards = {card.weights_hash: card for card in shipped() if isinstance(card, CodecCard)}
    networks = shipped_networks()
    assert set(networks) <= set(cards)
    for weights_hash, path in networks.items():
        assert path.name == cards[weights_hash].name + SUFFIX
        assert path.stat().st_size <= 5_500_000
        spec = cards[weights_hash].frame_spec
        found = entropy_model.find(weights_hash, (spec.codebook_size,) * spec.num_codebooks)
        assert found is not None
        assert len(found.digest) == 8


@given(payload=st.binary(max_size=200))
@settings(max_examples=30)
def test_any_bytes_give_codes_or_a_value_error_by_the_network(payload: bytes) -> None:
    with suppress(ValueError):
        codes = entropy.decode_adaptive(payload, NETWORK.sizes, rows=1, frames=9, model=NETWORK)
        assert ((codes >= 0) & (codes < np.array(NETWORK.sizes)[:, None])).all()


@given(payload=st.binary(max_size=200))
@settings(max_examples=100)
def test_any_bytes_give_codes_or_a_value_error(payload: bytes) -> None:
    try:
        codes = entropy.decode_adaptive(payload, [6, 1000], rows=2, frames=9)
    except ValueError:
        return
    assert ((codes >= 0) & (codes < np.array([6, 1000])[:, None])).all()


def test_frames_of_another_number_of_codebooks_than_the_only_one_are_refused() -> None:
    with pytest.raises(ValueError, match="no encoder writes"):
        entropy.decode_adaptive(b"\0" * 8, (2,), rows=1, frames=9, varying=True)


def test_a_payload_of_another_length_is_refused() -> None:
    codes = codes_of("runs", [1000] * 3, rows=1, frames=30, seed=2)
    payload = entropy.encode_adaptive(codes, [1000] * 3)
    for wrong in (payload + b"\1\1", payload[:-10]):
        with pytest.raises(ValueError, match=r"bytes of codes|no encoder writes"):
            entropy.decode_adaptive(wrong, [1000] * 3, rows=1, frames=30)


def test_large_packets_are_packed_because_others_take_seconds() -> None:
    frames = MAX_ADAPTIVE // 4 + 1
    assert entropy.encode(np.zeros((1, 4, frames), np.int64), [2] * 4)[0] == NONE
    with pytest.raises(ValueError, match="more than this coder takes"):
        entropy.decode(ADAPTIVE, b"", [2] * 4, rows=1, frames=frames)
    for rows, frames in ((1, MAX_MODELED // 3 - START_FRAMES + 1), (MAX_MODELED // 3 // (START_FRAMES + 1) + 1, 1)):
        codes = np.zeros((rows, 3, frames), np.int64)
        assert entropy.encode(codes, NETWORK.sizes, model=NETWORK)[0] == ADAPTIVE
        with pytest.raises(ValueError, match="more than this coder takes"):
            entropy.decode(MODEL, b"", NETWORK.sizes, rows=rows, frames=frames, model=NETWORK)
        assert entropy.is_modeled(rows, 2, frames)
