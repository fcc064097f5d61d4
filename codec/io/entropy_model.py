"""A network that predicts codes, in exact integers, so that every machine computes the same frequencies.

It is a file beside the codec's weights, for this codec alone. Weights and activations are integers of 8 bits. All sums
of products are below 2**24 in magnitude, so float32 holds them exactly in any order of summation: one frame or a packet
at once, any number of threads, any library or device. `scaled(x, n)` is floor(x / 2**n + 1/2), limited to -127 and 127.
All vectors outside the packet are zeros, and those of codebooks that a frame does not have.

A packet is predicted codebook by codebook, so all frames of the lower codebooks are known:

    vector of a code    row of its codebook's input table
    rest                scaled(sum of gain · vector over the lower codebooks from 1 on, 5)
    context             of codebook 0: its vectors in the frames 1, 2 and 3 before; scaled(sum of the 5 before them, 2)
                        of all others: vectors of codebook 0 in the 5 frames from 2 before to 2 after;
                        for codebooks from 2 on: rests of the frames 2 before, 1 before, 1 after and 2 after; magnitudes
                        of those 1 before and 1 after; vector of codebook 1 in this frame; its magnitudes;
                        scaled(sum of gain · vector over the lower codebooks from 2 on, 5) in this frame;
                        for codebooks 1 and 2: this codebook's vectors in the frames 1 and 2 before
    hidden              scaled(hidden weights of the codebook · context + bias, shift), at least 0
    prediction          scaled(weights of the codebook · hidden + bias, shift)
    logit of a code     floor((its row of the output table · prediction + its bias) / 2**shift + 1/2), in 1/16 of a nat
    frequency of a code entry (largest logit - its logit) of a table of 2**16 exp(-n / 16), at least 1

`codec.io.entropy` multiplies the frequencies of codes that occurred in the packet. `tools/train_entropy.py` makes such
a file.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from copy import copy
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from codec.errors import UnknownModel
from codec.io.entropy_files import METADATA, files_for, weights_hash_of

if TYPE_CHECKING:
    from codec.io.entropy_compiled import CompiledCodebook

Floats = npt.NDArray[np.float32]
Frequencies = npt.NDArray[np.int64]
Tensors = Mapping[str, npt.NDArray[Any]]

FORMAT = 2
PAST, FUTURE = 8, 2  # frames that a prediction depends on
OWN_PAST, LAST_OWN = 2, 2  # frames of their own that codebooks 1 and 2 know
STEPS_PER_NAT = 16
MOST_GAIN = 48  # steps
GAIN_SHIFT, OLDER_SHIFT, GROW_SHIFT = 5, 2, 8

_EXACT = 1 << 24
_MOST_TOTAL = 1 << 32  # of the frequencies, for the range coder
_LIMIT = np.float32(127)
_AROUND, _NEAR = (-2, -1, 0, 1, 2), (-2, -1, 1, 2)  # frames
BLOCK = 64  # frames that are predicted at once


class EntropyModel:
    """The network of one codec, from the tensors of its file. For codebook k:

    input.k int8 [size, vector]; hidden.k int8 [hidden, context], hidden_bias.k int32 [hidden]; weight.k int8
    [prediction, hidden], weight_bias.k int32 [prediction]; output.k int8 [size, prediction], output_bias.k int32
    [size]. For all: gain int32 [codebooks], shift int32 [codebooks, 3], exp int32 [steps], gains int32 [codebooks, 6],
    grow int32 [3 * MOST_GAIN + 1]. The vectors of all codebooks from 1 on have one length.

    Raises ValueError if a sum may reach 2**24, or frequencies 2**32.
    """

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = dict(tensors)
        codebooks = range(len(tensors["gain"]))
        self._gain = tensors["gain"].astype(np.float32)
        self.inputs = [np.ascontiguousarray(tensors[f"input.{codebook}"], np.int8) for codebook in codebooks]
        self.sizes = tuple(map(len, self.inputs))
        if self._gain.sum() * 127 >= _EXACT:
            raise ValueError(f"sums of vectors may reach {_EXACT}")
        self.exp = tensors["exp"].astype(np.int64)
        self.layers = [
            _Layers(
                *(
                    Linear(tensors[f"{name}.{codebook}"], tensors[f"{name}_bias.{codebook}"], shift)
                    for name, shift in zip(_Layers._fields, shifts, strict=True)
                )
            )
            for codebook, shifts in zip(codebooks, tensors["shift"].tolist(), strict=True)
        ]
        self._widened: tuple[int, _Layers] | None = None
        self.gains: list[list[int]] = tensors["gains"].tolist()
        """Of each codebook, for codes that occurred; `codec.io.entropy` says for which."""
        self.grow: list[int] = tensors["grow"].tolist()
        """What frequencies are multiplied with for a sum of gains, in units of 2**-GROW_SHIFT."""
        self.compiled: type[CompiledCodebook] | None = None
        """What codes a codebook in compiled loops, once `codec.io.entropy_compiled.prepare` has made them ready."""
        self.passed = 0
        """How many codes coder 2 took so far."""
        self._check_totals()

    def _check_totals(self) -> None:
        if self.grow[0] != 1 << GROW_SHIFT:
            raise ValueError(f"a gain of 0 multiplies by {self.grow[0]}: it must be {1 << GROW_SHIFT}")
        for size, gains in zip(self.sizes, self.gains, strict=True):
            if len(gains) != 6 or not all(0 <= gain <= MOST_GAIN for gain in gains):
                raise ValueError(f"gains {gains}: they must be six, each 0 to {MOST_GAIN}")
            often, most = max(gains[:3]), max(gains[:3]) + max(gains[3:5]) + gains[5]
            # the code of the frame before, and the one that followed; all others by how often they occurred
            if int(self.exp.max()) * (size * self.grow[often] + 2 * self.grow[most]) >> GROW_SHIFT >= _MOST_TOTAL:
                raise ValueError(f"frequencies may reach {_MOST_TOTAL}")

    @cached_property
    def digest(self) -> str:
        """The first 8 hexadecimal digits of the SHA-256 of the tensors, sorted by name."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self._tensors.items()):
            digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
            digest.update(np.ascontiguousarray(tensor).tobytes())
        return digest.hexdigest()[:8]

    def vectors(self, codebook: int, codes: npt.NDArray[np.int64]) -> Floats:
        """The vectors [..., vector] of codes [...]; zeros for codes of -1."""
        vectors: Floats = self.inputs[codebook][codes].astype(np.float32)
        vectors[codes < 0] = 0
        return vectors

    def zeros(self, codebook: int, frames: int) -> Floats:
        """Vectors [frames, vector] of frames without this codebook."""
        return np.zeros((frames, self.inputs[min(codebook, len(self.inputs) - 1)].shape[1]), np.float32)

    def weighted(self, codebook: int, vectors: Floats) -> Floats:
        """What vectors [..., vector] add to the sum of a rest."""
        weighted: Floats = self._gain[codebook] * vectors
        return weighted

    def sums(self, codebook: int, lower: Floats) -> Floats:
        """The sums of the first layer [..., hidden] over `lower`, the first numbers of the contexts [..., numbers]."""
        hidden = self.layers[codebook].hidden
        sums: Floats = hidden.products(lower)
        sums += hidden.bias
        return sums

    def widened(self, codebook: int) -> _Layers:
        """The layers of a codebook with weights in float32, one codebook at a time for all rows of a packet."""
        widened = self._widened
        if widened is None or widened[0] != codebook:
            self._widened = widened = codebook, self.layers[codebook].widened()
        return widened[1]

    def frequencies(self, logits: Floats) -> Frequencies:
        """The frequencies [..., size] of codes with these logits."""
        steps = logits.max(axis=-1, keepdims=True) - logits
        frequencies: Frequencies = self.exp.take(steps.astype(np.intp), mode="clip")
        return frequencies


