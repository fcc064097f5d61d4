"""evaluation/codec.py: a codec of known quality on small folders."""

import json
import math
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor, nn

from codec import compression, models
from codec.errors import ConfigError, InputNotFound, MissingDependency, UnsupportedAudio, UsageError
from codec.evaluation.baselines import find_baselines
from codec.evaluation.codebooks import code_counts
from codec.evaluation.codec import _find_clips, coded_file, evaluate
from codec.evaluation.signal import HOP_BANDS, SI_SDR_BANDS
from codec.io import bitstream
from codec.io.entropy import last_coder
from codec.models.base import CodecConfig, Context, ReceptiveField, StepCodec
from codec.nn.quantize.base import Quantized, Quantizer
from codec.nn.streaming import State
from tests.helpers import processes
from tests.helpers.signals import RATE, noise, voice
from tests.tiny import tiny_model


@pytest.fixture
def _eval_extra() -> None:
    for package in ("pesq", "pystoi", "onnxruntime", "speechmos", "visqol", "ai_edge_litert"):
        pytest.importorskip(package)


@pytest.fixture
def _fixed_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files without entropy coding, because a codec with a code per sample makes its work 300 times that of others."""
    monkeypatch.setattr(compression, "last_coder", lambda entropy: last_coder("none"))


# Bit rates, memory


def test_bit_rates_of_a_file_are_those_of_its_bytes(tmp_path: Path) -> None:
    header = bitstream.Header(
        model="test", weights_hash="0" * 64, source_rate=48_000, channels=2, sample_rate=RATE, hop=320,
        decoder_delay=320, codebook_sizes=(1000,) * 3, frames_per_packet=75,
    )  # fmt: skip
    codes = np.random.default_rng(0).integers(0, 1000, (2, 3, 151))
    path = tmp_path / "a.codec"
    with path.open("wb") as file:
        writer = bitstream.Writer(file, header)
        writer.write(codes)
        writer.close(time=96_000)  # 2 s
    content = coded_file(path)
    assert content.seconds == 2
    packed = 2 * math.ceil(2 * 3 * 75 * 10 / 8) + math.ceil(2 * 3 * 1 * 10 / 8)
    assert content.payload_kbps == pytest.approx(packed * 8 / 2000)
    assert content.file_kbps == pytest.approx(path.stat().st_size * 8 / 2000)
    assert np.array_equal(content.counts, code_counts(codes, 1000))

    with path.open("wb") as file:
        writer = bitstream.Writer(file, header)
        writer.write(np.zeros_like(codes))
        writer.close(time=96_000)
    content = coded_file(path)
    assert 0 < content.payload_kbps < content.file_kbps < packed * 8 / 2000  # codes that repeat take fewer bytes


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_includes_freed_memory() -> None:
    """In a process of its own, because threads of other tests may free memory between two calls."""
    code = """
import os
from pathlib import Path
import numpy as np
from codec.evaluation.codec import peak_memory
from tests.helpers import processes

