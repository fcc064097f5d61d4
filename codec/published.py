"""Checkpoints that other projects have published: where they are, their licenses, and how to fetch them.

Files come from the Hugging Face hub through `huggingface_hub`, which caches them and respects HF_HOME, HF_ENDPOINT,
HF_TOKEN and HF_HUB_OFFLINE. The hub names each weights file by its SHA-256; a downloaded file is compared with it.
"""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from codec.errors import MissingDependency, StorageError, UnknownModel
from codec.foreign import CONFIG


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published checkpoint; the rates are those of its configuration, in Hz and kbit/s."""

    repository: str
    file: str = "model.safetensors"
    license: str
    """Of the weights; "not stated" where the publisher licenses only the code."""
    sample_rate: int
    frame_rate: float
    codebooks: str
    bitrates: str


PUBLISHED = {
    "encodec-24khz": Published(
        repository="facebook/encodec_24khz",
        license="not stated",
        sample_rate=24000,
        frame_rate=75,
        codebooks="32 × 1024",
        bitrates="0.75 to 24",
    ),
    "encodec-48khz": Published(
        repository="facebook/encodec_48khz",
        license="not stated",
        sample_rate=48000,
        frame_rate=150,
        codebooks="16 × 1024",
        bitrates="1.5 to 24",
    ),
    "encodec-32khz": Published(
        repository="facebook/encodec_32khz",
        license="CC BY-NC 4.0",
        sample_rate=32000,
        frame_rate=50,
        codebooks="4 × 2048",
        bitrates="0.55 to 2.2",
    ),
    "dac-16khz": Published(
        repository="descript/dac_16khz",
        license="MIT",
        sample_rate=16000,
        frame_rate=50,
        codebooks="12 × 1024",
        bitrates="0.5 to 6",
    ),
    "dac-24khz": Published(
        repository="descript/dac_24khz",
        license="MIT",
        sample_rate=24000,
        frame_rate=75,
        codebooks="32 × 1024",
        bitrates="0.75 to 24",
    ),
    "dac-44khz": Published(
        repository="descript/dac_44khz",
        license="MIT",
        sample_rate=44100,
        frame_rate=86.13,
        codebooks="9 × 1024",
        bitrates="0.86 to 7.75",
    ),
    "mimi-24khz": Published(
        repository="kyutai/mimi",
        license="CC BY 4.0",
        sample_rate=24000,
        frame_rate=12.5,
        codebooks="32 × 2048",
        bitrates="0.14 to 4.4",
    ),
    "snac-24khz": Published(
        repository="hubertsiuzdak/snac_24khz",
        file="pytorch_model.bin",
        license="MIT",
        sample_rate=24000,
        frame_rate=11.72,
        codebooks="7 × 4096",
        bitrates="0.14 to 0.98",
    ),
    "snac-32khz": Published(
        repository="hubertsiuzdak/snac_32khz",
        file="pytorch_model.bin",
        license="MIT",
        sample_rate=32000,
        frame_rate=10.42,
        codebooks="15 × 4096",
        bitrates="0.125 to 1.88",
    ),
    "snac-44khz": Published(
        repository="hubertsiuzdak/snac_44khz",
        file="pytorch_model.bin",
        license="MIT",
        sample_rate=44100,
        frame_rate=14.36,
        codebooks="15 × 4096",
        bitrates="0.172 to 2.58",
    ),
}
"""By the name that `codec.load` and --model take."""


def name_of(path: Path) -> str | None:
    """The published name of a file in the hub's cache, None for any other file."""
    folders = {"models--" + known.repository.replace("/", "--"): name for name, known in PUBLISHED.items()}
    repository = path.absolute().parents[2].name if len(path.absolute().parents) > 2 else ""
    return folders.get(repository)


def cached(name: str) -> Path | None:
    """The file of a published checkpoint if it has been fetched before."""
    with suppress(ImportError):
        from huggingface_hub import try_to_load_from_cache

        known = PUBLISHED[name]
        found = try_to_load_from_cache(known.repository, known.file)
        return Path(found) if isinstance(found, str) else None
    return None


def fetch(name: str) -> Path:
    """The file of a published checkpoint, downloaded with its configuration unless it was fetched before.

    Raises:
        MissingDependency: huggingface_hub is not installed.
        UnknownModel: the hub cannot be reached, or does not give the file.
        StorageError: the file cannot be stored, or is not what the hub says.
    """
    found = cached(name)
    if found is not None:
        return found
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise MissingDependency(
            f"{name} is fetched by huggingface_hub: pip install '.[hub]' in the project's folder"
        ) from error
    known = PUBLISHED[name]
    where = f"{name} ({known.repository}, {known.file})"
    try:
        hf_hub_download(known.repository, CONFIG)
        path = Path(hf_hub_download(known.repository, known.file))
    except GatedRepoError as error:
        raise UnknownModel(f"{where} needs a login: accept its terms on the hub, then set HF_TOKEN") from error
    except LocalEntryNotFoundError as error:  # no network, or HF_HUB_OFFLINE
        raise UnknownModel(
            f"{where} has not been fetched before, and the hub cannot be reached: go online once, or give the path of "
            "its file"
        ) from error
    except HfHubHTTPError as error:
        problem = str(error).strip().splitlines()[0]
        raise UnknownModel(
            f"{where} cannot be fetched ({problem}): try again later, or give the path of its file"
        ) from error
    except OSError as error:
        raise StorageError(
            f"{where} cannot be stored ({error.strerror or error}): free space, or set HF_HOME"
        ) from error
    _verify(path, where)
    return path


def _verify(path: Path, where: str) -> None:
    """Compare a file with the SHA-256 that the hub names it by; remove it if they differ."""
    blob = path.resolve()
    if not re.fullmatch("[0-9a-f]{64}", blob.name):  # small files are named by a hash of git
        return
    with blob.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != blob.name:
        path.unlink()
        blob.unlink()
        raise StorageError(f"{where} arrived with other content than the hub states, and was removed: fetch it again")
