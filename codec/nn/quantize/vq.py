"""Vector quantization: one codebook, and the search for nearest entries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from codec.nn.distributed import all_reduce_sum
from codec.nn.exporting import is_exporting
from codec.nn.quantize.base import Quantized, Quantizer, random_rows, sample_rows
from codec.nn.shapes import Codes, Latents

GROUP = 64  # entries per group in the search for the lowest values (`lowest`)
PART = 128  # rows whose lowest values are found at once


class DistanceTable(NamedTuple):
    """The cached table of `VectorQuantizer.distance_table`, with the codebook it was computed from."""

    table: Tensor
    codebook: Tensor
    """The codebook itself, so that its memory cannot be reused, or a copy if torch does not count its changes."""
    version: int | None
    """Number of in-place changes so far; None for tensors created in inference mode, because torch does not count."""

    def is_of(self, codebook: Tensor) -> bool:
        if self.version is None:
            return torch.equal(self.codebook, codebook)
        return self.version == version_of(codebook) and self.codebook.data_ptr() == codebook.data_ptr()


def version_of(tensor: Tensor) -> int | None:
    """Number of in-place changes of a tensor; None if torch does not count them."""
    return None if tensor.is_inference() else tensor._version


class VectorQuantizer(Quantizer):
    """One codebook: each frame becomes the index of its nearest entry.

    `distance` "cosine" compares directions only (Yu et al. 2021, section 3.2). `codebook_dim` is the dimension of the
    entries if it is not `dim`, with learned projections in and out (the factorized codes of DAC, section 3.2).

    `codebook_update` "ema" moves each entry towards the mean of the rows that chose it (`update_codebook`; van den Oord
    et al. 2017, appendix A.1) and replaces entries that are rarely chosen by rows of the batch (Dhariwal et al. 2020,
    section 3.1); "gradient" trains entries by the codebook loss. Distances and entries are float32 under any autocast.
    """

    decodes_to_latents = True

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
        self.cached: DistanceTable | None = None
        entries = torch.randn(codebook_size, inner) * inner**-0.5
        if codebook_update == "ema":
            self.register_buffer("codebook", entries)
            # moving average of the rows that choose an entry per step; cluster_size * codebook is the moving sum of
            # these rows, so it needs no buffer of its own
            self.register_buffer("cluster_size", torch.ones(codebook_size))
        else:
            self.codebook = nn.Parameter(entries)

    def distances(self, x: Tensor) -> Tensor:
        """Squared distances [rows, codebook_size] of x [rows, inner] from all entries, minus |x|²: same ranking."""
        table = self.codebook
        if self.distance == "cosine":
            x, table = unit(x), unit(table)
        # |x - c|² = |x|² - 2 x.c + |c|²
        return torch.addmm(table.square().sum(dim=-1), x, table.T, alpha=-2)

    def distance_table(self) -> Tensor:
        """Table [inner + 2, codebook_size] with a column (-2 c, |c|², 1) for each entry c.

        The product of (x, 1, e) with a column is |x - c|² - |x|² + e. It is cached until the codebook changes.
        """
        codebook, cached = self.codebook, self.cached
        if cached is not None and cached.is_of(codebook):
            return cached.table
        with torch.no_grad():
            norms = codebook.square().sum(dim=-1)[None]
            table = torch.cat([-2 * codebook.T, norms, torch.ones_like(norms)])
        version = version_of(codebook)
        self.cached = DistanceTable(table, codebook.clone() if version is None else codebook.detach(), version)
        return table

    def __getstate__(self) -> dict[str, object]:
        """Leave the cache out, because torch counts the changes of a copy from zero."""
        return self.__dict__ | {"cached": None}

    def nearest(self, x: Tensor) -> Tensor:
        """Index of the nearest entry to each row of x [rows, inner]; the lowest index wins a tie."""
        return lowest(self.distances(x), 1)[:, 0]

    def ranked(self, rows: Tensor, count: int) -> Tensor:
        """Indices [rows, count] of the nearest entries to each of `rows` [rows, dim], nearest first."""
        return lowest(self.distances(self.project_in(rows)), count)

    def entries(self, codes: Tensor) -> Tensor:
        """Entries [..., dim] of codes [...], projected out."""
        table = unit(self.codebook) if self.distance == "cosine" else self.codebook
        out: Tensor = self.project_out(F.embedding(codes, table))
        return out

    def encode(self, latents: Latents, num_codebooks: int | None = None) -> Codes:
        batch = len(latents)
        with torch.autocast(latents.device.type, enabled=False):
            rows = rearrange(latents.float(), "batch dim frames -> (batch frames) dim")
            return rearrange(self.ranked(rows, 1), "(batch frames) 1 -> batch 1 frames", batch=batch)

    def decode(self, codes: Codes) -> Latents:
        return self.entries(codes[:, 0]).transpose(1, 2)  # [batch, dim, frames]

    def quantize_train(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(decoded rows, codes, commitment per row, codebook loss per row, quantized rows) of latents [rows, dim].

        Without a projection the decoded rows have no gradient to `rows`: the caller adds the straight-through term once
        for all stages, so that the commitment loss of every stage still reaches the encoder.
        """
        inner = self.project_in(rows)
        codes = self.nearest(inner.detach())
        table = unit(self.codebook) if self.distance == "cosine" else self.codebook
        chosen = F.embedding(codes, table)
        target = unit(inner) if self.distance == "cosine" else inner
        commitment = (target - chosen.detach()).square().mean(dim=-1)
        codebook = (target.detach() - chosen).square().mean(dim=-1)
        if self.codebook_update == "ema":
            codebook = torch.zeros_like(codebook)
        if self.projected:
            # project_in is trained by the reconstruction too, so the gradient passes through the stage
            return self.project_out(inner + (chosen - inner).detach()), codes, commitment, codebook, target.detach()
        return chosen.detach(), codes, commitment, codebook, target.detach()

    def forward(self, latents: Latents, num_codebooks: Tensor | None = None) -> Quantized:
        batch = len(latents)
        with torch.autocast(latents.device.type, enabled=False):
            rows = rearrange(latents.float(), "batch dim frames -> (batch frames) dim")
            decoded, codes, commitment, codebook, inner = self.quantize_train(rows)
            decoded = rearrange(decoded, "(batch frames) dim -> batch dim frames", batch=batch)
        if not self.projected:
            decoded = decoded + (latents - latents.detach())
        codes = rearrange(codes, "(batch frames) -> batch 1 frames", batch=batch)
        stage_inputs = (inner,) if self.codebook_update == "ema" else ()
        return Quantized(decoded, codes, commitment.mean(), codebook.mean(), stage_inputs)

    @torch.no_grad()
    def codebook_vectors(self) -> Tensor:
        return self.entries(torch.arange(self.codebook_size, device=self.codebook.device))[None]

    def update_codebook(self, parts: Sequence[Quantized]) -> None:
        update_stages([self], parts)

    def ema_update(self, sums: Tensor, chosen: Tensor) -> Tensor:
        """Update the entries; returns a mask [codebook_size] of dead entries.

        `sums` [codebook_size, dim] and `chosen` [codebook_size] are the sum and the number of the rows of each entry.
        """
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
    def init_from_data(self, latents: Latents, iterations: int = 10) -> None:
        """k-means (Lloyd) on the frames of `latents`, from random frames."""
        rows = self.project_in(rearrange(latents, "batch dim frames -> (batch frames) dim"))
        if self.distance == "cosine":
            rows = unit(rows)
        first = torch.randperm(len(rows), device=rows.device)[: self.codebook_size]
        self.codebook[: len(first)] = rows[first]
        for _ in range(iterations):
            codes = torch.cat([self.nearest(part) for part in rows.split(16384)])
            count = torch.bincount(codes, minlength=self.codebook_size).to(rows.dtype)
            means = torch.zeros_like(self.codebook).index_add_(0, codes, rows) / count[:, None].clamp(min=1)
            empty = (count == 0).nonzero()[:, 0]
            means[empty] = rows[random_rows(len(rows), len(empty)).to(rows.device)]
            self.codebook.copy_(means)


