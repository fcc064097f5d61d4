"""Layers on a few frames at a time, compiled by numba, for live streams on a CPU.

For one frame, torch spends most of its time on starting small operations, and the rest on reading the weights. These
loops compute a whole block at once, and read weights that are exact in fp16 as fp16, which halves the bytes. Sums are
float32. Arrays are float32 [rows, ...], where a row is a frame of a signal. numba keeps the compiled loops on disk.
"""

from __future__ import annotations

import inspect
import math
import platform
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray
from torch import Tensor, nn

Array: TypeAlias = NDArray[Any]

ERF_TOP = tuple(
    np.float32(value)
    for value in (
        -2.72614225801306e-10,
        2.77068142495902e-08,
        -2.10102402082508e-06,
        -5.69250639462346e-05,
        -7.34990630326855e-04,
        -2.95459980854025e-03,
        -1.60960333262415e-02,
    )
)
ERF_BOTTOM = tuple(
    np.float32(value)
    for value in (
        -1.45660718464996e-05,
        -2.13374055278905e-04,
        -1.68282697438203e-03,
        -7.37332916720468e-03,
        -1.42647390514189e-02,
    )
)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that numba compiles when it is first called, kept on disk if numba finds a folder for that."""
    options: dict[str, Any] = {"fastmath": {"contract", "reassoc", "nsz"}, "nogil": True}
    function = inspect.unwrap(function)  # the tests wrap functions to check their arguments
    try:
        loops: Callable[..., Any] = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written to
        loops = numba.njit(**options)(function)
    return loops


class Product(NamedTuple):
    """A matrix [outputs, inputs], as bits of fp16 if they are exact, and a bias [outputs]."""

    weight: Array
    bias: Array


class Block(NamedTuple):
    """The weights of a `ConvNeXtBlock`."""

    taps: Array  # [kernel, width]
    taps_bias: Array
    norm: Array
    norm_bias: Array
    expand: Array
    expand_bias: Array
    reduce: Array
    reduce_bias: Array
    scale: Array


def product(weight: Tensor, bias: Tensor | None = None) -> Product:
    """The product with a matrix [outputs, inputs]."""
    zeros = torch.zeros(len(weight))
    return Product(stored(array(weight)), array(zeros if bias is None else bias))


def layer(linear: nn.Linear) -> Product:
    """The product of a linear layer."""
    return product(linear.weight, linear.bias)


def block(module: Any) -> Block:
    """The weights of a `codec.nn.conv.ConvNeXtBlock`."""
    taps, norm = module.depthwise, module.norm
    return Block(
        array(taps.weight[:, 0].T),
        array(taps.bias),
        array(norm.weight),
        array(norm.bias),
        *layer(module.in_proj),
        *layer(module.out_proj),
        array(module.scale),
    )


def array(tensor: Tensor) -> Array:
    """A contiguous float32 copy."""
    return np.array(tensor.detach().float().numpy(), np.float32, order="C")


def stored(weight: Array) -> Array:
    """The bits of fp16 if they are exact and this CPU converts them, else the float32 values."""
    with np.errstate(over="ignore"):
        half = weight.astype(np.float16)
    return half.view(np.uint16) if converts_half() and np.array_equal(half, weight) else weight


def converts_half() -> bool:
    """Whether the CPU has instructions from fp16 to float32: all with AVX2 and all 64-bit ARM."""
    avx2 = torch.backends.cpu.get_cpu_capability().startswith(("AVX2", "AVX512"))
    return avx2 or platform.machine().lower() in ("arm64", "aarch64")


def _number(_context: Any, stored: Any) -> Any:
    """A stored weight as float32, for numba."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        (value,) = arguments
        if stored == types.float32:
            return value
        return builder.fpext(builder.bitcast(value, ir.HalfType()), ir.FloatType())

    return types.float32(stored), generate


number: Any = intrinsic(_number)


@compiled
def multiply(x: Array, weight: Array, bias: Array) -> Array:
    """The product [rows, outputs] of x [rows, inputs] with a `Product`.

    It reads the four quarters of the matrix side by side, because a CPU prefetches four streams of memory in less time
    than one.
    """
    rows, inputs = x.shape
    outputs = weight.shape[0]
    quarter = outputs // 4
    y = np.empty((rows, outputs), np.float32)
    for first in range(quarter):
        second, third, fourth = first + quarter, first + 2 * quarter, first + 3 * quarter
        for row in range(rows):
            one, two, three, four = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
            for index in range(inputs):
                value = x[row, index]
                one += number(weight[first, index]) * value
                two += number(weight[second, index]) * value
                three += number(weight[third, index]) * value
                four += number(weight[fourth, index]) * value
            y[row, first], y[row, second] = one + bias[first], two + bias[second]
            y[row, third], y[row, fourth] = three + bias[third], four + bias[fourth]
    for output in range(4 * quarter, outputs):
        for row in range(rows):
            total = np.float32(0)
            for index in range(inputs):
                total += number(weight[output, index]) * x[row, index]
            y[row, output] = total + bias[output]
    return y


