"""Codes from and to files of other projects."""

import contextlib
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import codec
from codec.checkpoint import save_model
from codec.errors import CodecError, DamagedFile, StorageError, UnsupportedAudio, UsageError
from codec.exchange import export_codes, import_codes
from codec.frames import FrameSpec
from codec.io.bitstream import open_reader
from codec.io.foreign_codes import read_codes
from codec.models.base import Codec, Encoded, split_scale
from codec.models.dac import DAC, DACConfig
from codec.models.encodec import EnCodec, EnCodecConfig, EnCodecSegments, EnCodecSegmentsConfig
from tests.helpers.checkpoints import scaled

SMALL: dict[str, Any] = {"filters": 2, "dim": 4, "num_codebooks": 3, "codebook_size": 1024}


def noise(*shape: int) -> Tensor:
    return 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def saved(folder: Path, model: Codec) -> Path:
    path = folder / "model.safetensors"
    save_model(path, scaled(model), training={})
    return path


@pytest.fixture(scope="module")
def mono(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("mono"), EnCodec(EnCodecConfig(**SMALL)))


@pytest.fixture(scope="module")
def stereo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = EnCodecSegmentsConfig(segment=4800, segment_stride=4752, **SMALL)
    return saved(tmp_path_factory.mktemp("stereo"), EnCodecSegments(config))