@torch.no_grad()
def update_stages(stages: Sequence[VectorQuantizer], parts: Sequence[Quantized]) -> None:
    """Update the EMA codebooks of all stages from the rows of all processes, and replace dead entries.

    A dead entry becomes one of the rows of the step, with the mean cluster_size. A stage that no item used is not
    changed.
    """
    if stages[0].codebook_update != "ema":
        return
    size, dim = stages[0].codebook.shape
    rows = [torch.cat([part.stage_inputs[stage] for part in parts]) for stage in range(len(stages))]
    codes = [torch.cat([part.codes[:, stage].flatten() for part in parts]) for stage in range(len(stages))]
    # the last row is for items that do not use the codebook, whose code is -1
    statistics = rows[0].new_zeros(len(stages), size + 1, dim + 1)
    for table, inputs, code in zip(statistics, rows, codes, strict=True):
        table.index_add_(0, code % (size + 1), F.pad(inputs, (0, 1), value=1.0))
    sums, chosen = all_reduce_sum(statistics)[:, :size].tensor_split(
        [-1], dim=-1
    )  # [codebooks, codebook_size, dim and 1]
    dead = torch.stack([stage.ema_update(*of) for stage, *of in zip(stages, sums, chosen[..., 0], strict=True)])
    if dead.any():
        for stage, entries, inputs, code in zip(stages, dead, rows, codes, strict=True):
            if entries.any():
                stage.codebook[entries] = sample_rows(inputs[code >= 0], int(entries.sum()))
                stage.cluster_size[entries] = stage.cluster_size.mean()


