"""Checkpoints that other projects have published: where they are, their licenses, and how to fetch them.

Files come from the Hugging Face hub through `huggingface_hub`, which caches them and respects HF_HOME, HF_ENDPOINT,
HF_TOKEN and HF_HUB_OFFLINE. No hashes are stated here, because none was verified against the publishers: the hub states
the SHA-256 of each weights file in the ETag of its answer, and a downloaded file is compared with that. The comparison
finds damage on the way; it does not find other weights that the repository's owner uploads later, for which .codec
files and token stores have a hash of their own.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from logging import ERROR
from pathlib import Path
from typing import Any

from codec.errors import CodecError, MissingDependency, StorageError, UnknownModel
from codec.foreign import CONFIG, FOLDER_FILES, INDEX
from codec.frames import FrameSpec
from codec.io.bounded_json import read_json


@dataclass(frozen=True)
class Published:
    """A published checkpoint: its repository, the license of its weights, and the sizes of its configuration."""

    repository: str
    license: str
    """Of the weights; "uncertain" where what the publisher says does not settle it (docs/models.md)."""
    spec: FrameSpec
    file: str = "model.safetensors"

    @property
    def codebooks(self) -> str:
        """Number and size of the codebooks."""
        return f"{self.spec.num_codebooks} × {self.spec.codebook_size}"

    @property
    def bitrates(self) -> str:
        """The lowest and the highest bit rate, in kbit/s."""
        return f"{self.spec.bitrate(1):.3g} to {self.spec.bitrate(self.spec.num_codebooks):.3g}"

    def as_data(self) -> dict[str, Any]:
        """Convert to plain data for JSON."""
        return {
            "repository": self.repository,
            "file": self.file,
            "license": self.license,
            "sample_rate": self.spec.sample_rate,
            "frame_rate": round(self.spec.frame_rate, 2),
            "codebooks": self.codebooks,
            "bitrates": self.bitrates,
        }


def _spec(sample_rate: int, hop: int, num_codebooks: int, codebook_size: int) -> FrameSpec:
    return FrameSpec(sample_rate, hop, 0, num_codebooks, codebook_size)


_PICKLE = "pytorch_model.bin"
PUBLISHED = {
    "encodec-24khz": Published("facebook/encodec_24khz", "uncertain", _spec(24000, 320, 32, 1024)),
    "encodec-48khz": Published("facebook/encodec_48khz", "uncertain", _spec(48000, 320, 16, 1024)),
    "encodec-32khz": Published("facebook/encodec_32khz", "CC BY-NC 4.0", _spec(32000, 640, 4, 2048)),
    "dac-16khz": Published("descript/dac_16khz", "MIT", _spec(16000, 320, 12, 1024)),
    "dac-24khz": Published("descript/dac_24khz", "MIT", _spec(24000, 320, 32, 1024)),
    "dac-44khz": Published("descript/dac_44khz", "MIT", _spec(44100, 512, 9, 1024)),
    "mimi-24khz": Published("kyutai/mimi", "CC BY 4.0", _spec(24000, 1920, 32, 2048)),
    "snac-24khz": Published("hubertsiuzdak/snac_24khz", "MIT", _spec(24000, 2048, 7, 4096), file=_PICKLE),
    "snac-32khz": Published("hubertsiuzdak/snac_32khz", "MIT", _spec(32000, 3072, 15, 4096), file=_PICKLE),
    "snac-44khz": Published("hubertsiuzdak/snac_44khz", "MIT", _spec(44100, 3072, 15, 4096), file=_PICKLE),
}
"""By the name that `codec.load` and --model take."""


HUB = re.compile(r"hf:([\w.-]+/[\w.-]+)")
"""Names of other repositories of the hub."""
EXTRACTOR = "preprocessor_config.json"


def is_name(name: str) -> bool:
    """Whether a name is that of a published checkpoint or of a repository of the hub."""
    return name in PUBLISHED or HUB.fullmatch(name) is not None


def name_of(path: Path) -> str | None:
    """The published name of a file in the hub's cache, or hf:OWNER/NAME; None for any other file."""
    folder = path.absolute().parents[2].name if len(path.absolute().parents) > 2 else ""
    kind, _, repository = folder.partition("--")
    if kind != "models" or "--" not in repository:
        return None
    repository = repository.replace("--", "/", 1)
    return next((name for name, known in PUBLISHED.items() if known.repository == repository), f"hf:{repository}")


def cached(name: str) -> Path | None:
    """The file of a published checkpoint, or of a repository, if it has been fetched before."""
    with suppress(ImportError):
        from huggingface_hub import try_to_load_from_cache

        repository = _repository(name)
        files = [PUBLISHED[name].file] if name in PUBLISHED else [file for file in FOLDER_FILES if file != INDEX]
        if name not in PUBLISHED and not isinstance(try_to_load_from_cache(repository, CONFIG), str):
            return None  # a download was interrupted
        found = (try_to_load_from_cache(repository, file) for file in files)
        return next((Path(path) for path in found if isinstance(path, str)), None)
    return None


def _repository(name: str) -> str:
    match = HUB.fullmatch(name)
    return PUBLISHED[name].repository if match is None else match[1]


