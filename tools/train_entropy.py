"""Fit the network that predicts a codec's codes for entropy coding, or print what each payload coder saves.

    codec tokenize corpus.jsonl --out tokens/
    python tools/train_entropy.py tokens/ --out codec/weights/general-24k.entropy.safetensors
    python tools/train_entropy.py tokens/ --report

The corpus has the splits train and valid. The fit is in closed form: the linear discriminant of the codes of a
codebook, given its context (Fisher 1936; Hastie et al. 2009, section 4.3), of reduced rank, then rounded to integers.
It counts only codes that do not occur earlier in their packet, because the coder asks for repeated codes first. Every
tenth clip is held out to choose how far the discriminant is trusted. The report is of the split valid, in packets of
one second.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from codec import pretrained
from codec.data.token_store import TokenStore
from codec.errors import UsageError
from codec.io import entropy, entropy_model
from codec.io.entropy_model import CodeVectors, EntropyModel, Floats, Frequencies
from codec.models.base import Codec

PACKET = 50  # frames
RATES = (3, 6, 12, 16)  # numbers of codebooks that the network is fitted to
VECTORS = (24, 48)  # numbers of an input vector: codebook 0, and all higher ones
RANK = 32
SHRINKAGE = 20  # codes: as if that number of codes more lay at the mean of all
RIDGE = 0.1  # variances of the context
HELD_OUT = 8192  # codes, at most
TRUST = (0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0)  # factors of the discriminant, to choose from
RMS = 28  # of vectors and predictions, in integers of 8 bits
STEPS_PER_NAT = 16

Codes = npt.NDArray[np.int64]
Clips = Sequence[tuple[str, Codes]]  # set, and codes [codebooks, frames]


class Packets(NamedTuple):
    """Packets of many clips, padded at their ends."""

    codes: Codes  # [packets, codebooks, frames]
    is_new: npt.NDArray[np.bool_]  # [packets, codebooks, frames]: a code that does not occur earlier in its packet
    held_out: npt.NDArray[np.bool_]  # [packets]


# the fit


def fit(clips: Clips, model: Codec) -> dict[str, npt.NDArray[Any]]:
    """The tensors of an EntropyModel for codes of `model`. Raises UsageError for a model without codebook vectors."""
    packets = packets_of(clips)
    tensors = input_tensors(model)
    vectors = CodeVectors(tensors)
    shifts = []
    for codebook, size in enumerate(model.codebook_sizes):
        context, codes, held_out = examples(vectors, packets, codebook)
        layers, shift, bits = discriminant(context, codes, held_out, size)
        tensors |= {f"{name}.{codebook}": tensor for name, tensor in layers.items()}
        shifts.append(shift)
        print(f"codebook {codebook}: {bits:.2f} bits per new code of {math.log2(size):g}", flush=True)
    steps = np.arange(math.ceil(16 * math.log(2) * STEPS_PER_NAT) + 1)
    tensors["exp"] = np.maximum(np.rint(2**16 * np.exp(-steps / STEPS_PER_NAT)), 1).astype(np.int32)
    tensors["shift"] = np.array(shifts, np.int32)
    return tensors


def packets_of(clips: Clips) -> Packets:
    """Cut clips into packets."""
    pieces, lengths, held_out = [], [], []
    for number, (_, codes) in enumerate(clips):
        for start in range(0, codes.shape[1], PACKET):
            piece = codes[:, start : start + PACKET]
            pieces.append(np.pad(piece, ((0, 0), (0, PACKET - piece.shape[1]))))
            lengths.append(piece.shape[1])
            held_out.append(number % 10 == 0)
    whole = np.stack(pieces)
    is_new = np.stack([_is_new(piece, length) for piece, length in zip(whole, lengths, strict=True)])
    return Packets(whole, is_new, np.array(held_out))


def _is_new(codes: Codes, length: int) -> npt.NDArray[np.bool_]:
    equal = codes[:, :, None] == codes[:, None, :]  # [codebooks, frames, frames]
    is_new: npt.NDArray[np.bool_] = ~np.tril(equal, -1).any(axis=2) & (np.arange(codes.shape[1]) < length)
    return is_new


def input_tensors(model: Codec) -> dict[str, npt.NDArray[Any]]:
    """The vectors of the codebooks, as the codec has them, in their principal components."""
    found = model.quantizer.codebook_vectors()
    if found is None:
        raise UsageError(f"{model.name} has no codebook vectors: coder 2 is not for it")
    vectors = found.detach().double().cpu().numpy()  # [codebooks, size, dim]
    first = vectors[0] - vectors[0].mean(axis=0)
    special = (vectors[0] == 0).all(axis=1)  # entries that are not vectors, as modes and silence
    parts = [np.column_stack([_principal(first, first, VECTORS[0] - 1), special * first.std() * 3])]
    rest = vectors[1:].reshape(-1, vectors.shape[2])
    parts += [_principal(part, rest, VECTORS[1]) for part in vectors[1:]]
    scales = [RMS / np.sqrt((part**2).mean()) for part in parts]
    tensors = {
        f"input.{codebook}": _int8(part * scale)
        for codebook, (part, scale) in enumerate(zip(parts, scales, strict=True))
    }
    gains = [round(2**entropy_model.GAIN_SHIFT * scales[min(1, len(scales) - 1)] / scale) for scale in scales]
    return tensors | {"gain": np.array([0, *gains[1:]], np.int32)}


def _principal(vectors: npt.NDArray[Any], basis_of: npt.NDArray[Any], count: int) -> npt.NDArray[Any]:
    values, axes = np.linalg.eigh(basis_of.T @ basis_of)
    components: npt.NDArray[Any] = vectors @ axes[:, np.argsort(values)[::-1][:count]]
    return components


def examples(vectors: CodeVectors, packets: Packets, codebook: int) -> tuple[Floats, Codes, npt.NDArray[np.bool_]]:
    """Contexts [new codes, context], new codes, and whether they are held out; by turns as files of all rates have."""
    rates = [rate for rate in (*RATES, packets.codes.shape[1]) if codebook < rate <= packets.codes.shape[1]]
    parts = []
    for turn, rate in enumerate(rates):
        chosen = slice(turn, None, len(rates))
        known = [vectors.vector(lower, packets.codes[chosen, lower]) for lower in range(rate)]
        past = entropy_model.past_context(
            entropy_model.past(known[0], entropy_model.PAST), entropy_model.past(vectors.rest(known), 2)
        )
        before = entropy_model.past(known[codebook], 1)[..., 0, :]
        new = packets.is_new[chosen, codebook]
        context = [part[new] for part in vectors.context(codebook, past, before, known[:codebook])]
        held_out = np.broadcast_to(packets.held_out[chosen, None], new.shape)[new]
        parts.append((np.concatenate(context, axis=-1), packets.codes[chosen, codebook][new], held_out))
    contexts, codes, outside = zip(*parts, strict=True)
    return np.concatenate(contexts), np.concatenate(codes), np.concatenate(outside)


def discriminant(
    context: Floats, codes: Codes, held_out: npt.NDArray[np.bool_], size: int
) -> tuple[dict[str, npt.NDArray[Any]], tuple[int, int], float]:
    """The layers of a codebook with their shifts, and bits per held-out code."""
    x, y = context[~held_out], codes[~held_out]
    outside, outside_codes = context[held_out][:HELD_OUT], codes[held_out][:HELD_OUT]
    center, spread = x.mean(axis=0), x.std(axis=0) + 1
    x = (x - center) / spread
    counts = np.bincount(y, minlength=size)
    sums = np.zeros((size, x.shape[1]), np.float32)
    order = np.argsort(y, kind="stable")
    present, starts = np.unique(y[order], return_index=True)
    sums[present] = np.add.reduceat(x[order], starts)
    means = sums / (counts + SHRINKAGE)[:, None].astype(np.float32)
    within = (x.T @ x / len(x)).astype(np.float64) - (means.T * (counts / len(x))) @ means + RIDGE * np.eye(x.shape[1])
    values, axes = np.linalg.eigh(within)
    whiten = axes / np.sqrt(values)
    between = means @ whiten
    _, directions = np.linalg.eigh((between.T * (counts / len(x))) @ between)
    project = whiten @ directions[:, ::-1][:, :RANK]  # [context, rank]
    table = means @ project
    scale = RMS / (x @ project).std(axis=0)
    weight, weight_shift = _shifted((project / spread[:, None] * scale).T)
    bias = np.rint(-(center / spread) @ project * scale * 2.0**weight_shift).astype(np.int32)
    prior = np.log((counts + SHRINKAGE) / (counts + SHRINKAGE).sum())
    best: tuple[float, dict[str, npt.NDArray[Any]], int] | None = None
    z = entropy_model.scaled((outside @ weight.T.astype(np.float32) + bias).astype(np.float32), weight_shift)
    for trust in TRUST:
        output, shift = _shifted(STEPS_PER_NAT * trust * table / scale)
        output_bias = np.rint(STEPS_PER_NAT * 2.0**shift * (prior - trust * (table**2).sum(axis=1) / 2))
        layers = {"weight": weight, "bias": bias, "output": output, "output_bias": output_bias.astype(np.int32)}
        logits = (z @ output.T.astype(np.float32) + output_bias.astype(np.float32)) / np.float32(
            STEPS_PER_NAT * 2.0**shift
        )
        bits = _bits(logits, outside_codes)
        if best is None or bits < best[0]:
            best = bits, layers, shift
    assert best is not None
    return best[1], (weight_shift, best[2]), best[0]


def _shifted(values: Floats) -> tuple[npt.NDArray[np.int8], int]:
    """Values times the largest power of two that leaves all but a few within 8 bits."""
    shift = math.floor(math.log2(127 / np.quantile(np.abs(values), 0.9999)))
    shift = min(max(shift, 1), 20)  # what the network can hold; larger weights are clipped
    return _int8(values * 2.0**shift), shift


def _int8(values: Floats) -> npt.NDArray[np.int8]:
    return np.clip(np.rint(values), -127, 127).astype(np.int8)


def _bits(logits: Floats, codes: Codes) -> float:
    most = logits.max(axis=1)
    chosen = logits[np.arange(len(codes)), codes]
    return float((np.log(np.exp(logits - most[:, None]).sum(axis=1)) + most - chosen).mean() / math.log(2))


# the report


class Bits:
    """A coder that counts the information of what it is given."""

    def __init__(self) -> None:
        self.bits = 0.0

    def flag(self, counts: list[int], value: bool) -> bool:
        """As Coder."""
        self.bits -= math.log2(counts[value] / sum(counts))
        return value

    def among(self, counts: Mapping[int, int], value: int) -> int:
        """As Coder."""
        self.bits -= math.log2(counts[value] / sum(counts.values()))
        return value

    def uniform(self, value: int, total: int) -> int:
        """As Coder."""
        self.bits += math.log2(total)
        return value

    def drawn(self, frequencies: Frequencies, value: int) -> int:
        """As Coder."""
        self.bits -= math.log2(frequencies[value] / frequencies.sum())
        return value


class Sizes(NamedTuple):
    """Bits of some packets."""

    raw: float
    adaptive: float
    model: float
    information: float
    """What coder 2 codes, by its own frequencies."""
    smallest: float
    frames: float


def sizes_of(codes: Codes, sizes: Sequence[int], model: EntropyModel | None) -> Sizes:
    """Sizes of the packets of codes [codebooks, frames]."""
    total = np.zeros(len(Sizes._fields))
    for start in range(0, codes.shape[1], PACKET):
        packet = codes[None, :, start : start + PACKET]
        counter = Bits()
        entropy.pass_codes(counter, packet, sizes, model)
        payloads = [entropy.pack(packet, sizes), *(entropy.encode_adaptive(packet, sizes, m) for m in (None, model))]
        raw, adaptive, modeled = (8 * len(payload) for payload in payloads)
        total += (raw, adaptive, modeled, counter.bits, min(raw, adaptive, modeled), packet.shape[2])
    return Sizes(*total.tolist())


def report(clips: Clips, model: Codec, network: EntropyModel | None) -> Iterator[str]:
    """Lines of the table: savings per set and number of codebooks."""
    yield "| recordings | codebooks | kbit/s | adaptive | model | smallest | kbit/s coded | bound of model | overhead |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    names = sorted({name for name, _ in clips})
    for count in (rate for rate in RATES if rate <= model.num_codebooks):
        rows = {name: np.zeros(len(Sizes._fields)) for name in (*names, "all")}
        for name, codes in clips:
            sizes = sizes_of(codes[:count], model.codebook_sizes[:count], network)
            rows[name] += sizes
            rows["all"] += sizes
        for name, row in rows.items():
            raw, adaptive, modeled, bound, smallest, frames = row
            savings = (f"{100 * (bits / raw - 1):+.1f} %".replace("-", "−") for bits in (adaptive, modeled, smallest))
            rate = model.frame_spec.bitrate(count)
            yield (
                f"| {name} | {count} | {rate:g} | {' | '.join(savings)} | {rate * smallest / raw:.2f} "
                f"| {bound / frames:.2f} bits/frame | {100 * (modeled / bound - 1):+.2f} % |"
            )


def clips_of(store: TokenStore, split: str) -> Clips:
    """The clips of a split."""
    return [(clip.row.set, clip.codes.numpy()) for clip in store if clip.row.split == split]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("store", type=Path, help="token store of codec tokenize, with all codebooks")
    parser.add_argument("--model", default=pretrained.DEFAULT)
    parser.add_argument("--out", type=Path, help="file to write")
    parser.add_argument("--report", action="store_true", help="print a table of the split valid")
    arguments = parser.parse_args()
    model = pretrained.load(arguments.model, "cpu")
    store = TokenStore(arguments.store, model)
    weights_hash = store.weights_hash
    if arguments.out:
        tensors = fit(clips_of(store, "train"), model)
        entropy_model.save(arguments.out, tensors, weights_hash=weights_hash)
        print(f"{arguments.out}: {arguments.out.stat().st_size / 1e6:.2f} MB")
    if arguments.report:
        network = entropy_model.find(weights_hash, model.codebook_sizes)
        print(*report(clips_of(store, "valid"), model, network), sep="\n")


if __name__ == "__main__":
    main()
