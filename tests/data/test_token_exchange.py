"""data/token_exchange.py: exports read by other libraries alone, and imports that give the same store."""

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codec.checkpoint import load_model
from codec.data.token_exchange import Format, export_tokens, import_tokens
from codec.data.token_store import TokenStore
from codec.data.tokenize import tokenize
from codec.errors import (
    CodecError,
    ConfigError,
    DamagedFile,
    InputNotFound,
    StorageError,
    UnsupportedAudio,
    UsageError,
    WeightsMismatch,
)
from tests.helpers.tokens import contents, noise

# lhotse does not close the .tar files that it reads
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
FORMATS: tuple[Format, ...] = ("parquet", "npy", "shar")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, model_file: Path) -> Path:
    """A store of six clips in three shards, with all kinds of metadata."""
    folder = tmp_path_factory.mktemp("written")
    for name, time in (("0.wav", 1), ("1.wav", 79), ("2.flac", 9001), ("3.wav", 20_000), ("4.wav", 81)):
        noise(folder / name, time=time)
    rows: list[dict[str, Any]] = [
        {"path": "0.wav", "split": "train", "speaker": "eva", "label": "b", "language": "en"},
        {"path": "1.wav", "set": "digits", "transcript": "é !"},
        {"path": "2.flac", "channel": 0},
        {"path": "3.wav", "start": 0.5, "seconds": 2.0, "split": "valid", "speaker": "ada"},
        {"path": "3.wav"},
        {"path": "4.wav", "label": "a"},
    ]
    (folder / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("codec.data.tokenize.SHARD_SECONDS", (1.0, 3600.0))
        tokenize(folder / "list.jsonl", folder / "store", model=model_file, level_db=-20)
    return folder / "store"


@pytest.fixture
def store(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "store"))


def out(folder: Path, to: Format) -> Path:
    return folder / ("out.parquet" if to == "parquet" else "out")


@pytest.mark.parametrize("to", FORMATS)
def test_import_gives_the_exported_store(tmp_path: Path, store: Path, to: Format) -> None:
    report = export_tokens(store, out(tmp_path, to), to=to)
    assert report.clips == 6
    assert import_tokens(out(tmp_path, to), tmp_path / "again") == report
    assert contents(tmp_path / "again") == contents(store)


@pytest.mark.parametrize("to", FORMATS)
def test_existing_files_are_replaced_by_force_alone(tmp_path: Path, store: Path, to: Format) -> None:
    target = out(tmp_path, to)
    export_tokens(store, target, to=to)
    with pytest.raises(StorageError, match="exists: pass --force"):
        export_tokens(store, target, to=to)
    export_tokens(store, target, to=to, force=True)
    before = contents(store)
    with pytest.raises(StorageError, match="exists: pass --force"):
        import_tokens(target, store)
    import_tokens(target, store, force=True)
    assert contents(store) == before
    if to != "parquet":
        with pytest.raises(StorageError, match="holds other files"):
            export_tokens(store, store, to=to, force=True)
    assert contents(store) == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".codec-")]