@compiled
def normalize(x: Array, weight: Array, bias: Array) -> Array:
    """Layer normalization of x [rows, width], with torch's epsilon."""
    y = np.empty_like(x)
    count = np.float32(x.shape[1])
    for row in range(x.shape[0]):
        mean = np.float32(0)
        for index in range(x.shape[1]):
            mean += x[row, index]
        mean /= count
        square = np.float32(0)
        for index in range(x.shape[1]):
            square += (x[row, index] - mean) * (x[row, index] - mean)
        factor = np.float32(1) / np.float32(math.sqrt(square / count + np.float32(1e-5)))
        for index in range(x.shape[1]):
            y[row, index] = (x[row, index] - mean) * factor * weight[index] + bias[index]
    return y


@compiled
def gelu(x: Array) -> None:
    """GELU of x [rows, width] in place, with the rational approximation of erf of Eigen and XLA (error below 1e-6)."""
    for row in range(x.shape[0]):
        for index in range(x.shape[1]):
            value = x[row, index]
            z = min(max(value * np.float32(0.7071067811865476), np.float32(-4)), np.float32(4))
            square = z * z
            top, bottom = ERF_TOP[0], ERF_BOTTOM[0]
            for factor in ERF_TOP[1:]:
                top = top * square + factor
            for factor in ERF_BOTTOM[1:]:
                bottom = bottom * square + factor
            x[row, index] = np.float32(0.5) * value * (np.float32(1) + z * top / bottom)


@compiled
def convolve(x: Array, context: Array, taps: Array, bias: Array, y: Array, after: Array) -> None:
    """The depthwise convolution y [batch * frames, width] of x [batch, frames, width], and the next context.

    `context` [batch, kernel - 1, width] are the frames before.
    """
    batch, frames, width = x.shape
    before = context.shape[1]
    for signal in range(batch):
        for frame in range(frames):
            row = signal * frames + frame
            for index in range(width):
                y[row, index] = bias[index]
            for tap in range(before + 1):
                at = frame + tap - before
                for index in range(width):
                    value = x[signal, at, index] if at >= 0 else context[signal, before + at, index]
                    y[row, index] += value * taps[tap, index]
        for place in range(before):
            at = frames + place - before
            for index in range(width):
                after[signal, place, index] = x[signal, at, index] if at >= 0 else context[signal, before + at, index]


@compiled
def convnext(
    x: Array,
    context: Array,
    taps: Array,
    taps_bias: Array,
    norm: Array,
    norm_bias: Array,
    expand: Array,
    expand_bias: Array,
    reduce: Array,
    reduce_bias: Array,
    scale: Array,
) -> tuple[Array, Array]:
    """A `ConvNeXtBlock` on x [batch, frames, width]: its output and the next context."""
    batch, frames, width = x.shape
    y, after, out = np.empty((batch * frames, width), np.float32), np.empty_like(context), np.empty_like(x)
    convolve(x, context, taps, taps_bias, y, after)
    inner = multiply(normalize(y, norm, norm_bias), expand, expand_bias)
    gelu(inner)
    y = multiply(inner, reduce, reduce_bias)
    for signal in range(batch):
        for frame in range(frames):
            for index in range(width):
                out[signal, frame, index] = x[signal, frame, index] + scale[index] * y[signal * frames + frame, index]
    return out, after


def entry_columns(entries: Array) -> Array:
    """Entries [codebooks, entries, dim] as [codebooks, dim, entries], dim a multiple of 4 with zeros at its end."""
    missing = -entries.shape[2] % 4
    return np.ascontiguousarray(np.pad(entries, ((0, 0), (0, 0), (0, missing))).swapaxes(1, 2))


@compiled
def entry_sums(entries: Array, codes: Array) -> Array:
    """Sums [rows, dim] of the entries that codes [rows, codebooks] select; a code of -1 adds nothing."""
    sums = np.zeros((codes.shape[0], entries.shape[2]), np.float32)
    for row in range(codes.shape[0]):
        for codebook in range(codes.shape[1]):
            entry = codes[row, codebook]
            for index in range(entries.shape[2] if entry >= 0 else 0):
                sums[row, index] += number(entries[codebook, entry, index])
    return sums


