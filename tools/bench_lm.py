"""Speed of generation, step by step: our patterns, the bandwidth of memory, and transformers' MusicGen decoder.

    python tools/bench_lm.py digits-8k-lm                      the sizes of this language model, one row and eight
    python tools/bench_lm.py --width 512 --layers 12           these sizes, for the codes of --codec
    python tools/bench_lm.py digits-8k-lm --against musicgen   beside MusicGen's decoder of as many weights

All systems take turns and medians are shown, so that other load on the machine meets them alike; "cpu ms" is the
processor time of a step, which such load changes least. The floor is the time in which memory moves as many bytes as
the weights that a step reads have, at the rate at which it copied such an array in the same rounds, each byte moved
twice. Weights are random and every clip begins anew. The models alone take the most probable codes, "drawn" is with the
sampler (MusicGen: its own `generate`), "heard" is the model itself with the codec's decoder too, as `codec.generate`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch
from torch import Tensor, nn

from codec import pretrained
from codec.errors import CodecError, MissingDependency, UsageError
from codec.generation import generate
from codec.lm.conditioning import CodebookSpec
from codec.lm.patterns import PatternConfig
from codec.lm.sampling import generate_frames
from codec.lm.transformer import DepthConfig, TransformerConfig, TransformerLM
from codec.models.base import Codec
from codec.nn.linear import HalfLinear

LOOKED_UP = (
    "vectors.",
    "token_proj.",
    "class_conditioner.",
    "phase_embedding.",
    "text_encoder.",
    "model.decoder.embed",
)  # a few rows of these
UNUSED = "encoder_attn"  # MusicGen's attention to a text, which it is not given


@dataclass(frozen=True)
class System:
    """Something that makes clips, `run(batch, frames)`, in `steps(frames)` steps that read so many weights each."""

    name: str
    weights: int
    bytes: int
    steps: Callable[[int], int]
    run: Callable[[int, int], object]


@dataclass(frozen=True)
class Row:
    """Medians over the rounds."""

    threads: int
    batch: int
    name: str
    weights: int
    step_ms: float
    step_cpu_ms: float
    floor_ms: float
    tokens_per_second: float
    real_time: float
    real_time_by_cpu: float


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of generation, step by step.")
    parser.add_argument("model", nargs="?", help="language model whose sizes count: shipped name, file or training run")
    parser.add_argument("--codec", help="whose codes: that of the model, or the default one")
    for name, size in (("width", 256), ("layers", 6), ("heads", 4), ("context", 512)):
        parser.add_argument(f"--{name}", type=int, default=size, help=f"without a model (default {size})")
    parser.add_argument("--codebooks", dest="num_codebooks", type=int, default=8, help="without a model (default 8)")
    parser.add_argument("--against", choices=["musicgen"], help="another system beside ours")
    parser.add_argument("--frames", type=int, default=50, help="of a clip (default 50)")
    parser.add_argument("--rounds", type=int, default=9, help="clips of every system (default 9)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="rows side by side (default 1 8)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads (default 1 2)")
    parser.add_argument("--json", type=Path, help="write the numbers there too")
    arguments = parser.parse_args()

    model, codec = chosen(arguments)
    ours = [system(name, untrained(config, model.source)) for name, config in variants(model.config).items()]
    delay = untrained(variants(model.config)["delay"], model.source)
    others = musicgen(ours[0].weights, model) if arguments.against else []
    systems = [*ours, *others, drawn(delay), heard(model, codec)]
    rows = [
        row
        for threads in arguments.threads
        for batch in arguments.batch
        for row in measured(
            systems,
            model.source.num_codebooks,
            codec.frame_spec.frame_rate,
            threads=threads,
            batch=batch,
            frames=arguments.frames,
            rounds=arguments.rounds,
        )
    ]
    show(rows, arguments.frames, arguments.rounds)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


def chosen(arguments: argparse.Namespace) -> tuple[TransformerLM, Codec]:
    """The language model, with random weights where none is named, and the codec whose codes it makes."""
    if arguments.model:
        model = pretrained.load_lm(arguments.model, "cpu")
        if not isinstance(model, TransformerLM):
            raise UsageError(f"{arguments.model} is no transformer: name one, or sizes")
        return model, pretrained.codec_of(model, arguments.codec)
    codec = pretrained.load(arguments.codec or pretrained.DEFAULT, "cpu")
    vectors = codec.quantizer.codebook_vectors()
    source = CodebookSpec(
        codec=codec.name or "",
        weights_hash=codec.weights_hash or "",
        num_codebooks=codec.check_codebooks(arguments.num_codebooks),
        codebook_size=codec.config.codebook_size,
        dim=64 if vectors is None else vectors.shape[2],
    )
    sizes = {name: getattr(arguments, name) for name in ("width", "layers", "heads", "context")}
    return untrained(TransformerConfig(**sizes), source), codec


def variants(config: TransformerConfig) -> dict[str, TransformerConfig]:
    """The same sizes with each way to decide the codebooks."""
    delay, depth = config.pattern, config.depth
    if delay.kind != "delay" or depth:
        delay = PatternConfig()
    return {
        "delay": config.model_copy(update={"pattern": delay, "depth": None}),
        "flatten": config.model_copy(update={"pattern": PatternConfig(kind="flatten"), "depth": None}),
        "depth": config.model_copy(update={"pattern": PatternConfig(kind="parallel"), "depth": depth or DepthConfig()}),
    }


def untrained(config: TransformerConfig, source: CodebookSpec) -> TransformerLM:
    """Random weights, rounded as those of a shipped model."""
    torch.manual_seed(0)
    model = TransformerLM(config, source).eval()
    for weight in model.parameters():
        weight.data = weight.data.half().float()
    return model.prepare_for_inference()


# Systems


def system(name: str, model: TransformerLM) -> System:
    """Our own model alone."""

    def run(batch: int, frames: int) -> None:
        steps = model.pattern.steps(frames)
        holes = (model.pattern.cells(0, steps) < 0).T  # [steps, codebooks]
        state = model.initial_state(model.conditioning([{}] * batch))
        column = torch.full((batch, model.source.num_codebooks), model.special_token)
        for special_token in holes:

            def pick(logits: Tensor, first: int, special_token: Tensor = special_token) -> Tensor:
                return torch.where(
                    special_token[first : first + logits.shape[1]], model.special_token, logits[..., :-1].argmax(dim=-1)
                )

            context, state = model.forward_step(column, state)
            column = model.decode_step(context, pick)

    return System(name, *weights_read(model), model.pattern.steps, run)


def drawn(model: TransformerLM) -> System:
    """Codes by way of the sampler."""

    def run(batch: int, frames: int) -> None:
        for _ in generate_frames(model, seeds=range(batch), frames=frames, stop=False):
            pass

    return System("delay, drawn", *weights_read(model), model.pattern.steps, run)


def heard(model: TransformerLM, codec: Codec) -> System:
    """Audio of a language model, by way of the sampler, the codec's decoder and sessions."""

    def run(batch: int, frames: int) -> None:
        seconds = frames / codec.frame_spec.frame_rate
        for _ in generate(model, codec, seed=range(batch), seconds=seconds):
            pass

    kind = "depth" if model.config.depth else model.config.pattern.kind
    return System(f"{kind}, heard", *weights_read(model), model.pattern.steps, run)