def ecdc(name: str, time: int, segments: Sequence[tuple[float | None, Tensor]], **changes: Any) -> bytes:
    """An .ecdc file as encodec describes it, with codes of 10 bits as one long number per segment."""
    facts = {"m": name, "al": time, "nc": segments[0][1].shape[0], "lm": False} | changes
    header = json.dumps(facts).encode()
    content = b"ECDC\x00" + struct.pack("!I", len(header)) + header
    for scale, codes in segments:
        content += b"" if scale is None else struct.pack("!f", scale)
        number = sum(code << 10 * place for place, code in enumerate(codes.T.flatten().tolist()))
        content += number.to_bytes(-(-codes.numel() * 10 // 8), "little")
    return content


def read_back(path: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any] | None, int]:
    with open_reader(path) as reader:
        parts = list(reader.packets_with_scale())
        scales = [scale for _, scale in parts if scale is not None]
        codes = np.concatenate([codes for codes, _ in parts], axis=2)
        return codes, np.concatenate(scales, axis=1) if scales else None, reader.header.time


@pytest.mark.slow
@pytest.mark.parametrize("time", [1, 320, 6720, 24_001])
def test_ecdc_files_become_codec_files(mono: Path, tmp_path: Path, time: int) -> None:
    net = codec.load(mono, "cpu")
    audio = noise(1, 1, time)
    codes = net.encode(audio, num_codebooks=2)
    (tmp_path / "a.ecdc").write_bytes(ecdc("encodec_24khz", time, [(None, codes[0])]))
    import_codes(tmp_path / "a.ecdc", tmp_path / "a.codec", model=mono)
    found, scale, found_time = read_back(tmp_path / "a.codec")
    assert np.array_equal(found, codes.numpy())
    assert (scale, found_time) == (None, time)
    codec.decode_file(tmp_path / "a.codec", tmp_path / "a.wav", model=mono)
    decoded, rate = soundfile.read(tmp_path / "a.wav", dtype="float32")
    assert rate == 24_000
    np.testing.assert_allclose(decoded, net.decode(codes, length=time)[0, 0].clamp(-1, 1).numpy(), atol=1e-3)


@pytest.mark.slow
def test_ecdc_files_of_segments_keep_their_scales(stereo: Path, tmp_path: Path) -> None:
    net = codec.load(stereo, "cpu")
    encoded = net.encode(noise(1, 2, 10_000))
    assert isinstance(encoded, Encoded)
    first, segments = 0, []
    for frames in net.frame_spec.segments(encoded.codes.shape[2]):
        segments.append((float(encoded.scale[0, first]), encoded.codes[0, :, first : first + frames]))
        first += frames
    assert len(segments) == 3
    (tmp_path / "a.ecdc").write_bytes(ecdc("encodec_48khz", 10_000, segments))
    import_codes(tmp_path / "a.ecdc", tmp_path / "a.codec", model=stereo)
    codes, scale, time = read_back(tmp_path / "a.codec")
    assert np.array_equal(codes, encoded.codes.numpy())
    assert scale is not None
    np.testing.assert_allclose(scale, encoded.scale.numpy(), rtol=1e-6)
    assert time == 10_000
    found = export_codes(tmp_path / "a.codec", tmp_path / "a.npz")
    arrays = np.load(tmp_path / "a.npz")
    assert np.array_equal(arrays["codes"], codes)
    assert np.array_equal(arrays["scale"], scale)
    assert found.time == 10_000
    again = import_codes(tmp_path / "a.npz", tmp_path / "b.codec", model=stereo, length=10_000)
    assert again.scale is not None
    assert (tmp_path / "b.codec").read_bytes() == (tmp_path / "a.codec").read_bytes()


@pytest.mark.parametrize("kind", ["npy", "uint16", "batch", "pt", "tuples", "dict"])
def test_arrays_become_codec_files_and_come_back(mono: Path, tmp_path: Path, kind: str) -> None:
    codes = codec.load(mono, "cpu").encode(noise(1, 1, 3200))
    path = tmp_path / ("a.npy" if kind in ("npy", "uint16", "batch") else "a.pt")
    match kind:
        case "npy":
            np.save(path, codes[0].numpy())
        case "uint16":
            np.save(path, codes[0].numpy().astype(np.uint16))
        case "batch":
            np.save(path, codes[None].numpy())
        case "pt":
            torch.save(codes, path)
        case "tuples":
            torch.save([(codes, None)], path)
        case "dict":
            torch.save({"audio_codes": codes[None]}, path)
    import_codes(path, tmp_path / "a.codec", model=mono)
    found, _, time = read_back(tmp_path / "a.codec")
    assert np.array_equal(found, codes.numpy())
    assert time == 3200
    export_codes(tmp_path / "a.codec", tmp_path / "back.npy")
    back = np.load(tmp_path / "back.npy")
    assert back.dtype == np.uint16
    assert np.array_equal(back, codes.numpy())


@pytest.mark.slow
def test_lengths_of_arrays(mono: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 3, 10), np.int32))
    import_codes(tmp_path / "a.npy", tmp_path / "a.codec", model=mono, length=3199)
    codes, _, time = read_back(tmp_path / "a.codec")
    assert codes.shape == (2, 3, 10)
    assert time == 3199
    with pytest.raises(UsageError, match="leave --length out"):
        import_codes(tmp_path / "a.npy", tmp_path / "b.codec", model=mono, length=2880)
    with pytest.raises(StorageError, match="--force"):
        import_codes(tmp_path / "a.npy", tmp_path / "a.codec", model=mono)


class Harmless:
    """Pickled by name, so reading it would import this module."""


