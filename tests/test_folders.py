"""folders.py: folders and lists of files compressed and restored, each file with its own outcome."""

import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import soundfile

from codec import compression, folders
from codec.checkpoint import load_model, save_model
from codec.compression import compress
from codec.errors import CodecError, DamagedFile, InputNotFound, StorageError, UnknownModel, UsageError
from codec.folders import Outcome, compress_tree, decompress_tree
from codec.io import bitstream
from codec.io.coded_channels import Stereo
from codec.io.entropy import MODEL
from codec.io.locks import claimed
from codec.transcoding import concat, transcode
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny.safetensors"
    save_model(path, tiny_model(), training={})
    return path


def tones(path: Path, *, time: int = 1234, rate: int = 8000, channels: int = 1) -> Path:
    """A tone for each channel, in a file of its suffix's format."""
    t = np.arange(time)[:, None] / rate
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.5 * np.sin(2 * np.pi * 200 * (1 + np.arange(channels)) * t), rate)
    return path


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def states(outcomes: list[Outcome], folder: Path) -> dict[str, str]:
    """Source and target of each file with its result."""
    return {
        f"{outcome.source.relative_to(folder)} > {outcome.target.name}": type(outcome.error).__name__
        if outcome.error
        else "done"
        if outcome.report
        else "skipped"
        for outcome in outcomes
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    tones(folder / "one.wav", time=500)
    tones(folder / "deep" / "er" / "two.FLAC", time=600, channels=2)
    tones(folder / "deep" / "same.flac", time=700)
    tones(folder / "deep" / "same.wav", time=800)
    tones(folder / ".hidden.wav")
    tones(folder / ".folder" / "x.wav")
    (folder / "bad.wav").write_text("no audio")
    (folder / "notes.txt").write_text("no audio")
    (folder / "folder.wav").mkdir()
    return folder


TREE = {
    "bad.wav > bad.codec": "UnsupportedAudio",
    "deep/er/two.FLAC > two.codec": "done",
    "deep/same.flac > same.flac.codec": "done",
    "deep/same.wav > same.wav.codec": "done",
    "one.wav > one.codec": "done",
}


def test_a_folder_is_compressed_and_restored_with_its_structure(tmp_path: Path, folder: Path, model_file: Path) -> None:
    calls: list[tuple[Outcome, int, int]] = []
    outcomes = compress_tree(folder, tmp_path / "out", model=model_file, progress=lambda *call: calls.append(call))
    assert states(outcomes, folder) == TREE
    assert list(states(outcomes, folder)) == list(TREE)
    assert [(done, total) for _, done, total in calls] == [(n + 1, 5) for n in range(5)]
    assert {outcome.source for outcome, _, _ in calls} == {outcome.source for outcome in outcomes}
    assert names(tmp_path / "out") == {
        "one.codec",
        "deep/er/two.codec",
        "deep/same.flac.codec",
        "deep/same.wav.codec",
    }

    again = states(compress_tree(folder, tmp_path / "out", model=model_file), folder)
    assert again == {name: "skipped" if state == "done" else state for name, state in TREE.items()}
    assert states(compress_tree(folder, tmp_path / "out", model=model_file, force=True), folder) == TREE

    back = decompress_tree(tmp_path / "out", tmp_path / "back", model=model_file)
    assert set(states(back, tmp_path / "out").values()) == {"done"}
    assert soundfile.info(tmp_path / "back" / "deep" / "er" / "two.wav").frames == 600
    assert soundfile.info(tmp_path / "back" / "deep" / "er" / "two.wav").channels == 2
    back = decompress_tree(tmp_path / "out", tmp_path / "back", model=model_file)
    assert set(states(back, tmp_path / "out").values()) == {"skipped"}


def test_a_partly_restored_file_is_replaced(tmp_path: Path, model_file: Path) -> None:
    compress(tones(tmp_path / "in" / "a.wav", time=20000), tmp_path / "in" / "a.codec", model=model_file, packet=1.0)
    data = (tmp_path / "in" / "a.codec").read_bytes()
    (tmp_path / "in" / "a.codec").write_bytes(data[:-30])
    (first,) = decompress_tree(tmp_path / "in", tmp_path / "out", model=model_file)
    assert isinstance(first.error, DamagedFile)
    assert (tmp_path / "out" / "a.wav").exists()
    (second,) = decompress_tree(tmp_path / "in", tmp_path / "out", model=model_file)
    assert isinstance(second.error, DamagedFile)
    (tmp_path / "in" / "a.codec").write_bytes(data)
    (third,) = decompress_tree(tmp_path / "in", tmp_path / "out", model=model_file)
    assert third.report is not None
    assert names(tmp_path / "out") == {"a.wav"}
    assert soundfile.info(tmp_path / "out" / "a.wav").frames == 20000


def test_the_default_target_is_beside_the_source(tmp_path: Path, model_file: Path) -> None:
    tones(tmp_path / "deep" / "a.flac")
    compress_tree(tmp_path, model=model_file)
    decompress_tree(tmp_path, model=model_file)
    assert {path.name for path in (tmp_path / "deep").iterdir()} == {"a.flac", "a.codec", "a.wav"}


@pytest.mark.slow
@pytest.mark.usefixtures("forked_processes")
def test_two_jobs_write_the_same_files_as_one(tmp_path: Path, folder: Path, model_file: Path) -> None:
    (folder / "cut.codec").write_bytes(b"\x89CDC")
    assert states(compress_tree(folder, tmp_path / "one", model=model_file), folder) == TREE
    outcomes = compress_tree(folder, tmp_path / "two", model=model_file, jobs=2)
    assert states(outcomes, folder) == TREE
    for path in (tmp_path / "one").rglob("*.codec"):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()


def killed_once(model: Path, source: Path, target: Path) -> compression.Report:
    """Compress a file; the first time it is number 3, kill the process before it can report."""
    report = compress(source, target, model=model)
    begun = target.with_suffix(".begun")
    if source.stem == "3" and not begun.exists():
        begun.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return report


@pytest.mark.slow
@pytest.mark.usefixtures("forked_processes")
def test_every_file_is_written_once_when_a_process_is_killed(tmp_path: Path, model_file: Path) -> None:
    """In local processes; tests/test_parallel.py kills those of Ray, and so does that of tokenizing."""
    pairs = [(tones(tmp_path / f"{n}.wav", time=900 + n), tmp_path / f"out/{n}.codec") for n in range(8)]
    work = partial(killed_once, model_file)
    made_by = ("tiny", load_model(model_file).weights_hash)
    wanted: dict[str, Any] = {
        "num_codebooks": 3,
        "channels": "",
        "settings": "",
        "stereo": "left-right",
        "last_coder": MODEL,
    }
    is_done = partial(folders._is_compressed, made_by=made_by, frames_per_packet=None, force=False, **wanted)
    outcomes = folders._run(pairs, work, is_done=is_done, jobs=2, engine="local", progress=None)
    assert [outcome.error for outcome in outcomes] == [None] * 8
    assert outcomes[3].report is None  # done by the process that was killed
    assert sum(outcome.report is not None for outcome in outcomes) >= 6
    assert (tmp_path / "out/3.begun").exists()
    for source, target in pairs:
        compress(source, tmp_path / "again.codec", model=model_file, force=True)
        assert target.read_bytes() == (tmp_path / "again.codec").read_bytes()


def difference(outcomes: list[Outcome]) -> str:
    """What is said of the one target, which was kept."""
    (outcome,) = outcomes
    assert isinstance(outcome.error, StorageError)
    assert str(outcome.error).startswith(f"{outcome.target} exists and ")
    assert str(outcome.error).endswith(": pass --force to replace it")
    return str(outcome.error)


def test_a_file_that_was_compressed_with_other_settings_is_named(tmp_path: Path, model_file: Path) -> None:
    tones(tmp_path / "in" / "a.wav", time=20_000)
    encode = partial(compress_tree, tmp_path / "in", tmp_path / "out", model=model_file)

    def made(**options: Any) -> bytes:
        (outcome,) = encode(force=True, **options)
        assert outcome.error is None
        (again,) = encode(**options)
        assert (again.report, again.error) == (None, None)
        return (tmp_path / "out/a.codec").read_bytes()

    plain = made(packet=1.0)
    assert "was encoded with the defaults, not with vbr 2: pass" in difference(encode(vbr=2))
    assert "was encoded with the defaults, not with beams 7: pass" in difference(encode(beams=7))
    assert made(beams=load_model(model_file).beam_size, packet=1.0) == plain  # the model's own number
    assert "has packets of 100 frames, not of 50: pass" in difference(encode(packet=0.5))
    assert "has packets of the entropy coder adaptive, not none at most: pass" in difference(encode(entropy="none"))
    assert made(packet=1.0) == plain
    made(entropy="none")
    assert [outcome.report or outcome.error for outcome in encode(entropy="adaptive")] == [None]
    made(vbr=2, beams=7)
    assert "was encoded with vbr 2, beams 7, not with the defaults: pass" in difference(encode())
    assert "was encoded with vbr 2, beams 7, not with vbr 2.5: pass" in difference(encode(vbr=2.5))
    transcode(tmp_path / "out/a.codec", tmp_path / "b.codec", num_codebooks=1)
    concat([tmp_path / "out/a.codec", tmp_path / "b.codec"], tmp_path / "c.codec")
    for name in ("b", "c"):
        with bitstream.open_reader(tmp_path / f"{name}.codec") as reader:
            assert reader.header.settings == "vbr 2, beams 7"


def test_a_file_whose_channels_were_coded_otherwise_is_named(tmp_path: Path, model_file: Path) -> None:
    tones(tmp_path / "in" / "a.wav", channels=2, time=1000)
    tones(tmp_path / "in" / "mono.wav", time=1000)
    encode = partial(compress_tree, tmp_path / "in", tmp_path / "out", model=model_file)
    encode()
    before, ways = "the defaults", get_args(Stereo)
    for stereo in (*ways[1:], ways[0]):
        outcome, mono = encode(stereo=stereo)
        assert mono.error is None  # its file would be the same
        assert f"was encoded with {before}, not with " in difference([outcome])
        assert all(outcome.report for outcome in encode(stereo=stereo, force=True))
        assert [outcome.error or outcome.report for outcome in encode(stereo=stereo)] == [None, None]
        before = f"stereo {stereo}"
    with pytest.raises(UsageError, match="stereo is 'mono'"):
        encode(stereo="mono")  # type: ignore[arg-type]


def test_a_compressed_file_of_something_else_is_named(tmp_path: Path, model_file: Path) -> None:
    source, target = tones(tmp_path / "in" / "a.wav"), tmp_path / "out" / "a.codec"
    encode = partial(compress_tree, tmp_path / "in", tmp_path / "out")
    encode(model=model_file, num_codebooks=2)
    before = target.read_bytes()
    assert encode(model=model_file, num_codebooks=2)[0].error is None
    assert "has codes of 2 codebooks, not of 3" in difference(encode(model=model_file))
    save_model(tmp_path / "other.safetensors", tiny_model(1), training={})
    assert "was made by tiny (" in difference(encode(model=tmp_path / "other.safetensors", num_codebooks=2))
    os.utime(source, (2e9, 2e9))  # the content counts, not the time
    assert encode(model=model_file, num_codebooks=2)[0].error is None
    data = bytearray(source.read_bytes())
    data[-2] ^= 1
    source.write_bytes(data)
    assert f"is of other content than {source}" in difference(encode(model=model_file, num_codebooks=2))
    tones(source, time=2000)
    assert f"is of other content than {source}" in difference(encode(model=model_file, num_codebooks=2))
    assert target.read_bytes() == before
    assert encode(model=model_file, num_codebooks=2, force=True)[0].report is not None
    target.write_bytes(target.read_bytes()[:-30])
    assert "is damaged at its end" in difference(encode(model=model_file, num_codebooks=2))
    target.write_bytes(b"something else")
    assert "cannot be read" in difference(encode(model=model_file, num_codebooks=2))


def test_a_compressed_file_of_other_channels_is_named(tmp_path: Path, model_file: Path) -> None:
    tones(tmp_path / "in" / "a.wav", channels=2)
    encode: Callable[..., list[Outcome]] = partial(compress_tree, tmp_path / "in", tmp_path / "out", model=model_file)
    selections: list[dict[str, int]] = [{}, {"channels": 1}, {"channel": 0}, {"channel": 1}]
    for selection in selections:
        assert encode(**selection, force=True)[0].report is not None
        for other in selections:
            if other == selection:
                assert encode(**other)[0].error is None
            else:
                assert "channels" in difference(encode(**other))
    compress(tmp_path / "in" / "a.wav", tmp_path / "out" / "a.codec", model=model_file, force=True)
    assert "has 2 channels, not 1" in difference(encode(channel=1))


def test_a_compressed_file_without_the_identity_of_its_source_counts_by_its_time(
    tmp_path: Path, model_file: Path
) -> None:
    source = tones(tmp_path / "a.wav")
    compress(source, tmp_path / "a.codec", model=model_file)
    assert compress_tree(tmp_path, model=model_file)[0].error is None
    os.utime(source, (2e9, 2e9))
    assert "is older than" in difference(compress_tree(tmp_path, model=model_file))


def test_a_restored_file_of_something_else_is_named(tmp_path: Path, model_file: Path) -> None:
    source, target = tones(tmp_path / "a.wav"), tmp_path / "out" / "a.wav"
    (tmp_path / "in").mkdir()
    compress(source, tmp_path / "in" / "a.codec", model=model_file)
    decode = partial(decompress_tree, tmp_path / "in", tmp_path / "out", model=model_file)
    decode()
    assert decode()[0].error is None
    assert "has 8000 Hz, not 16000" in difference(decode(rate=16000))
    assert "holds PCM_16, not FLOAT" in difference(decode(subtype="FLOAT"))
    assert "does not hold the audio of" in difference(decode(num_codebooks=1))
    assert decode(num_codebooks=1, force=True)[0].report is not None
    assert decode(num_codebooks=1)[0].error is None
    assert "does not hold the audio of" in difference(decode())
    assert decode(force=True)[0].report is not None
    os.utime(target, (1e9, 1e9))
    assert "is older than" in difference(decode())
    assert decode(force=True)[0].report is not None
    tones(target, channels=2)
    assert "has 2 channels, not 1" in difference(decode())
    tones(target, time=99)
    assert "has 99 samples, not 1234" in difference(decode())


@pytest.mark.parametrize("tree", [compress_tree, decompress_tree])
def test_invalid_folders_and_options_raise(
    tmp_path: Path, model_file: Path, tree: Callable[..., list[Outcome]]
) -> None:
    with pytest.raises(InputNotFound, match="missing"):
        tree(tmp_path / "missing", model=model_file)
    with pytest.raises(InputNotFound, match="holds no"):
        tree(tmp_path, model=model_file)
    source = tones(tmp_path / "a.wav")
    compress(source, tmp_path / "a.codec", model=model_file)
    with pytest.raises(StorageError, match="is a file"):
        tree(tmp_path, source, model=model_file)
    with pytest.raises(UsageError, match="takes one file"):
        tree(tmp_path, "-", model=model_file)
    with pytest.raises(UnknownModel):
        tree(tmp_path, model="no-such-model")
    with pytest.raises(UsageError, match="0 jobs"):
        tree(tmp_path, model=model_file, jobs=0)


def test_an_unexpected_exception_does_not_stop_the_folder(
    tmp_path: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tones(tmp_path / "a.wav")
    tones(tmp_path / "b.wav")
    monkeypatch.setattr(compression, "header_of", lambda *_, **__: 1 / 0)
    outcomes = compress_tree(tmp_path, model=model_file)
    assert [str(outcome.error) for outcome in outcomes] == [
        "ZeroDivisionError: division by zero",
        "ZeroDivisionError: division by zero",
    ]
    assert all(isinstance(outcome.error, CodecError) for outcome in outcomes)


def test_an_output_folder_that_is_a_file(tmp_path: Path, model_file: Path) -> None:
    tones(tmp_path / "in" / "sub" / "a.wav")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub").write_bytes(b"a file")
    (outcome,) = compress_tree(tmp_path / "in", tmp_path / "out", model=model_file)
    assert isinstance(outcome.error, StorageError)
    assert "sub cannot be written, it is a file" in str(outcome.error)


@pytest.mark.parametrize(
    ("paths", "targets"),
    [
        (["a.wav", "b.wav"], ["a.codec", "b.codec"]),
        (["a.wav", "a.mp3", "b.wav"], ["a.wav.codec", "a.mp3.codec", "b.codec"]),
        (["a.wav", "x/a.mp3"], ["a.codec", "x/a.codec"]),
        (["A.wav", "a.flac"], ["A.wav.codec", "a.flac.codec"]),
        (["a.wav", "a.mp3", "a.wav.flac"], ["a.wav.codec", "a.mp3.codec", "a.wav.flac.codec"]),
    ],
)
def test_names_that_differ_in_the_suffix_alone_keep_it(paths: list[str], targets: list[str]) -> None:
    assert folders._targets([Path(path) for path in paths], ".codec") == [Path(target) for target in targets]


def test_links_are_followed_and_loops_are_cut(tmp_path: Path, model_file: Path) -> None:
    tones(tmp_path / "elsewhere" / "b.wav")
    tones(tmp_path / "in" / "a.wav")
    (tmp_path / "in" / "linked").symlink_to("../elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to("../elsewhere")
    compress_tree(tmp_path / "in", tmp_path / "out", model=model_file)
    assert names(tmp_path / "out") == {"a.codec", "linked/b.codec"}


def test_a_list_of_files_and_folders(tmp_path: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = tones(tmp_path / "a.wav"), tones(tmp_path / "b" / "a.flac")
    tones(tmp_path / "set" / "deep" / "c.wav")
    odd = a.rename(tmp_path / "a.recording")
    outcomes = compress_tree([odd, b, tmp_path / "set", b, tmp_path / "none.wav"], tmp_path / "out", model=model_file)
    assert [type(outcome.error) for outcome in outcomes] == [type(None), type(None), InputNotFound, type(None)]
    assert names(tmp_path / "out") == {"a.recording.codec", "a.flac.codec", "set/deep/c.codec"}
    compress_tree([odd, b], model=model_file)
    assert odd.with_suffix(".codec").exists()
    assert b.with_suffix(".codec").exists()
    monkeypatch.chdir(tmp_path / "set" / "deep")
    (tmp_path / "link").symlink_to("set")
    for folder, expected in ((".", "deep/c.codec"), ("..", "set/deep/c.codec"), ("../../link", "link/deep/c.codec")):
        compress_tree([folder, b], tmp_path / "more" / expected[:3], model=model_file)
        assert names(tmp_path / "more" / expected[:3]) == {expected, "a.codec"}


def test_files_of_one_name_from_two_folders_are_not_one_output(tmp_path: Path, model_file: Path) -> None:
    sources = [tones(tmp_path / name / "a.wav") for name in "xy"]
    first, second = compress_tree(sources, tmp_path / "out", model=model_file)
    assert first.report is not None
    assert isinstance(second.error, UsageError)
    assert "would both be" in str(second.error)


def test_only_audio_for_ffmpeg_is_named(tmp_path: Path, model_file: Path) -> None:
    for name in ("a.m4a", "b.M4A", "c.webm"):
        (tmp_path / name).write_bytes(b"data")
    with pytest.raises(InputNotFound, match=r"holds no recordings: not read: 2 \.m4a, 1 \.webm \(convert them"):
        compress_tree(tmp_path, model=model_file)


# several processes on one folder


def test_each_file_is_made_by_one_of_several_processes(
    tmp_path: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads stand for processes, because locks are on open files, not on processes."""
    for number in range(6):
        tones(tmp_path / f"in/{number}.wav", time=300)
    made: list[str] = []

    def counted(source: Path, target: Path, **options: Any) -> compression.Report:
        made.append(source.name)
        return compress(source, target, **options)

    monkeypatch.setattr(folders, "compress", counted)
    outcomes: list[list[Outcome]] = []

    def work() -> None:
        outcomes.append(compress_tree(tmp_path / "in", tmp_path / "out", model=model_file))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [f"{number}.wav" for number in range(6)]
    assert [sum(outcome.report is not None for outcome in of_one) for of_one in outcomes] != [6, 6, 6]
    assert all(len(of_one) == 6 and not any(outcome.error for outcome in of_one) for of_one in outcomes)
    assert names(tmp_path / "out") == {f"{number}.codec" for number in range(6)}


def test_a_file_that_another_process_gave_up_is_made(tmp_path: Path, model_file: Path) -> None:
    source, done = tones(tmp_path / "in/a.wav").parent, threading.Event()
    (tmp_path / "out").mkdir()
    outcomes: list[Outcome] = []

    def work() -> None:
        outcomes.extend(compress_tree(source, tmp_path / "out", model=model_file))
        done.set()

    with claimed(tmp_path / "out/a.codec"):
        thread = threading.Thread(target=work)
        thread.start()
        assert not done.wait(0.3)
        assert not (tmp_path / "out/a.codec").exists()
    thread.join()
    assert outcomes[0].report is not None
