"""A network that predicts codes, in exact integers, so that every machine computes the same frequencies.

It is a file beside the codec's weights, for this codec alone. Weights and activations are integers of 8 bits. All sums
of products are below 2**24 in magnitude, so float32 holds them exactly in any order of summation: one frame or a packet
at once, any number of threads, any library or device. `scaled(x, n)` is floor(x / 2**n + 1/2), limited to -127 and 127.
All vectors before the packet are zeros, and those of codebooks that a frame does not have.

    vector of a code    row of its codebook's input table
    rest of a frame     scaled(sum of gain · vector over its codebooks from 1 on, 5)
    context             vectors of codebook 0 in the frames 1, 2 and 3 before; scaled(sum of the 5 before them, 2);
                        rest of the frame before, of the frame before that one, and magnitudes of the first of them;
                        this codebook's vector in the frame before;
                        for codebooks from 1 on: vector of codebook 0 in this frame;
                        for codebooks from 2 on: vector of codebook 1 in this frame, its magnitudes, and
                        scaled(sum of gain · vector over the codebooks between 1 and this one, 5)
    prediction          scaled(weights of the codebook · context + bias, shift of the codebook)
    logit of a code     floor((its row of the output table · prediction + its bias) / 2**shift + 1/2), in 1/16 of a nat
    frequency of a code entry (largest logit - its logit) of a table of 2**16 exp(-n / 16), at least 1

`tools/train_entropy.py` makes such a file.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from codec.errors import UnknownModel
from codec.io.entropy_files import METADATA, files_for, weights_hash_of

Floats = npt.NDArray[np.float32]
Frequencies = npt.NDArray[np.int64]
Tensors = Mapping[str, npt.NDArray[Any]]

FORMAT = 1
PAST = 8  # frames
GAIN_SHIFT, OLDER_SHIFT = 5, 2

_EXACT = 1 << 24
_LIMIT = np.float32(127)


class EntropyModel:
    """The network of one codec, from the tensors of its file. For codebook k:

    input.k int8 [size, vector], weight.k int8 [prediction, context], bias.k int32 [prediction], output.k int8 [size,
    prediction], output_bias.k int32 [size]; for all: gain int32 [codebooks], shift int32 [codebooks, 2], exp int32
    [steps]. The vectors of all codebooks from 1 on have one length.

    Raises ValueError if a sum may reach 2**24.
    """

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = dict(tensors)
        codebooks = range(len(tensors["gain"]))
        self._gain = tensors["gain"].astype(np.float32)
        self._inputs = [tensors[f"input.{codebook}"].astype(np.float32) for codebook in codebooks]
        self.sizes = tuple(map(len, self._inputs))
        if self._gain.sum() * 127 >= _EXACT:
            raise ValueError(f"sums of vectors may reach {_EXACT}")
        self._exp = tensors["exp"].astype(np.int64)
        shifts = tensors["shift"].tolist()
        self._predict = [
            _Linear(tensors[f"weight.{codebook}"], tensors[f"bias.{codebook}"], shifts[codebook][0])
            for codebook in codebooks
        ]
        self._logits = [
            _Linear(tensors[f"output.{codebook}"], tensors[f"output_bias.{codebook}"], shifts[codebook][1])
            for codebook in codebooks
        ]
        self._split: dict[tuple[int, ...], _SplitWeights] = {}

    def split_weights(self, ends: tuple[int, ...]) -> "_SplitWeights":
        """The first layer of the codebooks of layers that end at `ends`, which is made once."""
        if ends not in self._split:
            self._split[ends] = _SplitWeights(self._predict[: ends[-1]], ends, *(self.zeros(k).size for k in (0, 1)))
        return self._split[ends]

    @cached_property
    def digest(self) -> str:
        """The first 8 hexadecimal digits of the SHA-256 of the tensors, sorted by name."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self._tensors.items()):
            digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
            digest.update(np.ascontiguousarray(tensor).tobytes())
        return digest.hexdigest()[:8]

    def vector(self, codebook: int, codes: npt.NDArray[np.int64] | int) -> Floats:
        """The vectors [..., vector] of codes [...]."""
        return self._inputs[codebook][codes]

    def zeros(self, codebook: int, *shape: int) -> Floats:
        """Vectors [*shape, vector] from before the packet."""
        return np.zeros((*shape, self._inputs[min(codebook, len(self._inputs) - 1)].shape[1]), np.float32)

    def rests(self, vectors: Sequence[Floats], ends: Sequence[int], first: int = 1) -> list[Floats]:
        """The rest [..., vector] of the codebooks from `first` to before each of the `ends`, which ascend.

        `vectors` are [..., vector] per codebook.
        """
        total, found = self.zeros(1, *vectors[0].shape[:-1]), []
        for end in ends:
            for codebook in range(first, min(end, len(vectors))):
                total += self.weighted(codebook, vectors[codebook])
            found.append(scaled(total, GAIN_SHIFT))
            first = max(first, end)
        return found

    def weighted(self, codebook: int, vector: Floats) -> Floats:
        """What a vector [..., vector] adds to the sum of a rest."""
        weighted: Floats = self._gain[codebook] * vector
        return weighted

    def frequencies(
        self, codebook: int, past: Sequence[Floats], before: Floats, lower: Sequence[Floats], rest: Floats
    ) -> Frequencies:
        """The frequencies [..., size] of the codes of a codebook.

        `past` is that of `past_context`, `before` the vector of this codebook in the frame before [..., vector],
        `lower` the vectors of codebooks 0 and 1 in this frame [..., vector] each, as far as they are lower, and `rest`
        the rest of the lower codebooks from 2 on, which codebooks 0 and 1 ignore.
        """
        parts = [*past, before, *lower]
        if codebook >= 2:
            parts += [np.abs(lower[1]), rest]
        context = np.concatenate(parts, axis=-1)
        return self.of_prediction(codebook, _limited(self._predict[codebook](context)))

    def of_prediction(self, codebook: int, prediction: Floats) -> Frequencies:
        """The frequencies [..., size] of the codes of a codebook of its predictions [..., prediction]."""
        logits = self._logits[codebook](prediction)
        steps = (logits.max(axis=-1, keepdims=True) - logits).astype(np.intp)
        frequencies: Frequencies = self._exp.take(steps, mode="clip")
        return frequencies