class Linear:
    """A linear layer in integers, whose sums are in units of 2**shift, with 1/2 added: floor rounds them.

    Its weight [outputs, inputs] stays int8, because to make it float32 for each product takes less time than to read
    four times as much memory that has left the caches; `widened` is for many products in a row.
    """

    def __init__(self, weight: npt.NDArray[Any], bias: npt.NDArray[Any], shift: int) -> None:
        if not 1 <= shift <= 20:
            raise ValueError(f"a shift of {shift}: it must be 1 to 20")
        half = 1 << shift - 1
        most = np.abs(weight.astype(np.int64)).sum(axis=1) * 127 + np.abs(bias.astype(np.int64)) + half
        if most.max() >= _EXACT:
            raise ValueError(f"sums may reach {most.max()}: they must stay below {_EXACT}")
        self.weight = np.ascontiguousarray(weight, np.int8)
        self.unit = np.float32(2**-shift)  # a power of two, so the products and their sums stay exact
        self.bias: Floats = (bias + half).astype(np.float32) * self.unit

    def products(self, x: Floats, *, last: bool = False) -> Floats:
        """What the first of the inputs, or the `last`, x [..., inputs] add to the sums."""
        others = self.weight.shape[1] - x.shape[-1]
        weight = self.weight[:, others:] if last else self.weight[:, : x.shape[-1]]
        products: Floats = np.matmul(x * self.unit, weight.astype(np.float32, copy=False).T)
        return products

    def widened(self) -> Linear:
        """The same layer with a weight in float32."""
        layer = copy(self)
        layer.weight = self.weight.astype(np.float32)
        return layer

    def __call__(self, x: Floats) -> Floats:
        sums = self.products(x)
        sums += self.bias
        return sums


