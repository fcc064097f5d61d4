"""training/lm_data.py: what a step learns from, against the store and slower ways."""

import collections
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from codec import pretrained
from codec.data.token_store import TokenStore
from codec.errors import ConfigError, DamagedFile, UsageError
from codec.models.base import Codec
from codec.training.lm.crops import Batch, Crop, LMData, names_of, sides, soften, unigram
from codec.training.lm.task import assemble
from tests.helpers.training import LENGTHS, small_lm_recipe, write_codec, write_store

CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


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
def lessons(store: TokenStore, codec: Codec) -> LMData:
    return assemble(small_lm_recipe(), store, codec, CPU)[1]


def found(codes: Tensor, store: TokenStore) -> Crop:
    """Where codes [codebooks, frames] stand in the store."""
    frames = codes.shape[1]
    places = []
    for clip in range(len(store)):
        whole = store[clip].codes
        for start in range(whole.shape[1] - frames + 1):
            if whole[:, start : start + frames].equal(codes):
                length = whole.shape[1]
                places.append(Crop(clip, start, frames, frames == length, start + frames == length))
    (place,) = places
    return place


def test_rows_are_crops_of_training_clips(lessons: LMData, store: TokenStore) -> None:
    seen = collections.Counter[tuple[bool, bool]]()
    for step in range(8):
        batch = lessons.batch(step, 0, 4)
        assert batch.codes.shape[-1] + 1 == batch.targets.shape[-1] <= 17
        for codes, targets, told in zip(batch.codes, batch.targets, batch.conditions.classes, strict=True):
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
            assert all(one in (-1, other) for one, other in zip(told.tolist(), known, strict=True))
            seen[crop.start > 0, crop.ends] += 1
        assert batch.counted.tolist() == (batch.targets >= 0).sum(dim=(0, 2)).tolist()
    assert len(seen) == 4


def test_a_row_depends_on_its_step_and_number_alone(lessons: LMData) -> None:
    whole = lessons.batch(5, 0, 4)
    lessons.batch(6, 0, 4)
    for first in (2, 0):
        part = lessons.batch(5, first, first + 2)
        longest = part.codes.shape[-1]
        assert part.codes.equal(whole.codes[first : first + 2, :, :longest])
        assert part.targets.equal(whole.targets[first : first + 2, :, : longest + 1])
        assert (whole.codes[first : first + 2, :, longest:] == -1).all()
        assert part.conditions.classes.equal(whole.conditions.classes[first : first + 2])
        assert part.counted.equal(whole.counted)  # of all rows
    assert not lessons.batch(6, 0, 4).codes.equal(whole.codes)


def test_parts_are_the_rows_with_less_padding(lessons: LMData) -> None:
    drawn = small_lm_recipe(losses={"stochastic": 1.0}, data={"frames": 40})
    batch = LMData(lessons.store, drawn, lessons.rows, lessons.model).batch(3, 0, 4)
    assert batch.draws is not None

    def row(batch: Batch, number: int) -> tuple[object, ...]:
        assert batch.draws is not None
        codes, targets = batch.codes[number], batch.targets[number]
        known = codes[0] >= 0
        draws = batch.draws[number][:, known]
        assert 0 < float(draws.mean()) < 1
        conditions = batch.conditions.classes[number].tolist()
        return codes[:, known].tolist(), targets[targets >= 0].tolist(), draws.tolist(), conditions

    parts = list(batch.parts(2))
    assert [len(part.codes) for part in parts] == [2, 2]
    rows = [row(part, number) for part in parts for number in range(2)]
    assert sorted(rows, key=str) == sorted((row(batch, number) for number in range(4)), key=str)
    for part in parts:
        assert int((part.codes[:, 0] >= 0).sum(dim=1).max()) == part.codes.shape[-1] == part.targets.shape[-1] - 1
        assert part.counted.equal(batch.counted)
    assert parts[0].codes.shape[-1] < parts[1].codes.shape[-1]


