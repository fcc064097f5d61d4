"""Train the network that predicts a codec's codes for entropy coding, or print what each payload coder saves.

    codec tokenize corpus.jsonl --out tokens/
    python tools/train_entropy.py tokens/ --out codec/weights/general-24k.entropy.safetensors
    python tools/train_entropy.py tokens/ --report

The corpus has the splits train and valid. The loss is the information of those codes that do not occur earlier in their
packet of a second, and what predicts them excludes all codes that do, because the coder asks for repeated codes first.
In the last steps, the forward pass rounds weights, vectors and predictions to the integers of the file, and gradients
pass the rounding unchanged (Bengio et al. 2013, straight-through estimator). The report is of the split valid, in
packets of one second.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from codec import pretrained
from codec.data.token_store import TokenStore
from codec.errors import UsageError
from codec.io import entropy, entropy_model
from codec.io.entropy_model import EntropyModel, Frequencies
from codec.models.base import Codec

PACKET = 50  # frames
RATES = (3, 6, 12, 16)  # numbers of codebooks of the report
VECTORS = (24, 48)  # numbers of an input vector: codebook 0, and all higher ones
HIDDEN = 64  # numbers of a prediction
RMS = 28  # of vectors and predictions, in integers of 8 bits
LIMIT = 127 / RMS
STEPS_PER_NAT = 16

STEPS, PACKETS = 3000, 24  # of the training; packets per step
ROUNDED = 0.75  # of the steps, after which the forward pass rounds
LEARNING_RATE, WEIGHT_DECAY = 1.5e-3, 0.05
LOG_EVERY = 250  # steps

Codes = npt.NDArray[np.int64]
Clips = Sequence[tuple[str, Codes]]  # set, and codes [codebooks, frames]


# the training


def fit(clips: Clips, model: Codec, *, steps: int = STEPS, seed: int = 0) -> dict[str, npt.NDArray[Any]]:
    """The tensors of an EntropyModel for codes of `model`. Raises UsageError for a model without codebook vectors."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    packets = packets_of(clips)
    network = Network(input_tensors(model), packets)
    groups = [
        {"params": [*network.weight, *network.output], "weight_decay": WEIGHT_DECAY},
        {"params": [*network.vectors, *network.bias, *network.output_bias], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.05)
    bits, counts = np.zeros((2, model.num_codebooks))
    for step in range(steps):
        chosen = torch.from_numpy(random.integers(len(packets), size=PACKETS))
        ends = layers_of(model.num_codebooks, random)
        loss = torch.zeros(())
        codes = packets[chosen, : ends[-1]]
        for codebook, logits in enumerate(network(codes, ends, rounded=step >= ROUNDED * steps)):
            information, number = information_of(logits, codes[:, codebook])
            loss = loss + information
            bits[codebook] += information.item() / math.log(2)
            counts[codebook] += number
        optimizer.zero_grad()
        (loss / (PACKETS * PACKET)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if (step + 1) % LOG_EVERY == 0:
            print(f"step {step + 1}/{steps}: bits per new code", *np.round(bits / counts, 2), flush=True)
            bits[:], counts[:] = 0, 0
    return network.tensors()


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
        f"input.{codebook}": _int8(torch.from_numpy(part * scale))
        for codebook, (part, scale) in enumerate(zip(parts, scales, strict=True))
    }
    gains = [round(2**entropy_model.GAIN_SHIFT * scales[min(1, len(scales) - 1)] / scale) for scale in scales]
    return tensors | {"gain": np.array([0, *gains[1:]], np.int32)}


def _principal(vectors: npt.NDArray[Any], basis_of: npt.NDArray[Any], count: int) -> npt.NDArray[Any]:
    values, axes = np.linalg.eigh(basis_of.T @ basis_of)
    components: npt.NDArray[Any] = vectors @ axes[:, np.argsort(values)[::-1][:count]]
    return components


def packets_of(clips: Clips) -> Tensor:
    """Packets [packets, codebooks, frames] of the clips; -1 after the end of a clip."""
    pieces = []
    for _, codes in clips:
        for start in range(0, codes.shape[1], PACKET):
            piece = codes[:, start : start + PACKET]
            pieces.append(np.pad(piece, ((0, 0), (0, PACKET - piece.shape[1])), constant_values=-1))
    return torch.from_numpy(np.stack(pieces))


def layers_of(num_codebooks: int, random: np.random.Generator) -> tuple[int, ...]:
    """The ends of the layers of a packet: of all codebooks or of some, in layers or not, as files have them."""
    count = num_codebooks if random.random() < 0.4 else int(random.integers(num_codebooks)) + 1
    return entropy.layer_ends(count, layered=count >= entropy.LEAST_LAYERED and random.random() < 0.5)


def information_of(logits: Tensor, codes: Tensor) -> tuple[Tensor, int]:
    """The information in nats of the codes [packets, frames] that do not occur earlier in their packet; their number.

    Logits are [packets, frames, size].
    """
    entries = codes.clamp(min=0)[..., None]
    occurs = torch.zeros(logits.shape, dtype=torch.int8).scatter_(2, entries, 1)
    earlier = functional.pad(occurs.cumsum(1, dtype=torch.int8), (0, 0, 1, 0))[:, :-1] > 0
    is_new = (codes >= 0) & ~earlier.gather(2, entries)[..., 0]
    logits = logits.masked_fill(earlier, -1e4)[is_new]
    return functional.cross_entropy(logits, codes[is_new], reduction="sum"), len(logits)


class Network(nn.Module):
    """An EntropyModel in floats: vectors and predictions in units of RMS, logits in nats."""

    def __init__(self, inputs: Mapping[str, npt.NDArray[Any]], packets: Tensor) -> None:
        """`inputs` are `input_tensors`; the first biases are the frequencies of the codes of the packets."""
        super().__init__()
        self._gain = inputs["gain"]
        codebooks = range(len(self._gain))
        vectors = [torch.from_numpy(inputs[f"input.{codebook}"]) / RMS for codebook in codebooks]
        self.vectors = nn.ParameterList(vectors)
        first, other = vectors[0].shape[1], vectors[-1].shape[1]
        known = 4 * first + 3 * other
        dims = [known + dim for dim in (first, other + first, first + 4 * other)]  # of codebooks 0, 1, and all others
        self.weight = nn.ParameterList(
            torch.randn(HIDDEN, dims[min(codebook, 2)]) / math.sqrt(dims[min(codebook, 2)]) for codebook in codebooks
        )
        self.bias = nn.ParameterList(torch.zeros(HIDDEN) for _ in codebooks)
        self.output = nn.ParameterList(0.01 * torch.randn(len(each), HIDDEN) for each in vectors)
        counts = [
            torch.bincount(packets[:, codebook][packets[:, codebook] >= 0], minlength=len(each)) + 20
            for codebook, each in enumerate(vectors)
        ]
        self.output_bias = nn.ParameterList((count / count.sum()).log() for count in counts)

    def forward(self, codes: Tensor, ends: Sequence[int], rounded: bool = False) -> Iterator[Tensor]:
        """Yield the logits [packets, frames, size] of each codebook of codes [packets, codebooks, frames].

        `ends` are the codebooks after the last one of each layer.
        """
        integers = _rounded if rounded else _limited
        weights = _rounded_weight if rounded else _same
        present = (codes >= 0)[..., None]
        vectors = [
            functional.embedding(codes[:, codebook].clamp(min=0), integers(self.vectors[codebook]))
            * present[:, codebook]
            for codebook in range(codes.shape[1])
        ]
        newest = [_past(vectors[0], frames) for frames in range(1, entropy_model.PAST + 1)]
        older = integers(sum(newest[3:]) / 2**entropy_model.OLDER_SHIFT)
        rest = torch.zeros_like(self.vectors[-1][:1, None].expand(*vectors[0].shape[:2], -1))
        start, lower = 0, torch.zeros_like(rest)
        for end in ends:
            for codebook in range(max(start, 1), end):
                rest = rest + self._weighted(vectors, codebook)
            before, second = (_past(integers(rest), frames) for frames in (1, 2))
            known = [*newest[:3], older, before, second, before.abs()]
            for codebook in range(start, end):
                parts = [*known, _past(vectors[codebook], 1), *vectors[: min(codebook, 2)]]
                if codebook >= 2:
                    parts += [vectors[1].abs(), integers(lower)]
                    lower = lower + self._weighted(vectors, codebook)
                context = torch.cat(parts, dim=-1)
                prediction = integers(functional.linear(context, weights(self.weight[codebook]), self.bias[codebook]))
                yield functional.linear(prediction, weights(self.output[codebook]), self.output_bias[codebook])
            start = end

    def _weighted(self, vectors: Sequence[Tensor], codebook: int) -> Tensor:
        gain: float = self._gain[codebook] / 2**entropy_model.GAIN_SHIFT
        return gain * vectors[codebook]

    def tensors(self) -> dict[str, npt.NDArray[Any]]:
        """The tensors of the EntropyModel."""
        tensors = {"gain": self._gain}
        shifts = []
        for codebook in range(len(self._gain)):
            weight, shift = _shifted(self.weight[codebook].detach())
            output, output_shift = _shifted(self.output[codebook].detach() * (STEPS_PER_NAT / RMS))
            bias = self.bias[codebook].detach() * RMS * 2**shift
            output_bias = self.output_bias[codebook].detach() * STEPS_PER_NAT * 2**output_shift
            tensors |= {
                f"input.{codebook}": _int8(self.vectors[codebook].detach() * RMS),
                f"weight.{codebook}": weight,
                f"bias.{codebook}": bias.round().int().numpy(),
                f"output.{codebook}": output,
                f"output_bias.{codebook}": output_bias.round().int().numpy(),
            }
            shifts.append((shift, output_shift))
        steps = np.arange(math.ceil(16 * math.log(2) * STEPS_PER_NAT) + 1)
        tensors["exp"] = np.maximum(np.rint(2**16 * np.exp(-steps / STEPS_PER_NAT)), 1).astype(np.int32)
        tensors["shift"] = np.array(shifts, np.int32)
        return tensors


def _past(vectors: Tensor, frames: int) -> Tensor:
    """Vectors [packets, frames, vector] of the frame `frames` before each one; zeros before the packet."""
    return functional.pad(vectors, (0, 0, frames, 0))[:, : vectors.shape[1]]


def _limited(x: Tensor) -> Tensor:
    return x.clamp(-LIMIT, LIMIT)


def _same(x: Tensor) -> Tensor:
    return x


def _rounded(x: Tensor) -> Tensor:
    """Vectors and predictions as integers of 8 bits."""
    x = _limited(x)
    return x + ((x * RMS + 0.5).floor() / RMS - x).detach()


def _rounded_weight(x: Tensor) -> Tensor:
    integers, shift = _shifted(x.detach())
    return x + (torch.from_numpy(integers) / 2.0**shift - x).detach()


def _shifted(values: Tensor) -> tuple[npt.NDArray[np.int8], int]:
    """Values times the largest power of two that leaves all but a few within 8 bits."""
    shift = math.floor(math.log2(127 / np.quantile(values.abs().numpy(), 0.9999)))
    shift = min(max(shift, 1), 20)  # what the network can hold; larger weights are clipped
    return _int8(values * 2.0**shift), shift


def _int8(values: Tensor) -> npt.NDArray[np.int8]:
    integers: npt.NDArray[np.int8] = values.round().clamp(-127, 127).to(torch.int8).numpy()
    return integers


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