def past_context(first: Floats, rest: Floats) -> list[Floats]:
    """What all codebooks of a frame know of the past.

    `first` are the vectors of codebook 0 in the 8 frames before [..., 8, vector], the newest first, `rest` the rests of
    the 2 frames before [..., 2, vector].
    """
    older = scaled(first[..., 3:, :].sum(axis=-2), OLDER_SHIFT)
    newest = [first[..., frame, :] for frame in range(3)]
    return [*newest, older, rest[..., 0, :], rest[..., 1, :], np.abs(rest[..., 0, :])]


class _Linear:
    """A linear layer in integers: floor((weight · x + bias) / 2**shift + 1/2)."""

    def __init__(self, weight: npt.NDArray[Any], bias: npt.NDArray[Any], shift: int) -> None:
        if not 1 <= shift <= 20:
            raise ValueError(f"a shift of {shift}: it must be 1 to 20")
        half = 1 << shift - 1
        most = np.abs(weight.astype(np.int64)).sum(axis=1) * 127 + np.abs(bias.astype(np.int64)) + half
        if most.max() >= _EXACT:
            raise ValueError(f"sums may reach {most.max()}: they must stay below {_EXACT}")
        self.shift = shift
        unit = np.float32(2**-shift)  # a power of two, so the products and their sums stay exact
        self.weight = np.ascontiguousarray(weight.T, np.float32) * unit
        self.bias = (bias + half).astype(np.float32) * unit

    def __call__(self, x: Floats) -> Floats:
        y: Floats = x @ self.weight
        y += self.bias
        return np.floor(y, out=y)