class _Layers(NamedTuple):
    """The layers of a codebook."""

    hidden: Linear
    weight: Linear
    output: Linear

    def logits(self, sums: Floats, own: Floats | None) -> Floats:
        """The logits [..., size] of the codes of the codebook, which are whole numbers.

        `sums` are those of the first layer without `own`, the other numbers of the contexts [..., numbers].
        """
        if own is not None:
            sums = sums + self.hidden.products(own, last=True)
        activations = np.minimum(np.maximum(np.floor(sums), 0), _LIMIT)
        logits = self.output(_limited(np.floor(self.weight(activations))))
        return np.floor(logits, out=logits)

    def widened(self) -> _Layers:
        """The same layers with weights in float32."""
        return _Layers(*(layer.widened() for layer in self))


def scaled(x: Floats, shift: int) -> Floats:
    """floor(x / 2**shift + 1/2), limited to -127 and 127."""
    return _limited(np.floor(x * np.float32(2**-shift) + np.float32(0.5)))


def _limited(x: Floats) -> Floats:
    return np.minimum(np.maximum(x, -_LIMIT), _LIMIT)


class _Lower:
    """The lower codebooks of a row of a packet, as the next one sees them."""

    def __init__(self, model: EntropyModel, frames: int) -> None:
        self._model = model
        self.codebook = 0
        self._first = self._second = model.zeros(0, frames)
        self._rest, self._higher = (model.zeros(1, frames) for _ in range(2))  # sums from codebooks 1 and 2 on

    def context(self) -> Floats:
        """The first numbers of the contexts of this codebook [frames, numbers]."""
        if self.codebook == 0:
            return self._first[:, :0]
        parts = [_at(self._first, frames) for frames in _AROUND]
        if self.codebook > 1:
            rest = scaled(self._rest, GAIN_SHIFT)
            near = [_at(rest, frames) for frames in _NEAR]
            parts += [*near, np.abs(near[1]), np.abs(near[2])]
            parts += [self._second, np.abs(self._second), scaled(self._higher, GAIN_SHIFT)]
        return np.concatenate(parts, axis=1)

    def add(self, vectors: Floats) -> None:
        """Start the next codebook, after the vectors [frames, vector] of this one."""
        if self.codebook == 0:
            self._first = vectors
        else:
            weighted = self._model.weighted(self.codebook, vectors)
            self._rest = self._rest + weighted
            if self.codebook == 1:
                self._second = vectors
            else:
                self._higher = self._higher + weighted
        self.codebook += 1


def _at(vectors: Floats, frames: int) -> Floats:
    """Vectors [frames, vector] of the frame this number of `frames` later; zeros outside the packet."""
    shifted = np.zeros_like(vectors)
    if frames > 0:
        shifted[:-frames] = vectors[frames:]
    elif -frames < len(vectors):
        shifted[-frames:] = vectors[: len(vectors) + frames]
    return shifted


def _own_past(codebook: int) -> int:
    """Frames of its own that a codebook knows."""
    return PAST if codebook == 0 else OWN_PAST if codebook <= LAST_OWN else 0


def own_vectors(codebook: int) -> int:
    """How many vectors the last numbers of a context are."""
    return 4 if codebook == 0 else _own_past(codebook)


def _own_context(codebook: int, past: Sequence[Floats]) -> Floats:
    """The last numbers of a context [..., numbers], from this codebook's vectors [..., vector] in the frames before.

    `past` are as many as `own_past` says, the newest first.
    """
    if codebook == 0:
        return np.concatenate([*past[:3], scaled(np.sum(past[3:], axis=0, dtype=np.float32), OLDER_SHIFT)], axis=-1)
    return np.concatenate(past, axis=-1)


