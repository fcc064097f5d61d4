"""Export a token language model to ONNX: `lm_step.onnx`, one step with its state as inputs and outputs.

    logits, next_state... = lm_step(tokens, classes, state...)

`tokens` [batch, codebooks] are those of the step before, the special token in all codebooks before the first step; a
state is all zeros there. Each output `next_NAME` is the input `state_NAME` of the next step. A model that decides the
codebooks of a frame one by one gives `hidden` instead, for a second graph that is run once per codebook, with states
that are zeros before the first codebook; `token` is the code of the codebook before, and any code for the first:

    logits, next_state... = lm_codebook(hidden, token, codebook, state...)

A model with text has a third graph, which is run once; its outputs are inputs of every step:

    memory... = lm_text(text)

The JSON in the metadata entry `codec` says the rest: pattern, classes, sizes, weights hashes (`describe`).
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.errors import CodecError, UsageError
from codec.export.onnx import (
    MAX_NEAR_TIES,
    OPSET,
    Step,
    check_opset,
    check_packages,
    describe_states,
    exported,
    finished,
    next_names,
    raise_interruption,
    session,
)
from codec.io.storage import atomic_output, refuse_existing, storing
from codec.lm import CodecLM
from codec.lm.base import CodeEmbedding, SampleFn, StepTokens
from codec.lm.conditioning import Conditioning
from codec.lm.pixelcnn import PixelCNNLM
from codec.lm.sampling import generate_frames
from codec.lm.transformer import Depth, TransformerLM
from codec.nn.attention import AttentionBlock, SlidingTransformer, rotary_table

NAMES = STEP, CODEBOOK, TEXT = "lm_step.onnx", "lm_codebook.onnx", "lm_text.onnx"
MAX_ERROR = 1e-4
"""Largest difference between the logits of torch and of ONNX Runtime."""
FRAMES = 200  # that `verify` generates
CHECK_GUIDANCE = 2.0  # of `verify`
EXAMPLE = b"yes", b"not"  # texts of the rows that are traced
MASK = "memory_mask"


class Exported(NamedTuple):
    """The result of `export_lm`."""

    files: tuple[Path, ...]
    codes: int
    """Number of codes that were compared with those of torch."""
    near_ties: tuple[str, ...]
    """Step and codebook of the codes that differ."""
    error: float
    """Largest difference of the logits."""


def export_lm(lm: CodecLM, folder: str | Path, *, opset: int = OPSET, force: bool = False) -> Exported:
    """Write the graphs of a language model, verified by `verify`. They take any batch size.

    Nothing is written if the graphs are not right.

    Raises:
        UsageError: torch cannot export the model, or the opset is not one that torch and ONNX Runtime know.
        MissingDependency: a package of the extra `onnx` cannot be imported.
        StorageError: the folder cannot be written to, or has such files and `force` is off.
        CodecError: ONNX Runtime does not compute what torch does.
    """
    check_packages()
    check_opset(opset)
    folder, lm = Path(folder), exportable(lm)
    refuse_existing(*(folder / name for name in NAMES), force=force)
    try:
        files = graphs(lm, opset)
    except torch.onnx.OnnxExporterError as failure:
        raise_interruption(failure)
        raise UsageError(
            f"torch {torch.__version__} cannot export a language model of the family {lm.config.family}: try another "
            "version of torch"
        ) from failure
    codes, near_ties, error = verify(lm, files)
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name in set(NAMES) - set(files):  # of an earlier model
            (folder / name).unlink(missing_ok=True)
    for name, content in files.items():
        with atomic_output(folder / name, force=force) as file:
            file.write(content)
    return Exported(tuple(folder / name for name in files), codes, near_ties, error)


def exportable(lm: CodecLM) -> CodecLM:
    """A copy without the tables of `prepare_for_inference`, which are larger than what they are computed from."""
    lm = copy.deepcopy(lm).cpu().eval()
    if isinstance(lm, TransformerLM):
        lm.token_table = None
    return lm


# The steps


class LMStep(nn.Module):
    """A step as it is traced: inputs, and a list of others that ends with the state, to outputs and the next state."""

    @abstractmethod
    def state(self, batch: int) -> dict[str, Tensor]:
        """The state before the first step, zeros, by name."""


class TransformerStep(LMStep):
    """A step of the temporal transformer: logits of all codebooks, or what the depth transformer takes."""

    def __init__(self, lm: TransformerLM) -> None:
        super().__init__()
        self.lm = lm
        self.kinds, self.layers = len(lm.source.classes), len(lm.temporal.blocks)

    def state(self, batch: int) -> dict[str, Tensor]:
        position = torch.zeros(batch, dtype=torch.int64)
        return {"state_position": position} | caches(self.lm.temporal, batch)

    def forward(self, tokens: Tensor, given: list[Tensor]) -> tuple[Tensor, ...]:
        classes, given = split_classes(tokens, given, self.kinds)
        memory, position, own = given[: -1 - 2 * self.layers], given[-1 - 2 * self.layers], given[-2 * self.layers :]
        vector = self.lm.class_conditioner(Conditioning(classes, tokens[:, :0]))
        x = self.lm.embed(tokens[:, :, None], position[:, None], vector)
        hidden, after = transformer_step(self.lm.temporal, x, position, own, memory)
        if self.lm.lm_heads is not None:
            hidden = self.lm.mask_end(self.lm.lm_heads(hidden).unflatten(1, (self.lm.source.num_codebooks, -1)))
        return hidden, position + 1, *after


class DepthStep(LMStep):
    """A step of the depth transformer: logits [batch, codebook_size + 1] of a codebook."""

    def __init__(self, depth: Depth, vectors: CodeEmbedding) -> None:
        super().__init__()
        self.depth, self.vectors = depth, vectors

    def state(self, batch: int) -> dict[str, Tensor]:
        width = self.depth.token_proj.out_features
        total = {"state_sum": torch.zeros(batch, width)} if self.depth.cumulative else {}
        return total | caches(self.depth.transformer, batch)

    def forward(self, hidden: Tensor, token: Tensor, codebook: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
        depth, total, before = self.depth, leaves[: int(self.depth.cumulative)], codebook.clamp(min=1) - 1
        embedded = depth.token_proj(vector_of(self.vectors, token, before))
        sums = torch.where(codebook > 0, total[0] + embedded if total else embedded, 0.0)
        own = depth.codebook_embedding.index_select(0, codebook[None])
        x = (depth.hidden_proj(hidden) + own + sums)[:, None]
        position = codebook.expand(token.shape[0])
        y, after = transformer_step(depth.transformer, x, position, leaves[len(total) :], [])
        logits = y @ depth.lm_heads.index_select(0, codebook[None])[0]
        return masked(logits, codebook), *([sums] if total else []), *after


class PixelCNNStep(LMStep):
    """A frame of the vertical stack: what the horizontal stack takes [batch, layers, codebooks, 2 * width]."""

    def __init__(self, lm: PixelCNNLM) -> None:
        super().__init__()
        self.lm = lm
        self.kinds = len(lm.source.classes)

    def state(self, batch: int) -> dict[str, Tensor]:
        shape = self.lm.source.num_codebooks, self.lm.config.width
        dilations = enumerate(self.lm.config.dilations)
        return {f"state_frames_{layer}": torch.zeros(batch, frames, *shape) for layer, frames in dilations if frames}

    def forward(self, tokens: Tensor, given: list[Tensor]) -> tuple[Tensor, ...]:
        classes, given = split_classes(tokens, given, self.kinds)
        gates = self.lm.class_conditioner(Conditioning(classes, tokens[:, :0]))
        none = gates.new_zeros(tokens.shape[0], 0, self.lm.source.num_codebooks, self.lm.config.width)
        rings = [given.pop(0) if frames else none for frames in self.lm.config.dilations]
        gates = gates.unflatten(1, (self.lm.config.layers, -1))
        links, own = self.lm.vertical_stack(tokens[:, :, None], [ring[:, :1] for ring in rings], gates)
        both = zip(rings, own, strict=True)
        return torch.cat(links, dim=1), *(torch.cat([ring[:, 1:], x], dim=1) for ring, x in both if ring.shape[1])


class HorizontalStep(LMStep):
    """A codebook of the horizontal stack: its logits [batch, codebook_size + 1]."""

    def __init__(self, lm: PixelCNNLM) -> None:
        super().__init__()
        self.lm = lm

    def state(self, batch: int) -> dict[str, Tensor]:
        config = self.lm.config
        names = (f"state_codebooks_{layer}" for layer in range(config.layers))
        return {name: torch.zeros(batch, 1, config.kernel // 2, config.width) for name in names}

    def forward(self, hidden: Tensor, token: Tensor, codebook: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
        before = codebook.clamp(min=1) - 1
        vector = vector_of(self.lm.vectors, token, before) / self.lm.vectors.scale.index_select(0, before[None])
        embedded = torch.where(codebook > 0, self.lm.horizontal_token_proj(vector), 0.0)
        x = embedded + self.lm.codebook_embedding[1].index_select(0, codebook[None])
        links = list(hidden.index_select(2, codebook[None])[:, :, None].unbind(dim=1))
        y, after = self.lm.horizontal_stack(x[:, None, None], links, leaves)
        logits = self.lm.norm(y)[:, 0, 0] @ self.lm.lm_heads.index_select(0, codebook[None])[0]
        return masked(logits, codebook), *after


class TextStep(nn.Module):
    """A text [batch, bytes] to keys and values of each layer [batch, heads, places, head_dim], and their mask."""

    def __init__(self, lm: TransformerLM) -> None:
        super().__init__()
        self.lm = lm

    def forward(self, text: Tensor, _: list[Tensor]) -> tuple[Tensor, ...]:
        memory = self.lm.encode_text(Conditioning(text[:, :0], text))
        assert memory is not None
        return *memory.keys.unbind(), *memory.values.unbind(), memory.mask

    def memory(self, text: Tensor) -> dict[str, Tensor]:
        """The outputs by name."""
        with torch.no_grad():
            outputs = self(text, [])
        layers = range(len(outputs) // 2)
        names = [*(f"memory_{part}_{layer}" for part in ("keys", "values") for layer in layers), MASK]
        return dict(zip(names, outputs, strict=True))


def split_classes(tokens: Tensor, given: list[Tensor], kinds: int) -> tuple[Tensor, list[Tensor]]:
    """The classes [batch, kinds], if the model has kinds, and the other inputs."""
    return (given[0], given[1:]) if kinds else (tokens.new_zeros(tokens.shape[0], 0), list(given))


def transformer_step(
    transformer: SlidingTransformer, x: Tensor, position: Tensor, caches: list[Tensor], memory: list[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """`SlidingTransformer.step` of one step x [batch, 1, width]: its output [batch, width], and the next caches.

    Caches, the keys of each layer and then the values, have all their slots, so that their shapes do not change. So has
    `memory`, which ends with its mask.
    """
    slots, layers = torch.arange(transformer.context), len(transformer.blocks)
    here = (slots == position[:, None] % transformer.context)[:, None, :, None]
    mask = (slots <= position[:, None])[:, None, None]
    rotation = rotary_table(position[:, None], transformer.head_dim, x.dtype, transformer.slowest)
    rows, after = x[:, 0], [list[Tensor](), list[Tensor]()]
    for layer, block in enumerate(transformer.blocks):
        assert isinstance(block, AttentionBlock)
        queries, *new = block.project_qkv(rows, rotation)
        pair = [torch.where(here, one, caches[layer + layers * part]) for part, one in enumerate(new)]
        attended = block.attend(queries, pair[0], pair[1], mask, causal=False)
        own = (memory[layer], memory[layer + layers], memory[-1]) if memory else None
        rows = block.residual_mlp(rows, attended, own)
        for kept, one in zip(after, pair, strict=True):
            kept.append(one)
    return transformer.norm(rows), [*after[0], *after[1]]


def caches(transformer: SlidingTransformer, batch: int) -> dict[str, Tensor]:
    """Empty keys and values of each layer [batch, heads, slots, head_dim]."""
    shape = batch, transformer.width // transformer.head_dim, transformer.context, transformer.head_dim
    layers = range(len(transformer.blocks))
    return {f"state_{part}_{layer}": torch.zeros(shape) for part in ("keys", "values") for layer in layers}


def vector_of(vectors: CodeEmbedding, token: Tensor, codebook: Tensor) -> Tensor:
    """Vectors [batch, dim] of tokens [batch] of a codebook []."""
    row = token.clamp(max=vectors.codebook_size - 1) + vectors.codebook_size * codebook
    special = vectors.special_token.index_select(0, codebook[None])
    return torch.where(
        (token == vectors.codebook_size)[:, None], special, F.embedding(row, vectors.entries.flatten(0, 1))
    )


def masked(logits: Tensor, codebook: Tensor) -> Tensor:
    """Logits [batch, codebook_size + 1] without the end in all codebooks but the first."""
    end = torch.arange(logits.shape[1]) == logits.shape[1] - 1
    return torch.where(end & (codebook > 0), -torch.inf, logits)


# The graphs


def graphs(lm: CodecLM, opset: int = OPSET) -> dict[str, bytes]:
    """The files of a language model, by name."""
    match lm:
        case PixelCNNLM():
            return step_graphs(lm, PixelCNNStep(lm), HorizontalStep(lm), opset)
        case TransformerLM() if lm.depth:
            files = step_graphs(lm, TransformerStep(lm), DepthStep(lm.depth, lm.vectors), opset)
        case TransformerLM():
            files = step_graphs(lm, TransformerStep(lm), None, opset)
        case _:
            raise UsageError(f"a language model of the family {lm.config.family} cannot be exported: take another one")
    return files | ({TEXT: text_graph(lm, opset)} if lm.text_encoder else {})


def step_graphs(lm: CodecLM, step: LMStep, codebook_step: LMStep | None, opset: int) -> dict[str, bytes]:
    """The graph of a step, and that of a codebook if they are decided one by one."""
    rows, varies = len(EXAMPLE), torch.export.Dim.DYNAMIC
    state, kinds, memory = step.state(rows), len(lm.source.classes), example_memory(lm)
    inputs = {"tokens": torch.zeros(rows, lm.source.num_codebooks, dtype=torch.int64)}
    others = ({"classes": torch.zeros(rows, kinds, dtype=torch.int64)} if kinds else {}) | memory | state
    places = {name: 3 if name == MASK else 2 for name in memory}
    varying = {name: {axis: varies} for name, axis in places.items()}
    outputs = ["hidden" if codebook_step else "logits", *next_names(state)]
    hidden = once(step, inputs, others)
    proto = exported(step, inputs, others, outputs, opset=opset, varying=varying)
    axes = {name: {axis: "places"} for name, axis in places.items()}
    files = {STEP: finished(proto, describe(lm, state, opset), axes)}
    if codebook_step:
        inputs = {"hidden": hidden, "token": inputs["tokens"][:, 0], "codebook": torch.tensor(1)}
        state = codebook_step.state(rows)
        once(codebook_step, inputs, state)
        proto = exported(codebook_step, inputs, state, ["logits", *next_names(state)], opset=opset)
        files[CODEBOOK] = finished(proto, describe(lm, state, opset))
    return files


@torch.no_grad()
def once(step: nn.Module, inputs: dict[str, Tensor], listed: dict[str, Tensor]) -> Tensor:
    """The first output of a step; tables that it caches must be there before it is traced, when they have no values."""
    output: Tensor = step(*inputs.values(), list(listed.values()))[0]
    return output


def example_memory(lm: CodecLM) -> dict[str, Tensor]:
    """What the step of a model with text takes of it."""
    if not isinstance(lm, TransformerLM) or not lm.text_encoder:
        return {}
    return TextStep(lm).memory(torch.tensor([list(text) for text in EXAMPLE]))


def text_graph(lm: TransformerLM, opset: int) -> bytes:
    """The graph of a text."""
    text, step = torch.tensor([list(text) for text in EXAMPLE]), TextStep(lm)
    varying = {"text": {1: torch.export.Dim.DYNAMIC}}
    with without_fast_path():
        proto = exported(step, {"text": text}, {}, list(step.memory(text)), opset=opset, varying=varying)
    return finished(proto, describe(lm, {}, opset), {"text": {1: "bytes"}})


@contextmanager
def without_fast_path() -> Iterator[None]:
    """Without the fused operation of `nn.TransformerEncoder`, which no exporter knows."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def describe(lm: CodecLM, state: dict[str, Tensor], opset: int) -> dict[str, Any]:
    """What a program must know to run a graph with this state; `codec` is the codec that decodes the codes."""
    source, pattern = lm.source, lm.pattern
    return {
        "format": 1,
        "family": lm.config.family,
        "model": lm.name,
        "weights_hash": lm.weights_hash,
        "codec": {"model": source.codec, "weights_hash": source.weights_hash},
        "num_codebooks": source.num_codebooks,
        "codebook_size": source.codebook_size,
        "classes": source.classes,
        "text": lm.takes_text,
        "pattern": {"delays": pattern.delays, "groups": pattern.groups, "block": pattern.block},
        "guidance": lm.config.guidance,
        "temperature": lm.config.temperature,
        "opset": opset,
        "states": describe_states(state),
    }