def musicgen(weights: int, like: TransformerLM) -> list[System]:
    """MusicGen's decoder and its cache, as wide and as deep, with the delay pattern and as many weights as `weights`.

    Once alone, with what no generation can do without, and once as its own `generate` drives it.
    """
    try:
        transformers = import_module("transformers")
        cache = transformers.DynamicCache
    except ImportError as error:
        raise MissingDependency(f"MusicGen cannot be imported ({error}): pip install transformers") from error
    config, source = like.config, like.source

    def build(hidden: int) -> Any:
        sizes = transformers.MusicgenDecoderConfig(
            vocab_size=source.codebook_size,
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            ffn_dim=hidden,
            num_codebooks=source.num_codebooks,
            pad_token_id=source.codebook_size,
            bos_token_id=source.codebook_size,
        )
        return transformers.MusicgenForCausalLM(sizes).eval()

    each = 2 * config.width * config.layers  # weights for one more hidden unit
    model = build(max(1, round((weights - weights_read(build(1))[0]) / each) + 1))
    model.generation_config.decoder_start_token_id = source.codebook_size

    def run(batch: int, frames: int) -> None:
        start = torch.full((batch * source.num_codebooks, 1), source.codebook_size)
        steps = frames + source.num_codebooks - 1
        codes, pattern = model.build_delay_pattern_mask(start, source.codebook_size, max_length=steps + 1)
        known = cache(config=model.config)
        for _ in range(steps):
            codes = model.apply_delay_pattern_mask(codes, pattern)
            out = model(codes[:, -1:], past_key_values=known, use_cache=True)
            codes = torch.cat([codes, out.logits[:, -1:].argmax(dim=-1)], dim=1)

    def drive(batch: int, frames: int) -> None:
        start = torch.full((batch * source.num_codebooks, 1), source.codebook_size)
        there = torch.ones(batch, 1, dtype=torch.int64)
        length = {"max_new_tokens": frames + source.num_codebooks - 1, "num_return_sequences": 1}
        model.generate(start, attention_mask=there, do_sample=True, **length)

    return [
        System(name, *weights_read(model), lambda frames: frames + source.num_codebooks - 1, one)
        for name, one in (("MusicGen", run), ("MusicGen, drawn", drive))
    ]


