"""Causal self-attention over the last `context` steps, with rotary positions and a ring buffer as key-value cache.

A cache of `context` = 4 slots; step 5 overwrites step 1, which no later step may attend to:

    slot           0  1  2  3
    after step 3   0  1  2  3
    after step 5   4  5  2  3        step 5 attends to 2, 3, 4, 5

Keys are stored with their rotary embedding applied (Su et al. 2021, section 3.2). Attention then depends on distances
alone, so the order of the slots does not matter and a stream has no maximum length.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from codec.errors import ConfigError
from codec.nn.streaming import Checkpointable, Stateful

FREQUENCIES = 1.0, 1e-4  # of the first and, unless a model says otherwise, the last pair of a head, radians per step
NORM_EPSILON = 1e-5
FIRST_SLOTS = 1024  # of a cache on a CPU, which grows while it is filled, because a context may exceed any memory


class CrossAttentionKV(NamedTuple):
    """Keys and values of an encoded memory, for the cross-attention of every layer; `mask` is False on padding."""

    keys: Float[Tensor, "layers batch heads places head_dim"]
    values: Float[Tensor, "layers batch heads places head_dim"]
    mask: Bool[Tensor, "batch 1 1 places"]


class TransformerState(NamedTuple):
    """The next position of each row, and the keys and values of its last `context` positions."""

    position: Int[Tensor, " batch"]
    kv_cache: Float[Tensor, "layers 2 batch heads slots head_dim"]
    """`context` slots; on a CPU fewer until they are needed."""
    memory: CrossAttentionKV | None = None


class StepCache(NamedTuple):
    """Where one step is written in the cache: the same `slot` in all rows, or one of `slots` for each row."""

    filled: int
    slot: int = 0
    slots: Int[Tensor, " batch"] | None = None
    mask: Bool[Tensor, "batch 1 1 filled"] | None = None

    def update(self, layer_cache: Tensor, new: Tensor) -> Tensor:
        """Write new keys and values [2, batch, heads, 1, head_dim]; return those of the filled slots."""
        if self.slots is None:
            layer_cache.narrow(3, self.slot, 1).copy_(new)
        else:
            rows = torch.arange(len(self.slots), device=new.device)
            layer_cache[:, rows, :, self.slots] = new[:, :, :, 0].transpose(0, 1)
        return layer_cache.narrow(3, 0, self.filled)


class ChunkCache(NamedTuple):
    """Where several steps are written in the cache; only the last `context` of them are kept."""

    slots: Int[Tensor, "batch kept"]
    mask: Bool[Tensor, "batch 1 steps places"]

    def update(self, layer_cache: Tensor, new: Tensor) -> Tensor:
        """Write new keys and values [2, batch, heads, steps, head_dim]; return the old cache and them."""
        keys_values = torch.cat([layer_cache, new], dim=3)
        rows = torch.arange(len(self.slots), device=new.device)[:, None]
        kept = new[:, :, :, -self.slots.shape[1] :]
        layer_cache[:, rows, :, self.slots] = kept.permute(1, 3, 0, 2, 4)  # [batch, kept, 2, heads, head_dim]
        return keys_values


def plan_step(position: Int[Tensor, " batch"], context: int) -> StepCache:
    """One step attends to the filled slots; on a CPU to these alone, without a mask if all rows are at one position.

    Elsewhere all slots are read, with a mask, because reading the positions would wait for the device in every step.
    """
    filled = context
    if position.device.type == "cpu":
        positions = position.tolist()
        filled = min(max(positions) + 1, context)
        if min(positions) == max(positions):
            return StepCache(filled, slot=positions[0] % context)
    mask = torch.arange(filled, device=position.device) <= position[:, None]  # [batch, filled]
    return StepCache(filled, slots=position % context, mask=mask[:, None, None])


def plan_chunk(positions: Int[Tensor, "batch steps"], context: int, slots: int) -> ChunkCache:
    """Several steps: old keys lie in the order of their slots, the new ones follow them."""
    last = positions[:, :1] - 1
    cached = last - (last - torch.arange(slots, device=positions.device)) % context  # position of each slot
    visible = (cached >= 0)[:, None] & (positions[:, :, None] - cached[:, None] < context)
    own = in_context(positions.shape[1], context, positions.device).expand(len(positions), -1, -1)
    mask = torch.cat([visible, own], dim=2)[:, None]  # [batch, 1, steps, slots + steps]
    return ChunkCache(slots=positions[:, -context:] % context, mask=mask)


def with_room(kv_cache: Tensor, position: Int[Tensor, " batch"], *, steps: int, context: int) -> Tensor:
    """The cache with slots for `steps` more positions, at least twice as many as before if it has to grow."""
    slots = kv_cache.shape[4]
    if slots == context or (needed := min(context, int(position.max()) + steps)) <= slots:
        return kv_cache
    return F.pad(kv_cache, (0, 0, 0, min(context, max(needed, 2 * slots)) - slots))


def in_context(steps: int, context: int, device: torch.device) -> Tensor:
    """Mask [steps, steps]: step i attends to the steps from i - context + 1 to i."""
    distance = torch.arange(steps, device=device)[:, None] - torch.arange(steps, device=device)
    return (distance >= 0) & (distance < context)


@lru_cache(maxsize=8)
def rotary_frequencies(
    head_dim: int, device: torch.device, slowest: float = FREQUENCIES[1]
) -> Float[Tensor, "3 1 1 1 head_dim"]:
    """Radians per step for queries, keys and values; values are not rotated.

    Signed, so that cosine and sine of position × frequency are the two factors of `apply_rotary`. In float64, so that
    positions stay exact for hours.
    """
    first, last = math.log10(FREQUENCIES[0]), math.log10(slowest)
    with torch.inference_mode(False):  # because training may use the cached tensor too
        pairs = torch.logspace(first, last, head_dim // 2, dtype=torch.float64)
        signed = torch.cat([-pairs, pairs])
        return torch.stack([signed, signed, torch.zeros_like(signed)])[:, None, None, None].to(device)


def rotary_table(
    positions: Int[Tensor, "batch steps"], head_dim: int, dtype: torch.dtype, slowest: float = FREQUENCIES[1]
) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines [3, batch, 1, steps, head_dim] for queries, keys and values at these positions."""
    angles = positions[:, None, :, None] * rotary_frequencies(head_dim, positions.device, slowest)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def apply_rotary(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate each pair (i, i + head_dim / 2) of x [..., steps, head_dim] by its angle.

    `rotation` holds the cosines, and the sines with the sign with which the other element of the pair is added.
    """
    cosine, sine = rotation
    return torch.addcmul(x * cosine, x.roll(x.shape[-1] // 2, dims=-1), sine)


class RMSNorm(nn.Module):
    """x / RMS(x) over the last dimension, times a learned scale (Zhang & Sennrich 2019, equation 4).

    Written out because `nn.RMSNorm` takes twice as many operations on a CPU, and 1.5 times as long backward.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.epsilon = torch.tensor(NORM_EPSILON)  # stays on the CPU, where torch treats it as a number
        self.length_to_rms = dim**-0.5

    def forward(self, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x / torch.add(self.epsilon, length, alpha=self.length_to_rms) * self.weight


class AttentionBlock(Checkpointable):
    """Self-attention after a norm; subclasses say what follows it.

    Takes and returns rows [batch * steps, width], because linear layers are fastest on matrices.
    """

    def __init__(self, width: int, num_heads: int, *, norm: nn.Module, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout_p = dropout
        self.attention_norm = norm
        self.qkv_proj = nn.Linear(width, 3 * width, bias=False)
        self.out_proj = nn.Linear(width, width, bias=False)

    def project_qkv(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """Queries, keys and values [3, batch, heads, steps, head_dim], with rotary positions applied."""
        steps = rotation[0].shape[-2]
        qkv = self.qkv_proj(self.attention_norm(x)).view(x.shape[0] // steps, steps, 3, self.num_heads, -1)
        return apply_rotary(qkv.permute(2, 0, 3, 1, 4), rotation)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, *, causal: bool) -> Tensor:
        """Attention of all heads as rows [batch * steps, width]."""
        dropout_p = self.dropout_p if self.training else 0.0
        attended = F.scaled_dot_product_attention(queries, keys, values, mask, dropout_p, is_causal=causal)
        return attended.transpose(1, 2).reshape(-1, attended.shape[1] * attended.shape[3])

    def forward(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        mask: Tensor | None,
        memory: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> Tensor:
        """The block for whole sequences; without a mask, a step attends to all steps before it."""
        return self.recomputed(self.whole, x, rotation, mask, memory)

    def whole(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        mask: Tensor | None,
        memory: tuple[Tensor, Tensor, Tensor] | None,
    ) -> Tensor:
        """The block for whole sequences, without activation checkpointing."""
        queries, keys, values = self.project_qkv(x, rotation)
        attended = self.attend(queries, keys, values, mask, causal=mask is None)
        return self.residual_mlp(x, attended, memory)

    @abstractmethod
    def residual_mlp(self, x: Tensor, attended: Tensor, memory: tuple[Tensor, Tensor, Tensor] | None) -> Tensor:
        """The rest of the block after self-attention: output rows from the input rows and the attention output."""


class Block(AttentionBlock):
    """Self-attention, cross-attention if the model has a memory, and a SwiGLU feed-forward layer (Shazeer 2020)."""

    def __init__(self, width: int, num_heads: int, *, hidden: int, memory: bool, dropout: float) -> None:
        super().__init__(width, num_heads, norm=RMSNorm(width), dropout=dropout)
        self.cross_norm = RMSNorm(width) if memory else None
        self.cross_q_proj = nn.Linear(width, width, bias=False) if memory else None
        self.cross_kv_proj = nn.Linear(width, 2 * width, bias=False) if memory else None
        self.cross_out_proj = nn.Linear(width, width, bias=False) if memory else None
        self.mlp_norm = RMSNorm(width)
        self.gate_up_proj = nn.Linear(width, 2 * hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def residual_mlp(self, x: Tensor, attended: Tensor, memory: tuple[Tensor, Tensor, Tensor] | None) -> Tensor:
        x = x + self.dropout(self.out_proj(attended))
        if memory is not None:
            assert self.cross_norm
            assert self.cross_q_proj
            assert self.cross_out_proj
            queries = self.cross_q_proj(self.cross_norm(x)).view(
                memory[0].shape[0], -1, self.num_heads, memory[0].shape[3]
            )
            attended = self.attend(queries.transpose(1, 2), *memory, causal=False)
            x = x + self.dropout(self.cross_out_proj(attended))
        gate, up = self.gate_up_proj(self.mlp_norm(x)).chunk(2, dim=-1)
        return x + self.dropout(self.down_proj(F.silu(gate) * up))

    def dropout(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout_p) if self.training and self.dropout_p else x


class SlidingTransformer(Stateful):
    """Blocks and a norm over x [batch, steps, width]; a step attends to itself and the `context` - 1 before it.

    `step` leaves the given state as it was, as every layer does; `forward_step` writes into its cache, which saves a
    copy if the old state is not needed. `slowest` is the frequency of the last pair of a head in radians per step.
    Raises ConfigError unless width / heads is an even number.
    """

    def __init__(
        self,
        blocks: Iterable[AttentionBlock],
        norm: nn.Module,
        *,
        width: int,
        heads: int,
        context: int,
        slowest: float = FREQUENCIES[1],
    ) -> None:
        super().__init__()
        if width % (2 * heads):
            raise ConfigError(f"width = {width} does not divide into {heads} heads of an even size: change one of them")
        self.context = context
        self.width = width
        self.head_dim = width // heads
        self.slowest = slowest
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm

    def initial_state(self, like: Tensor, memory: CrossAttentionKV | None = None) -> TransformerState:
        slots = min(self.context, FIRST_SLOTS) if like.device.type == "cpu" else self.context
        shape = len(self.blocks), 2, len(like), self.width // self.head_dim, slots, self.head_dim
        position = torch.zeros(len(like), dtype=torch.int64, device=like.device)
        return TransformerState(position, like.new_zeros(shape, dtype=next(self.parameters()).dtype), memory)

    def step(self, x: Tensor, state: TransformerState) -> tuple[Tensor, TransformerState]:
        return self.forward_step(x, state._replace(kv_cache=state.kv_cache.clone()))

    def forward_step(self, x: Tensor, state: TransformerState) -> tuple[Tensor, TransformerState]:
        """As `step`, but the cache of the given state is overwritten, so that state cannot be used again."""
        steps = x.shape[1]
        positions = state.position[:, None] + torch.arange(steps, device=x.device)  # [batch, steps]
        rotation = rotary_table(positions, self.head_dim, x.dtype, self.slowest)
        kv_cache = with_room(state.kv_cache, state.position, steps=steps, context=self.context)
        if steps == 1:
            cache: StepCache | ChunkCache = plan_step(state.position, self.context)
        else:
            cache = plan_chunk(positions, self.context, kv_cache.shape[4])
        rows = x.flatten(0, 1)
        for number, (block, layer_cache) in enumerate(zip(self.blocks, kv_cache, strict=True)):
            assert isinstance(block, AttentionBlock)
            queries, new = block.project_qkv(rows, rotation).split_with_sizes([1, 2])  # new keys and values
            keys, values = cache.update(layer_cache, new)
            attended = block.attend(queries[0], keys, values, cache.mask, causal=False)
            rows = block.residual_mlp(rows, attended, memory_of(state.memory, number))
        return self.norm(rows).view_as(x), TransformerState(state.position + steps, kv_cache, state.memory)

    def forward(self, x: Tensor, memory: CrossAttentionKV | None = None) -> Tensor:
        """One step from the initial state, without a cache."""
        steps = x.shape[1]
        rotation = rotary_table(torch.arange(steps, device=x.device)[None], self.head_dim, x.dtype, self.slowest)
        mask = in_context(steps, self.context, x.device) if steps > self.context else None
        rows = x.flatten(0, 1)
        for number, block in enumerate(self.blocks):
            rows = block(rows, rotation, mask, memory_of(memory, number))
        out: Tensor = self.norm(rows).view_as(x)
        return out


class Transformer(SlidingTransformer):
    """A `SlidingTransformer` of `Block`s."""

    def __init__(
        self,
        width: int,
        *,
        layers: int,
        heads: int,
        context: int,
        hidden: int | None = None,
        memory: bool = False,
        dropout: float = 0.0,
    ) -> None:
        hidden = hidden or round(width * 8 / 3 / 32) * 32  # as many parameters as an MLP of 4 × width without gate
        blocks = [Block(width, heads, hidden=hidden, memory=memory, dropout=dropout) for _ in range(layers)]
        super().__init__(blocks, RMSNorm(width), width=width, heads=heads, context=context)
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                residual = name.endswith(("out_proj.weight", "down_proj.weight"))
                nn.init.normal_(weight, std=width**-0.5 / (math.sqrt(2 * layers) if residual else 1))

    def encode_memory(self, memory: Tensor, mask: Tensor) -> CrossAttentionKV:
        """Keys and values of `memory` [batch, places, width]; `mask` [batch, places] is False on padding."""
        pairs = []
        for block in self.blocks:
            assert isinstance(block, Block)
            assert block.cross_kv_proj
            pair = block.cross_kv_proj(memory).unflatten(2, (2, block.num_heads, -1))
            pairs.append(pair.permute(2, 0, 3, 1, 4))  # [2, batch, heads, places, head_dim]
        keys, values = torch.stack(pairs, dim=1)
        return CrossAttentionKV(keys, values, mask[:, None, None])


def memory_of(memory: CrossAttentionKV | None, layer: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """Keys, values and mask of one layer."""
    return None if memory is None else (memory.keys[layer], memory.values[layer], memory.mask)


def reset_rows(state: TransformerState, mask: Bool[Tensor, " batch"], fresh: TransformerState) -> TransformerState:
    """`state` with the rows in `mask` taken from `fresh`, an initial state of the same batch, with their own memory."""
    keep = ~mask
    memory = state.memory
    if memory is not None:
        assert fresh.memory
        places = max(memory.mask.shape[-1], fresh.memory.mask.shape[-1])
        old, new = padded(memory, places), padded(fresh.memory, places)
        memory = CrossAttentionKV(
            torch.where(keep[:, None, None, None], old.keys, new.keys),
            torch.where(keep[:, None, None, None], old.values, new.values),
            torch.where(keep[:, None, None, None], old.mask, new.mask),
        )
    grown = state.kv_cache.shape[4] - fresh.kv_cache.shape[4]
    kv_cache = torch.where(keep[:, None, None, None], state.kv_cache, F.pad(fresh.kv_cache, (0, 0, 0, grown)))
    return TransformerState(torch.where(keep, state.position, fresh.position), kv_cache, memory)


def padded(memory: CrossAttentionKV, places: int) -> CrossAttentionKV:
    """The same memory with padding up to `places`."""
    more = places - memory.mask.shape[-1]
    keys, values = (F.pad(part, (0, 0, 0, more)) for part in memory[:2])
    return CrossAttentionKV(keys, values, F.pad(memory.mask, (0, more), value=False))