# Verification


class Graphs:
    """Exported graphs in ONNX Runtime for a batch with a conditioning."""

    def __init__(self, files: dict[str, bytes], conditioning: Conditioning) -> None:
        self.step, self.codebook, self.text = (session(files[name]) if name in files else None for name in NAMES)
        self.batch = len(conditioning.classes)
        classes = conditioning.classes.numpy()
        self.given = {"classes": classes} if classes.shape[1] else {}
        if self.text:
            names = [one.name for one in self.text.get_outputs()]
            memory = self.text.run(None, {"text": conditioning.text.numpy()})
            self.given |= dict(zip(names, memory, strict=True))
        self.stream = Step(self.step, self.batch)

    def forward_step(self, step_tokens: Tensor) -> Tensor:
        """Logits of the next step, or `hidden`."""
        return torch.from_numpy(self.stream(step_tokens.numpy(), **self.given))

    def codebook_step(self) -> Step:
        """The second graph before the first codebook, a function of `hidden`, `token` and `codebook`."""
        return Step(self.codebook, self.batch)


class Comparison(CodecLM):
    """A language model that generates as torch does, and compares each step with its graphs."""

    def __init__(self, lm: CodecLM, files: dict[str, bytes]) -> None:
        super().__init__(lm.config, lm.source)
        self.lm, self.files = lm, files
        self.steps, self.codes, self.error = 0, 0, 0.0
        self.wrong: list[str] = []

    def initial_state(self, conditioning: Conditioning) -> tuple[Any, Graphs]:
        return self.lm.initial_state(conditioning), Graphs(self.files, conditioning)

    def forward_step(self, step_tokens: StepTokens, state: tuple[Any, Graphs]) -> tuple[Any, tuple[Any, Graphs]]:
        hidden, after = self.lm.forward_step(step_tokens, state[0])
        self.steps += 1
        return (hidden, state[1].forward_step(step_tokens), state[1]), (after, state[1])

    def decode_step(self, hidden: tuple[Any, Tensor, Graphs], sample_fn: SampleFn) -> StepTokens:
        own, found, graphs = hidden
        stream = graphs.codebook_step() if graphs.codebook else None
        token = np.zeros(graphs.batch, np.int64)

        def both(logits: Tensor, first: int) -> Tensor:
            nonlocal token
            other = found if stream is None else logits_of(stream, found, token, first)
            self.error = max(self.error, float(torch.where(logits == other, 0.0, logits - other).abs().max()))
            codes = sample_fn(logits, first)
            different = codes != sample_fn(other, first)
            self.codes += codes.numel()
            places = different.any(dim=0).nonzero()[:, 0].tolist()
            self.wrong += [f"step {self.steps}, codebook {first + place}" for place in places]
            token = codes[:, -1].numpy()
            return codes

        return self.lm.decode_step(own, both)