def weights_read(model: nn.Module) -> tuple[int, int]:
    """Weights that a step multiplies with, and their bytes."""
    weights: dict[str, Tensor] = dict(model.named_parameters())
    for name, module in model.named_modules():
        if isinstance(module, HalfLinear):
            weights[f"{name}.weight"] = module.weight.half()
    read = [weight for name, weight in weights.items() if not name.startswith(LOOKED_UP) and UNUSED not in name]
    return sum(weight.numel() for weight in read), sum(weight.nbytes for weight in read)


# Measuring


@torch.inference_mode()
def measured(
    systems: Iterable[System],
    num_codebooks: int,
    frame_rate: float,
    *,
    threads: int,
    batch: int,
    frames: int,
    rounds: int,
) -> list[Row]:
    """A row for each system."""
    torch.set_num_threads(threads)
    jobs: dict[str, Callable[[], object]] = {}
    for one in systems:
        source = torch.ones(one.bytes // 4)
        target = torch.empty_like(source)
        jobs[one.name] = lambda one=one: one.run(batch, frames)  # type: ignore[misc]
        jobs[f"copy for {one.name}"] = lambda source=source, target=target: target.copy_(source)  # type: ignore[misc]
    wall: dict[str, list[float]] = {name: [] for name in jobs}
    cpu: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(rounds + 1):
        for name, job in jobs.items():
            began, used = perf_counter(), process_time()
            job()
            if turn:  # the first one warms up
                wall[name].append(perf_counter() - began)
                cpu[name].append(process_time() - used)
    rows = []
    for one in systems:
        steps = one.steps(frames)
        clip, clip_cpu = statistics.median(wall[one.name]), statistics.median(cpu[one.name])
        rows.append(
            Row(
                threads=threads,
                batch=batch,
                name=one.name,
                weights=one.weights,
                step_ms=1000 * clip / steps,
                step_cpu_ms=1000 * clip_cpu / steps,
                floor_ms=1000 * statistics.median(wall[f"copy for {one.name}"]) / 2,
                tokens_per_second=batch * num_codebooks * frames / clip,
                real_time=frames / frame_rate / clip,
                real_time_by_cpu=frames / frame_rate / clip_cpu,
            )
        )
    return rows


def show(rows: list[Row], frames: int, rounds: int) -> None:
    """Print a table for each number of threads and rows."""
    print(f"medians of {rounds} interleaved rounds, clips of {frames} frames; × real time of each row of the batch")
    for threads, batch in dict.fromkeys((row.threads, row.batch) for row in rows):
        some = [row for row in rows if (row.threads, row.batch) == (threads, batch)]
        theirs = next((row for row in some if row.name == "MusicGen"), None)
        print(f"\n{threads} thread{'s' * (threads > 1)}, batch {batch}")
        heads = f"{'':16}{'M weights':>10}{'ms/step':>9}{'cpu ms':>8}{'floor ms':>10}{'× floor':>9}{'tokens/s':>10}"
        print(f"{heads}{'× real time':>13}{'by cpu':>8}" + (f"{'× MusicGen':>12}{'by cpu':>8}" if theirs else ""))
        for row in some:
            print(
                f"{row.name:16}{row.weights / 1e6:10.2f}{row.step_ms:9.2f}{row.step_cpu_ms:8.2f}{row.floor_ms:10.2f}"
                f"{row.step_ms / row.floor_ms:9.1f}{row.tokens_per_second:10.0f}{row.real_time:13.1f}"
                f"{row.real_time_by_cpu:8.1f}"
                + (
                    f"{row.real_time / theirs.real_time:12.2f}{row.real_time_by_cpu / theirs.real_time_by_cpu:8.2f}"
                    if theirs
                    else ""
                )
            )


if __name__ == "__main__":
    try:
        main()
    except CodecError as error:
        sys.exit(f"bench_lm: {error}")
