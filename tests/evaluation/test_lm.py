"""Evaluation of language models with made-up generators, and codec evaluate-lm."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from codec import generation, pretrained
from codec.checkpoint import save_lm, save_model
from codec.data.clips import Clip, clips
from codec.errors import ConfigError, InputNotFound, UsageError
from codec.evaluation import classifier
from codec.evaluation.classifier import Classifier
from codec.evaluation.lm import COPY_DISTANCE, LabeledCorpus, LMEvaluation, Row, evaluate, labeled_corpus, reconstruct
from codec.generation import generate_clips
from codec.io.audio import read_audio
from codec.io.level import Level
from codec.lm.conditioning import CodebookSpec
from codec.lm.filters import Sampling
from codec.lm.transformer import TransformerConfig, TransformerLM
from codec.models.base import Codec
from tests.cli.conftest import Cli, Result, cli  # noqa: F401 (a fixture)
from tests.helpers.spoken_words import RATE, WORDS, knows_words, word, write_words
from tests.tiny import tiny_model

Requests = Sequence[tuple[int, str]]
LEVEL = Level(-20.0)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_words(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def corpus(manifest: Path) -> LabeledCorpus:
    return labeled_corpus(clips(manifest), known=WORDS)


@pytest.fixture(scope="module")
def trained() -> Classifier:
    return knows_words()


@pytest.fixture(scope="module")
def tiny() -> Codec:
    return tiny_model()


def speaker(requests: Requests) -> list[Tensor]:
    """A speaker who is not in the corpus says the labels."""
    return [torch.from_numpy(word(label, seed=5000 + seed)) for seed, label in requests]


def row(result: LMEvaluation, name: str) -> Row:
    (found,) = [each for each in result.rows if each.name == name]
    return found


def test_evaluation_of_a_good_generator(corpus: LabeledCorpus, trained: Classifier, tiny: Codec) -> None:
    calls: list[tuple[int, int]] = []
    result = evaluate(speaker, tiny, corpus, trained, samples=33, progress=lambda *numbers: calls.append(numbers))
    names = ["train", "train, reconstructed", "held-out", "held-out, reconstructed", "generated"]
    assert [(each.name, each.clips) for each in result.rows] == list(zip(names, [30, 30, 9, 9, 33], strict=True))
    real, made = row(result, "train"), row(result, "generated")
    assert real.fid == pytest.approx(0, abs=1e-6)
    assert min(real.accuracy, made.accuracy) > 0.9
    assert real.balance > 0.9
    assert made.copies == 0
    assert 0 < made.fid < row(result, "train, reconstructed").fid  # because the untrained codec decodes noise
    assert calls[-1] == (2 * 39 + 33, 2 * 39 + 33)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert evaluate(speaker, tiny, corpus, trained, samples=33) == result


def test_labels_are_requested_equally_often_and_seeds_once(
    corpus: LabeledCorpus, trained: Classifier, tiny: Codec
) -> None:
    requests: list[tuple[int, str]] = []
    batches: list[int] = []

    def generator(batch: Requests) -> list[Tensor]:
        requests.extend(batch)
        batches.append(len(batch))
        return speaker(batch)

    evaluate(generator, tiny, corpus, trained, samples=66, seed=3)
    assert batches == [64, 2]
    assert [seed for seed, _ in requests] == [*range(198, 264)]
    assert [[label for _, label in requests].count(name) for name in WORDS] == [22, 22, 22]


def test_evaluation_of_a_generator_of_one_word(corpus: LabeledCorpus, trained: Classifier, tiny: Codec) -> None:
    made = row(
        evaluate(lambda requests: speaker([(seed, "hiss") for seed, _ in requests]), tiny, corpus, trained, samples=33),
        "generated",
    )
    assert made.accuracy == pytest.approx(1 / 3, abs=0.05)
    assert made.balance < 1e-6
    assert made.inception < 1.5


def test_copies_of_training_clips_are_found(corpus: LabeledCorpus, trained: Classifier, tiny: Codec) -> None:
    known = {clip.label: clip for clip in corpus.train}

    def parrot(requests: Requests) -> list[Tensor]:
        (batch,) = [audio for audio, _ in classifier.recordings([known[label] for _, label in requests], RATE)]
        return reconstruct(tiny, batch, num_codebooks=None)

    made = row(evaluate(parrot, tiny, corpus, trained, samples=9), "generated")
    assert made.copies == 1
    result = evaluate(
        lambda requests: [audio[:, :1600] for audio in parrot(requests)], tiny, corpus, trained, samples=9
    )
    assert row(result, "generated").copies == 0  # a part of one is not the whole


def test_reconstructions_do_not_depend_on_the_batch(tiny: Codec) -> None:
    audio = [torch.from_numpy(word("up", seed=seed, seconds=0.1 + 0.05 * seed)) for seed in range(3)]
    together = reconstruct(tiny, [*audio, torch.zeros(1, 0)], num_codebooks=2)
    for clip, made in zip(audio, together, strict=False):
        codes = tiny.encode(clip[None], num_codebooks=2)
        assert torch.allclose(made, tiny.decode(codes, length=clip.shape[1])[0], atol=1e-5)
    assert together[3].shape == (1, 0)


def test_reconstructions_use_the_codebooks_of_the_model(
    corpus: LabeledCorpus, trained: Classifier, tiny: Codec
) -> None:
    of_all, of_three, of_one = (
        evaluate(speaker, tiny, corpus, trained, samples=3, num_codebooks=num_codebooks)
        for num_codebooks in (None, 3, 1)
    )
    for name in ("train, reconstructed", "held-out, reconstructed"):
        assert row(of_all, name) == row(of_three, name) != row(of_one, name)


def test_recordings_are_normalized_to_the_level_of_the_model(
    manifest: Path, tmp_path: Path, trained: Classifier, tiny: Codec
) -> None:
    """Then their own level does not matter, although the codec encodes levels."""
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    for line in rows:
        audio, rate = read_audio(manifest.parent / line["path"])
        for name, scale in ((line["path"], 2**-4), (f"same-{line['path']}", 1)):
            soundfile.write(tmp_path / name, scale * audio[0], rate, subtype="FLOAT")
    found: dict[tuple[str, Level | None], LMEvaluation] = {}
    for kind in ("", "same-"):
        (tmp_path / "words.jsonl").write_text(
            "".join(json.dumps(line | {"path": kind + line["path"]}) + "\n" for line in rows)
        )
        corpus = labeled_corpus(clips(tmp_path / "words.jsonl"), known=WORDS)
        for level in (None, LEVEL):
            found[kind, level] = evaluate(speaker, tiny, corpus, trained, samples=3, level=level)
    assert found["", LEVEL] == found["same-", LEVEL]
    name = "train, reconstructed"
    assert row(found["", None], name) != row(found["same-", None], name) != row(found["same-", LEVEL], name)


def test_no_held_out_recordings(corpus: LabeledCorpus, trained: Classifier, tiny: Codec) -> None:
    for few in ([], corpus.valid[:1]):
        alone = dataclasses.replace(corpus, valid=list(few))
        result = evaluate(speaker, tiny, alone, trained, samples=3)
        assert [each.name for each in result.rows] == ["train", "train, reconstructed", "generated"]
        assert f'The split "valid" has {len(few)} clips: no row for held-out recordings.' in str(result).splitlines()


def test_few_clips_give_notes(corpus: LabeledCorpus, trained: Classifier, tiny: Codec) -> None:
    result = evaluate(speaker, tiny, corpus, trained, samples=2)
    many = [row.name for row in result.rows if row.inception > len(trained.config.labels)]
    said = [f"IS of {name} is not meaningful:" for name in many]
    assert [note.split(":")[0] + ":" for note in result.notes if note.startswith("IS")] == said
    assert "FID of generated is too high: 2 clips are not more than the 64 features." in result.notes
    assert json.loads(result.as_json())["rows"][-1]["clips"] == 2
    with pytest.raises(UsageError, match="--samples 1"):
        evaluate(speaker, tiny, corpus, trained, samples=1)


def test_labeled_corpus(manifest: Path) -> None:
    all_clips = list(clips(manifest))
    without = [dataclasses.replace(clip, split=None) for clip in all_clips]
    assert [
        len(side) for side in (labeled_corpus(without, known=WORDS).train, labeled_corpus(without, known=WORDS).valid)
    ] == [39, 0]
    tested = [dataclasses.replace(clip, split="test") for clip in all_clips[:3]]
    divided = labeled_corpus([*tested, *all_clips[3:]], known=[*WORDS, "more"])
    assert (len(divided.train), len(divided.valid), divided.labels) == (27, 9, WORDS)


def of_all(**changes: str | None) -> Callable[[Clip], Clip]:
    return lambda clip: dataclasses.replace(clip, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "known", "error", "message"),
    [
        (of_all(label=None), WORDS, ConfigError, r'30 of 30 clips have no label.*write "label"'),
        (of_all(split="valid"), WORDS, InputNotFound, 'no clips of split "train"'),
        (of_all(), WORDS[:2], ConfigError, "labels up that the model does not know; it knows down, hiss"),
        (of_all(), (), ConfigError, "it knows none"),
        (lambda clip: dataclasses.replace(clip, label="odd") if clip.split == "valid" else clip, WORDS, ConfigError,
         'split "valid" has labels odd that the split train does not know'),
    ],
)  # fmt: skip
def test_corpora_without_usable_labels_raise(
    manifest: Path, change: Callable[[Clip], Clip], known: Sequence[str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        labeled_corpus(map(change, clips(manifest)), known=known)


def test_table() -> None:
    result = LMEvaluation((Row("train", 10, 0.5, 0.0, 2.0, 3.0, 0.25, 0.125, 1.5, 0.1),), ("A note.",))
    first, second, note = str(result).splitlines()
    assert first.split() == ["clips", "accuracy", "FID", "IS", "mIS", "AM", "chi²", "p", "nearest", "copies"]
    assert second.split() == ["train", "10", "50.00%", "0.000", "2.00", "3.0", "0.250", "0.125", "1.50", "10.00%"]
    assert len(first) == len(second)
    assert note == "A note."


def test_recordings_differ_by_more_than_copies(corpus: LabeledCorpus, trained: Classifier) -> None:
    seen = torch.cat([trained.spectrograms(audio) for audio, _ in classifier.recordings(corpus.train, RATE)]).numpy()
    apart = np.sqrt(np.square(seen[:, None] - seen).mean(axis=(2, 3))) + 1e9 * np.eye(len(seen))
    assert apart.min() > COPY_DISTANCE


# the command line


def write_lm(codec: str, weights_hash: str | None, classes: dict[str, tuple[str, ...]]) -> None:
    """Write lm.safetensors, an untrained model of two codebooks of a codec; `weights_hash` replaces the codec's."""
    loaded = pretrained.load(codec)
    vectors = loaded.quantizer.codebook_vectors()
    assert vectors is not None
    source = CodebookSpec(
        codec="general-24k",
        weights_hash=weights_hash or str(loaded.weights_hash),
        num_codebooks=2,
        codebook_size=vectors.shape[1],
        dim=vectors.shape[2],
        classes=classes,
    )
    torch.manual_seed(0)
    lm = TransformerLM(TransformerConfig(width=16, layers=1, heads=2, context=64), source)
    save_lm("lm.safetensors", lm, training={})