def test_parquet_has_a_row_per_clip(tmp_path: Path, store: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    export_tokens(store, tmp_path / "out.parquet", to="parquet")
    table = parquet.read_table(tmp_path / "out.parquet")
    assert str(table.schema.field("codes").type) == "list<element: list<element: uint16>>"
    rows, clips = table.to_pylist(), list(TokenStore(store))
    assert [row["codes"] for row in rows] == [clip.codes.tolist() for clip in clips]
    assert [row["seconds"] for row in rows] == [clip.row.samples / 8000 for clip in clips]
    assert [row["speaker"] for row in rows] == ["eva", None, None, "ada", None, None]
    assert [row["label"] for row in rows] == ["b", None, None, None, None, "a"]
    assert rows[1]["transcript"] == "é !"
    entry = json.loads(table.schema.metadata[b"codec"])
    assert entry["weights_hash"] == TokenStore(store).weights_hash
    assert entry["frame_spec"]["hop"] == 80


def test_parquet_opens_in_pandas_and_duckdb_and_datasets(tmp_path: Path, store: Path) -> None:
    file = tmp_path / "out.parquet"
    export_tokens(store, file, to="parquet")
    codes = [clip.codes.tolist() for clip in TokenStore(store)]
    opened = 0
    for name in ("pandas", "duckdb", "datasets"):
        try:
            module: Any = __import__(name)
        except ImportError:
            continue
        opened += 1
        match name:
            case "pandas":
                read = [[row.tolist() for row in clip] for clip in module.read_parquet(file)["codes"]]
            case "duckdb":
                query = f"select codes from '{file}' where seconds > 0"
                read = [clip for (clip,) in module.sql(query).fetchall()]
            case _:
                read = module.Dataset.from_parquet(str(file), cache_dir=str(tmp_path / "cache"))["codes"][:]
        assert read == codes
    if not opened:
        pytest.skip("neither pandas nor duckdb nor datasets is installed")


def test_row_groups_are_bounded(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("codec.data.token_exchange.GROUP_CODES", 3 * 100)
    export_tokens(store, tmp_path / "out.parquet", to="parquet")
    file = parquet.ParquetFile(tmp_path / "out.parquet")
    assert [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)] == [2, 1, 1, 1, 1]
    import_tokens(tmp_path / "out.parquet", tmp_path / "again")
    assert contents(tmp_path / "again") == contents(store)


def test_arrays_are_codebooks_by_frames(tmp_path: Path, store: Path) -> None:
    export_tokens(store, tmp_path / "out", to="npy")
    lines = [json.loads(line) for line in (tmp_path / "out/clips.jsonl").read_text().splitlines()]
    assert len(lines) == 6
    for line, clip in zip(lines, TokenStore(store), strict=True):
        codes = np.load(tmp_path / "out" / line["codes"])
        assert codes.dtype == np.uint16
        assert codes.tolist() == clip.codes.tolist()
        assert line["id"] == clip.row.id


def test_lhotse_opens_shar_alone(tmp_path: Path, store: Path) -> None:
    lhotse = pytest.importorskip("lhotse")
    export_tokens(store, tmp_path / "out", to="shar")
    cuts = list(lhotse.CutSet.from_shar(in_dir=tmp_path / "out"))
    clips = list(TokenStore(store))
    assert [cut.id for cut in cuts] == [clip.row.id for clip in clips]
    for cut, clip in zip(cuts, clips, strict=True):
        assert cut.load_codes().T.tolist() == clip.codes.tolist()
        assert cut.supervisions[0].duration == clip.row.samples / 8000
        assert cut.custom["codec"]["weights_hash"] == TokenStore(store).weights_hash
    assert cuts[1].supervisions[0].text == "é !"
    assert cuts[3].supervisions[0].speaker == "ada"
    part = cuts[3].truncate(offset=1.0, duration=0.5)
    assert part.load_codes().T.tolist() == clips[3].codes[:, 100:150].tolist()


def test_some_rows_of_an_export_are_imported(tmp_path: Path, store: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    export_tokens(store, tmp_path / "out.parquet", to="parquet")
    table = parquet.read_table(tmp_path / "out.parquet")
    (tmp_path / "parts").mkdir()
    for number in (3, 1):
        parquet.write_table(table.slice(number, 1), tmp_path / "parts" / f"{number}.parquet")
    assert import_tokens(tmp_path / "parts", tmp_path / "again").clips == 2
    some, all_ = TokenStore(tmp_path / "again"), TokenStore(store)
    assert [clip.row.id for clip in some] == [all_.row(1).id, all_.row(3).id]
    assert [clip.codes.tolist() for clip in some] == [all_[1].codes.tolist(), all_[3].codes.tolist()]


def test_codes_of_other_tools(tmp_path: Path, model_file: Path) -> None:
    """A .jsonl with a few keys, and Parquet without any beside the codes; int64 and int32."""
    model = load_model(model_file)
    codes = np.random.default_rng(0).integers(0, 16, (3, 2, 12))
    for number, own in enumerate(codes):
        np.save(tmp_path / f"{number}.npy", own[None] if number else own)
    lines = [
        {"codes": "0.npy", "speaker": "eva", "label": 7, "seconds": 0.1051},
        {"codes": "1.npy", "samples": 801, "text": "not a key"},
        {"codes": "2.npy", "seconds": 0.0951},
    ]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    import_tokens(tmp_path / "list.jsonl", tmp_path / "store", model=model_file)
    store = TokenStore(tmp_path / "store", model)
    assert [clip.codes.tolist() for clip in store] == codes.tolist()
    assert [clip.row.id for clip in store] == ["0", "1", "2"]
    assert (store.row(0).speaker, store.row(0).label) == ("eva", "7")
    assert [clip.row.samples for clip in store] == [841, 801, model.frame_spec.time(12)]
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"audio_codes": codes.astype(np.int32).tolist(), "label": [1, 2, None]})
    parquet.write_table(table, tmp_path / "train.parquet")
    import_tokens(tmp_path / "train.parquet", tmp_path / "other", model=model_file)
    other = TokenStore(tmp_path / "other", model)
    assert [clip.codes.tolist() for clip in other] == codes.tolist()
    assert [clip.row.id for clip in other] == ["train.parquet:1", "train.parquet:2", "train.parquet:3"]
    assert other.classes["label"] == ("1", "2")


