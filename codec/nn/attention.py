"""Causal attention over the last `context` steps, with rotary positions and a ring of keys and values as its state.

A ring of `context` = 4 slots; step 5 takes the place of step 1, which no later step may see:

    slot           0  1  2  3
    after step 3   0  1  2  3
    after step 5   4  5  2  3        step 5 sees 2, 3, 4, 5

Keys carry their positions with them (Su et al. 2021, section 3.2), so their order in the ring does not matter, and only
distances count: a stream may go on for ever.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from codec.errors import ConfigError
from codec.nn.streaming import Stateful

FASTEST_TURN, SLOWEST_TURN = 1.0, 1e-4  # radians a step
TOGETHER = 512  # positions whose turns are worked out together


class Memory(NamedTuple):
    """What every layer may look at besides the steps: keys and values [layers, batch, heads, places, head] of it."""

    keys: Float[Tensor, "layers batch heads places head"]
    values: Float[Tensor, "layers batch heads places head"]
    there: Bool[Tensor, "batch 1 1 places"]


class TransformerState(NamedTuple):
    """How many steps were seen, and the rings of the last ones."""

    seen: int
    rings: Float[Tensor, "layers 2 batch heads context head"]
    memory: Memory | None = None


class RMSNorm(nn.Module):
    """x in units of its root mean square over the last dimension, times weights (Zhang & Sennrich 2019, equation 4).

    `nn.RMSNorm` takes twice as many operations on a CPU, and its backward pass half as long again.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.smallest = torch.tensor(1e-7)  # a number, wherever the module is
        self.share = width**-0.5

    def forward(self, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x / torch.add(self.smallest, length, alpha=self.share) * self.weight


class Block(nn.Module):
    """Attention over earlier steps, over a memory where there is one, then a gated layer (Shazeer 2020, SwiGLU).

    All steps of a batch are rows [batch * steps, width]: linear layers are quickest so.
    """

    def __init__(self, width: int, heads: int, *, hidden: int, memory: bool, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.norm = RMSNorm(width)
        self.mix = nn.Linear(width, 3 * width, bias=False)
        self.mixed = nn.Linear(width, width, bias=False)
        self.memory_norm = RMSNorm(width) if memory else None
        self.ask = nn.Linear(width, width, bias=False) if memory else None
        self.know = nn.Linear(width, 2 * width, bias=False) if memory else None
        self.told = nn.Linear(width, width, bias=False) if memory else None
        self.gate_norm = RMSNorm(width)
        self.gate = nn.Linear(width, 2 * hidden, bias=False)
        self.gated = nn.Linear(hidden, width, bias=False)

    def look(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """Queries, keys and values [3, batch, heads, steps, head]; the first two turned by their positions."""
        rows, width = x.shape
        steps = rotation[0].shape[-2]
        mix = self.mix(self.norm(x)).view(rows // steps, steps, 3, self.heads, width // self.heads)
        return turn(mix.permute(2, 0, 3, 1, 4), rotation)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, *, causal: bool) -> Tensor:
        """What the rows [batch * steps, width] find."""
        dropout = self.dropout if self.training else 0.0
        found = F.scaled_dot_product_attention(queries, keys, values, mask, dropout, is_causal=causal)
        return found.transpose(1, 2).reshape(-1, found.shape[1] * found.shape[3])

    def after(self, x: Tensor, found: Tensor, memory: tuple[Tensor, Tensor, Tensor] | None) -> Tensor:
        """The block's output rows, from its input and what it found there."""
        x = x + self.drop(self.mixed(found))
        if memory is not None:
            assert self.memory_norm
            assert self.ask
            assert self.told
            asked = self.ask(self.memory_norm(x)).view(len(memory[0]), -1, self.heads, x.shape[1] // self.heads)
            x = x + self.drop(self.told(self.attend(asked.transpose(1, 2), *memory, causal=False)))
        gate, value = self.gate(self.gate_norm(x)).chunk(2, dim=-1)
        return x + self.drop(self.gated(F.silu(gate) * value))

    def drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout) if self.training and self.dropout else x


class Transformer(Stateful):
    """Blocks one after another over x [batch, steps, width]; a step sees itself and the `context` - 1 before it.

    `step` leaves the state as it was, like every layer here; `advance` does the same work within the state's own rings,
    for whoever owns it. Raises ConfigError unless the width divides into heads of an even size.
    """

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
        super().__init__()
        if width % (2 * heads):
            raise ConfigError(f"width = {width} does not divide into {heads} heads of an even size: change one of them")
        hidden = hidden or round(width * 8 / 3 / 32) * 32  # as many weights as two plain layers of 4 × width
        self.context = context
        self.width = width
        self.head = width // heads
        self.blocks = nn.ModuleList(
            Block(width, heads, hidden=hidden, memory=memory, dropout=dropout) for _ in range(layers)
        )
        self.norm = RMSNorm(width)
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                ends = name.endswith(("mixed.weight", "told.weight", "gated.weight"))
                nn.init.normal_(weight, std=width**-0.5 / (math.sqrt(2 * layers) if ends else 1))

    def initial_state(self, like: Tensor, memory: Memory | None = None) -> TransformerState:
        shape = len(self.blocks), 2, len(like), self.width // self.head, self.context, self.head
        return TransformerState(0, like.new_zeros(shape, dtype=next(self.parameters()).dtype), memory)

    def remember(self, known: Tensor, there: Tensor) -> Memory:
        """A memory of `known` [batch, places, width], those that are `there` [batch, places]."""
        pairs = []
        for block in self.blocks:
            assert isinstance(block, Block)
            assert block.know
            pair = block.know(known).unflatten(2, (2, block.heads, -1))  # [batch, places, 2, heads, head]
            pairs.append(pair.permute(2, 0, 3, 1, 4))
        keys, values = torch.stack(pairs, dim=1)
        return Memory(keys, values, there[:, None, None])

    def step(self, x: Tensor, state: TransformerState) -> tuple[Tensor, TransformerState]:
        return self.forward_step(x, state._replace(rings=state.rings.clone()))

    def forward_step(self, x: Tensor, state: TransformerState) -> tuple[Tensor, TransformerState]:
        """As `step`, but the given state is used up: its rings become those of the new one."""
        seen, steps, context = state.seen, x.shape[1], self.context
        rotation = self.rotation(seen, steps, x)
        before = min(seen, context)
        wraps = seen + steps > context
        mask = None if steps == 1 or (seen == 0 and not wraps) else self.mask(before, steps, x.device)
        rows = x.flatten(0, 1)
        for number, (block, ring) in enumerate(zip(self.blocks, state.rings, strict=True)):
            assert isinstance(block, Block)
            queries, new = block.look(rows, rotation).split_with_sizes([1, 2])  # new keys and values
            if steps == 1:
                ring.narrow(3, seen % context, 1).copy_(new)
                keys, values = ring.narrow(3, 0, min(seen + 1, context))
            else:
                keys, values = new
                if before:
                    old = (torch.arange(seen - before, seen) % context).to(x.device)
                    keys, values = torch.cat([ring[:, :, :, old], new], dim=3)
                kept = min(steps, context)
                slots = (torch.arange(seen + steps - kept, seen + steps) % context).to(x.device)
                ring[:, :, :, slots] = new[:, :, :, steps - kept :]
            found = block.attend(queries[0], keys, values, mask, causal=steps > 1 and mask is None)
            rows = block.after(rows, found, self.memory_of(state.memory, number))
        return self.norm(rows).view_as(x), TransformerState(seen + steps, state.rings, state.memory)

    def forward(self, x: Tensor, memory: Memory | None = None) -> Tensor:
        """One step from the initial state, without keeping what nobody will ask for."""
        steps = x.shape[1]
        rotation = self.rotation(0, steps, x)
        mask = self.mask(0, steps, x.device) if steps > self.context else None
        rows = x.flatten(0, 1)
        for number, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            queries, keys, values = block.look(rows, rotation)
            found = block.attend(queries, keys, values, mask, causal=mask is None)
            rows = block.after(rows, found, self.memory_of(memory, number))
        out: Tensor = self.norm(rows).view_as(x)
        return out

    def memory_of(self, memory: Memory | None, number: int) -> tuple[Tensor, Tensor, Tensor] | None:
        """Keys, values and mask of one layer."""
        return None if memory is None else (memory.keys[number], memory.values[number], memory.there)

    def rotation(self, first: int, steps: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """What `turn` takes of queries, keys and values from position `first` on, exact however far."""
        before, inside = divmod(first, TOGETHER)
        if inside + steps <= TOGETHER:
            rotation = known_turns(before, self.head, like.device).narrow(4, inside, steps)
        else:
            rotation = turns(first, first + steps, self.head, like.device)
        cosine, sine = rotation.to(like.dtype)
        return cosine, sine

    def mask(self, before: int, steps: int, device: torch.device) -> Tensor:
        """Which of `before` earlier steps and of themselves `steps` steps see [steps, before + steps]."""
        distance = torch.arange(before, before + steps)[:, None] - torch.arange(before + steps)
        return ((distance >= 0) & (distance < self.context)).to(device)


def turns(first: int, last: int, head: int, device: torch.device) -> Tensor:
    """Cosines and signed sines [2, 3, 1, 1, steps, head] of the turns at positions; values are not turned."""
    speeds = torch.logspace(math.log10(FASTEST_TURN), math.log10(SLOWEST_TURN), head // 2, dtype=torch.float64)
    angles = torch.arange(first, last, dtype=torch.float64)[:, None] * speeds
    angles = torch.stack([angles, angles, torch.zeros_like(angles)])[:, None, None]
    sines = angles.sin()
    both = torch.stack([angles.cos().repeat(1, 1, 1, 1, 2), torch.cat([-sines, sines], dim=-1)])
    return both.float().to(device)


@lru_cache(maxsize=8)
def known_turns(number: int, head: int, device: torch.device) -> Tensor:
    """The turns of the positions from `number` * TOGETHER on."""
    with torch.inference_mode(False):  # training may use them too
        return turns(number * TOGETHER, (number + 1) * TOGETHER, head, device)


def turn(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """x [..., steps, head], each pair (i, i + head / 2) turned by its angle.

    `rotation` [..., steps, head] are the cosines, and the sines with which the other one of the pair is added.
    """
    cosine, sine = rotation
    return torch.addcmul(x * cosine, x.roll(x.shape[-1] // 2, dims=-1), sine)