def logits_of(stream: Step, hidden: Tensor, token: np.ndarray[Any, Any], codebook: int) -> Tensor:
    """Logits [batch, 1, codebook_size + 1] of a codebook."""
    logits = stream(hidden.numpy(), token=token, codebook=np.array(codebook))
    return torch.from_numpy(logits)[:, None]


def verify(lm: CodecLM, files: dict[str, bytes]) -> tuple[int, tuple[str, ...], float]:
    """Compare the graphs in ONNX Runtime with torch: (codes compared, codes that differ, largest error of the logits).

    Torch generates `FRAMES` frames with guidance, so that half of the rows are unconditional. The graphs take the same
    tokens in each step, and the code that their logits give for the random number of the step must be the same.

    Raises CodecError if more than `MAX_NEAR_TIES` of the codes differ, and more than one, or if the logits differ by
    more than `MAX_ERROR`.
    """
    comparison = Comparison(lm, files).eval()  # type: ignore[abstract]  # generation needs no other methods
    conditions = {kind: names[0] for kind, names in lm.source.classes.items()} | (
        {"text": "a"} if lm.takes_text else {}
    )
    conditioning = lm.conditioning([conditions, {}])
    pieces = generate_frames(
        comparison, seeds=(0, 1), conditioning=conditioning, guidance=CHECK_GUIDANCE, frames=FRAMES, stop=False
    )
    for _ in pieces:
        pass
    if not comparison.error <= MAX_ERROR:
        raise CodecError(
            f"the exported language model's logits differ by {comparison.error:.1e} from torch's: nothing was written, "
            "try another version of torch or onnxruntime"
        )
    wrong = tuple(comparison.wrong)
    if len(wrong) > max(1, MAX_NEAR_TIES * comparison.codes):
        raise CodecError(
            f"the exported language model gives other codes than torch ({'; '.join(wrong[:3])}; {len(wrong)} in all): "
            "nothing was written, try another version of torch or onnxruntime"
        )
    return comparison.codes, wrong, comparison.error
