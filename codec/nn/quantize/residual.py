"""Quantizers: latents to integers and back.

Residual vector quantization with two codebooks of two entries each, on the number 5.3:

    codebook 0 holds {-4, 4}:   4 is nearest   code 1   what is left: 1.3
    codebook 1 holds {-1, 1}:   1 is nearest   code 1   what is left: 0.3

    codes (1, 1) decode to 4 + 1 = 5; the first code alone decodes to 4.

Every quantizer maps latents [batch, dim, frames] to codes [batch, codebooks, frames] and back, and its `forward` gives the
decoder something whose gradient reaches the encoder (van den Oord et al. 2017, section 3.2).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from codec.errors import UsageError
from codec.nn.distributed import all_reduce_sum, broadcast_, first_row
from codec.nn.shapes import Codes, Latents

GROUP = 64  # entries of which only the nearest is looked at first (`lowest`)
TILE = 128  # frames that are searched at once on a CPU: their distances stay in its cache


class Quantized(NamedTuple):
    """What a quantizer gives while training."""

    latents: Latents
    """What the decoder sees, with a gradient to the encoder."""
    codes: Codes
    """-1 where an item does not use a codebook (quantizer dropout)."""
    commitment: Tensor
    """Mean square distance of what each stage was given from its entry, summed over stages; moves the encoder."""
    codebook: Tensor
    """The same distance, moving the entries; zero for codebooks learned by moving averages."""
    seen: tuple[Tensor, ...] = ()
    """Rows [batch * frames, dim] in which each stage learned by moving averages looked for its entries; for `learn`."""


class Quantizer(nn.Module):
    """Latents <-> codes."""

    num_codebooks: int
    codebook_size: int

    @abstractmethod
    def encode(self, latents: Latents, num_codebooks: int | None = None) -> Codes:
        """Codes of the first `num_codebooks` codebooks (all when None)."""

    @abstractmethod
    def decode(self, codes: Codes) -> Latents:
        """Latents of as many codebooks as `codes` has."""

    @abstractmethod
    def forward(self, latents: Latents, num_codebooks: Tensor | None = None) -> Quantized:
        """Training pass; `num_codebooks` [batch] says how many codebooks each item uses (all when None). Changes nothing."""

    def vectors(self) -> Tensor | None:
        """What every code of every codebook stands for [codebooks, codebook_size, dim]; latents are sums of them.

        None where a codebook's codes mean nothing by themselves.
        """
        return None

    def learn(self, parts: Sequence[Quantized]) -> None:
        """Move what no gradient moves, after a step on these parts of a batch.

        Where several processes train together, all of them call it, and each learns from the parts of all.
        """

    def start(self, latents: Latents) -> None:
        """Set the entries from data before training; nothing to do for quantizers that hold none."""


class Scoring(NamedTuple):
    """A codebook made ready for `VectorQuantizer.scoring`, and what tells whether it still is that codebook."""

    table: Tensor
    codebook: Tensor
    """The codebook itself, whose memory no other can come to lie in, or a copy where changes are not counted."""
    version: int | None
    """Number of changes in place until then; None for tensors made in inference mode, where torch counts none."""

    def is_of(self, codebook: Tensor) -> bool:
        if self.version is None:
            return torch.equal(self.codebook, codebook)
        return self.version == version_of(codebook) and self.codebook.data_ptr() == codebook.data_ptr()


def version_of(tensor: Tensor) -> int | None:
    """How often it was changed in place; None where torch does not count."""
    return None if tensor.is_inference() else tensor._version


class VectorQuantizer(Quantizer):
    """One codebook: each frame becomes the index of its nearest entry.

    `distance` "cosine" compares directions only (Yu et al. 2021, section 3.2). `codebook_dim` looks entries up in that many
    dimensions, through learned maps in and out (the "factorised codes" of DAC, section 3.2).

    `codebook_update` "ema" moves every entry towards the mean of what it was chosen for (`learn`; van den Oord et al. 2017,
    appendix A.1) and restarts entries that are hardly chosen from the latents at hand (Dhariwal et al. 2020, section
    3.1); "gradient" trains them by the codebook loss. Distances and entries are float32 under any autocast.
    """

    codebook: Tensor
    cluster_size: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        distance: Literal["l2", "cosine"] = "l2",
        codebook_dim: int | None = None,
        codebook_update: Literal["ema", "gradient"] = "ema",
        decay: float = 0.99,
        dead_code_threshold: float = 0.1,
    ) -> None:
        super().__init__()
        self.num_codebooks = 1
        self.codebook_size = codebook_size
        self.distance = distance
        self.codebook_update = codebook_update
        self.decay = decay
        self.dead_code_threshold = dead_code_threshold
        inner = codebook_dim or dim
        self.project_in = nn.Linear(dim, inner) if codebook_dim else nn.Identity()
        self.project_out = nn.Linear(inner, dim) if codebook_dim else nn.Identity()
        self.projected = codebook_dim is not None
        self.kept: Scoring | None = None
        entries = torch.randn(codebook_size, inner) * inner**-0.5
        if codebook_update == "ema":
            self.register_buffer("codebook", entries)
            # Mean number of choices per step. With it, cluster_size * codebook is the moving sum of what was chosen for,
            # so no second table is kept.
            self.register_buffer("cluster_size", torch.ones(codebook_size))
        else:
            self.codebook = nn.Parameter(entries)

    def distances(self, x: Tensor) -> Tensor:
        """Squared distances [rows, codebook_size] of x [rows, inner] from all entries, less |x|², which ranks alike."""
        table = self.codebook
        if self.distance == "cosine":
            x, table = F.normalize(x, dim=-1), F.normalize(table, dim=-1)
        # |x - c|² = |x|² - 2 x.c + |c|²
        return torch.addmm(table.square().sum(dim=-1), x, table.T, alpha=-2)

    def scoring(self) -> Tensor:
        """Table [inner + 2, codebook_size] by which a row (x, 1, e) gives |x - c|² - |x|² + e for every entry c.

        Entry by entry it holds (-2 c, |c|², 1). It is kept until the codebook changes or lies elsewhere.
        """
        codebook, kept = self.codebook, self.kept
        if kept is not None and kept.is_of(codebook):
            return kept.table
        with torch.no_grad():
            norms = codebook.square().sum(dim=-1)
            table = torch.cat([-2 * codebook.T, norms[None], torch.ones_like(norms)[None]])
        version = version_of(codebook)
        self.kept = Scoring(table, codebook.clone() if version is None else codebook.detach(), version)
        return table

    def __getstate__(self) -> dict[str, object]:
        """Leave out what is kept: in a copy, changes are counted from zero."""
        return self.__dict__ | {"kept": None}

    def nearest(self, x: Tensor) -> Tensor:
        """Index of the nearest entry to each row of x [rows, inner]; the lowest index wins a tie."""
        return lowest(self.distances(x), 1)[:, 0]

    def ranked(self, rows: Tensor, count: int) -> Tensor:
        """Indices [rows, count] of the nearest entries to each of `rows` [rows, dim], nearest first."""
        return lowest(self.distances(self.project_in(rows)), count)

    def entries(self, codes: Tensor) -> Tensor:
        """Entries [..., dim] of codes [...], projected out."""
        table = F.normalize(self.codebook, dim=-1) if self.distance == "cosine" else self.codebook
        out: Tensor = self.project_out(F.embedding(codes, table))
        return out

    def encode(self, latents: Latents, num_codebooks: int | None = None) -> Codes:
        batch = len(latents)
        with torch.autocast(latents.device.type, enabled=False):
            rows = rearrange(latents.float(), "batch dim frames -> (batch frames) dim")
            return rearrange(self.ranked(rows, 1), "(batch frames) 1 -> batch 1 frames", batch=batch)

    def decode(self, codes: Codes) -> Latents:
        return self.entries(codes[:, 0]).transpose(1, 2)  # [batch, dim, frames]

    def train_rows(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(what is decoded, codes, commitment per row, codebook loss per row, rows looked up) of latents [rows, dim].

        Without a projection the decoded rows carry no gradient to `rows`: the caller adds the straight-through term
        once for all stages, so that every stage's commitment loss still reaches the encoder.
        """
        inner = self.project_in(rows)
        codes = self.nearest(inner.detach())
        table = F.normalize(self.codebook, dim=-1) if self.distance == "cosine" else self.codebook
        chosen = F.embedding(codes, table)
        target = F.normalize(inner, dim=-1) if self.distance == "cosine" else inner
        commitment = (target - chosen.detach()).square().mean(dim=-1)
        codebook = (target.detach() - chosen).square().mean(dim=-1)
        if self.codebook_update == "ema":
            codebook = torch.zeros_like(codebook)
        if self.projected:
            # the map inwards learns from the reconstruction too, so the gradient passes through the stage
            return self.project_out(inner + (chosen - inner).detach()), codes, commitment, codebook, target.detach()
        return chosen.detach(), codes, commitment, codebook, target.detach()

    def forward(self, latents: Latents, num_codebooks: Tensor | None = None) -> Quantized:
        batch = len(latents)
        with torch.autocast(latents.device.type, enabled=False):
            rows = rearrange(latents.float(), "batch dim frames -> (batch frames) dim")
            decoded, codes, commitment, codebook, inner = self.train_rows(rows)
            decoded = rearrange(decoded, "(batch frames) dim -> batch dim frames", batch=batch)
        if not self.projected:
            decoded = decoded + (latents - latents.detach())
        codes = rearrange(codes, "(batch frames) -> batch 1 frames", batch=batch)
        seen = (inner,) if self.codebook_update == "ema" else ()
        return Quantized(decoded, codes, commitment.mean(), codebook.mean(), seen)

    @torch.no_grad()
    def vectors(self) -> Tensor:
        return self.entries(torch.arange(self.codebook_size, device=self.codebook.device))[None]

    def learn(self, parts: Sequence[Quantized]) -> None:
        move([self], parts)

    def move(self, sums: Tensor, chosen: Tensor) -> Tensor:
        """Move the entries by sums [codebook_size, dim] and numbers of the rows that chose them; which are dead now."""
        used = chosen.sum() > 0
        before = self.decay * self.cluster_size
        cluster_size = before + (1 - self.decay) * chosen
        moves = used & (cluster_size > 1e-8)
        share = torch.where(moves, before / cluster_size, 1.0)
        weight = torch.where(moves, (1 - self.decay) / cluster_size, 0.0)
        self.codebook.mul_(share[:, None]).addcmul_(sums, weight[:, None])
        self.cluster_size.copy_(torch.where(used, cluster_size, self.cluster_size))
        return (self.cluster_size < self.dead_code_threshold * self.cluster_size.mean()) & used

    @torch.no_grad()
    def start(self, latents: Latents, iterations: int = 10) -> None:
        """k-means (Lloyd) on the frames of `latents`, from entries picked at random."""
        rows = self.project_in(rearrange(latents, "batch dim frames -> (batch frames) dim"))
        if self.distance == "cosine":
            rows = F.normalize(rows, dim=-1)
        picked = torch.randperm(len(rows), device=rows.device)[: self.codebook_size]
        self.codebook[: len(picked)] = rows[picked]
        for _ in range(iterations):
            codes = torch.cat([self.nearest(part) for part in rows.split(16384)])
            count = torch.bincount(codes, minlength=self.codebook_size).to(rows.dtype)
            means = torch.zeros_like(self.codebook).index_add_(0, codes, rows) / count[:, None].clamp(min=1)
            empty = (count == 0).nonzero()[:, 0]
            means[empty] = rows[distinct(len(rows), len(empty)).to(rows.device)]
            self.codebook.copy_(means)


