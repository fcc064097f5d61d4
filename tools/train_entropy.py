"""Train the network that predicts a codec's codes for entropy coding, or print what each payload coder saves.

    codec tokenize corpus.jsonl --out tokens/
    python tools/train_entropy.py tokens/ --out codec/weights/general-24k.entropy.safetensors
    python tools/train_entropy.py tokens/ --report

The corpus has the splits train and valid. More stores are more codes to train on: those of the same recordings from a
part of a frame later on ("start": 0.005 in a manifest) differ from the first ones. The loss is the information of the
codes as coder 2 codes them, with what it adds for codes that occurred. In the last steps, the forward pass rounds
weights, vectors and predictions to the integers of the file, and gradients pass the rounding unchanged (Bengio et al.
2013, straight-through estimator). The report is of the split valid of the first store, in packets of one second.
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
from codec.io.entropy_model import EntropyModel
from codec.io.range_coder import Writer
from codec.models.base import Codec

PACKET = 50  # frames
RATES = (3, 6, 12, 16)  # numbers of codebooks of the report
VECTORS = (24, 48)  # numbers of an input vector: codebook 0, and all higher ones
HIDDEN, PREDICTION = 256, 64  # numbers of a hidden vector and of a prediction
RMS = 28  # of vectors and predictions, in integers of 8 bits
LIMIT = 127 / RMS

STEPS, PACKETS = 4000, 48  # of the training; packets per step
ROUNDED = 0.8  # of the steps, after which the forward pass rounds
LEARNING_RATE, WEIGHT_DECAY = 2e-3, 0.05
LOG_EVERY = 100  # steps

Codes = npt.NDArray[np.int64]
Clips = Sequence[tuple[str, Codes]]  # set, and codes [codebooks, frames]


# the training


def fit(
    clips: Clips, model: Codec, *, steps: int = STEPS, seed: int = 0, bf16: bool = False
) -> dict[str, npt.NDArray[Any]]:
    """The tensors of an EntropyModel for codes of `model`. Raises UsageError for a model without codebook vectors.

    With `bf16`, products of matrices are in bfloat16 until the steps that round.
    """
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    packets = packets_of(clips)
    network = Network(input_tensors(model), packets)
    decayed = [network.hidden, network.weight, network.output, network.from_vectors]
    other = [network.vectors, network.hidden_bias, network.bias, network.output_bias, network.gains]
    groups = [
        {"params": [parameter for each in lists for parameter in each], "weight_decay": decay}
        for lists, decay in ((decayed, WEIGHT_DECAY), (other, 0.0))
    ]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.05)
    bits, counts = np.zeros((2, model.num_codebooks))
    for step in range(steps):
        chosen = torch.from_numpy(random.integers(len(packets), size=PACKETS))
        codes = packets[chosen]
        rounded = step >= ROUNDED * steps
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16 and not rounded):
            contexts = network.contexts(codes, rounded)
        loss = torch.zeros(())
        for codebook, context in enumerate(contexts):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16 and not rounded):
                logits = network.logits(codebook, context, rounded)
            information, number = information_of(logits.float(), codes, codebook, network.gains[codebook])
            loss = loss + information
            bits[codebook] += information.item() / math.log(2)
            counts[codebook] += number
        (loss / (PACKETS * PACKET)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        network.limit_gains()
        if (step + 1) % LOG_EVERY == 0:
            print(f"step {step + 1}/{steps}: bits per code", *np.round(bits / counts, 2), flush=True)
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


def information_of(logits: Tensor, codes: Tensor, codebook: int, gains: Tensor) -> tuple[Tensor, int]:
    """The information in nats of the codes of a codebook; their number.

    Logits are [packets, frames, size], codes [packets, codebooks, frames], `gains` those of Network.
    """
    lower = codes[:, codebook - 1] if codebook else functional.pad(codes[:, 0], (1, 0), value=-1)[:, :-1]
    codes = codes[:, codebook]
    candidate_gains, is_new, is_code = gains_of(codes, lower, gains)
    there = codes >= 0
    entries = codes.clamp(min=0)
    candidates = logits.gather(2, entries[:, None].expand(-1, codes.shape[1], -1))  # [packets, frames, of the frame]
    log_sum = logits.logsumexp(2)
    added = ((candidates - log_sum[..., None]).exp() * candidate_gains.expm1() * is_new).sum(2)
    own = logits.gather(2, entries[..., None])[..., 0] + (candidate_gains * (is_code & is_new)).sum(2)
    return (log_sum + added.log1p() - own)[there].sum(), int(there.sum())


def gains_of(codes: Tensor, lower: Tensor, gains: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What is added to the logits of the codes of earlier frames [packets, frames, earlier frames], in nats; for which
    of them it counts, because each code counts once; and which of them are the code of the frame.

    `codes` and `lower`, those of the next lower codebook (of codebook 0: of the frame before), are [packets, frames].
    """
    frames = codes.shape[1]
    earlier = torch.ones(frames, frames, dtype=torch.bool).tril(-1)
    there = (codes >= 0)[:, None]
    same = (codes[:, :, None] == codes[:, None]) & there
    before = functional.pad(codes, (1, 0), value=-1)[:, :-1]
    times = functional.pad(same.int().cumsum(1), (0, 0, 1, 0))[:, :-1]
    run = torch.zeros_like(codes)
    for frame in range(1, frames):
        run[:, frame] = torch.where(codes[:, frame - 1] == before[:, frame - 1], run[:, frame - 1], 0) + 1
    lower_same = (lower[:, :, None] == lower[:, None]) & (lower >= 0)[:, None] & there & earlier
    last = torch.where(lower_same, torch.arange(frames), -1).amax(2)
    following = torch.where(last >= 0, codes.gather(1, last.clamp(min=0)), -1)
    by_times, by_run = functional.pad(gains[:3], (1, 0)), functional.pad(gains[3:5], (1, 1))  # the coder asks for runs
    found = by_times[times.clamp(max=3)]
    found = found + (codes[:, None] == before[:, :, None]) * by_run[run.clamp(max=3)][..., None]
    found = found + (codes[:, None] == following[:, :, None]) * gains[5]
    is_code = same & earlier
    is_new = earlier & there & (is_code.sum(2) == 0)[:, None]
    return found, is_new, is_code


