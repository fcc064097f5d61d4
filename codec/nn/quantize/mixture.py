"""Soft vector quantization by a Gaussian mixture."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from codec.nn.quantize.base import Quantized, Quantizer
from codec.nn.quantize.vq import VectorQuantizer
from codec.nn.shapes import Codes, Latents


class Mixture(Quantizer):
    """Soft codes: the components of a Gaussian mixture with one shared variance, weighted by their posterior.

    The input of the decoder is the mean of the means under p(component | latent). For two components at -1 and 1 with
    equal weights, the latent 0.5 decodes to tanh(0.5 / variance):

        variance 1       p = (0.27, 0.73)    decoded 0.46
        variance 0.25    p = (0.02, 0.98)    decoded 0.96
        variance 0.01    p = (0.00, 1.00)    decoded 1.00, the nearest mean

    So the limit of zero variance is vector quantization; above it the decoded latents have a gradient of their own,
    without a straight-through estimate. A code is the most likely component and decodes to its mean: the smaller the
    variance, the less this differs from the decoder's input in training.

    Both losses are 2 v / dim times the negative log-likelihood, with the variance v held constant; as v goes to 0 they
    become those of `VectorQuantizer`. The commitment loss trains the encoder, the codebook loss fits the mixture. The
    variance is stored as its logarithm to keep it positive.
    """

    floor = 1e-5
    """Smallest variance, because the likelihood of a component around a single latent is unbounded."""

    def __init__(self, dim: int, codebook_size: int) -> None:
        super().__init__()
        self.num_codebooks = 1
        self.codebook_size = codebook_size
        self.means = nn.Parameter(torch.randn(codebook_size, dim) * dim**-0.5)
        self.log_variance = nn.Parameter(torch.tensor([-math.log(dim)]))
        self.logits = nn.Parameter(torch.zeros(codebook_size))

    def joint(self, rows: Tensor, *, means: Tensor, log_variance: Tensor, logits: Tensor) -> Tensor:
        """log p(component, row) [rows, codebook_size] of latents [rows, dim], in nats."""
        variance = log_variance.exp() + self.floor
        distance = torch.addmm(means.square().sum(dim=-1), rows, means.T, alpha=-2)
        distance = (distance + rows.square().sum(dim=-1, keepdim=True)).clamp(min=0)
        density = -0.5 * (distance / variance + rows.shape[-1] * torch.log(2 * math.pi * variance))
        return density + logits.log_softmax(dim=-1)

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
            unit = 2 / dim * (fixed["log_variance"].exp() + self.floor)[0]
            commitment = -unit * self.joint(rows, **fixed).logsumexp(dim=-1).mean()
            codebook = -unit * self.joint(rows.detach(), **mixture).logsumexp(dim=-1).mean()
        codes = rearrange(joint.argmax(dim=-1), "(batch frames) -> batch 1 frames", batch=batch)
        return Quantized(decoded, codes, commitment, codebook)

    @torch.no_grad()
    def init_from_data(self, latents: Latents, iterations: int = 10) -> None:
        """Set the means by k-means on the frames of `latents`, the variance and the weights from the nearest means."""
        dim = latents.shape[1]
        nearest = VectorQuantizer(dim, self.codebook_size).to(latents.device)
        nearest.init_from_data(latents, iterations)
        codes = nearest.encode(latents)
        variance = (latents - nearest.decode(codes)).square().mean()
        count = torch.bincount(codes.flatten(), minlength=self.codebook_size)
        self.means.copy_(nearest.codebook)
        self.logits.copy_((count + 1).log())
        self.log_variance.copy_(variance.clamp(min=self.floor).log())