def lowest(values: Tensor, count: int) -> Tensor:
    """Indices [rows, count] of the lowest of `values` [rows, width], lowest first; of one, the lowest index wins a tie.

    The two lowest of 5 3 | 8 9 | 4 6 | 7 1, in groups of two, are in the groups with the two lowest minima:

        minima 3 8 4 1      groups 3 and 0 hold 7 1 5 3      of which 1 and 3 are the lowest

    A CPU finds minima many times faster than it picks, so this is faster than to pick from all. How many rows there
    are does not change what a row gets, not even where it has a tie.
    """
    rows, width = values.shape
    group = math.gcd(width, GROUP)
    if values.device.type != "cpu" or group == 1:
        return pick_lowest(values, count)
    groups = width // group
    chosen = pick_lowest(values.view(rows, groups, group).amin(dim=2), min(count, groups))  # [rows, groups]
    row_groups = chosen if rows == 1 else chosen + torch.arange(0, rows * groups, groups)[:, None]
    members = values.view(rows * groups, group).index_select(0, row_groups.flatten())
    picked = pick_lowest(members.view(rows, chosen.shape[1] * group), count)
    slot = picked.bitwise_right_shift(group.bit_length() - 1)  # picked // group: groups are powers of two
    return torch.add(picked, chosen.gather(1, slot) - slot, alpha=group)