def scaled(x: Floats, shift: int) -> Floats:
    """floor(x / 2**shift + 1/2), limited to -127 and 127."""
    return _limited(np.floor(x * np.float32(2**-shift) + np.float32(0.5)))


def _limited(x: Floats) -> Floats:
    return np.minimum(np.maximum(x, -_LIMIT), _LIMIT)


class PacketPredictor:
    """Predict the codes of a packet that is known, all frames from `first` on at once."""

    def __init__(
        self, model: EntropyModel, codes: npt.NDArray[np.int64], first: int = 0, ends: Sequence[int] = ()
    ) -> None:
        """`codes` are those of one row [codebooks, frames], -1 where a frame has fewer codebooks.

        `ends` are the codebooks after the last one of each layer; by default, all are one layer.
        """
        begin = max(0, first - PAST)  # no frame depends on more
        new = slice(first - begin, None)
        codes = codes[:, begin:]
        # [frames, vector] each
        vectors = [model.vector(codebook, row) * (row >= 0)[:, None] for codebook, row in enumerate(codes)]
        before, ends = past(vectors[0], PAST)[new], ends or (len(codes),)
        present = [vector[new] for vector in vectors]
        lower_rests = model.rests(present, range(len(codes)), 2)
        self._frequencies: list[Frequencies] = []
        for end, rest in zip(ends, model.rests(vectors, ends), strict=True):
            known = past_context(before, past(rest, 2)[new])
            for codebook in range(len(self._frequencies), end):
                own = past(vectors[codebook], 1)[new, 0]
                lower = present[: min(codebook, 2)]
                self._frequencies.append(model.frequencies(codebook, known, own, lower, lower_rests[codebook]))
        self._frame = -1

    def start_frame(self) -> None:
        """Move to the next frame."""
        self._frame += 1

    def frequencies(self, codebook: int) -> Frequencies:
        """The frequencies [size] of the codes of a codebook in this frame."""
        frequencies: Frequencies = self._frequencies[codebook][self._frame]
        return frequencies

    def push(self, codebook: int, code: int) -> None:
        """Nothing: the code is known."""


class FramePredictor:
    """Predict one code after another from the codes before, as PacketPredictor does.

    What several codebooks know is multiplied with the weights of all of them at once.
    """

    def __init__(self, model: EntropyModel, num_codebooks: int, ends: Sequence[int] = ()) -> None:
        """`ends` as of PacketPredictor."""
        self._model, self._ends = model, tuple(ends) or (num_codebooks,)
        self._weights = model.split_weights(self._ends)
        self._first, self._rests = model.zeros(0, PAST), [model.zeros(1, 2) for _ in self._ends]
        self._absent = [model.zeros(codebook) for codebook in range(num_codebooks)]
        self._before = self._absent
        self._vectors: list[Floats] = []  # of this frame
        self._sum = model.zeros(1)  # of gain · vector over its codebooks from 2 on
        self._sums = self._weights.bias  # [codebooks, prediction]: weights · what is known of the contexts + bias

    def start_frame(self) -> None:
        """Move to the next frame."""
        if self._vectors:
            self._first = np.concatenate([self._vectors[0][None], self._first[:-1]])
            newest = self._model.rests(self._vectors, self._ends)
            self._rests = [np.stack([rest, old[0]]) for rest, old in zip(newest, self._rests, strict=True)]
            self._before, self._vectors = self._vectors + self._absent[len(self._vectors) :], []
            self._sum = self._model.zeros(1)
        pasts = [np.concatenate(past_context(self._first, rest)) for rest in self._rests]
        sums = np.concatenate([past @ weight for past, weight in zip(pasts, self._weights.past, strict=True)])
        self._sums = self._weights.bias + sums.reshape(self._weights.bias.shape)
        for own, vector, weight in zip(self._sums, self._before, self._weights.before, strict=True):
            own += vector @ weight

    def frequencies(self, codebook: int) -> Frequencies:
        """The frequencies [size] of the codes of a codebook in this frame."""
        sums = self._sums[codebook]
        if codebook > 1:
            sums = sums + scaled(self._sum, GAIN_SHIFT) @ self._weights.rest[codebook]
        return self._model.of_prediction(codebook, _limited(np.floor(sums)))

    def push(self, codebook: int, code: int) -> None:
        """Take the code of the next codebook in this frame."""
        vector = self._model.vector(codebook, code)
        self._vectors.append(vector)
        if codebook > 1:
            self._sum = self._sum + self._model.weighted(codebook, vector)
        elif codebook + 1 < len(self._sums):
            known = np.concatenate([vector, np.abs(vector)]) if codebook else vector
            higher = self._sums[codebook + 1 :]
            higher += (known @ self._weights.lower[codebook]).reshape(higher.shape)


