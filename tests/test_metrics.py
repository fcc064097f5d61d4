import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor, nn

from codec import bitstream, metrics, models
from codec.errors import ConfigError, InputNotFound, MissingDependency, UsageError
from codec.metrics import Floats
from codec.models.base import Codec, CodecConfig
from codec.nn.quantize import Quantized, Quantizer
from codec.nn.streaming import State

RATE = 24_000

Distance = Callable[[Floats, Floats], float]


def mel_dac(reference: Floats, degraded: Floats) -> float:
    return metrics.mel_dac(reference, degraded, rate=RATE)


DISTANCES: list[Distance] = [mel_dac, metrics.stft_dac, metrics.mrstft, metrics.lsd]


def noise(seconds: float = 1.0, *, level: float = 0.1, seed: int = 0, rate: int = RATE) -> Floats:
    return (level * np.random.default_rng(seed).standard_normal(round(seconds * rate))).astype(np.float32)


def voice(seconds: float = 1.0, *, rate: int = RATE) -> Floats:
    """Syllables: a gliding harmonic tone, opened and closed four times a second, over a little noise."""
    time = np.arange(round(seconds * rate)) / rate
    phase = 2 * np.pi * np.cumsum(140 + 30 * np.sin(2 * np.pi * 0.7 * time)) / rate
    tone = sum(np.sin(k * phase) / k for k in range(1, 20))
    envelope = np.clip(np.sin(2 * np.pi * 4 * time), 0, None)
    return (0.2 * envelope * tone).astype(np.float32) + noise(seconds, level=1e-3, rate=rate)


# Independent definitions, as they would be written with torch


