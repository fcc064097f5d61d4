"""Residual vector quantization (SoundStream, Zeghidour et al. 2021, section III-C) with beam search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from codec.nn.quantize.base import Quantized, Quantizer, keep_prefix
from codec.nn.quantize.vq import VectorQuantizer, lowest, update_stages
from codec.nn.shapes import Codes, Latents

TILE = 128  # frames that a CPU searches at once, because their distances stay in its cache
GREEDY_TILE = 1024  # the same with one beam, because longer tiles save the start of small operations
NEAREST_TILE, SMALL_TABLE = 200, 1 << 17  # frames whose distances are computed at once; numbers of a small codebook


def best_beam(codes: Tensor, residual: Tensor) -> Tensor:
    """Codes [rows, codebooks] of the beam of codes [rows, beams, codebooks] with the least residual [..., dim]."""
    best = residual.square().sum(dim=-1).argmin(dim=1)[:, None, None]
    return codes.take_along_dim(best, dim=1)[:, 0]


class ResidualVQ(Quantizer):
    """A stack of vector quantizers; each quantizes the residual of the stages before it (SoundStream, section III-C).

    The codes of the first n codebooks are a coarser description by themselves, so one model serves every bit rate.
    Training with a random number of codebooks per item (quantizer dropout, section III-C) makes the coarse ones good.

    The nearest entries do not always give the nearest sum. `encode` is a beam search that keeps the `beam_size` best
    prefixes; beam size 1 takes the nearest entry of each codebook in turn, as training does. On 3 with codebooks {0, 4}
    and {-3, 3}, one beam takes 4, whose residual is -1, and ends at 1; two beams find 0 + 3.
    """

    decodes_to_latents = True
    per_frame = True
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

    @property
    def strict_prefix(self) -> bool:
        return self.beam_size == 1

    @property
    def direct(self) -> bool:
        """Whether the distance to an entry is the error of choosing it."""
        return self.stages[0].distance == "l2" and not self.stages[0].projected

    @torch.no_grad()
    def encode(self, latents: Latents, num_codebooks: int | None = None) -> Codes:
        stages = list(self.stages)[: num_codebooks or self.num_codebooks]
        is_cpu = latents.device.type == "cpu"
        tile, search = TILE, self.search_distances if self.direct else self.search_ranked
        if is_cpu and self.direct and self.beam_size == 1:
            tile, search = GREEDY_TILE, self.search_nearest
        with torch.autocast(latents.device.type, enabled=False):
            rows = latents.float().transpose(1, 2).flatten(0, 1)  # [batch * frames, dim]
            parts = torch.split(rows, tile) if is_cpu else [rows]
            codes = torch.cat([search(part, stages) for part in parts])
        return codes.view(latents.shape[0], latents.shape[2], codes.shape[1]).transpose(
            1, 2
        )  # [batch, codebooks, frames]

    @torch.no_grad()
    def encode_prefix(self, latents: Latents, num_codebooks: Tensor) -> Codes:
        search = self.search_prefix if self.direct else self.search_ranked
        with torch.autocast(latents.device.type, enabled=False):
            codes = search(latents.float().transpose(1, 2).flatten(0, 1), list(self.stages), num_codebooks)
        codes = codes.view(latents.shape[0], latents.shape[2], codes.shape[1]).transpose(1, 2)
        return keep_prefix(codes, num_codebooks)

    def search_nearest(self, rows: Tensor, stages: Sequence[VectorQuantizer]) -> Tensor:
        """`search_distances` for one beam on a CPU.

        The distances of some rows at a time are searched while they are in its cache. Not so with large codebooks,
        because each matrix product reads the whole table.
        """
        count, dim = rows.shape
        tile = NEAREST_TILE if dim * self.codebook_size <= SMALL_TABLE else count
        state = torch.cat([rows, rows.new_ones(count, 1)], dim=1)  # for `distance_table` without beams
        residual, errors = state.narrow(1, 0, dim), rows.new_empty(min(count, tile), self.codebook_size)
        entries = rows.new_empty(count, dim)  # of all stages in turn, because new memory takes longer than the sum
        codes = rows.new_empty(len(stages), count, dtype=torch.int64)
        found, parts = codes.numpy(), []
        for first in range(0, count, tile):
            part = state[first : first + tile]
            distances = errors[: len(part)]
            parts.append((part, distances, distances.numpy(), slice(first, first + tile)))
        for number, stage in enumerate(stages):
            table = stage.distance_table().narrow(0, 0, dim + 1)
            for part, distances, array, of_rows in parts:
                torch.mm(part, table, out=distances)
                array.argmin(axis=1, out=found[number, of_rows])  # 5 to 13 times as fast as torch's
            if number < len(stages) - 1:
                torch.index_select(stage.codebook, 0, codes[number], out=entries)
                residual.sub_(entries)
        return codes.T

    def search_distances(self, rows: Tensor, stages: Sequence[VectorQuantizer]) -> Tensor:
        """Codes [rows, codebooks] of `rows` [rows, dim] if the distance to an entry is the error of choosing it.

        The best candidates of all beams then have the lowest distances, and only their residuals are computed.
        """
        count, dim = rows.shape
        # [rows * beams, dim + 2] for `distance_table`: the residual, 1, and its square, which ranks beams
        state = torch.cat([rows, rows.new_ones(count, 1), rows.new_zeros(count, 1)], dim=1)
        row = torch.arange(count, device=rows.device)
        memory = rows.new_empty(count * self.beam_size, self.codebook_size)  # for all errors: new memory takes longer
        beams, steps = 1, []
        for stages_left, stage in zip(reversed(range(len(stages))), stages, strict=True):
            size = stage.codebook_size
            errors = torch.mm(state, stage.distance_table(), out=memory[: len(state)]).view(count, beams * size)
            best = lowest(errors, min(self.beam_size, beams * size) if stages_left else 1)  # [rows, beams]
            beam = torch.floor_divide(best, size)
            entries = torch.sub(best, beam, alpha=size).view(-1)
            parents = torch.add(beam, row[:, None], alpha=beams).view(-1)
            steps.append((parents, entries))
            if stages_left:
                beams = best.shape[1]
                state = state.index_select(0, parents)
                chosen = stage.codebook.index_select(0, entries)
                residual = state.narrow(1, 0, dim).sub_(chosen)
                if beams > 1:
                    state[:, dim + 1] = torch.linalg.vecdot(residual, residual)
        codes = []
        for parents, entries in reversed(steps):  # back from the best beam at the end
            codes.append(entries.take(row))
            row = parents.take(row)
        return torch.stack(codes[::-1], dim=1)

    def search_prefix(self, rows: Tensor, stages: Sequence[VectorQuantizer], num_codebooks: Tensor) -> Tensor:
        """`search_distances` for a number of codebooks that is a tensor []: codes after the first ones are arbitrary.

        The graph has few operations, without divisions and in-place writes, because each operation takes time in a
        runtime without a compiler.
        """
        size, first = self.codebook_size, torch.arange(rows.shape[0], device=rows.device)
        candidate = torch.arange(min(self.beam_size, size ** len(stages)) * size, device=rows.device)
        beam_of, entry_of = candidate // size, candidate % size
        residual, beams, steps = rows, 1, []
        errors = stages[0].distances(rows)
        for number, stage in enumerate(stages, 1):
            best = errors.view(-1, beams * size).topk(min(self.beam_size, beams * size), dim=1, largest=False).indices
            row_beams = (beams * first)[:, None].expand_as(best).reshape(-1)
            parents = beam_of.gather(0, best.view(-1)) + row_beams
            entries = entry_of.gather(0, best.view(-1))
            beams = best.shape[1]
            steps.append((parents, entries, beams))
            if number < len(stages):
                residual = F.embedding(parents, residual) - F.embedding(entries, stage.codebook)
                errors = stages[number].distances(residual) + residual.square().sum(dim=1, keepdim=True)
        row, codes = first, []
        for number, (parents, entries, beams) in reversed(list(enumerate(steps, 1))):
            row = torch.where(num_codebooks == number, beams * first, row)  # the first beam of each row is the best
            codes.append(entries.gather(0, row))
            row = parents.gather(0, row)
        return torch.cat(codes[::-1]).view(len(codes), rows.shape[0]).T

    def search_ranked(
        self, rows: Tensor, stages: Sequence[VectorQuantizer], num_codebooks: Tensor | None = None
    ) -> Tensor:
        """Codes as in `search_distances` for any distance: candidates by distance, beams by error."""
        residual = rows[:, None]  # [rows, beams, dim]
        prefix = torch.full((rows.shape[0], len(stages)), -1, dtype=torch.int64, device=rows.device)
        codes = torch.empty(rows.shape[0], 1, 0, dtype=torch.int64, device=rows.device)  # [rows, beams, codebooks]
        for number, stage in enumerate(stages, 1):
            beams = residual.shape[1]
            count = min(self.beam_size, stage.codebook_size)
            candidates = rearrange(
                stage.ranked(residual.flatten(0, 1), count), "(rows beams) count -> rows (beams count)", beams=beams
            )
            residual = residual.repeat_interleave(count, dim=1) - stage.entries(
                candidates
            )  # [rows, beams * count, dim]
            codes = torch.cat([codes.repeat_interleave(count, dim=1), candidates[..., None]], dim=-1)
            if residual.shape[1] > self.beam_size:
                best = residual.square().sum(dim=-1).topk(self.beam_size, largest=False).indices[..., None]
                residual, codes = residual.take_along_dim(best, dim=1), codes.take_along_dim(best, dim=1)
            if num_codebooks is not None:
                found = F.pad(best_beam(codes, residual), (0, len(stages) - number), value=-1)
                prefix = torch.where(num_codebooks == number, found, prefix)
        return best_beam(codes, residual) if num_codebooks is None else prefix

    def decode(self, codes: Codes) -> Latents:
        decoded = [stage.entries(codes[:, codebook]) for codebook, stage in enumerate(self.stages[: codes.shape[1]])]
        return torch.stack(decoded).sum(dim=0).transpose(1, 2)  # [batch, dim, frames]

    def decode_prefix(self, codes: Codes) -> Latents:
        first = torch.arange(self.num_codebooks, device=codes.device)[:, None] * self.codebook_size
        table = self.codebook_vectors().flatten(0, 1)  # [codebooks * codebook_size, dim]
        entries = F.embedding(first + codes.clamp(min=0), table)  # [batch, codebooks, frames, dim]
        return torch.where(codes[..., None] < 0, 0.0, entries).sum(dim=1).transpose(1, 2)

    def forward(self, latents: Latents, num_codebooks: Tensor | None = None) -> Quantized:
        batch, _, frames = latents.shape
        if num_codebooks is None:
            num_codebooks = torch.full((batch,), self.num_codebooks, device=latents.device)
        with torch.autocast(latents.device.type, enabled=False):
            rows = rearrange(latents.float(), "batch dim frames -> (batch frames) dim")
            n_codebooks = num_codebooks[:, None].expand(batch, frames) if num_codebooks.ndim == 1 else num_codebooks
            residual, total = rows, torch.zeros_like(rows)
            commitment, codebook_loss = rows.new_zeros(()), rows.new_zeros(())
            codes, stage_inputs = [], []
            for codebook, stage in enumerate(self.stages):
                active = (n_codebooks > codebook).flatten()  # [rows]
                decoded, chosen, committed, learned, inner = stage.quantize_train(residual)
                if stage.codebook_update == "ema":
                    stage_inputs.append(inner)
                decoded = torch.where(active[:, None], decoded, 0.0)
                total = total + decoded
                residual = residual - decoded
                commitment = commitment + torch.where(active, committed, 0.0).mean()
                codebook_loss = codebook_loss + torch.where(active, learned, 0.0).mean()
                codes.append(rearrange(torch.where(active, chosen, -1), "(batch frames) -> batch frames", batch=batch))
            out = rearrange(total, "(batch frames) dim -> batch dim frames", batch=batch)
        if not self.stages[0].projected:
            out = out + (latents - latents.detach())
        return Quantized(out, torch.stack(codes, dim=1), commitment, codebook_loss, tuple(stage_inputs))

    def codebook_vectors(self) -> Tensor:
        return torch.cat([stage.codebook_vectors() for stage in self.stages])

    def update_codebook(self, parts: Sequence[Quantized]) -> None:
        update_stages(list(self.stages), parts)

    @torch.no_grad()
    def init_from_data(self, latents: Latents, iterations: int = 10) -> None:
        """k-means for each codebook in turn, on the residuals of the codebooks before it."""
        self.init_stages(list(self.stages), latents, iterations)

    @torch.no_grad()
    def init_added(self, latents: Latents, known: int, iterations: int = 10) -> None:
        """k-means on the residuals that the first `known` codebooks leave, with all beams."""
        residual = latents - self.decode(self.encode(latents, known)) if known else latents
        self.init_stages(list(self.stages)[known:], residual, iterations)

    def init_stages(self, stages: Sequence[VectorQuantizer], residual: Latents, iterations: int) -> None:
        for stage in stages:
            stage.init_from_data(residual, iterations)
            residual = residual - stage.decode(stage.encode(residual))
