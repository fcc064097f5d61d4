"""The interface of quantizers: latents to integers and back.

Residual vector quantization with two codebooks of two entries each, on the number 5.3:

    codebook 0 holds {-4, 4}:   4 is nearest   code 1   residual 1.3
    codebook 1 holds {-1, 1}:   1 is nearest   code 1   residual 0.3

    codes (1, 1) decode to 4 + 1 = 5; the first code alone decodes to 4.

Every quantizer maps latents [batch, dim, frames] to codes [batch, codebooks, frames] and back. Its `forward` gives the
decoder latents whose gradient reaches the encoder (van den Oord et al. 2017, section 3.2).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from codec.errors import UsageError
from codec.nn.distributed import all_reduce_sum, broadcast_, first_row
from codec.nn.shapes import Codes, Latents


class Quantized(NamedTuple):
    """The result of `Quantizer.forward`."""

    latents: Latents
    """Input of the decoder, with a gradient to the encoder."""
    codes: Codes
    """-1 where an item does not use a codebook (quantizer dropout)."""
    commitment: Tensor
    """Mean square distance of each stage's input from its entry, summed over stages; trains the encoder."""
    codebook: Tensor
    """The same distance, training the entries; zero for EMA codebooks."""
    stage_inputs: tuple[Tensor, ...] = ()
    """Rows [batch * frames, dim] that each stage with an EMA codebook quantized; for `update_codebook`."""


class Quantizer(nn.Module):
    """Latents <-> codes."""

    num_codebooks: int
    codebook_size: int
    has_codes = True
    decodes_to_latents = False
    """Whether decoded latents approximate those of the encoder."""
    per_frame = False
    """Whether `decode_prefix` takes frames with different numbers of codebooks, -1 after the last one of each."""

    @property
    def strict_prefix(self) -> bool:
        """Whether codes of the first n codebooks are the first n codebooks of the codes of all."""
        return True

    @abstractmethod
    def encode(self, latents: Latents, num_codebooks: int | None = None) -> Codes:
        """Codes of the first `num_codebooks` codebooks, of all codebooks if None."""

    @abstractmethod
    def decode(self, codes: Codes) -> Latents:
        """Latents of the codebooks that `codes` has."""

    def encode_prefix(self, latents: Latents, num_codebooks: Tensor) -> Codes:
        """`encode` for a number of codebooks that is a tensor []: codes of all codebooks, -1 after the first ones.

        Shapes do not depend on it, so a graph can be exported.
        """
        return keep_prefix(self.encode(latents), num_codebooks)

    def decode_prefix(self, codes: Codes) -> Latents:
        """`decode` of codes of all codebooks, -1 in the last ones if they are left out."""
        return self.decode(codes)

    @abstractmethod
    def forward(self, latents: Latents, num_codebooks: Tensor | None = None) -> Quantized:
        """Quantize with gradients; does not change the quantizer.

        `num_codebooks` [batch] is the number of codebooks that each item uses, all codebooks if None.
        """

    @property
    def vector_dim(self) -> int:
        """Dimension of the vectors that a language model learns for codes that have none: that of decoded latents."""
        return self.decode(torch.zeros(1, self.num_codebooks, 1, dtype=torch.int64)).shape[1]

    def codebook_vectors(self) -> Tensor | None:
        """Vectors [codebooks, codebook_size, dim] of all codes; decoded latents are sums of them.

        None for quantizers whose codes have no vectors.
        """
        return None

    def update_codebook(self, parts: Sequence[Quantized]) -> None:
        """Update EMA codebooks after a training step on these parts of a batch.

        In data-parallel training, every process calls this method, and each update uses the parts of all processes.
        """

    def init_from_data(self, latents: Latents) -> None:
        """Initialize the entries from latents before training; does nothing for quantizers without entries."""

    def init_added(self, latents: Latents, known: int) -> None:
        """Initialize the codebooks after the first `known` from latents; the first `known` keep their entries.

        Raises UsageError: codebooks cannot be added to a quantizer of this kind.
        """
        raise UsageError(f"codebooks cannot be added to a {type(self).__name__}: keep model.num_codebooks")


class Unquantized(Quantizer):
    """No quantization: a plain autoencoder, the upper bound for quantized ones. It trains but has no codes."""

    has_codes = False

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


def keep_prefix(codes: Codes, num_codebooks: Tensor) -> Codes:
    """Codes [batch, codebooks, frames] with -1 in all but the first `num_codebooks` []."""
    kept = torch.arange(codes.shape[1], device=codes.device)[:, None] < num_codebooks
    return torch.where(kept, codes, -1)


def random_rows(rows: int, number: int) -> Tensor:
    """Indices [number] of rows in random order; none is repeated unless `number` exceeds `rows`."""
    return torch.randperm(rows)[torch.arange(number) % rows]


def sample_rows(rows: Tensor, number: int) -> Tensor:
    """Sample `number` of the rows [rows, dim] of all processes; every process gets the same sample."""
    first, total = first_row(len(rows), rows)
    sampled = random_rows(total, number).to(rows.device)
    broadcast_(sampled)
    own = (sampled >= first) & (sampled < first + len(rows))
    out = rows.new_zeros(number, rows.shape[1])
    out[own] = rows[sampled[own] - first]
    return all_reduce_sum(out)
