"""Where the networks of entropy coding are: the shipped ones, and those beside the files of models in use.

mine.safetensors is the file of a model, mine.entropy.safetensors that of its network.
"""

import json
from functools import lru_cache
from pathlib import Path

SUFFIX = ".entropy.safetensors"
METADATA = "codec_entropy"

_WEIGHTS = Path(__file__).parents[1] / "weights"
_BESIDE: dict[str, Path] = {}  # by the weights hash of the models that this process has opened


def look_beside(model: Path | None, weights_hash: str | None) -> None:
    """Let `files_for` look beside the file of the model with these weights, in this process."""
    if model is not None and weights_hash is not None:
        _BESIDE[weights_hash] = model.with_suffix(SUFFIX)


def files_for(weights_hash: str) -> list[Path]:
    """Files that may hold the network of the codec with these weights, the one beside its file first."""
    files = (_BESIDE.get(weights_hash), shipped().get(weights_hash))
    return [path for path in files if path is not None and path.is_file()]


@lru_cache(1)
def shipped() -> dict[str, Path]:
    """The files of shipped networks, by the weights hash of their codec."""
    return {weights_hash_of(path): path for path in sorted(_WEIGHTS.glob(f"*{SUFFIX}"))}


def weights_hash_of(path: Path) -> str:
    """That of the codec which a network is for. Raises SafetensorError, OSError, ValueError, KeyError, TypeError."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        return str(json.loads(file.metadata()[METADATA])["weights_hash"])
