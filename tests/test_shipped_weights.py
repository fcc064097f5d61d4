"""Signal checks of the shipped general-24k, with synthetic signals.

The bound of a figure is its aim in `signal_checks.AIMS`, or, if these weights miss the aim, the bound in `REACHED`: the
figure of these weights with some tolerance, so that a regression is noticed.
"""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from codec import pretrained
from codec.compression import compress, decompress
from codec.evaluation.signal_checks import AIMS, Aim, Result, check_all, synthetic_recordings, within
from codec.io.audio import resample
from codec.io.bitstream import open_reader
from codec.io.synth import RATE
from codec.models.base import Codec
from tests.helpers.signals import synthetic_recording

REACHED: dict[tuple[str, str], Aim] = {
    ("speech levels", "pesq_ratio_worst"): Aim(low=0.76),  # of a synthetic voice; recordings reach 0.92
    ("generations", "pesq_ratio"): Aim(low=0.32),
    ("second generation", "codebook_0_share"): Aim(low=0.7),
    ("second generation", "all_share"): Aim(low=0.28),
}
"""Instead of the aims; docs/benchmarks.md has the figures of recordings."""
WITHOUT_RECORDINGS = {"periodicity, rain"}  # needs a recording


@pytest.fixture(scope="module")
def results() -> dict[str, Result]:
    model: Codec = pretrained.load("general-24k")
    recordings = synthetic_recordings(model.config.sample_rate)
    return {result.check: result for result in check_all(model, recordings, quick=True)}


@pytest.mark.parametrize(("check", "figure"), [key for key in AIMS if key[0] not in WITHOUT_RECORDINGS])
def test_figures_are_within_bounds(results: dict[str, Result], check: str, figure: str) -> None:
    bound = REACHED.get((check, figure), AIMS[check, figure])
    assert bound.met(results[check].figures[figure]), f"{results[check].figures[figure]:.2f} is not {bound}"


def test_every_bound_has_an_aim() -> None:
    assert REACHED.keys() <= AIMS.keys()
    assert within(3).met(-3.0)


@pytest.mark.slow
@pytest.mark.parametrize("db", [0.0, 6.0, 20.0])
@pytest.mark.parametrize("num_codebooks", [3, 16])
def test_the_image_of_panned_sources_survives(db: float, num_codebooks: int, tmp_path: Path) -> None:
    """Noise in each channel keeps the channels from being proportional, so that both are coded."""
    source = resample(synthetic_recording()[:, : 2 * RATE], RATE, 24_000)[0]
    noise = np.random.default_rng(0).normal(0, 1e-3 * source.std(), (len(source), 2))
    panned = source[:, None] * [10 ** (db / 20), 1] / 10 ** (db / 20) + noise
    soundfile.write(tmp_path / "a.wav", panned, 24_000, subtype="FLOAT")
    compress(tmp_path / "a.wav", tmp_path / "a.codec", num_codebooks=num_codebooks)
    decompress(tmp_path / "a.codec", tmp_path / "b.wav")
    with open_reader(tmp_path / "a.codec") as reader:
        assert reader.header.coded_channels == 2
    decoded, _ = soundfile.read(tmp_path / "b.wav")
    levels = [10 * np.log10((part**2).mean(axis=0)) for part in (panned, decoded)]
    assert levels[1][0] - levels[1][1] == pytest.approx(levels[0][0] - levels[0][1], abs=1)