def test_draws_are_in_proportion(lessons: LMData) -> None:
    """Of short clips one each, of longer ones by length; beginnings and ends half a crop's share each."""
    count = 10_000
    rng = np.random.default_rng(0)
    crops = [lessons.drawn(rng) for _ in range(count)]
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
    train, valid = sides(store, 0.02)
    assert (train.tolist(), valid.tolist()) == (list(range(7)), [7, 8])
    codec = folder / "tiny.safetensors"
    (tmp_path / "none").mkdir()
    none = TokenStore(write_store(tmp_path / "none", codec, split=[None] * 9))
    held = [number for number in range(9) if int(none.index["id"][number]) < 2**63]
    assert 0 < len(held) < 9
    train, valid = sides(none, 0.5)
    assert (valid.tolist(), sorted([*train, *valid])) == (held, list(range(9)))
    train, valid = sides(none, 1e-9)
    assert (valid.tolist(), len(train)) == ([int(none.index["id"].argmin())], 8)
    with pytest.raises(UsageError, match=r"to validate on: of its 9 clips, none has a split; .* or change data.held_"):
        sides(none, 0)
    (tmp_path / "test").mkdir()
    test = TokenStore(write_store(tmp_path / "test", codec, split=["train"] * 4 + ["test"] * 3 + ["valid"] * 2))
    assert [side.tolist() for side in sides(test, 0.5)] == [[0, 1, 2, 3], [7, 8]]
    (tmp_path / "tests").mkdir()
    tests = TokenStore(write_store(tmp_path / "tests", codec, split=["train"] * 7 + ["test"] * 2))
    assert [side.tolist() for side in sides(tests, 0.5)] == [[0, 1, 2, 3, 4, 5, 6], [7, 8]]
    (tmp_path / "one").mkdir()
    one = TokenStore(write_store(tmp_path / "one", codec, split=["test"] * 9))
    with pytest.raises(UsageError, match=r"to train on: of its 9 clips, 9 of split test; mark .* tokenize it again$"):
        sides(one, 0.5)


def test_classes_are_those_trained_on(folder: Path, tmp_path: Path, store: TokenStore, lessons: LMData) -> None:
    train, valid = sides(store, 0.02)
    expected = {"speaker": ("anna", "ben", "cleo"), "label": ("no", "yes")}
    assert names_of(store, train, ["speaker", "label"]) == expected
    (batch,) = LMData(store, small_lm_recipe(), valid, lessons.model).validation()
    assert batch.conditions.classes.tolist() == [[0, 0], [1, -1]]  # nobody knows dora
    silent = TokenStore(write_store(tmp_path, folder / "tiny.safetensors", speaker=[None] * 9))
    with pytest.raises(ConfigError, match=r'data\.classes has "speaker", but no training clip of .* column speaker'):
        names_of(silent, train, ["label", "speaker"])


def test_conditions_are_left_out_at_random(lessons: LMData) -> None:
    crop = Crop(0, 0, 5, True, True)
    rng = np.random.default_rng(0)
    rows = collections.Counter(tuple(lessons.told(crop, rng, 0.3)) for _ in range(5000))
    for kinds, share in ((("label", "speaker"), 0.7**3), (("label",), 0.7 * 0.3 * 0.7), ((), 0.3 + 0.7 * 0.09)):
        assert rows[kinds] / 5000 == pytest.approx(share, abs=0.02), kinds
    assert lessons.told(crop, rng, 0.0) == {"label": "yes", "speaker": "anna"}


def test_texts_are_told_of_whole_clips(store: TokenStore, codec: Codec) -> None:
    lessons = assemble(small_lm_recipe(model={"text": True}, data={"classes": []}), store, codec, CPU)[1]
    assert lessons.told(lessons.around(2, 3)) == {"text": "number 2"}
    assert lessons.told(lessons.around(6, 3)) == {}
    rng = np.random.default_rng(0)
    count = sum("text" in lessons.told(lessons.around(2, 3), rng, 0.5) for _ in range(2000))
    assert count / 2000 == pytest.approx(0.25, abs=0.03)  # neither alone left out nor with all
    batch = lessons.batch(0, 0, 4)
    texts = [bytes(row[row >= 0].tolist()).decode() for row in batch.conditions.text]
    assert set(texts) <= {"", *(f"number {clip}" for clip in range(4))}
    assert any(texts)


def test_validation_is_fixed_and_spread(store: TokenStore, lessons: LMData) -> None:
    valid = LMData(store, small_lm_recipe(data={"batch_size": 1}), np.arange(7), lessons.model)
    batches = list(valid.validation(4))
    clips = [found(batch.codes[0][:, batch.codes[0, 0] >= 0], store) for batch in batches]
    assert [crop.clip for crop in clips] == [0, 2, 4, 6]
    assert all(batch.codes.equal(again.codes) for batch, again in zip(batches, valid.validation(4), strict=True))
    for batch in batches:
        assert batch.counted.tolist() == (batch.targets >= 0).sum(dim=(0, 2)).tolist()
        assert (batch.conditions.classes >= 0).all()
    assert len(list(valid.validation())) == 7


