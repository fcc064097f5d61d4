"""training/lm/crops.py: batches against the store and against slower implementations."""

import collections
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from codec import pretrained
from codec.data.clips import hashed
from codec.data.token_store import TokenStore
from codec.errors import ConfigError, DamagedFile, UsageError
from codec.models.base import Codec
from codec.training.lm.crops import (
    Batch,
    Crop,
    TokenCrops,
    class_names,
    sample_soft_codes,
    split_clips,
    unigram_entropy,
)
from codec.training.lm.recipe import LMRecipe
from codec.training.lm.task import LMTask, build_task
from tests.helpers.training import LENGTHS, small_lm_recipe, write_codec, write_store

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def codec(folder: Path) -> Codec:
    return pretrained.load(write_codec(folder))


@pytest.fixture(scope="module")
def store(folder: Path, codec: Codec) -> TokenStore:
    return TokenStore(write_store(folder, folder / "tiny.safetensors"))


@pytest.fixture(scope="module")
def train_data(store: TokenStore, codec: Codec) -> TokenCrops:
    return task_of(small_lm_recipe(), store, codec).train_data


def task_of(recipe: LMRecipe, store: TokenStore, codec: Codec) -> LMTask:
    return build_task(recipe, CPU, store=store, codec=codec)


def found(codes: Tensor, store: TokenStore) -> Crop:
    """The position of codes [codebooks, frames] in the store."""
    frames = codes.shape[1]
    positions = []
    for clip in range(len(store)):
        whole = store[clip].codes
        for start in range(whole.shape[1] - frames + 1):
            if whole[:, start : start + frames].equal(codes):
                length = whole.shape[1]
                positions.append(Crop(clip, start, frames, frames == length, start + frames == length))
    (position,) = positions
    return position


@pytest.mark.slow
def test_rows_are_crops_of_training_clips(train_data: TokenCrops, store: TokenStore) -> None:
    seen = collections.Counter[tuple[bool, bool]]()
    for step in range(8):
        batch = train_data.batch(step, 0, 4)
        assert batch.codes.shape[-1] + 1 == batch.targets.shape[-1] <= 17
        for codes, targets, classes in zip(batch.codes, batch.targets, batch.conditioning.classes, strict=True):
            frames = int((codes[0] >= 0).sum())
            crop = found(codes[:, :frames], store)
            assert LENGTHS[crop.clip] > 16 or crop.whole
            assert (codes[:, frames:] == -1).all()
            expected = torch.full_like(targets, -1)
            expected[:, :frames] = codes[:, :frames]
            if crop.ends:
                expected[0, frames] = 20
            if crop.start:
                expected[:, 0] = -1
            assert targets.equal(expected)
            row = store.row(crop.clip)
            assert crop.clip < 7
            known = [("no", "yes").index(row.label or ""), ("anna", "ben", "cleo").index(row.speaker or "")]
            assert all(one in (-1, other) for one, other in zip(classes.tolist(), known, strict=True))
            seen[crop.start > 0, crop.ends] += 1
        assert batch.target_counts.tolist() == (batch.targets >= 0).sum(dim=(0, 2)).tolist()
    assert len(seen) == 4


def test_a_row_depends_on_its_step_and_number_alone(train_data: TokenCrops) -> None:
    whole = train_data.batch(5, 0, 4)
    train_data.batch(6, 0, 4)
    for first in (2, 0):
        part = train_data.batch(5, first, first + 2)
        longest = part.codes.shape[-1]
        assert part.codes.equal(whole.codes[first : first + 2, :, :longest])
        assert part.targets.equal(whole.targets[first : first + 2, :, : longest + 1])
        assert (whole.codes[first : first + 2, :, longest:] == -1).all()
        assert part.conditioning.classes.equal(whole.conditioning.classes[first : first + 2])
        assert part.target_counts.equal(whole.target_counts)  # of all rows
    assert not train_data.batch(6, 0, 4).codes.equal(whole.codes)