def lines_with(folder: Path, array: object = None, **facts: object) -> Path:
    """A list of one array."""
    np.save(folder / "a.npy", np.zeros((3, 4), np.int64) if array is None else np.asarray(array))
    (folder / "list.jsonl").write_text(json.dumps({"codes": "a.npy"} | facts) + "\n")
    return folder / "list.jsonl"


@pytest.mark.parametrize(
    ("codes", "facts", "error", "message"),
    [
        (np.zeros((4, 9), int), {}, UnsupportedAudio, r"has codes \[4, 9\], tiny has up to 3 codebooks"),
        (np.full((3, 4), 20), {}, UnsupportedAudio, "has codes from 20 to 20, the codebooks have 20 entries"),
        (-np.ones((3, 4), int), {}, UnsupportedAudio, "has codes from -1 to -1"),
        (np.zeros((3, 4)), {}, UnsupportedAudio, "has no codes"),
        (np.zeros((2, 3, 4), int), {}, UnsupportedAudio, "has codes of 2 channels"),
        (None, {"samples": 1000}, UnsupportedAudio, "has 4 frames, which do not hold 1000 samples at 8000 Hz"),
        (None, {"seconds": 2.0}, UnsupportedAudio, "has 4 frames, which do not hold 16000 samples"),
        (None, {"seconds": "long"}, ConfigError, "line 1: seconds is 'long'"),
        (None, {"split": "validation"}, ConfigError, "split is 'validation': write one of train, valid, test"),
        (None, {"speaker": [1]}, ConfigError, r"speaker is \[1\]"),
        (None, {"codes": 3}, ConfigError, "codes is 3: write the path of an array"),
        (None, {"codes": "b.npy"}, InputNotFound, "b.npy cannot be read"),
        (None, {"codes": None}, ConfigError, "codes is None"),
    ],
)
def test_codes_that_are_not_the_models(
    tmp_path: Path, model_file: Path, codes: object, facts: dict[str, object], error: type[CodecError], message: str
) -> None:
    with pytest.raises(error, match=message):
        import_tokens(lines_with(tmp_path, codes, **facts), tmp_path / "store", model=model_file)
    assert not (tmp_path / "store").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".codec-")]


def test_ids_are_unique(tmp_path: Path, model_file: Path) -> None:
    path = lines_with(tmp_path)
    path.write_text(2 * path.read_text())
    with pytest.raises(ConfigError, match="line 2: there are two clips a: give each its own id"):
        import_tokens(path, tmp_path / "store", model=model_file)


def test_without_clips_there_is_no_store(tmp_path: Path, model_file: Path) -> None:
    (tmp_path / "list.jsonl").write_text("")
    with pytest.raises(InputNotFound, match="holds no clips: name files that do"):
        import_tokens(tmp_path / "list.jsonl", tmp_path / "store", model=model_file)
    assert not (tmp_path / "store").exists()