def test_unigram_entropy(store: TokenStore) -> None:
    rows = np.array([0, 3, 6])
    for codebook, entropy in enumerate(unigram(store, rows, 2, 20).tolist()):
        counts = collections.Counter(code for row in rows for code in store[int(row)].codes[codebook].tolist())
        shares = [count / counts.total() for count in counts.values()]
        assert entropy == pytest.approx(-sum(share * math.log2(share) for share in shares), rel=1e-5)


def test_codes_that_are_not_those_of_their_checksum(tmp_path: Path, folder: Path) -> None:
    path = write_store(tmp_path, folder / "tiny.safetensors")
    file = next(path.glob("*.codes"))
    whole = file.read_bytes()
    file.write_bytes(whole[:6] + bytes([whole[6] ^ 1]) + whole[7:])
    with pytest.raises(DamagedFile, match=file.name):
        unigram(TokenStore(path), np.arange(7), 2, 20)


@pytest.mark.parametrize(("soft", "stochastic"), [(0.2, None), (None, 0.05), (0.1, 0.3)])
def test_soft_targets_and_stochastic_codes(soft: float | None, stochastic: float | None) -> None:
    """Against a loop over every frame, by the definition."""
    rng = torch.Generator().manual_seed(0)
    vectors = torch.randn(3, 6, 4, generator=rng) * torch.tensor([1.0, 0.5, 0.2])[:, None, None]
    codes = torch.randint(6, (2, 3, 7), generator=rng)
    draws = torch.rand(2, 2, 7, generator=rng)
    taken, targets = soften(codes, vectors, 2, soft=soft, stochastic=stochastic, draws=draws)
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
                        if float(draws[row, codebook, frame]) < below:
                            code = number
                            break
                assert int(taken[row, codebook, frame]) == code
                left = left - vectors[codebook, code]
    if stochastic is not None:
        assert not taken.equal(codes[:, :2])


def test_codes_of_the_first_codebook_without_a_vector_stay_with_their_frames() -> None:
    """Modes and silence of `gain_shape`: they are never drawn, and the rest is as if they were not there."""
    rng = torch.Generator().manual_seed(0)
    vectors = torch.randn(3, 6, 4, generator=rng)
    vectors[0, 4:] = 0
    codes = torch.randint(6, (8, 3, 50), generator=rng)
    draws = torch.rand(8, 3, 50, generator=rng)
    draws[0, 0] = 1 - 2**-24  # the last that can be
    taken, targets = soften(codes, vectors, 3, soft=0.5, stochastic=0.5, draws=draws)
    assert targets is not None
    mode = codes[:, 0] >= 4
    for codebook in range(3):
        assert taken[:, codebook][mode].equal(codes[:, codebook][mode])
        assert targets[:, codebook][mode].equal(F.one_hot(codes[:, codebook][mode], 6).float())
        assert not taken[:, codebook][~mode].equal(codes[:, codebook][~mode])
    assert (taken[:, 0][~mode] < 4).all()
    assert (targets[:, 0][~mode][:, 4:] == 0).all()
    with_room = [vectors[0, :4], *vectors[1:]]
    left = torch.stack([vectors[codebook][codes[:, codebook]] for codebook in range(3)]).sum(dim=0)
    distances = (left[:, :, None] - with_room[0]).square().sum(dim=-1)
    unit = torch.pdist(with_room[0]).square().mean()
    expected = (-distances / (0.5 * unit)).softmax(dim=-1)
    torch.testing.assert_close(targets[:, 0, ..., :4][~mode], expected[~mode], rtol=1e-4, atol=1e-5)


def test_cold_codes_are_those_that_are_stored_or_nearer() -> None:
    """Towards temperature 0 each code is the nearest to what is left: the greedy search's."""
    rng = torch.Generator().manual_seed(0)
    vectors = torch.randn(2, 8, 3, generator=rng)
    codes = torch.randint(8, (1, 2, 50), generator=rng)
    latent = vectors[0][codes[0, 0]] + vectors[1][codes[0, 1]]
    first = torch.cdist(latent, vectors[0]).argmin(dim=1)
    second = torch.cdist(latent - vectors[0][first], vectors[1]).argmin(dim=1)
    draws = torch.rand(1, 2, 50, generator=rng)
    taken, targets = soften(codes, vectors, 2, soft=1e-6, stochastic=1e-6, draws=draws)
    assert taken[0].equal(torch.stack([first, second]))
    assert targets is not None
    assert targets[0].argmax(dim=-1).equal(taken[0])
