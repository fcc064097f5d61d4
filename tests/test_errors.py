"""errors.py: every class has its exit status and pickles, as worker processes need."""

import inspect
import pickle

import pytest

from codec import errors

STATUS = {
    "CodecError": 1,
    "UsageError": 2,
    "BadIndex": 2,
    "ConfigError": 2,
    "InputNotFound": 3,
    "UnsupportedAudio": 4,
    "DamagedFile": 5,
    "UnknownModel": 6,
    "WeightsMismatch": 7,
    "StorageError": 8,
    "MissingDependency": 9,
}


def test_exit_status_of_every_class() -> None:
    classes = [item for item in vars(errors).values() if inspect.isclass(item) and item.__module__ == errors.__name__]
    assert {item.__name__: item.exit_code for item in classes if issubclass(item, errors.CodecError)} == STATUS
    assert len(classes) == len(STATUS)


def test_config_error_is_a_usage_error() -> None:
    assert issubclass(errors.ConfigError, errors.UsageError)


@pytest.mark.parametrize("name", sorted(set(STATUS) - {"DamagedFile", "WeightsMismatch"}))
def test_errors_pickle(name: str) -> None:
    error = getattr(errors, name)("song.wav is wrong: mend it")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == "song.wav is wrong: mend it"


@pytest.mark.parametrize(
    ("seconds", "words"), [(None, "nothing can be restored"), (0.0, "first 0.000 s"), (12.5, "first 12.500 s")]
)
def test_damaged_file_says_where_and_pickles(seconds: float | None, words: str) -> None:
    error = errors.DamagedFile("song.codec", offset=4711, reason="checksum differs", seconds_decoded=seconds)
    for each in (error, pickle.loads(pickle.dumps(error))):
        assert (each.label, each.offset, each.reason) == ("song.codec", 4711, "checksum differs")
        assert each.seconds_decoded == seconds
        for part in ("song.codec", "byte 4711", "checksum differs", words):
            assert part in str(each)
        assert "\n" not in str(each)


def test_weights_mismatch_names_both_models_and_pickles() -> None:
    error = errors.WeightsMismatch("song.codec", made_by=("a", "0" * 64), given=(None, None), way_out="pass --model")
    for each in (error, pickle.loads(pickle.dumps(error))):
        assert (each.label, each.made_by) == ("song.codec", ("a", "0" * 64))
        assert str(each) == (
            "song.codec was made by a (weights 000000000000), not by an unnamed model (weights unknown): pass --model"
        )