def pick_lowest(values: Tensor, count: int) -> Tensor:
    """`lowest`, from all at once."""
    if count == 1:
        return values.argmin(dim=1, keepdim=True)
    return values.topk(count, dim=1, largest=False).indices


@torch.no_grad()
def move(stages: Sequence[VectorQuantizer], parts: Sequence[Quantized]) -> None:
    """A step of the moving averages of all stages, by what all processes saw; entries hardly chosen start anew.

    An entry starts anew as one of the rows of the step, with the mean cluster_size. A stage that no item used stays as it is.
    """
    if stages[0].codebook_update != "ema":
        return
    size, dim = stages[0].codebook.shape
    rows = [torch.cat([part.seen[codebook] for part in parts]) for codebook in range(len(stages))]
    codes = [torch.cat([part.codes[:, codebook].flatten() for part in parts]) for codebook in range(len(stages))]
    statistics = rows[0].new_zeros(
        len(stages), size + 1, dim + 1
    )  # the last row is of items that do not use the codebook
    for table, given, code in zip(statistics, rows, codes, strict=True):
        table.index_add_(0, code % (size + 1), F.pad(given, (0, 1), value=1.0))
    sums, chosen = all_reduce_sum(statistics)[:, :size].tensor_split(
        [-1], dim=-1
    )  # [codebooks, codebook_size, dim and 1]
    dead = torch.stack([stage.move(*of) for stage, *of in zip(stages, sums, chosen[..., 0], strict=True)])
    if dead.any():
        for stage, entries, given, code in zip(stages, dead, rows, codes, strict=True):
            if entries.any():
                stage.codebook[entries] = drawn(given[code >= 0], int(entries.sum()))
                stage.cluster_size[entries] = stage.cluster_size.mean()


