"""The periodic activation of BigVGAN, DAC and SNAC."""

import torch
from torch import Tensor, nn


class Snake(nn.Module):
    """x + sin²(alpha x) / alpha for each channel of x [batch, channels, time] (Ziyin et al. 2020, section 4)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        alpha = self.alpha
        inverse = (alpha + (alpha == 0)).reciprocal()  # with alpha = 0 the sine is 0
        if torch.is_grad_enabled():
            return x + inverse * torch.sin(alpha * x).square()
        wave = (alpha * x).sin_().square_()  # in place, because the time goes into memory
        return wave.mul_(inverse).add_(x)