Call = Callable[..., Result]


@pytest.fixture
def call(cli: Cli, manifest: Path, monkeypatch: pytest.MonkeyPatch) -> Call:  # noqa: F811
    """Run `codec evaluate-lm` with an untrained model of these classes on the made-up words."""
    monkeypatch.setattr(classifier, "STEPS", 2)
    monkeypatch.setattr(classifier, "BATCH", 8)

    def run(
        *arguments: object, codec_name: str = "general-24k", weights_hash: str | None = None, **classes: tuple[str, ...]
    ) -> Result:
        write_lm(codec_name, weights_hash, classes)
        return cli("evaluate-lm", "lm.safetensors", "--data", manifest, "--samples", 6, *arguments)

    return run


def test_command(call: Call) -> None:
    result = call("--out", "numbers.json", label=WORDS)
    assert result.code == 0, result.err
    table = result.out.decode().splitlines()
    assert [line.split("  ")[0] for line in table[1:6]] == [
        "train", "train, reconstructed", "held-out", "held-out, reconstructed", "generated"
    ]  # fmt: skip
    assert json.loads(Path("numbers.json").read_text())["rows"][4]["clips"] == 6
    (kept,) = Path("runs").iterdir()
    assert f"training a classifier on 30 real recordings, which takes a few minutes: {kept}" in result.err
    again = call(label=WORDS)
    assert (again.code, again.out, "training" in again.err) == (0, result.out, False)
    named = call("--classifier", kept, label=WORDS)
    assert (named.code, named.out) == (0, result.out)