def test_a_codec_must_be_known(tmp_path: Path, store: Path, model_file: Path) -> None:
    with pytest.raises(UsageError, match="does not say which codec made its codes: pass --model"):
        import_tokens(lines_with(tmp_path), tmp_path / "again")
    export_tokens(store, tmp_path / "out", to="npy")
    with pytest.raises(WeightsMismatch, match="leave --model out"):
        import_tokens(tmp_path / "out", tmp_path / "again", model="digits-8k")
    import_tokens(tmp_path / "out", tmp_path / "again", model=model_file)
    with pytest.raises(InputNotFound, match=r"holds neither \.parquet files nor"):
        import_tokens(tmp_path / "store", tmp_path / "more")
    with pytest.raises(InputNotFound, match="does not exist"):
        import_tokens(tmp_path / "nothing.jsonl", tmp_path / "more", model=model_file)


@pytest.mark.parametrize("to", FORMATS)
def test_descriptions_of_two_codecs_are_refused(tmp_path: Path, store: Path, to: Format) -> None:
    export_tokens(store, out(tmp_path, to), to=to)
    match to:
        case "parquet":
            parquet = pytest.importorskip("pyarrow.parquet")
            table = parquet.read_table(tmp_path / "out.parquet")
            parquet.write_table(table.replace_schema_metadata(None), tmp_path / "out2.parquet")
            (tmp_path / "nothing").mkdir()
            for name in ("out", "out2"):
                (tmp_path / f"{name}.parquet").rename(tmp_path / "nothing" / f"{name}.parquet")
            with pytest.raises(ConfigError, match=r"out2\.parquet is of another codec"):
                import_tokens(tmp_path / "nothing", tmp_path / "again")
        case "npy":
            path = tmp_path / "out/codec.json"
            facts = json.loads(path.read_text())
            for altered in ("{", json.dumps(facts | {"frame_spec": {"hop": 0}}), json.dumps(facts | {"shards": [-1]})):
                path.write_text(altered)
                with pytest.raises(DamagedFile, match="description of the codec was altered"):
                    import_tokens(tmp_path / "out", tmp_path / "again")
        case "shar":
            path = tmp_path / "out/cuts.000001.jsonl.gz"
            text = gzip.decompress(path.read_bytes()).decode()
            path.write_bytes(gzip.compress(text.replace(TokenStore(store).weights_hash, "0" * 64).encode()))
            with pytest.raises(ConfigError, match="is of another codec"):
                import_tokens(tmp_path / "out", tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("to", FORMATS)
def test_truncated_files_are_refused(tmp_path: Path, store: Path, to: Format) -> None:
    export_tokens(store, out(tmp_path, to), to=to)
    damaged, ends = {
        "parquet": (tmp_path / "out.parquet", (3, 1000, 5000)),
        "npy": (tmp_path / "out/codes/00000/00000003.npy", (0, 20, 300)),
        "shar": (tmp_path / "out/codes.000000.tar", (0, 600, 2048, 2500)),
    }[to]
    data = damaged.read_bytes()
    for end in ends:
        assert end < len(data)
        damaged.write_bytes(data[:end])
        with pytest.raises(DamagedFile):
            import_tokens(out(tmp_path, to), tmp_path / "again")
        assert not (tmp_path / "again").exists()


def test_names_that_are_not_utf8(tmp_path: Path, corpus: Path, model_file: Path) -> None:
    (corpus / "train/a/0.wav").rename(corpus / "train/a/\udcff.wav")
    tokenize(corpus, tmp_path / "store", model=model_file)
    export_tokens(tmp_path / "store", tmp_path / "out", to="npy")
    import_tokens(tmp_path / "out", tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "store")
    for to in FORMATS[::2]:
        with pytest.raises(UsageError, match="is not UTF-8, which these files need: use --to npy"):
            export_tokens(tmp_path / "store", tmp_path / "other", to=to)
        assert not (tmp_path / "other").exists()