class _SplitWeights:
    """The first layer of several codebooks, by the parts of the context; what all know, for all side by side."""

    def __init__(self, layers: Sequence[_Linear], ends: Sequence[int], first: int, other: int) -> None:
        """`layers` are those of the codebooks; vectors have `first` numbers in codebook 0 and `other` in the others."""
        bounds = np.cumsum([4 * first + 3 * other, other, first, 2 * other])
        parts = [np.split(layers[0].weight, bounds[:1])] + [np.split(layer.weight, bounds) for layer in layers[1:]]
        self.bias = np.stack([layer.bias for layer in layers])
        self.past = [np.hstack([past for past, *_ in parts[start:end]]) for start, end in pairwise((0, *ends))]
        self.before = [before for _, before, *_ in parts]
        self.lower = [
            np.hstack([part[2 + lower] for part in parts[lower + 1 :]]) for lower in range(min(2, len(parts) - 1))
        ]
        self.rest = [part[-1] for part in parts]


def past(vectors: Floats, count: int) -> Floats:
    """The last `count` vectors before each frame [..., frames, count, vector], the newest first.

    `vectors` are [..., frames, vector].
    """
    frames = vectors.shape[-2]
    padded = np.concatenate([np.zeros((*vectors.shape[:-2], count, vectors.shape[-1]), np.float32), vectors], axis=-2)
    return np.stack([padded[..., count - n : count - n + frames, :] for n in range(1, count + 1)], axis=-2)


# files


def save(path: Path, tensors: Tensors, *, weights_hash: str) -> None:
    """Write the network of the codec with these weights. Raises StorageError, ValueError as EntropyModel."""
    from safetensors.numpy import save as to_bytes

    from codec.io.storage import atomic_output

    EntropyModel(tensors)
    metadata = json.dumps({"format": FORMAT, "weights_hash": weights_hash})
    with atomic_output(path, force=True) as file:
        # safetensors stores the memory of an array in Fortran order as if it were in C order
        ordered = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
        file.write(to_bytes(ordered, metadata={METADATA: metadata}))


def find(weights_hash: str, sizes: Sequence[int]) -> EntropyModel | None:
    """The network for the codec with these weights and codebooks of these sizes, if `files_for` has it.

    Raises UnknownModel for a file that is not a complete network.
    """
    for path in files_for(weights_hash):
        made_for, network = _load(path, path.stat().st_mtime_ns)
        if made_for == weights_hash and network.sizes[: len(sizes)] == tuple(sizes):
            return network
    return None


@lru_cache(4)
def _load(path: Path, modified: int) -> tuple[str, EntropyModel]:
    """The weights hash of the codec, and the network; a file of another modification time (ns) is loaded again."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return weights_hash_of(path), EntropyModel(load_file(path))
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UnknownModel(
            f"{path} is not a complete network for entropy coding ({error}): fit it again, or remove it"
        ) from error