@compiled
def quad(x: Array, at: int) -> tuple[float, float, float, float]:
    """Elements `at` to `at` + 3 of x, times -2."""
    scale = np.float32(-2)
    return scale * x[at], scale * x[at + 1], scale * x[at + 2], scale * x[at + 3]


@compiled
def distances(columns: Array, norms: Array, codebook: int, beams: Array, energy: Array, count: int, out: Array) -> None:
    """Errors out [beams, entries] of all entries of a codebook for the first `count` of `beams` [beams, dim].

    `columns` [codebooks, dim, entries] are the entries. The loop takes four beams and four dimensions at a time,
    because these share the reads of entries and errors; `beams` and `dim` are padded to multiples of 4.
    """
    dim, size = columns.shape[1:]
    for first in range(0, count, 4):
        one, two, three, four = out[first], out[first + 1], out[first + 2], out[first + 3]
        for entry in range(size):
            norm = norms[codebook, entry]
            one[entry], two[entry] = norm + energy[first], norm + energy[first + 1]
            three[entry], four[entry] = norm + energy[first + 2], norm + energy[first + 3]
        for at in range(0, dim, 4):
            a, b = columns[codebook, at], columns[codebook, at + 1]
            c, d = columns[codebook, at + 2], columns[codebook, at + 3]
            a1, b1, c1, d1 = quad(beams[first], at)
            a2, b2, c2, d2 = quad(beams[first + 1], at)
            a3, b3, c3, d3 = quad(beams[first + 2], at)
            a4, b4, c4, d4 = quad(beams[first + 3], at)
            for entry in range(size):
                va, vb, vc, vd = number(a[entry]), number(b[entry]), number(c[entry]), number(d[entry])
                one[entry] += a1 * va + b1 * vb + c1 * vc + d1 * vd
                two[entry] += a2 * va + b2 * vb + c2 * vc + d2 * vd
                three[entry] += a3 * va + b3 * vb + c3 * vc + d3 * vd
                four[entry] += a4 * va + b4 * vb + c4 * vc + d4 * vd


@compiled
def lowest(errors: Array, beams: int, keep: int, best: Array, place: Array) -> int:
    """Find the lowest `keep` of errors [beams, entries], and return how many there are.

    They are written to `best`, lowest first, and their indices (beam * entries + entry) to `place`.
    """
    size, found = errors.shape[1], 0
    for beam in range(beams):
        for entry in range(size):
            error = errors[beam, entry]
            if found == keep and error >= best[keep - 1]:
                continue
            at = min(found, keep - 1)
            while at > 0 and best[at - 1] > error:
                best[at], place[at] = best[at - 1], place[at - 1]
                at -= 1
            best[at], place[at] = error, beam * size + entry
            found = min(found + 1, keep)
    return found


@compiled
def nearest_sums(rows: Array, entries: Array, columns: Array, norms: Array, most: int) -> Array:
    """Codes [rows, codebooks] of a beam search of `most` beams: see `ResidualVQ.search_distances`.

    `entries` [codebooks, entries, dim] are stored as the weight of a `Product`, `columns` are the same by
    `entry_columns`, and `norms` [codebooks, entries] are their squared lengths.
    """
    num_codebooks, size, dim = entries.shape
    codes = np.empty((rows.shape[0], num_codebooks), np.int64)
    padded, width = (most + 3) // 4 * 4, columns.shape[1]
    residual, after = np.zeros((padded, width), np.float32), np.zeros((padded, width), np.float32)
    chain, chain_after = np.zeros((most, num_codebooks), np.int64), np.zeros((most, num_codebooks), np.int64)
    energy, errors = np.zeros(padded, np.float32), np.empty((padded, size), np.float32)
    best, place = np.zeros(most, np.float32), np.zeros(most, np.int64)
    for row in range(rows.shape[0]):
        beams = 1
        energy[0] = 0
        for index in range(dim):
            residual[0, index] = rows[row, index]
        for codebook in range(num_codebooks):
            distances(columns, norms, codebook, residual, energy, beams, errors)
            beams = lowest(errors, beams, 1 if codebook == num_codebooks - 1 else most, best, place)
            for beam in range(beams):
                parent, entry = place[beam] // size, place[beam] % size
                for before in range(codebook):
                    chain_after[beam, before] = chain[parent, before]
                chain_after[beam, codebook] = entry
                square = np.float32(0)
                for index in range(dim):
                    value = residual[parent, index] - number(entries[codebook, entry, index])
                    after[beam, index] = value
                    square += value * value
                energy[beam] = square
            residual, after, chain, chain_after = after, residual, chain_after, chain
        for codebook in range(num_codebooks):
            codes[row, codebook] = chain[0, codebook]
    return codes