class Predictor(ABC):
    """Predict the codes of a row of a packet, codebook by codebook."""

    def __init__(self, model: EntropyModel, frames: int) -> None:
        self._model = model
        self._lower = _Lower(model, frames)
        self.codebook = -1
        self.sums: Floats = model.zeros(0, 0)
        """The sums of the first layer of this codebook [frames, hidden], as of EntropyModel.logits."""
        self.unknown_past = 0
        """How many frames of its own must be known first, because they are being read."""
        self._own: Floats | None = None  # [frames, numbers], if there are any and all are known
        self._block = -1
        self._frequencies: Frequencies = np.empty((0, 0), np.int64)

    @abstractmethod
    def begin_codebook(self) -> None:
        """Start the next codebook."""

    @abstractmethod
    def frequencies(self, frame: int) -> Frequencies:
        """The frequencies [size] of the codes of this codebook in a frame; all frames before have been pushed."""

    @abstractmethod
    def push(self, frame: int, code: int) -> None:
        """Take the code of this codebook in a frame; -1 if the frame does not have it."""

    def logits(self, frames: slice) -> Floats:
        """The logits [frames, size] of the codes of this codebook, if no past is unknown."""
        own = None if self._own is None else self._own[frames]
        return self._model.layers[self.codebook].logits(self.sums[frames], own)

    def _begin(self, sums: Floats, own: Floats | None) -> None:
        self.codebook += 1
        self.sums, self._own, self._block = sums, own, -1

    def _known(self, index: int) -> Frequencies:
        """The frequencies [size] of one of the `sums`; some are computed at a time, because all need much memory."""
        block = index // BLOCK
        if block != self._block:
            frames = slice(block * BLOCK, (block + 1) * BLOCK)
            self._frequencies, self._block = self._model.frequencies(self.logits(frames)), block
        frequencies: Frequencies = self._frequencies[index % BLOCK]
        return frequencies


class PacketPredictor(Predictor):
    """Predict the codes of a row of a packet that is known, the frames from `first` to before `end` at once."""

    def __init__(
        self, model: EntropyModel, codes: npt.NDArray[np.int64], first: int = 0, end: int | None = None
    ) -> None:
        """`codes` [codebooks, frames], -1 where a frame has fewer codebooks, may end FUTURE frames after `end`."""
        end = codes.shape[1] if end is None else end
        begin = max(0, first - PAST)  # no frame depends on more
        self._codes, self._first = codes[:, begin : end + FUTURE], first
        self._frames = slice(first - begin, end - begin)
        super().__init__(model, self._codes.shape[1])

    def begin_codebook(self) -> None:
        """As Predictor."""
        codebook = self.codebook + 1
        vectors = self._model.vectors(codebook, self._codes[codebook])
        own = [_at(vectors, -frames)[self._frames] for frames in range(1, _own_past(codebook) + 1)]
        sums = self._model.sums(codebook, self._lower.context()[self._frames])
        self._begin(sums, _own_context(codebook, own) if own else None)
        self._lower.add(vectors)

    def frequencies(self, frame: int) -> Frequencies:
        """As Predictor."""
        return self._known(frame - self._first)

    def push(self, frame: int, code: int) -> None:
        """Nothing: the code is known."""


class FramePredictor(Predictor):
    """Predict one code after another from the codes before, as PacketPredictor does."""

    def __init__(self, model: EntropyModel, frames: int) -> None:
        super().__init__(model, frames)
        self._codes = np.full(frames, -1)  # of this codebook
        self._newest = deque[Floats]()  # the vectors of the newest frames, the newest first

    def begin_codebook(self) -> None:
        """As Predictor."""
        if self.codebook >= 0:
            self._lower.add(self._model.vectors(self.codebook, self._codes))
            self._codes[:] = -1
        codebook = self.codebook + 1
        self._begin(self._model.sums(codebook, self._lower.context()), None)
        self.unknown_past = _own_past(codebook)
        self._newest = deque(self._model.zeros(codebook, self.unknown_past), maxlen=self.unknown_past)

    def frequencies(self, frame: int) -> Frequencies:
        """As Predictor."""
        if not self.unknown_past:
            return self._known(frame)
        own = _own_context(self.codebook, list(self._newest))
        return self._model.frequencies(self._model.widened(self.codebook).logits(self.sums[frame], own))

    def push(self, frame: int, code: int) -> None:
        """As Predictor."""
        self._codes[frame] = code
        if self.unknown_past:
            self._newest.appendleft(self._model.vectors(self.codebook, self._codes[frame]))


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