def test_micro_batches_are_the_rows_with_less_padding(train_data: TokenCrops) -> None:
    config = small_lm_recipe(data={"frames": 40}).data
    batch = TokenCrops(
        train_data.store, train_data.rows, train_data.model, config, condition_dropout=0.1, stochastic=True
    ).batch(3, 0, 4)
    assert batch.noise is not None

    def row(batch: Batch, number: int) -> tuple[object, ...]:
        assert batch.noise is not None
        codes, targets = batch.codes[number], batch.targets[number]
        known = codes[0] >= 0
        noise = batch.noise[number][:, known]
        assert 0 < float(noise.mean()) < 1
        classes = batch.conditioning.classes[number].tolist()
        return codes[:, known].tolist(), targets[targets >= 0].tolist(), noise.tolist(), classes

    parts = list(batch.split(2))
    assert [len(part.codes) for part in parts] == [2, 2]
    rows = [row(part, number) for part in parts for number in range(2)]
    assert sorted(rows, key=str) == sorted((row(batch, number) for number in range(4)), key=str)
    for part in parts:
        assert int((part.codes[:, 0] >= 0).sum(dim=1).max()) == part.codes.shape[-1] == part.targets.shape[-1] - 1
        assert part.target_counts.equal(batch.target_counts)
    assert parts[0].codes.shape[-1] < parts[1].codes.shape[-1]


@pytest.mark.slow
def test_crops_are_drawn_in_proportion(train_data: TokenCrops) -> None:
    """Short clips are equally likely, longer ones by length; beginnings and ends have half a crop's share each."""
    count = 10_000
    rng = np.random.default_rng(0)
    crops = [train_data.draw(rng) for _ in range(count)]
    total = sum(max(LENGTHS[clip], 16) for clip in range(7))
    clips = collections.Counter(crop.clip for crop in crops)
    for clip in range(7):
        assert clips[clip] / count == pytest.approx(max(LENGTHS[clip], 16) / total, abs=0.01)
    starts = collections.Counter(crop.start for crop in crops if crop.clip == 6)
    assert set(starts) == set(range(25))
    assert starts[0] / clips[6] == pytest.approx(9 / 40, abs=0.03)  # frames 0 to 8 have a crop around them there
    assert starts[24] / clips[6] == pytest.approx(8 / 40, abs=0.03)
    assert starts[7] / clips[6] == pytest.approx(1 / 40, abs=0.01)


def test_splits(folder: Path, tmp_path: Path, store: TokenStore) -> None:
    train, valid = split_clips(store, 0.02)
    assert (train.tolist(), valid.tolist()) == (list(range(7)), [7, 8])
    codec = folder / "tiny.safetensors"
    (tmp_path / "none").mkdir()
    none = TokenStore(write_store(tmp_path / "none", codec, split=[None] * 9, speaker=[None] * 9))
    files = [hashed(f"audio/{number}.wav") for number in range(9)]
    held = [number for number in range(9) if files[number] < 2**63]
    assert 0 < len(held) < 9
    train, valid = split_clips(none, 0.5)
    assert (valid.tolist(), sorted([*train, *valid])) == (held, list(range(9)))
    train, valid = split_clips(none, 1e-9)
    assert (valid.tolist(), len(train)) == ([int(np.argmin(files))], 8)
    (tmp_path / "train").mkdir()
    only = TokenStore(write_store(tmp_path / "train", codec, split=["train"] * 9))
    with pytest.raises(UsageError, match=r"to validate on: of its 9 clips, 9 of split train; mark some as valid"):
        split_clips(only, 0.5)
    (tmp_path / "test").mkdir()
    test = TokenStore(write_store(tmp_path / "test", codec, split=["train"] * 4 + ["test"] * 3 + ["valid"] * 2))
    assert [rows.tolist() for rows in split_clips(test, 0.5)] == [[0, 1, 2, 3], [7, 8]]
    (tmp_path / "tests").mkdir()
    tests = TokenStore(write_store(tmp_path / "tests", codec, split=["train"] * 7 + ["test"] * 2))
    assert [rows.tolist() for rows in split_clips(tests, 0.5)] == [[0, 1, 2, 3, 4, 5, 6], [7, 8]]
    (tmp_path / "one").mkdir()
    one = TokenStore(write_store(tmp_path / "one", codec, split=["test"] * 9))
    with pytest.raises(UsageError, match=r"to train on: of its 9 clips, 9 of split test; mark .* tokenize it again$"):
        split_clips(one, 0.5)


