"""A small network of entropy coding, and packets of codes as codecs make them."""

from typing import Any

import numpy as np
import pytest

from codec.io import entropy
from codec.io.entropy import Codes


def random_tensors(sizes: tuple[int, ...] = (20, 30, 2), seed: int = 0) -> dict[str, Any]:
    """A network of random integers whose predictions and logits use their whole range."""
    generator = np.random.default_rng(seed)

    def integers(most: int, *shape: int, dtype: Any = np.int8) -> Any:
        return generator.integers(-most, most + 1, shape).astype(dtype)

    first, rest, hidden, prediction = 5, 6, 7, 4
    tensors = {
        "gain": np.array([0, 32, 20, *[9] * len(sizes)][: len(sizes)], np.int32),
        "shift": np.array([[9, 8, 4]] * len(sizes), np.int32),
        "gains": generator.integers(0, 9, (len(sizes), 6)).astype(np.int32),
        "grow": np.rint(256 * np.exp(np.arange(145) / 16)).astype(np.int32),
        "exp": np.maximum(np.rint(2**16 * np.exp(-np.arange(180) / 16)), 1).astype(np.int32),
    }
    for codebook, size in enumerate(sizes):
        vector = rest if codebook else first
        context = 5 * first + (9 * rest if codebook > 1 else 0) if codebook else 4 * first
        context += 2 * rest if codebook in (1, 2) else 0
        tensors |= {
            f"input.{codebook}": integers(127, size, vector),
            f"hidden.{codebook}": integers(127, hidden, context),
            f"hidden_bias.{codebook}": integers(9999, hidden, dtype=np.int32),
            f"weight.{codebook}": integers(127, prediction, hidden),
            f"weight_bias.{codebook}": integers(9999, prediction, dtype=np.int32),
            f"output.{codebook}": integers(20, size, prediction),
            f"output_bias.{codebook}": integers(999, size, dtype=np.int32),
        }
    return tensors


def codes_of(kind: str, sizes: list[int], *, rows: int, frames: int, seed: int) -> Codes:
    """Packets as codecs make them: random codes, one code, runs of codes, or rows that are equal."""
    generator = np.random.default_rng(seed)
    limits = np.array(sizes)[:, None]
    codes: Codes = generator.integers(0, limits, (rows, len(sizes), frames))
    match kind:
        case "constant":
            codes[:] = codes[:1, :, :1]
        case "runs":
            codes = codes[:, :, np.arange(frames) // 7]
        case "rows":
            codes[:] = codes[:1]
        case "few":
            codes %= 3
    codes %= limits
    return codes


def thinned(codes: Codes, seed: int) -> Codes:
    """Codes of which each frame keeps a random number of codebooks, for some frames the same; -1 after them."""
    counts = np.random.default_rng(seed).integers(1, codes.shape[1] + 1, (len(codes), 1, codes.shape[2]))
    counts = counts[:, :, np.arange(codes.shape[2]) // 3 * 3]
    kept: Codes = np.where(np.arange(codes.shape[1])[:, None] < counts, codes, -1)
    return kept


def force_coder(patch: pytest.MonkeyPatch, coder: int) -> None:
    """Let writers code every packet by one coder, by none if it is that of a network and there is none."""

    def finish(self: entropy.PacketEncoder, codes: Codes) -> tuple[int, bytes]:
        sizes, model = self._sizes[: codes.shape[1]], self._model
        if coder == entropy.NONE or (coder == entropy.MODEL and model is None):
            return entropy.NONE, (entropy.pack_varying if entropy.varies(codes) else entropy.pack)(codes, sizes)
        network = model if coder == entropy.MODEL else None
        return coder, entropy.encode_adaptive(codes, sizes, network, with_ends=self.has_ends(codes))

    patch.setattr(entropy.PacketEncoder, "finish", finish)