def test_sampling_options_are_passed_on(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, object]] = []

    def spy(*arguments: Any, **options: object) -> list[Tensor]:
        calls.append(options)
        return generate_clips(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(generation, "generate_clips", spy)
    assert call("--guidance", 1.5, "--temperature", 0.8, label=WORDS).code == 0
    assert calls == [{"guidance": 1.5, "sampling": Sampling(temperature=0.8), "max_seconds": 1.0}]


def test_invalid_calls_fail(call: Call) -> None:
    assert (call(speaker=("anna",)).code, call(label=WORDS[1:]).code, call("--samples", 1, label=WORDS).code) == (
        2,
    ) * 3
    assert "labels down that the model does not know" in call(label=WORDS[1:]).err
    assert "knows no labels" in call(speaker=("anna",)).err
    Path("other").write_bytes(b"something else")
    assert call("--classifier", "other", label=WORDS).code == 6
    assert call(label=WORDS, weights_hash="0" * 64).code == 6
    assert call("--codec", "general-24k", label=WORDS, weights_hash="0" * 64).code == 7


def test_invalid_options_fail_before_training(call: Call) -> None:
    assert "temperature = 0 is not above 0" in call("--temperature", 0, label=WORDS).err
    assert call("--guidance", 1e4, label=WORDS).code == 2
    assert call("--out", "missing/numbers.json", label=WORDS).code == 8
    assert not Path("runs").exists()  # no classifier was trained for it


def test_codec_that_is_not_shipped(call: Call) -> None:
    Path("elsewhere/folder").mkdir(parents=True)
    path = "elsewhere/folder/other.safetensors"
    save_model(path, tiny_model(seed=1), training={})
    assert call(label=WORDS, codec_name=path).code == 6
    result = call("--codec", path, label=WORDS, codec_name=path)
    assert result.code == 0, result.err
