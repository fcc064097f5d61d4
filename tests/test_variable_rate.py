"""variable_rate.py: codebooks go to the frames that need them, streams equal files, and the cheapest path is found."""

from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray

from codec.compression import compress, decompress
from codec.errors import UnsupportedAudio, UsageError
from codec.exchange import export_codes
from codec.io import bitstream, entropy
from codec.io.audio import read_audio
from codec.reading import open as open_codec
from codec.transcoding import concat, transcode
from codec.variable_rate import VariableRate, cheapest_path
from tests.helpers.trial_family import trial_model
from tests.tiny import tiny_model

MODEL = tiny_model()
RATE = 8000


def signal(seconds: float = 3.0, seed: int = 0) -> NDArray[np.float32]:
    """Noise, of which the middle third is 40 dB softer."""
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * RATE))
    noise[len(noise) // 3 : 2 * len(noise) // 3] *= 0.01
    return noise.astype(np.float32)


def coded(audio: NDArray[np.float32], *, quality: float = 2.0, cut: int = 100_000, batch: int = 1) -> Any:
    rate = VariableRate(MODEL, quality=quality, num_codebooks=3, batch=batch)
    rows = audio.reshape(batch, 1, -1)
    parts = [rate.push(rows[:, :, first : first + cut]) for first in range(0, rows.shape[2], cut)]
    return torch.cat([*parts, rate.flush()], dim=2).numpy()


@pytest.mark.slow
@pytest.mark.parametrize("cut", [1, 700, 8000, 8080, 20_000])
def test_pieces_give_the_codes_of_the_whole(cut: int) -> None:
    audio = signal(0.2 if cut == 1 else 3.0)
    whole = coded(audio)
    np.testing.assert_array_equal(coded(audio, cut=cut), whole)
    assert whole.shape[2] == MODEL.frame_spec.frames(len(audio))


def test_the_codes_of_a_frame_are_those_of_its_number_of_codebooks() -> None:
    audio = signal()
    found = coded(audio)
    counts = (found >= 0).sum(axis=1)[0]
    assert set(counts) == {2, 3}
    for number in (2, 3):
        constant = MODEL.encode(torch.from_numpy(audio)[None, None], num_codebooks=number).numpy()
        np.testing.assert_array_equal(found[:, :number, counts == number], constant[:, :, counts == number])


def test_soft_frames_and_a_lower_quality_take_fewer_codebooks() -> None:
    counts = (coded(signal()) >= 0).sum(axis=1)[0]
    assert counts[:90].mean() > counts[110:190].mean() + 0.2
    assert counts[210:].mean() > counts[110:190].mean() + 0.2
    means = [float((coded(signal(), quality=quality) >= 0).sum(axis=1).mean()) for quality in (1.0, 2.0, 3.0)]
    assert means == sorted(means)
    assert means[0] < means[-1]


def test_rows_are_those_of_signals_beside_one_another() -> None:
    """A soft channel is masked by a loud one, so the loudness of both is that of the louder one."""
    audio = signal()
    both = coded(np.stack([audio, audio]), batch=2)
    np.testing.assert_array_equal(both[0], both[1])
    np.testing.assert_array_equal(both[:1], coded(audio))


def test_silence() -> None:
    assert ((coded(np.zeros(RATE, np.float32)) >= 0).sum(axis=1) == 2).all()


@pytest.mark.parametrize("seed", range(5))
def test_the_path_is_the_cheapest_of_all(seed: int) -> None:
    random = np.random.default_rng(seed)
    costs, switch = random.uniform(0, 1, (3, 6)), 0.3
    for before in (None, 1):

        def price(path: Any, before: int | None = before) -> float:
            changes = sum(one != other for one, other in pairwise(path if before is None else (before, *path)))
            return float(costs[path, range(6)].sum() + switch * changes)

        best = min(map(list, product(range(3), repeat=6)), key=price)
        assert cheapest_path(costs, switch, before).tolist() == best


@pytest.mark.parametrize("quality", [0.0, 4.0, float("nan")])
def test_a_quality_that_does_not_exist_is_refused(quality: float) -> None:
    with pytest.raises(UsageError, match=r"--vbr .*: use 1 to 3"):
        VariableRate(MODEL, quality=quality, num_codebooks=3, batch=1)


def test_a_model_with_one_number_of_codebooks_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", signal(), RATE)
    with pytest.raises(UsageError, match="leave --vbr out"):
        compress(tmp_path / "a.wav", tmp_path / "a.codec", model=trial_model(), vbr=2)
    assert not (tmp_path / "a.codec").exists()


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["none", "adaptive"])
def test_files(tmp_path: Path, choice: entropy.Choice) -> None:
    """Stereo; parts, joined files and files with fewer codebooks are those of constant rate."""
    source = tmp_path / "a.wav"
    soundfile.write(source, np.stack([signal(), 0.5 * signal(seed=1)], axis=1), RATE)
    path = tmp_path / "a.codec"
    constant = compress(source, tmp_path / "b.codec", model=MODEL, packet=0.5, entropy=choice)
    report = compress(source, path, model=MODEL, vbr=2, packet=0.5, entropy=choice, verify=True)
    assert report.compressed_bytes < constant.compressed_bytes
    with bitstream.open_reader(path) as reader:
        assert reader.check() == []
        assert {packet.varying for packet in reader.coded()} >= {True}
        codes = np.concatenate([np.pad(one, ((0, 0), (0, 3 - one.shape[1]), (0, 0)), constant_values=-1)
                                for one in reader.packets()], axis=2)  # fmt: skip
    assert set((codes >= 0).sum(axis=1).ravel()) == {2, 3}
    decompress(path, tmp_path / "out.wav", model=MODEL, subtype="FLOAT")
    decoded = read_audio(tmp_path / "out.wav")[0]
    expected = MODEL.decode(torch.from_numpy(codes))[:, 0, : decoded.shape[1]].numpy()
    np.testing.assert_allclose(decoded, expected, atol=1e-5)
    np.testing.assert_allclose(open_codec(path, model=MODEL)[9000:17_000], decoded[:, 9000:17_000], atol=1e-5)
    compress(source, tmp_path / "two.codec", model=MODEL, num_codebooks=2, packet=0.5, entropy="adaptive")
    transcode(path, tmp_path / "thin.codec", num_codebooks=1)
    with bitstream.open_reader(tmp_path / "thin.codec") as reader:
        thin = np.concatenate(list(reader.packets()), axis=2)
    np.testing.assert_array_equal(thin, codes[:, :1])
    transcode(path, tmp_path / "cut.codec", start=0.25)
    concat([path, tmp_path / "cut.codec"], tmp_path / "both.codec")
    with bitstream.open_reader(tmp_path / "both.codec") as reader:
        assert reader.check() == []
    with pytest.raises(UnsupportedAudio, match="different numbers of codebooks"):
        export_codes(path, tmp_path / "a.npy")
