"""What every training step needs: learning rate schedule, precision, gradient clipping and averaged weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from codec.errors import ConfigError
from codec.nn import distributed
from codec.training import engine
from codec.training.codec.recipe import OptimizerConfig


def lr_scale(step: int, steps: int, config: OptimizerConfig) -> float:
    """Factor of the learning rate: linear warm-up, then a cosine decay to `lr_min_ratio` at `steps`."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = min(1.0, (step - config.warmup) / max(1, steps - config.warmup))
    return config.lr_min_ratio + (1 - config.lr_min_ratio) * 0.5 * (1 + math.cos(math.pi * done))


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Data type of the networks' matrix products; "auto" is bfloat16 on devices with bfloat16 matrix units.

    A CPU with AVX-512 bfloat16 products but without tiles (AMX) is half as fast in bfloat16 as in float32.
    """
    if precision == "auto":
        fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if fast else torch.float32
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(precision, torch.float32)


def grad_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """A gradient scaler, enabled for float16 only."""
    return torch.amp.GradScaler(device.type, enabled=autocast_dtype(precision, device) == torch.float16)


def clip_gradients(
    optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, *, lr: float, max_norm: float
) -> Tensor:
    """Set the learning rate, unscale the gradients and clip their norm; returns the norm before clipping."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    scaler.unscale_(optimizer)
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    norm: Tensor = engine.gather_shards(nn.utils.clip_grad_norm_(weights, max_norm))
    return norm


def can_step(
    metrics: Mapping[str, Tensor],
    scaler: torch.amp.GradScaler,
    *,
    step: int,
    losses: Iterable[str],
    lr_setting: Callable[[Collection[str]], str],
) -> bool:
    """Whether all gradient norms ("grad_norm/...") are finite; float16 skips steps until its scale fits.

    Raises:
        ConfigError: gradients are not finite, and another scale would not help. The message names those of `losses`
            that are not finite, and the learning rate to lower: `lr_setting` of these names.
    """
    norms = {name: norm for name, norm in metrics.items() if name.startswith("grad_norm/")}
    if bool(torch.stack(list(norms.values())).isfinite().all()):
        return True
    if scaler.is_enabled() and scaler.get_scale() >= 1:
        return False
    wrong = {name: float(metrics[name]) for name in losses if name in metrics and not metrics[name].isfinite()}
    wrong = wrong or {name: float(norm) for name, norm in norms.items() if not norm.isfinite()}
    raise ConfigError(
        f"in step {step} {' and '.join(f'{name} became {value}' for name, value in wrong.items())}: "
        f"lower {lr_setting(wrong)} or set train.precision = float32, and resume"
    )


def batch_mean(metrics: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Means over the micro-batches of this process and of all others."""
    parts = torch.stack([torch.stack([value.detach() for value in part.values()]) for part in metrics])
    return dict(zip(metrics[0], distributed.all_reduce_mean(parts.mean(dim=0)), strict=True))


@torch.no_grad()
def update_ema(ema_model: nn.Module, model: nn.Module, *, decay: float, step: int) -> None:
    """Move averaged weights towards the model's, faster in the first steps; buffers are copied."""
    decay = min(decay, (1 + step) / (10 + step))
    for average, weight in zip(ema_model.parameters(), model.parameters(), strict=True):
        average.lerp_(weight, 1 - decay)
    for old, new in zip(ema_model.buffers(), model.buffers(), strict=True):
        old.copy_(new)