class Network(nn.Module):
    """An EntropyModel in floats: vectors and predictions in units of RMS, logits and gains in nats."""

    def __init__(self, inputs: Mapping[str, npt.NDArray[Any]], packets: Tensor) -> None:
        """`inputs` are `input_tensors`; the first biases are the frequencies of the codes of the packets."""
        super().__init__()
        self._gain = inputs["gain"]
        codebooks = range(len(self._gain))
        self._inputs = [torch.from_numpy(inputs[f"input.{codebook}"]) / RMS for codebook in codebooks]
        self.vectors = nn.ParameterList(vectors.clone() for vectors in self._inputs)
        contexts = self.contexts(torch.zeros(1, len(codebooks), 1, dtype=torch.long), rounded=False)
        dims = [context.shape[-1] for context in contexts]
        self.hidden = nn.ParameterList(torch.randn(HIDDEN, dim) / math.sqrt(dim) for dim in dims)
        self.hidden_bias = nn.ParameterList(torch.zeros(HIDDEN) for _ in codebooks)
        self.weight = nn.ParameterList(torch.randn(PREDICTION, HIDDEN) / math.sqrt(HIDDEN) for _ in codebooks)
        self.bias = nn.ParameterList(torch.zeros(PREDICTION) for _ in codebooks)
        self.output = nn.ParameterList(0.01 * torch.randn(len(each), PREDICTION) for each in self.vectors)
        self.from_vectors = nn.ParameterList(0.02 * torch.randn(each.shape[1], PREDICTION) for each in self.vectors)
        counts = [
            torch.bincount(packets[:, codebook][packets[:, codebook] >= 0], minlength=len(each)) + 20
            for codebook, each in enumerate(self.vectors)
        ]
        self.output_bias = nn.ParameterList((count / count.sum()).log() for count in counts)
        self.gains = nn.ParameterList(torch.tensor([1, 1.5, 2, 0.3, 0.3, 0.1]) for _ in codebooks)

    def contexts(self, codes: Tensor, rounded: bool) -> list[Tensor]:
        """The contexts [packets, frames, context] of all codebooks of codes [packets, codebooks, frames]."""
        integers = _rounded if rounded else _limited
        present = (codes >= 0)[..., None]
        vectors = [
            functional.embedding(codes[:, codebook].clamp(min=0), integers(vectors)) * present[:, codebook]
            for codebook, vectors in enumerate(self.vectors)
        ]
        first = vectors[0]
        older = integers(sum(_at(first, -frames) for frames in range(4, 9)) / 2**entropy_model.OLDER_SHIFT)
        contexts = [torch.cat([*(_at(first, -frames) for frames in (1, 2, 3)), older], dim=-1)]
        around = [_at(first, frames) for frames in (-2, -1, 0, 1, 2)]
        rest, higher = (torch.zeros_like(vectors[-1]) for _ in range(2))
        for codebook in range(1, len(vectors)):
            parts = around
            if codebook > 1:
                second = vectors[1]
                lower = integers(rest)
                near = [_at(lower, frames) for frames in (-2, -1, 1, 2)]
                parts = [*around, *near, near[1].abs(), near[2].abs(), second, second.abs(), integers(higher)]
            if codebook <= entropy_model.LAST_OWN:
                parts = [*parts, *(_at(vectors[codebook], -frames) for frames in (1, 2))]
            contexts.append(torch.cat(parts, dim=-1))
            weighted = self._gain[codebook] / 2**entropy_model.GAIN_SHIFT * vectors[codebook]
            rest = rest + weighted
            higher = higher + weighted if codebook > 1 else higher
        return contexts

    def logits(self, codebook: int, context: Tensor, rounded: bool) -> Tensor:
        """The logits [packets, frames, size] of a codebook of its contexts."""
        integers, weights = (_rounded, _rounded_weight) if rounded else (_limited, _same)
        hidden = functional.linear(context, weights(self.hidden[codebook]), self.hidden_bias[codebook])
        hidden = integers(hidden.relu())
        prediction = integers(functional.linear(hidden, weights(self.weight[codebook]), self.bias[codebook]))
        return functional.linear(prediction, weights(self._output(codebook)), self.output_bias[codebook])

    def _output(self, codebook: int) -> Tensor:
        output: Tensor = self.output[codebook] + self._inputs[codebook] @ self.from_vectors[codebook]
        return output

    def limit_gains(self) -> None:
        """Keep the gains within what EntropyModel takes."""
        with torch.no_grad():
            for gains in self.gains:
                gains.clamp_(0, entropy_model.MOST_GAIN / entropy_model.STEPS_PER_NAT)

    @torch.no_grad()
    def tensors(self) -> dict[str, npt.NDArray[Any]]:
        """The tensors of the EntropyModel."""
        steps_per_nat = entropy_model.STEPS_PER_NAT
        tensors = {"gain": self._gain}
        shifts = []
        for codebook in range(len(self._gain)):
            layers = [
                ("hidden", self.hidden[codebook], self.hidden_bias[codebook] * RMS),
                ("weight", self.weight[codebook], self.bias[codebook] * RMS),
                ("output", self._output(codebook) * (steps_per_nat / RMS), self.output_bias[codebook] * steps_per_nat),
            ]
            for name, weight, bias in layers:
                tensors[f"{name}.{codebook}"], shift = _shifted(weight)
                tensors[f"{name}_bias.{codebook}"] = (bias * 2**shift).round().int().numpy()
                shifts.append(shift)
            tensors[f"input.{codebook}"] = _int8(self.vectors[codebook] * RMS)
        steps = np.arange(math.ceil(16 * math.log(2) * steps_per_nat) + 1)
        tensors["exp"] = np.maximum(np.rint(2**16 * np.exp(-steps / steps_per_nat)), 1).astype(np.int32)
        grow = np.arange(3 * entropy_model.MOST_GAIN + 1) / steps_per_nat
        tensors["grow"] = np.rint(2**entropy_model.GROW_SHIFT * np.exp(grow)).astype(np.int32)
        tensors["shift"] = np.array(shifts, np.int32).reshape(-1, 3)
        tensors["gains"] = torch.stack([gains * steps_per_nat for gains in self.gains]).round().int().numpy()
        return tensors