def distinct(rows: int, number: int) -> Tensor:
    """Numbers [number] of rows in random order, none twice while there are enough."""
    return torch.randperm(rows)[torch.arange(number) % rows]


def drawn(rows: Tensor, number: int) -> Tensor:
    """`number` of the rows [rows, dim] of all processes, the same in each of them."""
    first, total = first_row(len(rows), rows)
    picked = distinct(total, number).to(rows.device)
    broadcast_(picked)
    own = (picked >= first) & (picked < first + len(rows))
    out = rows.new_zeros(number, rows.shape[1])
    out[own] = rows[picked[own] - first]
    return all_reduce_sum(out)


class ResidualVQ(Quantizer):
    """A stack of vector quantizers, each of which quantizes what the ones before it left (SoundStream, section III-C).

    Codes of the first n codebooks are a coarser description by themselves, so one model serves every bit rate; training
    with a random number of codebooks per item (quantizer dropout, section III-C) makes the coarse ones good.

    The nearest entry is not always on the way to the nearest sum. `encode` keeps the `beam_size` best ways through the
    codebooks so far (beam search); 1 takes the nearest entry of each codebook in turn, as training does. On 3 with codebooks
    {0, 4} and {-3, 3}: one way takes 4, is left with -1 and ends at 1; two ways find 0 + 3.
    """

    stages: Sequence[VectorQuantizer]

    def __init__(
        self,
        dim: int,
        num_codebooks: int,
        codebook_size: int,
        *,
        distance: Literal["l2", "cosine"] = "l2",
        codebook_dim: int | None = None,
        codebook_update: Literal["ema", "gradient"] = "ema",
        decay: float = 0.99,
        dead_code_threshold: float = 0.1,
        beam_size: int = 1,
    ) -> None:
        super().__init__()
        self.num_codebooks = num_codebooks
        self.codebook_size = codebook_size
        self.beam_size = beam_size
        stages = nn.ModuleList(
            VectorQuantizer(
                dim,
                codebook_size,
                distance=distance,
                codebook_dim=codebook_dim,
                codebook_update=codebook_update,
                decay=decay,
                dead_code_threshold=dead_code_threshold,
            )
            for _ in range(num_codebooks)
        )
        self.stages = cast(Sequence[VectorQuantizer], stages)

    @torch.no_grad()
    def encode(self, latents: Latents, num_codebooks: int | None = None) -> Codes:
        stages = list(self.stages)[: num_codebooks or self.num_codebooks]
        direct = stages[0].distance == "l2" and not stages[0].projected
        search = self.search_distances if direct else self.search_ranked
        with torch.autocast(latents.device.type, enabled=False):
            rows = latents.float().transpose(1, 2).flatten(0, 1)  # [batch * frames, dim]
            parts = torch.split(rows, TILE) if latents.device.type == "cpu" else [rows]
            codes = torch.cat([search(part, stages) for part in parts])
        return rearrange(codes, "(batch frames) codebooks -> batch codebooks frames", batch=len(latents))

    def search_distances(self, rows: Tensor, stages: Sequence[VectorQuantizer]) -> Tensor:
        """Codes [rows, codebooks] of `rows` [rows, dim] where the distance to an entry is the error that it leaves.

        The best candidates of all beams are then those of the lowest errors, and only they are followed.
        """
        count, dim = rows.shape
        # [rows * beams, dim + 2] for `scoring`: the residual, 1, and its square, which matters between beams alone
        state = torch.cat([rows, rows.new_ones(count, 1), rows.new_zeros(count, 1)], dim=1)
        row = torch.arange(count, device=rows.device)
        beams, steps = 1, []
        for left, stage in zip(
            reversed(range(len(stages))), stages, strict=True
        ):  # how many codebooks are left after it
            size = stage.codebook_size
            errors = state.mm(stage.scoring()).view(count, beams * size)
            best = lowest(errors, min(self.beam_size, beams * size) if left else 1)  # [rows, beams]
            beam = torch.floor_divide(best, size)
            entries = torch.sub(best, beam, alpha=size).view(-1)
            parents = torch.add(beam, row[:, None], alpha=beams).view(-1)
            steps.append((parents, entries))
            if left:
                beams = best.shape[1]
                state = state.index_select(0, parents)
                residual = state.narrow(1, 0, dim).sub_(stage.codebook.index_select(0, entries))
                if beams > 1:
                    state[:, dim + 1] = torch.linalg.vecdot(residual, residual)
        codes = []
        for parents, entries in reversed(steps):  # from the best beam at the end to what it came from
            codes.append(entries.take(row))
            row = parents.take(row)
        return torch.stack(codes[::-1], dim=1)

    def search_ranked(self, rows: Tensor, stages: Sequence[VectorQuantizer]) -> Tensor:
        """Codes [rows, codebooks] of `rows` [rows, dim] by any lookup: its best candidates, then the errors they leave."""
        left = rows[:, None]  # [rows, beams, dim]
        codes = torch.empty(len(rows), 1, 0, dtype=torch.int64, device=rows.device)  # [rows, beams, codebooks]
        for stage in stages:
            beams = left.shape[1]
            count = min(self.beam_size, stage.codebook_size)
            candidates = rearrange(
                stage.ranked(left.flatten(0, 1), count), "(rows beams) count -> rows (beams count)", beams=beams
            )
            left = left.repeat_interleave(count, dim=1) - stage.entries(candidates)  # [rows, beams * count, dim]
            codes = torch.cat([codes.repeat_interleave(count, dim=1), candidates[..., None]], dim=-1)
            if left.shape[1] > self.beam_size:
                best = left.square().sum(dim=-1).topk(self.beam_size, largest=False).indices[..., None]
                left, codes = left.take_along_dim(best, dim=1), codes.take_along_dim(best, dim=1)
        best = left.square().sum(dim=-1).argmin(dim=1)[:, None, None]
        return codes.take_along_dim(best, dim=1)[:, 0]

    def decode(self, codes: Codes) -> Latents:
        decoded = [stage.entries(codes[:, codebook]) for codebook, stage in enumerate(self.stages[: codes.shape[1]])]
        return torch.stack(decoded).sum(dim=0).transpose(1, 2)  # [batch, dim, frames]

    def forward(self, latents: Latents, num_codebooks: Tensor | None = None) -> Quantized:
        batch, _, frames = latents.shape
        if num_codebooks is None:
            num_codebooks = torch.full((batch,), self.num_codebooks, device=latents.device)
        with torch.autocast(latents.device.type, enabled=False):
            rows = rearrange(latents.float(), "batch dim frames -> (batch frames) dim")
            depth = num_codebooks[:, None].expand(batch, frames) if num_codebooks.ndim == 1 else num_codebooks
            left, total = rows, torch.zeros_like(rows)
            commitment, codebook_loss = rows.new_zeros(()), rows.new_zeros(())
            codes, seen = [], []
            for codebook, stage in enumerate(self.stages):
                active = (depth > codebook).flatten()  # [rows]
                decoded, chosen, committed, learned, inner = stage.train_rows(left)
                if stage.codebook_update == "ema":
                    seen.append(inner)
                decoded = torch.where(active[:, None], decoded, 0.0)
                total = total + decoded
                left = left - decoded
                commitment = commitment + torch.where(active, committed, 0.0).mean()
                codebook_loss = codebook_loss + torch.where(active, learned, 0.0).mean()
                codes.append(rearrange(torch.where(active, chosen, -1), "(batch frames) -> batch frames", batch=batch))
            out = rearrange(total, "(batch frames) dim -> batch dim frames", batch=batch)
        if not self.stages[0].projected:
            out = out + (latents - latents.detach())
        return Quantized(out, torch.stack(codes, dim=1), commitment, codebook_loss, tuple(seen))

    def vectors(self) -> Tensor:
        return torch.cat([stage.vectors() for stage in self.stages])

    def learn(self, parts: Sequence[Quantized]) -> None:
        move(list(self.stages), parts)

    @torch.no_grad()
    def start(self, latents: Latents, iterations: int = 10) -> None:
        """k-means for every codebook in turn, on what the codebooks before it left of `latents`."""
        left = latents
        for stage in self.stages:
            stage.start(left, iterations)
            left = left - stage.decode(stage.encode(left))