@pytest.mark.slow
def test_bad_files_are_refused_in_one_line_and_nothing_is_written(mono: Path, tmp_path: Path) -> None:
    net = codec.load(mono, "cpu")
    codes = net.encode(noise(1, 1, 3200))[0]
    good = ecdc("encodec_24khz", 3200, [(None, codes)])
    np.save(tmp_path / "large.npy", np.full((3, 10), 1024))
    np.save(tmp_path / "more.npy", np.zeros((4, 10), int))
    np.save(tmp_path / "floats.npy", np.zeros((3, 10)))
    np.save(tmp_path / "objects.npy", np.array([Harmless()]), allow_pickle=True)
    np.save(tmp_path / "flat.npy", np.zeros(10, int))
    np.save(tmp_path / "two.npy", np.zeros((2, 2, 3, 10), int))
    torch.save(Harmless(), tmp_path / "object.pt")
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "a.dac").write_bytes(b"")
    bad = {
        "other.ecdc": (b"RIFF" + good[4:], DamagedFile, "does not begin as an .ecdc file"),
        "version.ecdc": (good[:4] + b"\x01" + good[5:], UnsupportedAudio, "version 1"),
        "early.ecdc": (good[:-1], DamagedFile, "ends early"),
        "late.ecdc": (good + b"\x00", DamagedFile, "more bytes"),
        "json.ecdc": (good.replace(b'"al"', b"'al'"), DamagedFile, "header is altered"),
        "lm.ecdc": (ecdc("encodec_24khz", 3200, [(None, codes)], lm=True), UnsupportedAudio, "entropy-coded"),
        "48.ecdc": (ecdc("encodec_48khz", 3200, [(None, codes)]), UnsupportedAudio, "pass its model"),
        "unknown.ecdc": (ecdc("other", 3200, [(None, codes)]), UnsupportedAudio, "known are encodec_24khz"),
        "endless.ecdc": (ecdc("encodec_24khz", 1 << 60, [(None, codes)]), DamagedFile, "ends early"),
        "floats.npy": (None, UnsupportedAudio, "give integers"),
        "flat.npy": (None, UnsupportedAudio, "give integers"),
        "two.npy": (None, UnsupportedAudio, r"give \[rows, codebooks, frames\]"),
        "objects.npy": (None, DamagedFile, "no array"),
        "object.pt": (None, UnsupportedAudio, "not executed"),
        "text.npy": (None, DamagedFile, "no array"),
        "a.xyz": (None, UnsupportedAudio, "not a file of codes"),
        "missing.npy": (None, CodecError, "No such file"),
    }
    for name, (content, error, words) in bad.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(error, match=words) as raised:
            read_codes(tmp_path / name, net.frame_spec)
        assert "\n" not in str(raised.value)
    for name, words in (("large.npy", "codes from 1024 to 1024"), ("more.npy", "4 codebooks")):
        with pytest.raises(UnsupportedAudio, match=words):
            import_codes(tmp_path / name, tmp_path / "out.codec", model=mono)
        assert not (tmp_path / "out.codec").exists()


def test_ecdc_of_segments_may_end_within_the_overlap(stereo: Path, tmp_path: Path) -> None:
    net = codec.load(stereo, "cpu")
    time = 4752 + 10
    codes, scale = split_scale(net.encode(noise(1, 2, time)))
    assert scale is not None
    sizes = net.frame_spec.segments(codes.shape[2])
    assert sizes == [15, 1]
    segments = [(float(scale[0, 0]), codes[0, :, :15]), (float(scale[0, 15]), codes[0, :, 15:])]
    (tmp_path / "a.ecdc").write_bytes(ecdc("encodec_48khz", time, segments))
    found = read_codes(tmp_path / "a.ecdc", net.frame_spec)
    assert np.array_equal(found.codes, codes.numpy())
    assert found.scale is not None
    np.testing.assert_allclose(found.scale, scale.numpy(), rtol=1e-6)


# .dac