def _at(vectors: Tensor, frames: int) -> Tensor:
    """Vectors [packets, frames, vector] of the frame this number of `frames` later; zeros outside the packet."""
    return functional.pad(vectors, (0, 0, max(0, -frames), max(0, frames)))[:, max(0, frames) :][:, : vectors.shape[1]]


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


class Bits(Writer):
    """Count the information of values."""

    def __init__(self) -> None:
        self.bits = 0.0

    def interval(self, start: int, count: int, total: int) -> None:
        """As Writer."""
        self.bits -= math.log2(count / total)


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
    parser.add_argument("store", type=Path, nargs="+", help="token store of codec tokenize, with all codebooks")
    parser.add_argument("--model", default=pretrained.DEFAULT)
    parser.add_argument("--out", type=Path, help="file to write")
    parser.add_argument("--bf16", action="store_true", help="train with products in bfloat16, where the CPU has them")
    parser.add_argument("--report", action="store_true", help="print a table of the split valid")
    arguments = parser.parse_args()
    model = pretrained.load(arguments.model, "cpu")
    stores = [TokenStore(path, model) for path in arguments.store]
    weights_hash = stores[0].weights_hash
    if arguments.out:
        clips = [clip for store in stores for clip in clips_of(store, "train")]
        tensors = fit(clips, model, bf16=arguments.bf16)
        entropy_model.save(arguments.out, tensors, weights_hash=weights_hash)
        print(f"{arguments.out}: {arguments.out.stat().st_size / 1e6:.2f} MB")
    if arguments.report:
        network = entropy_model.find(weights_hash, model.codebook_sizes)
        print(*report(clips_of(stores[0], "valid"), model, network), sep="\n")


if __name__ == "__main__":
    main()