class FSQ(Quantizer):
    """Finite scalar quantization: every dimension is squashed into (-1, 1) and rounded (Mentzer et al. 2023).

    With `levels` (3, 2) dimension 0 knows -1, 0, 1 and dimension 1 knows -1, 1. The latent (0.8, -0.4):

        tanh     (0.66, -0.38)
        rounded  (1, -1)          which is what the decoder sees
        digits   (2, 0)           counted from the lowest level
        code     2 + 3 * 0 = 2    in mixed radix, dimension 0 the fastest

    The levels cover [-1, 1] evenly and symmetrically; where a number of levels is even, the paper (section 3.1) shifts
    them by half a step instead, to keep 0. There is nothing to learn, so both losses are zero.
    """

    levels: Tensor
    radix: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        self.num_codebooks = 1
        self.codebook_size = math.prod(levels)
        columns = torch.tensor(levels)[:, None]  # [dim, 1]
        self.register_buffer("levels", columns, persistent=False)
        self.register_buffer("radix", columns.cumprod(dim=0) // columns, persistent=False)

    def digits(self, bounded: Tensor) -> Tensor:
        """The nearest level's number [batch, dim, frames] of tanh(latents)."""
        return ((bounded + 1) / 2 * (self.levels - 1)).round().long()

    def encode(self, latents: Latents, num_codebooks: int | None = None) -> Codes:
        return (self.digits(latents.float().tanh()) * self.radix).sum(dim=1, keepdim=True)

    def decode(self, codes: Codes) -> Latents:
        digits = codes // self.radix % self.levels  # [batch, dim, frames]
        return 2 * digits / (self.levels - 1) - 1

    def forward(self, latents: Latents, num_codebooks: Tensor | None = None) -> Quantized:
        codes = self.encode(latents)
        bounded = latents.float().tanh()
        decoded = bounded + (self.decode(codes) - bounded).detach()
        return Quantized(decoded, codes, bounded.new_zeros(()), bounded.new_zeros(()))


class Mixture(Quantizer):
    """Soft codes: the components of a Gaussian mixture share each latent by how likely each of them made it.

    The decoder sees the mean of the means under p(component | latent). Two components at -1 and 1 with equal weights,
    on the latent 0.5 (which decodes to tanh(0.5 / variance)):

        variance 1       p = (0.27, 0.73)    decoded 0.46
        variance 0.25    p = (0.02, 0.98)    decoded 0.96
        variance 0.01    p = (0.00, 1.00)    decoded 1.00, the nearest mean

    So the limit of zero variance is vector quantization, and until then the gradient of the decoded latents is their
    own, with nothing passed straight through. A code is the likeliest component, and decodes to its mean: the smaller
    the variance, the less this differs from what the decoder was trained on.

    Both losses are 2 v / dim times the negative log-likelihood, with the mean variance v held constant as a unit; as v
    goes to 0 they become those of `VectorQuantizer`. The commitment moves the latents, the codebook loss fits the
    mixture. `variance` is one number, or one of each component; log-variances keep it positive.
    """

    floor = 1e-6
    """Least variance: the likelihood of a component around a single latent would grow without end."""

    def __init__(self, dim: int, codebook_size: int, *, variance: Literal["shared", "each"] = "shared") -> None:
        super().__init__()
        self.num_codebooks = 1
        self.codebook_size = codebook_size
        self.means = nn.Parameter(torch.randn(codebook_size, dim) * dim**-0.5)
        self.log_variance = nn.Parameter(torch.full((1 if variance == "shared" else codebook_size,), -math.log(dim)))
        self.logits = nn.Parameter(torch.zeros(codebook_size))

    def joint(self, rows: Tensor, *, means: Tensor, log_variance: Tensor, logits: Tensor) -> Tensor:
        """log p(component, row) [rows, codebook_size] of latents [rows, dim], in nats."""
        variance = log_variance.exp() + self.floor
        distance = torch.addmm(means.square().sum(dim=-1), rows, means.T, alpha=-2)
        distance = (distance + rows.square().sum(dim=-1, keepdim=True)).clamp(min=0)
        density = -0.5 * (distance / variance + rows.shape[-1] * torch.log(2 * math.pi * variance))
        return density + logits.log_softmax(dim=-1)

    def log_likelihood(self, latents: Latents) -> Tensor:
        """log p(latents) [batch, frames] under the mixture, in nats."""
        with torch.autocast(latents.device.type, enabled=False):
            rows = rearrange(latents.float(), "batch dim frames -> (batch frames) dim")
            likelihood = self.joint(rows, **dict(self.named_parameters())).logsumexp(dim=-1)
        return rearrange(likelihood, "(batch frames) -> batch frames", batch=len(latents))

    def encode(self, latents: Latents, num_codebooks: int | None = None) -> Codes:
        batch = len(latents)
        with torch.autocast(latents.device.type, enabled=False):
            rows = rearrange(latents.float(), "batch dim frames -> (batch frames) dim")
            codes = self.joint(rows, **dict(self.named_parameters())).argmax(dim=-1)
        return rearrange(codes, "(batch frames) -> batch 1 frames", batch=batch)

    def decode(self, codes: Codes) -> Latents:
        return F.embedding(codes[:, 0], self.means).transpose(1, 2)  # [batch, dim, frames]

    def forward(self, latents: Latents, num_codebooks: Tensor | None = None) -> Quantized:
        batch, dim, _ = latents.shape
        mixture = dict(self.named_parameters())
        fixed = {name: parameter.detach() for name, parameter in mixture.items()}
        with torch.autocast(latents.device.type, enabled=False):
            rows = rearrange(latents.float(), "batch dim frames -> (batch frames) dim")
            joint = self.joint(rows, **mixture)
            decoded = joint.softmax(dim=-1) @ self.means
            decoded = rearrange(decoded, "(batch frames) dim -> batch dim frames", batch=batch)
            unit = 2 / dim * (fixed["log_variance"].exp() + self.floor).mean()
            commitment = -unit * self.joint(rows, **fixed).logsumexp(dim=-1).mean()
            codebook = -unit * self.joint(rows.detach(), **mixture).logsumexp(dim=-1).mean()
        codes = rearrange(joint.argmax(dim=-1), "(batch frames) -> batch 1 frames", batch=batch)
        return Quantized(decoded, codes, commitment, codebook)

    @torch.no_grad()
    def start(self, latents: Latents, iterations: int = 10) -> None:
        """Means by k-means on the frames of `latents`; variances and weights of what is nearest to each mean."""
        dim = latents.shape[1]
        nearest = VectorQuantizer(dim, self.codebook_size).to(latents.device)
        nearest.start(latents, iterations)
        codes = nearest.encode(latents)
        error = (latents - nearest.decode(codes)).square().mean(dim=1).flatten()  # [batch * frames]
        count = torch.bincount(codes.flatten(), minlength=self.codebook_size)
        self.means.copy_(nearest.codebook)
        self.logits.copy_((count + 1).log())
        if len(self.log_variance) == 1:
            variance = error.mean()
        else:  # one more latent of average error in each, lest a component of few be all too sure
            variance = (torch.zeros_like(self.logits).index_add_(0, codes.flatten(), error) + error.mean()) / (
                count + 1
            )
        self.log_variance.copy_(variance.clamp(min=self.floor).log())


class Unquantized(Quantizer):
    """No quantizer: a plain autoencoder, the bound of what quantized ones can reach. It trains, but has no codes."""

    def __init__(self, codebook_size: int) -> None:
        super().__init__()
        self.num_codebooks = 1
        self.codebook_size = codebook_size

    def encode(self, latents: Latents, num_codebooks: int | None = None) -> Codes:
        raise UsageError(NO_CODES)

    def decode(self, codes: Codes) -> Latents:
        raise UsageError(NO_CODES)

    def forward(self, latents: Latents, num_codebooks: Tensor | None = None) -> Quantized:
        batch, _, frames = latents.shape
        codes = torch.full((batch, 1, frames), -1, device=latents.device)
        return Quantized(latents, codes, latents.new_zeros(()), latents.new_zeros(()))


NO_CODES = (
    'this model does not quantize, so it has no codes: train one with quantizer = "residual", or call its forward'
)
