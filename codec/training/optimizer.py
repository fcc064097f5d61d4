"""What every training's steps have: the rate's schedule, precision, clipping, and a moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from codec.nn import distributed
from codec.training import engine
from codec.training.codec.recipe import OptimizerConfig


def schedule(step: int, steps: int, config: OptimizerConfig) -> float:
    """Share of the learning rate: a line up over `warmup` steps, then half a cosine down to `lr_min_ratio` at `steps`."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = min(1.0, (step - config.warmup) / max(1, steps - config.warmup))
    return config.lr_min_ratio + (1 - config.lr_min_ratio) * 0.5 * (1 + math.cos(math.pi * done))


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The type of the networks' products; "auto" is bfloat16 on devices that multiply matrices of it.

    A processor with AVX-512's products of bfloat16 but no tiles (AMX) is half as fast with it as in float32.
    """
    if precision == "auto":
        fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if fast else torch.float32
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(precision, torch.float32)


def clip(optimizer: torch.optim.Optimizer, rate: float, scaler: torch.amp.GradScaler, most: float) -> Tensor:
    """Make an optimizer ready for a step at this rate, its gradient's norm `most` at most; the norm before that."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    scaler.unscale_(optimizer)
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    norm: Tensor = engine.whole(nn.utils.clip_grad_norm_(weights, most))
    return norm


def left_out(losses: Mapping[str, Tensor], scaler: torch.amp.GradScaler) -> bool:
    """Whether float16 leaves a step out for gradients ("gradient/…") that are not finite, until their scale fits."""
    return not finite(losses) and scaler.is_enabled() and scaler.get_scale() >= 1


def finite(losses: Mapping[str, Tensor]) -> bool:
    """Whether all norms of gradients are."""
    norms = [norm for name, norm in losses.items() if name.startswith("gradient/")]
    return bool(torch.stack(norms).isfinite().all())


def to_blame(losses: Mapping[str, Tensor], used: Iterable[str]) -> dict[str, float]:
    """Those of the losses in use that are not finite; where all are, the norms of gradients that are not."""
    wrong = {name: float(losses[name]) for name in used if name in losses and not losses[name].isfinite()}
    norms = {name: float(norm) for name, norm in losses.items() if name.startswith("gradient/")}
    return wrong or {name: norm for name, norm in norms.items() if not math.isfinite(norm)}


def whole_batch(measures: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Means over the parts of this process and of all others."""
    parts = torch.stack([torch.stack([value.detach() for value in measure.values()]) for measure in measures])
    return dict(zip(measures[0], distributed.all_reduce_mean(parts.mean(dim=0)), strict=True))


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, *, decay: float, step: int) -> None:
    """Move averaged weights towards the model's, faster in the first steps; buffers are the model's own."""
    decay = min(decay, (1 + step) / (10 + step))
    for slow, fast in zip(average.parameters(), model.parameters(), strict=True):
        slow.lerp_(fast, 1 - decay)
    for old, new in zip(average.buffers(), model.buffers(), strict=True):
        old.copy_(new)