def unit(x: Tensor) -> Tensor:
    """Scale rows [..., dim] to length 1; the constant is one that exporters keep."""
    return F.normalize(x, dim=-1, eps=1e-5)


def lowest(values: Tensor, count: int) -> Tensor:
    """Indices [rows, count] of the lowest of `values` [rows, width], lowest first.

    The two lowest of 5 3 | 8 9 | 4 6 | 7 1, in groups of two, are in the groups with the two lowest minima:

        minima 3 8 4 1      groups 3 and 0 hold 7 1 5 3      of which 1 and 3 are the lowest

    This is faster than a top-k of all values, because a CPU finds minima many times faster than a top-k. With `count`
    1, the lowest index wins a tie. The indices of a row do not depend on the number of rows, even with ties.
    """
    rows, width = values.shape
    group = math.gcd(width, GROUP)
    if values.device.type != "cpu" or is_exporting():
        return lowest_of_all(values, count)
    if count == 1:
        return torch.from_numpy(lowest_of_rows(values.detach().numpy()))
    if group == 1:
        return lowest_of_all(values, count)
    groups = width // group
    chosen = lowest_of_all(values.view(rows, groups, group).amin(dim=2), min(count, groups))  # [rows, groups]
    row_groups = chosen if rows == 1 else chosen + torch.arange(0, rows * groups, groups)[:, None]
    members = values.view(rows * groups, group).index_select(0, row_groups.flatten())
    best = lowest_of_all(members.view(rows, chosen.shape[1] * group), count)
    slot = best.bitwise_right_shift(group.bit_length() - 1)  # best // group, because groups are powers of two
    return torch.add(best, chosen.gather(1, slot) - slot, alpha=group)


def lowest_of_rows(values: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Index [rows, 1] of the lowest of each row, by NumPy, whose argmin is 5 to 13 times as fast as torch's.

    The last rows come first, because those are in the cache if the values have just been computed.
    """
    found = np.empty((len(values), 1), np.int64)
    for first in reversed(range(0, len(values), PART)):
        values[first : first + PART].argmin(axis=1, keepdims=True, out=found[first : first + PART])
    return found


def lowest_of_all(values: Tensor, count: int) -> Tensor:
    """The result of `lowest` without groups."""
    if count == 1:
        return values.argmin(dim=1, keepdim=True)
    return values.topk(count, dim=1, largest=False).indices