def test_classes_are_those_trained_on(folder: Path, tmp_path: Path, store: TokenStore, train_data: TokenCrops) -> None:
    train, valid = split_clips(store, 0.02)
    expected = {"speaker": ("anna", "ben", "cleo"), "label": ("no", "yes")}
    assert class_names(store, train, ["speaker", "label"]) == expected
    (batch,) = TokenCrops(store, valid, train_data.model, small_lm_recipe().data).validation()
    assert batch.conditioning.classes.tolist() == [[0, 0], [1, -1]]  # dora is a validation speaker only
    silent = TokenStore(write_store(tmp_path, folder / "tiny.safetensors", speaker=[None] * 9))
    with pytest.raises(ConfigError, match=r'data\.conditions has "speaker", but no training clip of .* column speaker'):
        class_names(silent, train, ["label", "speaker"])


def test_conditions_are_dropped_at_random(train_data: TokenCrops) -> None:
    crop = Crop(0, 0, 5, True, True)
    rng = np.random.default_rng(0)
    rows = collections.Counter(tuple(train_data.conditions(crop, rng, 0.3)) for _ in range(5000))
    for kinds, share in ((("label", "speaker"), 0.7**3), (("label",), 0.7 * 0.3 * 0.7), ((), 0.3 + 0.7 * 0.09)):
        assert rows[kinds] / 5000 == pytest.approx(share, abs=0.02), kinds
    assert train_data.conditions(crop, rng, 0.0) == {"label": "yes", "speaker": "anna"}


@pytest.mark.slow
def test_whole_clips_are_conditioned_on_their_text(store: TokenStore, codec: Codec) -> None:
    recipe = small_lm_recipe(model={"text": True}, data={"conditions": []})
    train_data = task_of(recipe, store, codec).train_data
    assert train_data.conditions(train_data.crop_around(2, 3)) == {"text": "number 2"}
    assert train_data.conditions(train_data.crop_around(6, 3)) == {}
    rng = np.random.default_rng(0)
    count = sum("text" in train_data.conditions(train_data.crop_around(2, 3), rng, 0.5) for _ in range(2000))
    assert count / 2000 == pytest.approx(0.25, abs=0.03)  # dropped neither alone nor with all
    batch = train_data.batch(0, 0, 4)
    texts = [bytes(row[row >= 0].tolist()).decode() for row in batch.conditioning.text]
    assert set(texts) <= {"", *(f"number {clip}" for clip in range(4))}
    assert any(texts)


def test_validation_is_fixed_and_spread(store: TokenStore, train_data: TokenCrops) -> None:
    valid = TokenCrops(store, np.arange(7), train_data.model, small_lm_recipe(data={"batch_size": 1}).data)
    batches = list(valid.validation(4))
    clips = [found(batch.codes[0][:, batch.codes[0, 0] >= 0], store) for batch in batches]
    assert [crop.clip for crop in clips] == [0, 2, 4, 6]
    assert all(batch.codes.equal(again.codes) for batch, again in zip(batches, valid.validation(4), strict=True))
    for batch in batches:
        assert batch.target_counts.tolist() == (batch.targets >= 0).sum(dim=(0, 2)).tolist()
        assert (batch.conditioning.classes >= 0).all()
    assert len(list(valid.validation())) == 7


def test_unigram_entropy(store: TokenStore) -> None:
    rows = np.array([0, 3, 6])
    for codebook, entropy in enumerate(unigram_entropy(store, rows, 2, 20).tolist()):
        counts = collections.Counter(code for row in rows for code in store[int(row)].codes[codebook].tolist())
        shares = [count / counts.total() for count in counts.values()]
        assert entropy == pytest.approx(-sum(share * math.log2(share) for share in shares), rel=1e-5)


def test_codes_that_do_not_match_their_checksum(tmp_path: Path, folder: Path) -> None:
    path = write_store(tmp_path, folder / "tiny.safetensors")
    file = next(path.glob("*.codes"))
    whole = file.read_bytes()
    file.write_bytes(whole[:6] + bytes([whole[6] ^ 1]) + whole[7:])
    with pytest.raises(DamagedFile, match=file.name):
        unigram_entropy(TokenStore(path), np.arange(7), 2, 20)