before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
assert peak_memory() >= before
block = np.ones(1 << 26, np.uint8)
del block
assert peak_memory() >= before + (1 << 26) * 0.9, "the peak went down"
"""
    done = processes.run(code)
    assert not done.returncode, done.stderr


# Evaluation


class Levels(Quantizer):
    """Residual scalar quantizer with 16 levels per codebook: after b codebooks the error is uniform within 16 ** -b."""

    def encode(self, latents: Tensor, num_codebooks: int | None = None) -> Tensor:
        rest, codes = latents[:, 0].double(), []
        for _ in range(num_codebooks or 3):
            codes.append(((rest + 1) * 8).long().clamp(0, 15))
            rest = 16 * (rest - (codes[-1] - 7.5) / 8)
        return torch.stack(codes, dim=1)  # [batch, codebooks, frames]

    def decode(self, codes: Tensor) -> Tensor:
        scales = 16.0 ** -torch.arange(codes.shape[1], dtype=torch.float64)
        return (scales[:, None] * (codes - 7.5) / 8).sum(dim=1, keepdim=True).float()

    def forward(self, latents: Tensor, num_codebooks: Tensor | None = None) -> Quantized:
        raise NotImplementedError


class Scalar(StepCodec):
    """A codec of known quality: it codes each sample by itself, and each codebook adds 24.1 dB and 96 kbit/s."""

    def __init__(self, name: str = "scalar", weights_hash: str = "5" * 64) -> None:
        super().__init__(
            CodecConfig(family="scalar", sample_rate=RATE, hop=1, num_codebooks=3, codebook_size=16), decoder_delay=1
        )
        self.quantizer = Levels()
        self.name = name
        self.weights_hash = weights_hash
        self.unused = nn.Parameter(torch.zeros(1))  # a model's device is that of its parameters

    def receptive_field(self) -> ReceptiveField:
        return ReceptiveField(Context(0, 0), Context(1, 0))

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
    """data/manifest.jsonl with speech, words and a hum in data/valid; one file is damaged, one unlisted."""
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
    (folder / "valid/hum/broken.wav").write_bytes(b"not audio")
    (folder / "valid/hum/._c.wav").write_bytes(b"hidden")
    return folder


@pytest.mark.slow
@pytest.mark.usefixtures("_eval_extra", "_fixed_width")
def test_scores_of_a_scalar_quantizer_have_closed_forms(corpus: Path) -> None:
    steps: list[tuple[int, int]] = []
    found = evaluate(Scalar(), corpus / "valid", num_codebooks=[2, 1], progress=lambda *step: steps.append(step))

    assert steps == [(done, 6) for done in range(1, 7)]
    assert [(row.group, row.name, row.num_codebooks, row.files) for row in found.rows] == [
        ("all", "all", 1, 5),
        ("all", "all", 2, 5),
        ("domain", "hum", 1, 2),
        ("domain", "hum", 2, 2),
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
    scores = {(score.path, score.num_codebooks): score for score in found.files}
    source, _ = soundfile.read(corpus / "valid/hum/c.wav")
    for num_codebooks in (1, 2):
        score = scores["hum/c.wav", num_codebooks]
        assert score.seconds == 0.5
        assert score.encode_speed > 0
        assert score.decode_speed > 0
        error = 16.0**-num_codebooks  # uniform between ± error: its power is error² / 3
        assert score.measures.si_sdr == pytest.approx(10 * math.log10(3 * source.var() / error**2), abs=0.3)
        # 24000 codes a second of 4 bits
        assert score.measures.payload_kbps == pytest.approx(96 * num_codebooks, rel=1e-3)
        assert score.measures.payload_kbps < score.measures.file_kbps < score.measures.payload_kbps + 5
        assert math.isnan(score.measures.pesq_wb)  # a hum is not speech
        assert scores["reading/a.wav", num_codebooks].measures.pesq_wb > 1
    all_rows = found.rows[:2]
    assert all_rows[0].seconds == pytest.approx(3 * 0.7 + 0.5 + 0.6)
    assert len(all_rows[1].codebooks) == 2
    assert all_rows[1].codebooks[1].used == 1
    assert all_rows[0].measures.mel_dac > all_rows[1].measures.mel_dac
    mean = sum(scores[f"reading/{name}.wav", 2].measures.stoi for name in "ab") / 2
    assert next(row for row in found.rows if (row.name, row.num_codebooks) == ("speech", 2)).measures.stoi == mean
    assert [failure.path for failure in found.failures] == ["hum/broken.wav"]
    assert found.peak_memory > 0


def test_variable_bit_rates_have_rows_of_their_own(tmp_path: Path) -> None:
    model = tiny_model()
    soundfile.write(tmp_path / "hum.wav", np.clip(noise(0.6, level=0.3), -1, 1), 8000)
    found = evaluate(model, tmp_path, num_codebooks=3, vbr=[2.5, 1.0], speech=False)
    rows = [(row.codec, row.num_codebooks) for row in found.rows[:3]]
    assert rows == [(model.name, 3), (f"{model.name} vbr 2.5", 3), (f"{model.name} vbr 1", 3)]
    compression.compress(tmp_path / "hum.wav", tmp_path / "hum.codec", model=model, vbr=2.5)
    with bitstream.open_reader(tmp_path / "hum.codec") as reader:
        counts = np.concatenate([(codes >= 0).sum(axis=1).ravel() for codes in reader.packets()])
    assert [row.mean_codebooks for row in found.rows[:2]] == [3, pytest.approx(counts.mean())]
    assert f"{counts.mean():.3g}" in found.text()
    alone = evaluate(model, tmp_path, vbr=[2.5], speech=False)
    assert [row.mean_codebooks for row in alone.rows] == [found.rows[1].mean_codebooks] * len(alone.rows)
    with pytest.raises(UsageError, match="use 1 to 3"):
        evaluate(model, tmp_path, vbr=[4.0], speech=False)
    with pytest.raises(UsageError, match="leave --beams out"):
        evaluate(Scalar(), tmp_path, beams=2, speech=False)
    with pytest.raises(UsageError, match="leave --vbr out"):
        evaluate(Scalar(), tmp_path, vbr=[1.0], speech=False)


@pytest.mark.slow
def test_bit_rates_are_those_after_entropy_coding(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "hum.wav", np.clip(noise(0.1, level=0.3), -1, 1), RATE, subtype="FLOAT")
    for score in evaluate(Scalar(), tmp_path, num_codebooks=[2, 1], speech=False).files:
        assert score.num_codebooks
        # of 24000 codes a second of 4 bits, a part is saved, because small samples are frequent
        assert 48 * score.num_codebooks < score.measures.payload_kbps < 95 * score.num_codebooks
        assert score.measures.payload_kbps < score.measures.file_kbps


@pytest.mark.slow
@pytest.mark.usefixtures("_eval_extra", "_fixed_width")
def test_evaluation_as_table_and_json(corpus: Path) -> None:
    found = evaluate(Scalar(), corpus / "valid")
    headings, lines = found.table()
    assert len(lines) == 6  # all, two domains, three sets, of which one is a domain too; all 3 codebooks at once
    assert [row.name for row in found.rows] == ["all", "hum", "speech", "words", "digits", "hum", "reading"]
    assert {len(line) for line in lines} == {len(headings)}
    assert not {"ViSQOL speech", "ViSQOL audio", "DNSMOS"} & set(headings)  # not requested
    # Losses imitate PESQ and STOI, so measures that no loss imitates stand beside them.
    assert {"PESQ", "STOI", "SI-SDR", "mel", "hop per."} <= set(headings)
    assert found.band_tables() is None
    assert [line[0] for line in found.table("all")[1]] == ["all"]
    assert [line[0] for line in found.table("domain")[1]] == ["all", "hum", "speech", "words"]
    first, *text = str(found).splitlines()
    assert first == "scalar: 24000 Hz, hop 1, 3 codebooks, weights 555555555555"
    assert len({len(line) for line in text[:7]}) == 1
    assert text[7].startswith("failed: hum/broken.wav: ")
    hum = next(row for row in json.loads(found.as_json())["rows"] if row["name"] == "hum")
    assert hum["measures"]["pesq_wb"] is None
    assert hum["measures"]["si_sdr"] > 30
    assert len(hum["codebooks"]) == 3


@pytest.mark.slow
@pytest.mark.usefixtures("_eval_extra", "_fixed_width")
def test_speech_option_adds_or_omits_pesq_and_stoi(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (asked,) = evaluate(Scalar(), corpus / "valid/reading", num_codebooks=[1], speech=True).files[:1]
    (hum, *_) = evaluate(Scalar(), corpus / "valid/hum", num_codebooks=[1], speech=True).files
    assert asked.measures.stoi > 0
    assert (hum.set, hum.domain) == ("hum", "hum")
    assert not math.isnan(hum.measures.stoi)
    monkeypatch.setitem(sys.modules, "pesq", None)
    with pytest.raises(MissingDependency):
        evaluate(Scalar(), corpus / "valid")
    left_out = evaluate(Scalar(), corpus / "valid/reading", num_codebooks=[1], speech=False)
    assert math.isnan(left_out.rows[0].measures.pesq_wb)


@pytest.mark.slow
@pytest.mark.usefixtures("_eval_extra", "_fixed_width")
def test_slow_measures_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("reading", "hum"):
        (tmp_path / name).mkdir()
        soundfile.write(tmp_path / name / "a.wav", voice(1.2), RATE)  # DNSMOS repeats it to 9.6 s, one window
    (tmp_path / "manifest.jsonl").write_text('{"path": "reading/a.wav", "speaker": "x"}\n')
    found = evaluate(Scalar(), tmp_path, visqol=True, dnsmos=True)
    every, hum, speech, *_ = found.rows
    assert (every.files, hum.name, speech.name) == (2, "hum", "speech")
    assert 1 < speech.measures.visqol_speech < 4.8
    assert 1 < hum.measures.visqol_audio < 4.74
    assert 1 < speech.measures.dnsmos < 5
    assert [speech.measures.visqol_audio, hum.measures.visqol_speech, hum.measures.dnsmos] == pytest.approx(
        [math.nan] * 3, nan_ok=True
    )
    assert every.measures.dnsmos == speech.measures.dnsmos
    assert found.table()[0][-7:-4] == ["ViSQOL speech", "ViSQOL audio", "DNSMOS"]
    with pytest.raises(UsageError, match="pass --speech"):
        evaluate(Scalar(), tmp_path / "hum", speech=False, dnsmos=True)
    monkeypatch.setattr("codec.evaluation.codec._score_clip", None)  # packages are checked before any file is encoded
    monkeypatch.setitem(sys.modules, "visqol", None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "speechmos.dnsmos", raising=False)
    with pytest.raises(MissingDependency, match="visqol"):
        evaluate(Scalar(), tmp_path, visqol=True)
    with pytest.raises(MissingDependency, match="onnxruntime"):
        evaluate(Scalar(), tmp_path, dnsmos=True)


@pytest.mark.slow
@pytest.mark.usefixtures("_fixed_width")
def test_bands_add_two_tables(corpus: Path) -> None:
    found = evaluate(Scalar(), corpus / "valid", num_codebooks=[1, 2], speech=False, bands=True)
    tables = found.band_tables("all")
    assert tables
    for (headings, lines), names in zip(tables, (SI_SDR_BANDS, HOP_BANDS), strict=True):
        assert headings[3:] == [f"{low / 1000:g}-{high / 1000:g}" for low, high in names]
        assert [line[:3] for line in lines] == [["all", "scalar", "1"], ["all", "scalar", "2"]]
        assert {len(line) for line in lines} == {len(headings)}
    row = found.rows[0]
    scores = [score for score in found.files if score.num_codebooks == 1]
    assert row.si_sdr_bands[-1].si_sdr == pytest.approx(np.nanmean([score.si_sdr_bands[-1].si_sdr for score in scores]))
    # The voices have only noise from 8 to 12 kHz, and the error of a scalar quantizer is white.
    assert row.si_sdr_bands[0].si_sdr > row.si_sdr_bands[-1].si_sdr
    assert found.rows[1].si_sdr_bands[0].si_sdr > row.si_sdr_bands[0].si_sdr + 15
    for score in scores:
        assert score.measures.hop_periodicity == max(
            band.excess for band in score.hop_periodicity if not math.isnan(band.excess)
        )
    dumped = json.loads(found.as_json())["rows"][0]
    assert dumped["si_sdr_bands"][0].keys() == {"low", "high", "si_sdr"}
    assert dumped["hop_periodicity"][0].keys() == {"low", "high", "reference", "degraded"}


@pytest.mark.slow
@pytest.mark.usefixtures("_fixed_width")
def test_baselines_have_rows_beside_the_model(tmp_path: Path) -> None:
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", np.stack([voice(0.7), 0.5 * voice(0.7)], axis=1), RATE)
    found = evaluate(Scalar(), tmp_path, num_codebooks=[1, 2], baselines=find_baselines("original"))
    assert [(row.group, row.codec, row.num_codebooks) for row in found.rows] == [
        (group, codec, num_codebooks)
        for group in ("all", "domain", "set")
        for codec, num_codebooks in (("scalar", 1), ("scalar", 2), ("original", None))
    ]
    original = found.rows[2]
    assert (original.files, original.codebooks) == (2, ())
    assert original.measures.si_sdr > 90
    assert original.measures.file_kbps == pytest.approx(RATE * 16 / 1000)
    assert found.notes == ("original: the recordings at the model's sample rate, without a codec",)
    assert found.notes[0] in str(found)
    headings, lines = found.table()
    line = dict(zip(headings, lines[2], strict=True))
    assert [line[name] for name in ("codec", "codebooks", "used", "bits/code", "enc ×")] == [
        "original",
        "-",
        "-",
        "-",
        "-",
    ]
    json.loads(found.as_json())


@pytest.mark.slow
@pytest.mark.usefixtures("_fixed_width")
def test_several_models_have_rows_of_their_own(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", voice(0.3), RATE)
    models = [Scalar("one"), Scalar("two", "6" * 64)]
    found = evaluate(models, tmp_path, num_codebooks=[2, 1], baselines=find_baselines("original"))
    assert [(row.codec, row.num_codebooks) for row in found.rows if row.group == "all"] == [
        *(("one", 1), ("one", 2), ("two", 1), ("two", 2)),
        ("original", None),
    ]
    assert [model.weights_hash for model in found.models] == ["5" * 64, "6" * 64]
    assert [line.split()[0] for line in str(found).splitlines()[:2]] == ["one:", "two:"]
    alone = evaluate(models[1], tmp_path, num_codebooks=1)
    assert found.rows[2].measures == alone.rows[0].measures
    same_name = evaluate([Scalar(), Scalar(weights_hash="6" * 64)], tmp_path, num_codebooks="all")
    assert [model.name for model in same_name.models] == ["scalar@55555555", "scalar@66666666"]
    assert [row.num_codebooks for row in same_name.rows if row.group == "all"] == [1, 2, 3] * 2


@pytest.mark.slow
@pytest.mark.usefixtures("_fixed_width")
def test_decoded_files_are_written(tmp_path: Path) -> None:
    (tmp_path / "data/reading").mkdir(parents=True)
    for name in ("reading/a.wav", "b.wav", "b.flac"):
        soundfile.write(tmp_path / "data" / name, np.stack([voice(0.2), noise(0.2)], axis=1), 16_000)
    target = tmp_path / "decoded"
    evaluate(Scalar(), tmp_path / "data", num_codebooks=[1, 3], baselines=find_baselines("original"), write=target)
    names = {path.relative_to(target).as_posix() for path in target.rglob("*.wav")}
    assert names == {
        f"{stem}.{codec}.wav"
        for stem in ("reading/a", "b.wav", "b.flac")
        for codec in ("scalar.1-codebooks", "scalar.3-codebooks", "original")
    }
    decoded, rate = soundfile.read(target / "reading/a.scalar.3-codebooks.wav")
    assert (decoded.shape, rate) == ((4800, 2), 16_000)  # channels and sample rate of the recording


@pytest.mark.slow
@pytest.mark.usefixtures("_fixed_width")
def test_unusual_files_are_named(tmp_path: Path) -> None:
    tone = voice(0.3)
    soundfile.write(tmp_path / "integers.wav", 30_000 * tone, RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "opposite.wav", np.stack([tone, -tone], axis=1), RATE)
    soundfile.write(tmp_path / "usual.wav", tone, RATE)
    integers, opposite = evaluate(Scalar(), tmp_path, num_codebooks=[1, 2]).notes
    assert integers.startswith("integers.wav peaks at ")
    assert integers.endswith("as if it held integers: divide its samples by 32768 first")
    assert opposite.startswith("opposite.wav: its channels cancel in their average")


@pytest.mark.slow
@pytest.mark.usefixtures("_fixed_width")
def test_files_far_below_the_rate_of_a_model_are_counted_once_for_each_rate(tmp_path: Path) -> None:
    for name, rate in {"a.wav": 3000, "b.wav": 4000, "c.wav": 3000, "d.wav": RATE}.items():
        soundfile.write(tmp_path / name, 0.1 * np.ones(rate // 10), rate)
    models = [Scalar("one"), Scalar("two", "6" * 64), tiny_model()]
    *notes, last = evaluate(models, tmp_path, num_codebooks=[1, 2], speech=False).notes
    assert notes == [
        "2 files: 3 kHz, resampled to 8 kHz: nothing above 1.5 kHz",
        "2 files: 3 kHz, resampled to 24 kHz: nothing above 1.5 kHz",
        "b.wav: 4 kHz, resampled to 24 kHz: nothing above 2 kHz",
    ]
    assert last.startswith("the models differ in sample rate")


@pytest.mark.slow
def test_a_recording_is_evaluated(corpus: Path) -> None:
    found = evaluate(Scalar(), corpus / "valid/digits/three.wav", speech=False)
    (score,) = found.files
    assert (score.path, score.set, score.domain) == ("three.wav", "digits", "words")
    assert score.measures == evaluate(Scalar(), corpus / "valid/digits", speech=False).files[0].measures


@pytest.mark.slow
@pytest.mark.usefixtures("_fixed_width")
def test_without_manifest_folders_name_sets_and_domains(tmp_path: Path) -> None:
    for name in ("birds/near/a.flac", "rain/b.wav", "c.wav"):
        path = tmp_path / "field" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, noise(0.1), RATE)
    found = evaluate(Scalar(), tmp_path / "field", num_codebooks=[1])
    assert [(row.group, row.name) for row in found.rows] == [
        ("all", "all"),
        *((group, name) for group in ("domain", "set") for name in ("birds", "field", "rain")),
    ]
    assert [line[0] for line in found.table()[1]] == ["all", "birds", "field", "rain"]
    assert {score.domain for score in found.files} == {"birds", "field", "rain"}


def test_invalid_options_raise(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(InputNotFound, match="no audio files below"):
        evaluate(Scalar(), tmp_path)
    for num_codebooks in ([], [0], [1, 4]):
        with pytest.raises(ConfigError, match="1 to 3"):
            evaluate(Scalar(), corpus, num_codebooks=num_codebooks)
    with pytest.raises(UsageError, match="ask for one of the two"):
        evaluate(Scalar(), corpus, num_codebooks=1, bitrate=96)
    with pytest.raises(UsageError, match="name each model once"):
        evaluate([Scalar(), Scalar()], corpus)
    with pytest.raises(UsageError, match="write to another folder"):
        evaluate(Scalar(), corpus, write=corpus / "decoded")
    with pytest.raises(UnsupportedAudio, match="is not an audio file"):
        evaluate(Scalar(), corpus / "manifest.jsonl")
    unsaved = Scalar()
    unsaved.weights_hash = None
    with pytest.raises(UsageError, match="never saved"):
        evaluate(unsaved, corpus, speech=False)
    (tmp_path / "manifest.jsonl").write_text('{"path": "a.wav"}\n{not json\n')
    soundfile.write(tmp_path / "a.wav", noise(0.1), RATE)
    with pytest.raises(ConfigError, match="line 2: not JSON"):
        evaluate(Scalar(), tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("forked_processes")
def test_worker_processes_give_the_same_scores(corpus: Path) -> None:
    small = {
        "dim": 8,
        "num_codebooks": 2,
        "codebook_size": 16,
        "envelope_bands": 0,
        "encoder_width": 16,
        "encoder_blocks": 1,
        "decoder_width": 16,
    }
    torch.manual_seed(0)
    model = models.build("causal", small | {"decoder_blocks": 1}).eval()  # a class that another process can import
    model.weights_hash = "c" * 64
    alone, shared = (evaluate(model, corpus / "valid/digits", speech=False, jobs=jobs) for jobs in (1, 2))
    for one, other in zip(alone.files, shared.files, strict=True):
        assert one.path == other.path
        assert asdict(one.measures) == pytest.approx(asdict(other.measures), nan_ok=True)
    assert alone.failures == shared.failures
    assert [row.codebooks for row in alone.rows] == [row.codebooks for row in shared.rows]


@pytest.mark.parametrize("key", ["transcript", "speaker", "language", "lang"])
def test_speech_is_what_a_manifest_says_of_it(tmp_path: Path, key: str) -> None:
    soundfile.write(tmp_path / "a.wav", voice(0.1), RATE)
    soundfile.write(tmp_path / "b.wav", voice(0.1), RATE)
    (tmp_path / "manifest.jsonl").write_text(f'{{"path": "a.wav", "{key}": "en"}}\n{{"path": "b.wav", "set": "hum"}}\n')
    speech, hum = _find_clips(tmp_path, None)
    assert (speech.speech, speech.domain) == (True, "speech")
    assert (hum.speech, hum.domain) == (False, "hum")
