"""Computations in the form that exporters need, because they cannot follow a branch on values or on varying sizes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Rows: TypeAlias = tuple[Tensor, ...]
"""Tensors [rows, ...]."""


def is_exporting() -> bool:
    """Whether `torch.export` is recording a graph."""
    return hasattr(torch.compiler, "is_exporting") and torch.compiler.is_exporting()


def for_rows(function: Callable[..., Rows], where: Tensor, inputs: Rows, otherwise: Rows) -> Rows:
    """`function(*inputs)` in the rows of the mask `where` [rows], and `otherwise` in the others.

    Rows outside of the mask are not computed, because most masks have few rows or none. An exported graph computes all
    rows, or none if the mask is empty.
    """
    if is_exporting():
        return exported_for_rows(function, where, inputs, otherwise)
    few = where.nonzero()[:, 0]
    if not len(few):
        return otherwise
    found = function(*(rows[few] for rows in inputs))
    return tuple(rows.index_copy(0, few, new) for rows, new in zip(otherwise, found, strict=True))


def exported_for_rows(function: Callable[..., Rows], where: Tensor, inputs: Rows, otherwise: Rows) -> Rows:
    """`for_rows` with a branch that is a part of the graph."""

    def some(where: Tensor, *rows: Tensor) -> Rows:
        found = function(*rows[: len(inputs)])
        masks = (where.view(-1, *[1] * (new.ndim - 1)) for new in found)
        return tuple(map(torch.where, masks, found, rows[len(inputs) :]))

    def none(where: Tensor, *rows: Tensor) -> Rows:
        return tuple(one.clone() for one in rows[len(inputs) :])

    results: Rows = torch.cond(where.any(), some, none, (where, *inputs, *otherwise))
    return results


class Cosines(nn.Module):
    """cos(2 pi index / period) of integers [...], by a table.

    Exported graphs compute matrices of cosines when they are loaded, because stored matrices would make the files
    larger. They use this table, because some runtimes lack float64, and large angles in float32 are inexact.
    """

    table: Tensor

    def __init__(self, period: int) -> None:
        super().__init__()
        self.period = period
        angles = torch.arange(period, dtype=torch.float64) * (2 * math.pi / period)
        self.register_buffer("table", angles.cos().float()[:, None], persistent=False)

    def forward(self, index: Tensor) -> Tensor:
        return F.embedding(index % self.period, self.table)[..., 0]

    def sine(self, index: Tensor) -> Tensor:
        """The sines, for a period that is a multiple of 4."""
        sines: Tensor = self(index + 3 * self.period // 4)
        return sines