def spectrum(signal: Floats, window: int) -> torch.Tensor:
    hann = torch.hann_window(window, dtype=torch.float64)
    samples = torch.from_numpy(signal).double()
    return torch.stft(samples, window, window // 4, window=hann, return_complex=True).abs()  # [bins, frames]


def slow_mel_dac(reference: Floats, degraded: Floats) -> float:
    total = 0.0
    for bands, window in [(5, 32), (10, 64), (20, 128), (40, 256), (80, 512), (160, 1024), (320, 2048)]:
        bank = torch.from_numpy(
            librosa.filters.mel(sr=RATE, n_fft=window, n_mels=bands, fmin=0, fmax=RATE / 2, dtype=np.float64)
        )
        x, y = ((bank @ spectrum(signal, window)).clamp(min=1e-5).log10() for signal in (reference, degraded))
        total += torch.nn.functional.l1_loss(x, y).item()
    return total


def slow_stft_dac(reference: Floats, degraded: Floats) -> float:
    total = 0.0
    for window in (2048, 512):
        x, y = spectrum(reference, window), spectrum(degraded, window)
        total += torch.nn.functional.l1_loss(x, y).item()
        total += torch.nn.functional.l1_loss(x.clamp(1e-5).pow(2).log10(), y.clamp(1e-5).pow(2).log10()).item()
    return total


def slow_mrstft(reference: Floats, degraded: Floats) -> float:
    total = 0.0
    for window in (1024, 2048, 512):
        x, y = spectrum(reference, window).clamp(1e-4), spectrum(degraded, window).clamp(1e-4)
        total += float(torch.linalg.norm(y - x) / torch.linalg.norm(x) + (x.log() - y.log()).abs().mean()) / 3
    return total


def slow_lsd(reference: Floats, degraded: Floats) -> float:
    frames = []
    for x, y in zip(spectrum(reference, 2048).T, spectrum(degraded, 2048).T, strict=True):
        frames.append(float(((x**2 + 1e-8).log10() - (y**2 + 1e-8).log10()).square().mean().sqrt()))
    return sum(frames) / len(frames)


@pytest.mark.parametrize(
    ("fast", "slow"), list(zip(DISTANCES, [slow_mel_dac, slow_stft_dac, slow_mrstft, slow_lsd], strict=True))
)
@pytest.mark.parametrize("time", [RATE, 1025, 31_999])
def test_distances_equal_their_definitions(fast: Distance, slow: Distance, time: int) -> None:
    reference = voice(2)[:time]
    for degraded in (reference + noise(2, level=0.01)[:time], 0.5 * reference, np.zeros_like(reference)):
        assert fast(reference, degraded) == pytest.approx(slow(reference, degraded), rel=2e-4)


@pytest.mark.parametrize("distance", DISTANCES)
def test_distances_see_magnitudes_only(distance: Distance) -> None:
    reference = voice()
    assert distance(reference, reference) == 0
    assert distance(reference, -reference) == 0  # polarity
    silence = distance(reference, np.zeros_like(reference))
    noisy, noisier = (distance(reference, reference + noise(level=level)) for level in (0.003, 0.01))
    assert 0 < noisy < noisier < silence


@pytest.mark.parametrize("gain", [0.5, 0.9, 2.0])
def test_distances_of_a_gain_have_closed_forms(gain: float) -> None:
    loud = noise(level=1.0)  # far above every floor
    louder = np.float32(gain) * loud
    log = abs(math.log10(gain))
    assert mel_dac(loud, louder) == pytest.approx(7 * log, rel=1e-3)
    assert metrics.lsd(loud, louder) == pytest.approx(2 * log, rel=1e-3)
    assert metrics.mrstft(loud, louder) == pytest.approx(abs(1 - gain) + abs(math.log(gain)), rel=1e-3)
    magnitudes = sum(spectrum(loud, window).mean().item() for window in (2048, 512))
    assert metrics.stft_dac(loud, louder) == pytest.approx(4 * log + abs(1 - gain) * magnitudes, rel=1e-3)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("time", [1, 2, 100, 1024])
def test_distances_of_short_signals(distance: Distance, time: int) -> None:
    reference = noise()[:time]
    assert distance(reference, reference) == 0
    assert 0 < distance(reference, np.zeros_like(reference)) < math.inf


def test_blocks_of_frames_do_not_show() -> None:
    reference = noise(6)  # more than one block of 2**20 / 2048 frames of 512
    assert metrics.lsd(reference, 2 * reference) == pytest.approx(slow_lsd(reference, 2 * reference), rel=1e-4)


@pytest.mark.parametrize("decibels", [-5.0, 0.0, 20.0, 60.0])
def test_si_sdr_of_orthogonal_noise_is_its_level(decibels: float) -> None:
    time = np.arange(RATE) / RATE
    target, disturbance = np.sin(2 * np.pi * 100 * time), np.sin(2 * np.pi * 300 * time)
    degraded = 0.3 * (target + 10 ** (-decibels / 20) * disturbance) + 0.2  # neither gain nor offset counts
    assert metrics.si_sdr(target.astype(np.float32), degraded.astype(np.float32)) == pytest.approx(decibels, abs=1e-3)


def test_si_sdr_at_its_ends() -> None:
    reference = voice()
    assert metrics.si_sdr(reference, reference) > 100
    assert metrics.si_sdr(reference, -reference) > 100
    assert metrics.si_sdr(reference, np.zeros_like(reference)) == 0
    assert math.isnan(metrics.si_sdr(np.zeros_like(reference), reference))
    late = np.roll(reference, RATE // 100)
    assert metrics.si_sdr(reference, late) < 5  # what the distances hardly see


@pytest.mark.parametrize("distance", [*DISTANCES, metrics.si_sdr])
def test_pairs_must_fit(distance: Distance) -> None:
    for reference, degraded in ((noise(), noise()[1:]), (noise()[None], noise()[None]), (noise(0), noise(0))):
        with pytest.raises(UsageError, match="cannot be compared"):
            distance(reference, degraded)


# Speech


@pytest.fixture
def _eval_extra() -> None:
    pytest.importorskip("pesq")
    pytest.importorskip("pystoi")


@pytest.mark.usefixtures("_eval_extra")
@pytest.mark.parametrize("rate", [16_000, 24_000])
def test_speech_measures_of_equal_signals_are_their_highest(rate: int) -> None:
    speech = voice(2, rate=rate)
    highest = 0.999 + 4 / (1 + math.exp(-1.3669 * 4.5 + 3.8224))  # P.862.2, eq. 2, of the highest raw score, 4.5
    assert metrics.pesq_wb(speech, speech, rate=rate) == pytest.approx(highest, abs=1e-3)
    assert metrics.stoi(speech, speech, rate=rate) == pytest.approx(1, abs=1e-6)


@pytest.mark.usefixtures("_eval_extra")
def test_speech_measures_fall_with_noise() -> None:
    speech = voice(2)
    levels = [speech + noise(2, level=level) for level in (0.001, 0.01, 0.1)]
    for measure in (metrics.pesq_wb, metrics.stoi):
        scores = [measure(speech, degraded, rate=RATE) for degraded in levels]
        assert scores == sorted(scores, reverse=True)
        assert len(set(scores)) == len(scores)


@pytest.mark.usefixtures("_eval_extra")
def test_lost_speech_gets_the_lowest_scores() -> None:
    speech = voice(2)
    silence = np.zeros_like(speech)
    assert metrics.pesq_wb(speech, silence, rate=RATE) == pytest.approx(1.043, abs=1e-3)
    assert metrics.stoi(speech, silence, rate=RATE) == 0


@pytest.mark.usefixtures("_eval_extra")
@pytest.mark.parametrize("time", [1, 300, 3000])
def test_too_little_speech_has_no_score(time: int) -> None:
    for short in (voice()[:time], np.zeros(RATE, np.float32)):
        assert math.isnan(metrics.pesq_wb(short, short, rate=RATE))
        assert math.isnan(metrics.stoi(short, short, rate=RATE))


@pytest.mark.usefixtures("_eval_extra")
def test_pesq_of_long_speech_is_the_mean_of_its_pieces() -> None:
    speech = voice(24, rate=16_000)
    degraded = speech + np.linspace(0, 0.05, speech.size, dtype=np.float32) * noise(24, level=1, rate=16_000)
    halves = [
        metrics.pesq_wb(x, y, rate=16_000) for x, y in zip(np.split(speech, 2), np.split(degraded, 2), strict=True)
    ]
    assert halves[0] > halves[1]
    assert metrics.pesq_wb(speech, degraded, rate=16_000) == pytest.approx(sum(halves) / 2)


@pytest.mark.parametrize(("package", "measure"), [("pesq", metrics.pesq_wb), ("pystoi", metrics.stoi)])
def test_missing_packages_are_named(
    package: str, measure: Callable[..., float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependency, match=rf"{package} is not installed.*\.\[eval\]"):
        measure(voice(), voice(), rate=RATE)


# Codes, rates, memory


def test_code_counts_count() -> None:
    codes = np.random.default_rng(0).integers(0, 7, (2, 3, 50))  # [channels, books, frames]
    counts = metrics.code_counts(codes, 7)
    for book in range(3):
        expected = Counter(codes[:, book].ravel().tolist())
        assert counts[book].tolist() == [expected[code] for code in range(7)]


def test_codebook_use_has_closed_forms() -> None:
    counts = np.array([[5] * 8, [4, 4] + [0] * 6, [9] + [0] * 7, [0] * 8, [4, 2, 1, 1] + [0] * 4])
    uses = metrics.codebook_use(counts)
    assert [use.used for use in uses] == [1, 1 / 4, 1 / 8, 0, 1 / 2]
    assert [use.entropy for use in uses] == pytest.approx([3, 1, 0, 0, 1.75])
    assert [use.perplexity for use in uses] == pytest.approx([8, 2, 1, 1, 2**1.75])


def test_coded_file_tells_its_real_rates(tmp_path: Path) -> None:
    header = bitstream.Header(
        model="test", weights_hash="0" * 64, source_rate=48_000, channels=2, sample_rate=RATE, hop=320, overlap=320,
        books=3, codebook_size=1000, frames_per_packet=75,
    )  # fmt: skip
    codes = np.random.default_rng(0).integers(0, 1000, (2, 3, 151))
    path = tmp_path / "a.codec"
    with path.open("wb") as file:
        writer = bitstream.Writer(file, header)
        writer.write(codes)
        writer.close(time=96_000)  # 2 s
    content = metrics.coded_file(path)
    assert content.seconds == 2
    packed = 2 * math.ceil(2 * 3 * 75 * 10 / 8) + math.ceil(2 * 3 * 1 * 10 / 8)
    assert content.payload_kbps == pytest.approx(packed * 8 / 2000)
    assert content.file_kbps == pytest.approx(path.stat().st_size * 8 / 2000)
    assert np.array_equal(content.counts, metrics.code_counts(codes, 1000))


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for the memory held")
def test_peak_memory_remembers() -> None:
    """In a process of its own: here other tests' threads may give memory back between one look and the next."""
    code = """
import os
from pathlib import Path
import numpy as np
from codec import metrics

before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
assert metrics.peak_memory() >= before
block = np.ones(1 << 26, np.uint8)
del block
assert metrics.peak_memory() >= before + (1 << 26) * 0.9, "forgotten"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr


# A folder through the codec


class Levels(Quantizer):
    """Book b tells 16 levels apart in what book b - 1 left, so b books leave an error uniform within 16 ** -b."""

    def encode(self, latents: Tensor, books: int | None = None) -> Tensor:
        rest, codes = latents[:, 0].double(), []
        for _ in range(books or 3):
            codes.append(((rest + 1) * 8).long().clamp(0, 15))
            rest = 16 * (rest - (codes[-1] - 7.5) / 8)
        return torch.stack(codes, dim=1)  # [batch, books, frames]

    def decode(self, codes: Tensor) -> Tensor:
        scales = 16.0 ** -torch.arange(codes.shape[1], dtype=torch.float64)
        return (scales[:, None] * (codes - 7.5) / 8).sum(dim=1, keepdim=True).float()

    def forward(self, latents: Tensor, books: Tensor | None = None) -> Quantized:
        raise NotImplementedError


class Scalar(Codec):
    """Codes every sample alone, so its quality is known: each book adds 24.1 dB and 96 kbit/s. A sample late."""

    def __init__(self) -> None:
        super().__init__(CodecConfig(family="scalar", sample_rate=RATE, hop=1, books=3, codebook_size=16), overlap=1)
        self.quantizer = Levels()
        self.name = "scalar"
        self.weights_hash = "5" * 64
        self.unused = nn.Parameter(torch.zeros(1))  # a model is where its parameters are

    def encoder_state(self, batch: int) -> State:
        return ()

    def latents_step(self, audio: Tensor, state: State) -> tuple[Tensor, State]:
        return audio, state

    def decoder_state(self, batch: int) -> State:
        return torch.zeros(batch, 1, 1)

    def audio_step(self, latents: Tensor, state: State) -> tuple[Tensor, State]:
        late = torch.cat([state, latents], dim=2)
        return late[:, :, :-1], late[:, :, -1:]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/manifest.jsonl with speech, words and a hum in data/valid; one file is no audio, one is in no manifest."""
    folder = tmp_path_factory.mktemp("data")
    entries = [
        {"path": "valid/reading/a.wav", "set": "reading", "speaker": "x", "lang": "en"},
        {"path": "valid/reading/b.wav", "set": "reading", "speaker": "y", "lang": "en"},
        {"path": "valid/digits/three.wav", "set": "digits", "speaker": "x", "label": "3", "transcript": "three"},
        {"path": "valid/hum/c.wav", "set": "hum", "label": "fan"},
    ]
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, entries)) + "\n")
    for entry in entries:
        path = folder / entry["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        speech = "speaker" in entry
        audio = voice(0.7) if speech else np.clip(noise(0.5, level=0.3), -1, 1)
        soundfile.write(path, audio, RATE, subtype="FLOAT")
    soundfile.write(folder / "valid/hum/stereo.wav", np.stack([voice(0.4), noise(0.4)], axis=1), 16_000)
    (folder / "valid/hum/broken.wav").write_bytes(b"no audio at all")
    (folder / "valid/hum/._c.wav").write_bytes(b"hidden, so left out")
    return folder


@pytest.mark.usefixtures("_eval_extra")
def test_evaluate_meets_the_closed_form(corpus: Path) -> None:
    steps: list[tuple[int, int]] = []
    found = metrics.evaluate(Scalar(), corpus / "valid", books=[2, 1], progress=lambda *step: steps.append(step))

    assert steps == [(done, 6) for done in range(1, 7)]
    assert [(row.group, row.name, row.books, row.files) for row in found.rows] == [
        ("all", "all", 1, 5),
        ("all", "all", 2, 5),
        ("domain", "speech", 1, 2),
        ("domain", "speech", 2, 2),
        ("domain", "words", 1, 1),
        ("domain", "words", 2, 1),
        ("set", "digits", 1, 1),
        ("set", "digits", 2, 1),
        ("set", "hum", 1, 2),
        ("set", "hum", 2, 2),
        ("set", "reading", 1, 2),
        ("set", "reading", 2, 2),
    ]
    scores = {(score.path, score.books): score for score in found.files}
    source, _ = soundfile.read(corpus / "valid/hum/c.wav")
    for books in (1, 2):
        score = scores["hum/c.wav", books]
        assert score.seconds == 0.5
        assert score.encode_speed > 0
        assert score.decode_speed > 0
        error = 16.0**-books  # uniform between ± error: its power is error² / 3
        assert score.measures.si_sdr == pytest.approx(10 * math.log10(3 * source.var() / error**2), abs=0.3)
        assert score.measures.payload_kbps == pytest.approx(96 * books, rel=1e-3)  # 24000 codes a second of 4 bits
        assert score.measures.payload_kbps < score.measures.file_kbps < score.measures.payload_kbps + 5
        assert math.isnan(score.measures.pesq_wb)  # a hum is no speech
        assert scores["reading/a.wav", books].measures.pesq_wb > 1
    all_rows = found.rows[:2]
    assert all_rows[0].seconds == pytest.approx(3 * 0.7 + 0.5 + 0.6)
    assert len(all_rows[1].codebooks) == 2
    assert all_rows[1].codebooks[1].used == 1
    assert all_rows[0].measures.mel_dac > all_rows[1].measures.mel_dac
    mean = sum(scores[f"reading/{name}.wav", 2].measures.stoi for name in "ab") / 2
    assert next(row for row in found.rows if (row.name, row.books) == ("speech", 2)).measures.stoi == mean
    assert [failure.path for failure in found.failures] == ["hum/broken.wav"]
    assert found.peak_memory > 0


@pytest.mark.usefixtures("_eval_extra")
def test_evaluation_prints_and_dumps(corpus: Path) -> None:
    found = metrics.evaluate(Scalar(), corpus / "valid")
    headings, lines = found.table()
    assert len(lines) == len(found.rows) == 6  # all, two domains, three sets; all 3 books at once
    assert {len(line) for line in lines} == {len(headings)}
    text = str(found).splitlines()
    assert len({len(line) for line in text[:7]}) == 1
    assert text[7].startswith("failed: hum/broken.wav: ")
    hum = next(row for row in json.loads(found.as_json())["rows"] if row["name"] == "hum")
    assert hum["measures"]["pesq_wb"] is None
    assert hum["measures"]["si_sdr"] > 30
    assert len(hum["codebooks"]) == 3


@pytest.mark.usefixtures("_eval_extra")
def test_speech_can_be_asked_for_or_left_out(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (asked,) = metrics.evaluate(Scalar(), corpus / "valid/reading", books=[1], speech=True).files[:1]
    (hum, *_) = metrics.evaluate(Scalar(), corpus / "valid/hum", books=[1], speech=True).files
    assert asked.measures.stoi > 0
    assert (hum.set, hum.domain) == ("hum", "hum")
    assert not math.isnan(hum.measures.stoi)
    monkeypatch.setitem(sys.modules, "pesq", None)
    with pytest.raises(MissingDependency):
        metrics.evaluate(Scalar(), corpus / "valid")
    left_out = metrics.evaluate(Scalar(), corpus / "valid/reading", books=[1], speech=False)
    assert math.isnan(left_out.rows[0].measures.pesq_wb)


def test_without_manifest_folders_name_sets_and_domains(tmp_path: Path) -> None:
    for name in ("birds/near/a.flac", "rain/b.wav", "c.wav"):
        path = tmp_path / "field" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, noise(0.1), RATE)
    found = metrics.evaluate(Scalar(), tmp_path / "field", books=[1])
    assert [(row.group, row.name) for row in found.rows] == [
        ("all", "all"),
        ("set", "birds"),
        ("set", "field"),
        ("set", "rain"),
    ]
    assert {score.domain for score in found.files} == {"birds", "field", "rain"}


def test_evaluate_refuses_what_cannot_be(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(InputNotFound, match="no audio files below"):
        metrics.evaluate(Scalar(), tmp_path)
    for books in ([], [0], [1, 4]):
        with pytest.raises(ConfigError, match="1 to 3"):
            metrics.evaluate(Scalar(), corpus, books=books)
    unsaved = Scalar()
    unsaved.weights_hash = None
    with pytest.raises(UsageError, match="never saved"):
        metrics.evaluate(unsaved, corpus, speech=False)
    (tmp_path / "manifest.jsonl").write_text('{"path": "a.wav"}\n{not json\n')
    soundfile.write(tmp_path / "a.wav", noise(0.1), RATE)
    with pytest.raises(ConfigError, match="line 2 is no JSON"):
        metrics.evaluate(Scalar(), tmp_path)


def test_a_worker_process_finds_the_same(corpus: Path) -> None:
    small = {
        "dim": 8,
        "books": 2,
        "codebook_size": 16,
        "modes": 4,
        "encoder_width": 16,
        "encoder_blocks": 1,
        "decoder_width": 16,
    }
    torch.manual_seed(0)
    model = models.build("causal", small | {"decoder_blocks": 1}).eval()  # one that another process can import
    model.weights_hash = "c" * 64
    # One file, as every process takes seconds to import torch.
    alone, shared = (metrics.evaluate(model, corpus / "valid/digits", speech=False, jobs=jobs) for jobs in (1, 2))
    for one, other in zip(alone.files, shared.files, strict=True):
        assert one.path == other.path
        assert asdict(one.measures) == pytest.approx(asdict(other.measures), nan_ok=True)
    assert alone.failures == shared.failures
    assert [row.codebooks for row in alone.rows] == [row.codebooks for row in shared.rows]
