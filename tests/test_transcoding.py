"""transcoding.py: on codes alone, against encoding and decoding."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from codec.compression import compress, decompress
from codec.errors import ConfigError, DamagedFile, StorageError, UsageError
from codec.io import bitstream
from codec.io.audio import read_audio
from codec.transcoding import concat, transcode
from tests.cli.conftest import Cli, cli  # noqa: F401
from tests.tiny import tiny_model

MODEL = tiny_model()
RATE = 11_025


def recording(path: Path, *, time: int = 2 * RATE, seed: int = 0, rate: int = RATE, **options: Any) -> Path:
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, time)
    soundfile.write(path.with_suffix(".wav"), noise, rate)
    compress(path.with_suffix(".wav"), path, model=MODEL, **options)
    return path


def decoded(path: Path) -> Any:
    decompress(path, path.with_suffix(".out.wav"), model=MODEL, subtype="FLOAT", force=True)
    return read_audio(path.with_suffix(".out.wav"))[0]


def codes(path: Path) -> Any:
    with bitstream.open_reader(path) as reader:
        return np.concatenate(list(reader.packets()), axis=2)


def test_fewer_codebooks_are_those_of_the_encoder(tmp_path: Path) -> None:
    source = recording(tmp_path / "all.codec")
    direct = recording(tmp_path / "two.codec", num_codebooks=2)
    header = transcode(source, tmp_path / "a.codec", num_codebooks=2)
    assert (header.num_codebooks, header.time) == (2, 2 * RATE)
    assert (tmp_path / "a.codec").read_bytes() == direct.read_bytes()
    transcode(source, tmp_path / "b.codec", bitrate=1.2)
    assert (tmp_path / "b.codec").read_bytes() == direct.read_bytes()
    transcode(source, tmp_path / "c.codec")
    assert (tmp_path / "c.codec").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("rate", [8000, 11_025])
@pytest.mark.parametrize(("start", "end"), [(0.0, 1.2), (0.5, None), (0.503, 1.2), (1.0, 99.0)])
def test_a_part(tmp_path: Path, rate: int, start: float, end: float | None) -> None:
    source = recording(tmp_path / "a.codec", rate=rate, time=2 * rate, packet=0.3)
    header = transcode(source, tmp_path / "part.codec", start=start, end=end)
    first = int(start * 100)
    begin = -(-first * rate // 100)
    assert header.time == min(2 * rate, round((end or 99) * rate)) - begin
    part, whole = decoded(tmp_path / "part.codec"), decoded(source)
    assert part.shape == (1, header.time)
    kept = codes(tmp_path / "part.codec")
    np.testing.assert_array_equal(kept, codes(source)[:, :, first : first + kept.shape[2]])
    if rate == 8000:
        warm = (MODEL.receptive_field().decoder.past + 1) * 80
        np.testing.assert_allclose(part[:, warm:], whole[:, begin + warm : begin + header.time], atol=1e-2)


def test_joined_recordings_follow_one_another(tmp_path: Path) -> None:
    one, two = (
        recording(tmp_path / "one.codec", rate=8000, time=9001),
        recording(tmp_path / "two.codec", rate=8000, time=5003, seed=1, num_codebooks=2),
    )
    header = concat([one, two], tmp_path / "both.codec")
    with bitstream.open_reader(one) as reader:
        begin = reader.header.frames * 80
    assert 9001 <= begin <= 9001 + 160
    assert header.time == begin + 5003
    both = decoded(tmp_path / "both.codec")
    assert both.shape == (1, header.time)
    np.testing.assert_array_equal(both[:, :9000], decoded(one)[:, :9000])
    warm = (MODEL.receptive_field().decoder.past + 1) * 80
    np.testing.assert_allclose(both[:, begin + warm :], decoded(two)[:, warm:], atol=1e-2)
    concat([one], tmp_path / "same.codec")
    np.testing.assert_array_equal(codes(tmp_path / "same.codec"), codes(one))


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    one, two = recording(tmp_path / "one.codec"), recording(tmp_path / "two.codec", rate=8000)
    with pytest.raises(UsageError, match=r"two\.codec has source_rate 8000, .*one\.codec has 11025"):
        concat([one, two], tmp_path / "x.codec")
    cases: list[tuple[dict[str, Any], type[Exception]]] = [
        ({"num_codebooks": 4}, UsageError),
        ({"num_codebooks": 1, "bitrate": 1.0}, UsageError),
        ({"bitrate": 0.1}, ConfigError),
        ({"start": 2.5}, UsageError),
        ({"start": -1.0}, UsageError),
        ({"start": 1.0, "end": 0.5}, UsageError),
        *(({key: value}, UsageError) for key in ("start", "end") for value in (math.nan, math.inf, 1e300)),
    ]
    for options, error in cases:
        with pytest.raises(error):
            transcode(one, tmp_path / "x.codec", **options)
    with pytest.raises(StorageError, match="--force"):
        transcode(one, two)
    before = one.read_bytes()
    for write in (partial(transcode, one, one, num_codebooks=1), partial(concat, [one, one], one)):
        with pytest.raises(UsageError, match="are the same file: name another output"):
            write(force=True)
    assert one.read_bytes() == before
    data = bytearray(one.read_bytes())
    data[len(data) // 2] ^= 1
    one.write_bytes(data)
    with pytest.raises(DamagedFile, match="packet"):
        transcode(one, tmp_path / "x.codec")
    with pytest.raises(DamagedFile, match="packet"):
        concat([one, one], tmp_path / "x.codec")
    assert not (tmp_path / "x.codec").exists()


def test_commands(cli: Cli, tmp_path: Path) -> None:  # noqa: F811
    recording(tmp_path / "here/a.codec")
    done = cli("transcode", "a.codec", "b.codec", "--codebooks", 1, "--end", 1)
    assert (done.code, done.out) == (0, b"")
    assert done.err == "a.codec -> b.codec: 1.00 s, 1 codebooks\n"
    joined = cli("concat", "a.codec", "b.codec", "-o", "c.codec")
    assert joined.code == 0
    assert joined.err.startswith("2 files -> c.codec: 3.0")
    assert cli("concat", "a.codec").code == 2