@pytest.fixture(scope="module")
def dac(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = DACConfig(
        sample_rate=8000,
        hop=4,
        encoder_dim=2,
        decoder_dim=8,
        encoder_rates=(2, 2),
        decoder_rates=(2, 2),
        num_codebooks=3,
        codebook_size=16,
        codebook_dim=2,
    )
    return saved(tmp_path_factory.mktemp("dac"), DAC(config))


def dac_file(path: Path, codes: Tensor, **changes: Any) -> Path:
    """A file as descript-audio-codec writes it: a pickled dictionary in an .npy file."""
    facts = {
        "input_db": np.array([-23.5], np.float32),
        "original_length": 2 * 4 * codes.shape[-1],
        "sample_rate": 16000,
        "chunk_length": codes.shape[-1],
        "channels": codes.shape[0],
        "padding": True,
        "dac_version": "1.0.0",
    }
    with path.open("wb") as file:
        np.save(file, {"codes": codes.numpy().astype(np.uint16), "metadata": facts | changes})  # type: ignore[arg-type]
    return path


def test_dac_files_keep_codes_rate_and_length(dac: Path, tmp_path: Path) -> None:
    codes = torch.randint(16, (2, 3, 25))
    found = import_codes(dac_file(tmp_path / "a.dac", codes, original_length=199), tmp_path / "a.codec", model=dac)
    assert found.note == "the level was changed before encoding: the recording had -23.5 LUFS"
    with open_reader(tmp_path / "a.codec") as reader:
        assert (reader.header.source_rate, reader.header.channels, reader.header.time) == (16000, 2, 199)
        assert np.array_equal(np.concatenate(list(reader.packets()), axis=2), codes.numpy())
    codec.decode_file(tmp_path / "a.codec", tmp_path / "a.wav", model=dac)
    assert soundfile.info(tmp_path / "a.wav").frames == 199


@pytest.mark.slow
def test_dac_files_that_are_not_one_stream_or_not_what_they_say_are_refused(dac: Path, tmp_path: Path) -> None:
    codes = torch.randint(16, (1, 3, 25))
    path, target = tmp_path / "b.dac", tmp_path / "b.codec"
    with pytest.raises(UnsupportedAudio, match="windows of 10 frames"):
        import_codes(dac_file(path, codes, chunk_length=10, padding=False), target, model=dac)
    with pytest.raises(UnsupportedAudio, match="not executed"):
        import_codes(dac_file(path, codes, input_db=Path("harmless")), target, model=dac)
    with pytest.raises(DamagedFile):
        import_codes(dac_file(path, codes[0]), target, model=dac)
    path.write_bytes(dac_file(path, codes).read_bytes()[:-20])
    with pytest.raises(DamagedFile):
        import_codes(path, target, model=dac)
    path.write_bytes(b"no array")
    with pytest.raises(DamagedFile):
        import_codes(path, target, model=dac)
    assert not target.exists()


@pytest.mark.slow
@settings(max_examples=150)
@given(data=st.data())
def test_altered_files_of_codes_are_codec_errors(codes_files: dict[str, bytes], data: st.DataObject) -> None:
    """Bytes are cut off or replaced; what can still be read are codes."""
    suffix = data.draw(st.sampled_from(sorted(codes_files)))
    content = bytearray(codes_files[suffix])
    for _ in range(data.draw(st.integers(0, 3))):
        first = data.draw(st.integers(0, min(len(content), 500) - 1))
        content[first : first + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    content = content[: data.draw(st.integers(len(content) - 60, len(content)))]
    with TemporaryDirectory() as folder:
        path = Path(folder, "a" + suffix)
        path.write_bytes(content)
        with contextlib.suppress(CodecError):
            found = read_codes(path, FrameSpec(24000, 320, 0, 8, 1024))
            assert found.codes.ndim == 3


@pytest.fixture(scope="module")
def codes_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A file of codes of each kind, by its suffix."""
    folder = tmp_path_factory.mktemp("codes")
    codes = torch.randint(1024, (1, 8, 40), generator=torch.Generator().manual_seed(0))
    dac_file(folder / "a.dac", codes)
    torch.save({"codes": codes}, folder / "a.pt")
    torch.save({"codes": codes}, folder / "a.pth", _use_new_zipfile_serialization=False)
    np.save(folder / "a.npy", codes.numpy())
    np.savez_compressed(folder / "a.npz", codes=codes.numpy(), scale=np.ones((1, 40), np.float32))
    (folder / "a.ecdc").write_bytes(ecdc("encodec_24khz", 40 * 320, [(None, codes[0])]))
    return {path.suffix: path.read_bytes() for path in folder.iterdir()}


def test_an_array_of_a_dac_file_is_of_numbers(dac: Path, tmp_path: Path) -> None:
    """numpy's own unpickling of an altered type ended the process."""
    path = dac_file(tmp_path / "a.dac", torch.randint(16, (1, 3, 25)))
    for of in (b"O8", b"V2", b"S2"):
        path.write_bytes(path.read_bytes().replace(b"u2", of))
        with pytest.raises(DamagedFile):
            import_codes(path, tmp_path / "a.codec", model=dac)