def fetch(name: str) -> Path:
    """The file of a published checkpoint, downloaded with its configuration unless it was fetched before.

    A name hf:OWNER/NAME is that of a repository in the layout of transformers.

    Raises:
        MissingDependency: huggingface_hub is not installed.
        UnknownModel: the hub cannot be reached, or does not give the file.
        StorageError: the file cannot be stored, or is not what the hub says, now or when it was fetched.
    """
    found = cached(name)
    if found is not None:
        for part in _weights(found):
            _verify_cached(part, part.stat().st_mtime_ns, name)
        return found
    if name not in PUBLISHED:
        return _fetched_repository(name)
    known = PUBLISHED[name]
    where = f"{name} ({known.repository}, {known.file})"
    with _fetching(name, where):
        from huggingface_hub import hf_hub_download

        hf_hub_download(known.repository, CONFIG)
        path = Path(hf_hub_download(known.repository, known.file))
    _verify(path, where)
    return path


def _fetched_repository(name: str) -> Path:
    """The file of a repository, downloaded with what transformers reads beside it."""
    repository = _repository(name)
    with _fetching(name, name):
        for file in (CONFIG, EXTRACTOR):
            _downloaded(repository, file)
        paths = (_downloaded(repository, file) for file in FOLDER_FILES)
        path = next(filter(None, paths), None)
        if path is None:
            raise UnknownModel(f"{name} has none of {', '.join(FOLDER_FILES)}: name a model of transformers")
        parts = [_downloaded(repository, part) for part in _parts(path)] if path.name == INDEX else [path]
    for part in filter(None, parts):
        _verify(part, f"{name} ({part.name})")
    return path


def _downloaded(repository: str, file: str) -> Path | None:
    """A file of a repository; None if it has no such file."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repository, file))
    except LocalEntryNotFoundError:  # no network
        raise
    except EntryNotFoundError:
        return None


def _parts(index: Path) -> list[str]:
    """The files that an index of weights names."""
    try:
        names = {Path(str(name)).name for name in read_json(index.read_bytes())["weight_map"].values()}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UnknownModel(f"{index} is not an index of weights: download it again") from error
    return sorted(names)


@contextmanager
def _fetching(name: str, where: str) -> Iterator[None]:
    """Raise errors of the hub as our own."""
    try:
        from huggingface_hub.errors import (
            EntryNotFoundError,
            GatedRepoError,
            HfHubHTTPError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
        )
        from huggingface_hub.utils import logging
    except ImportError as error:
        raise MissingDependency(
            f"{name} is fetched by huggingface_hub: pip install '.[hub]' in the project's folder"
        ) from error
    verbosity = logging.get_verbosity()
    logging.set_verbosity(ERROR)  # because it warns of every attempt to connect
    try:
        yield
    except GatedRepoError as error:
        raise UnknownModel(f"{where} needs a login: accept its terms on the hub, then set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        raise UnknownModel(f"{where} does not exist on the hub: check the name") from error
    except LocalEntryNotFoundError as error:  # no network, or HF_HUB_OFFLINE; before the next, of which it is a kind
        raise UnknownModel(
            f"{where} has not been fetched before, and the hub cannot be reached: go online once, or give the path of "
            "its file"
        ) from error
    except EntryNotFoundError as error:
        raise UnknownModel(
            f"{where} is not in its repository any more: give the path of its file, or upgrade codec"
        ) from error
    except HfHubHTTPError as error:
        problem = str(error).strip().splitlines()[0]
        raise UnknownModel(
            f"{where} cannot be fetched ({problem}): try again later, or give the path of its file"
        ) from error
    except CodecError:
        raise
    except Exception as error:  # of the HTTP library of the hub's client, which differs between its releases
        problem = " ".join(str(error).split())[:200] or type(error).__name__
        if isinstance(error, OSError) and error.errno and not isinstance(error, (ConnectionError, TimeoutError)):
            raise StorageError(f"{where} cannot be stored ({error.strerror}): free space, or set HF_HOME") from error
        raise UnknownModel(
            f"{where} cannot be fetched ({problem}): try again, which resumes, or give the path of its file"
        ) from error
    finally:
        logging.set_verbosity(verbosity)


def _weights(path: Path) -> list[Path]:
    """The files of weights that a fetched file is, or is the index of."""
    if path.name != INDEX:
        return [path]
    return [path.parent / part for part in _parts(path) if (path.parent / part).is_file()]


def _verify(path: Path, where: str) -> None:
    """Compare a file with the SHA-256 that the hub names it by; remove it if they differ."""
    if not _is_intact(path):
        blob = path.resolve()
        path.unlink()
        blob.unlink()
        raise StorageError(f"{where} arrived with other content than the hub states, and was removed: fetch it again")


@lru_cache(maxsize=64)
def _verify_cached(path: Path, modified: int, name: str) -> None:
    """Compare a file in the cache with its SHA-256, once for each time at which it was `modified` (ns)."""
    if not _is_intact(path):
        raise StorageError(f"{name} is not what it was when it was fetched: delete {path.resolve()} to fetch it again")


def _is_intact(path: Path) -> bool:
    blob = path.resolve()
    if not re.fullmatch("[0-9a-f]{64}", blob.name):  # small files are named by a hash of git
        return True
    with blob.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == blob.name