@pytest.mark.parametrize(("soft", "stochastic"), [(0.2, None), (None, 0.05), (0.1, 0.3)])
def test_soft_targets_and_stochastic_codes(soft: float | None, stochastic: float | None) -> None:
    """Against a loop over every frame, by the definition."""
    rng = torch.Generator().manual_seed(0)
    vectors = torch.randn(3, 6, 4, generator=rng) * torch.tensor([1.0, 0.5, 0.2])[:, None, None]
    codes = torch.randint(6, (2, 3, 7), generator=rng)
    noise = torch.rand(2, 2, 7, generator=rng)
    sampled, targets = sample_soft_codes(codes, vectors, 2, soft=soft, stochastic=stochastic, noise=noise)
    assert (targets is None) == (soft is None)
    for row in range(2):
        for frame in range(7):
            left = sum(vectors[codebook, codes[row, codebook, frame]] for codebook in range(3))
            for codebook in range(2):
                pairs = [(a - b).square().sum() for a in vectors[codebook] for b in vectors[codebook]]
                unit = sum(pairs) / 30  # of 36 pairs, 6 are of an entry and itself
                distances = torch.stack([(left - entry).square().sum() for entry in vectors[codebook]])
                if soft is not None:
                    assert targets is not None
                    likely = torch.exp(-distances / (soft * unit))
                    torch.testing.assert_close(
                        targets[row, codebook, frame], likely / likely.sum(), rtol=1e-4, atol=1e-5
                    )
                code = int(codes[row, codebook, frame])
                if stochastic is not None:
                    likely = torch.exp(-distances / (stochastic * unit))
                    below, code = 0.0, -1
                    for number, share in enumerate((likely / likely.sum()).tolist()):
                        below += share
                        if float(noise[row, codebook, frame]) < below:
                            code = number
                            break
                assert int(sampled[row, codebook, frame]) == code
                left = left - vectors[codebook, code]
    if stochastic is not None:
        assert not sampled.equal(codes[:, :2])


def test_modes_are_never_sampled() -> None:
    """Modes and silence of `gain_shape` are not sampled, and other codes are as if these entries did not exist."""
    rng = torch.Generator().manual_seed(0)
    vectors = torch.randn(3, 6, 4, generator=rng)
    vectors[0, 4:] = 0
    codes = torch.randint(6, (8, 3, 50), generator=rng)
    noise = torch.rand(8, 3, 50, generator=rng)
    noise[0, 0] = 1 - 2**-24  # the largest possible number
    sampled, targets = sample_soft_codes(codes, vectors, 3, soft=0.5, stochastic=0.5, noise=noise)
    assert targets is not None
    mode = codes[:, 0] >= 4
    for codebook in range(3):
        assert sampled[:, codebook][mode].equal(codes[:, codebook][mode])
        assert targets[:, codebook][mode].equal(F.one_hot(codes[:, codebook][mode], 6).float())
        assert not sampled[:, codebook][~mode].equal(codes[:, codebook][~mode])
    assert (sampled[:, 0][~mode] < 4).all()
    assert (targets[:, 0][~mode][:, 4:] == 0).all()
    with_room = [vectors[0, :4], *vectors[1:]]
    left = torch.stack([vectors[codebook][codes[:, codebook]] for codebook in range(3)]).sum(dim=0)
    distances = (left[:, :, None] - with_room[0]).square().sum(dim=-1)
    unit = torch.pdist(with_room[0]).square().mean()
    expected = (-distances / (0.5 * unit)).softmax(dim=-1)
    torch.testing.assert_close(targets[:, 0, ..., :4][~mode], expected[~mode], rtol=1e-4, atol=1e-5)


def test_temperature_0_is_greedy_search() -> None:
    """Near temperature 0 each code is the nearest to the residual."""
    rng = torch.Generator().manual_seed(0)
    vectors = torch.randn(2, 8, 3, generator=rng)
    codes = torch.randint(8, (1, 2, 50), generator=rng)
    latent = vectors[0][codes[0, 0]] + vectors[1][codes[0, 1]]
    first = torch.cdist(latent, vectors[0]).argmin(dim=1)
    second = torch.cdist(latent - vectors[0][first], vectors[1]).argmin(dim=1)
    noise = torch.rand(1, 2, 50, generator=rng)
    sampled, targets = sample_soft_codes(codes, vectors, 2, soft=1e-6, stochastic=1e-6, noise=noise)
    assert sampled[0].equal(torch.stack([first, second]))
    assert targets is not None
    assert targets[0].argmax(dim=-1).equal(sampled[0])
