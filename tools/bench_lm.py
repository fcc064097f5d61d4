"""Speed of generation per step: our patterns, the memory bandwidth, and the MusicGen decoder of transformers.

    python tools/bench_lm.py digits-8k-lm                      the sizes of this language model, batch 1 and 8
    python tools/bench_lm.py --width 512 --layers 12           these sizes, for the codes of --codec
    python tools/bench_lm.py digits-8k-lm --against musicgen   also MusicGen's decoder with as many parameters

Rounds are interleaved and medians are shown, so that other load on the machine affects all systems alike; "cpu ms" is
the CPU time of a step, which such load affects least. The floor is the time that memory needs to read the weights of a
step, from the time to copy an array of that size (read and written once) in the same rounds. Weights are random and
every clip starts from an empty state. Models alone take the most probable codes; "sampled" adds the sampler (MusicGen:
its own `generate`), "audio" is the model itself with the codec's decoder too, as `codec.generate`.
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

EMBEDDINGS = (
    "vectors.",
    "token_proj.",
    "class_conditioner.",
    "phase_embedding.",
    "text_encoder.",
    "model.decoder.embed",
)  # read by row
UNUSED = "encoder_attn"  # MusicGen's cross-attention, which is not used without a text


@dataclass(frozen=True)
class System:
    """A generator: `run(batch, frames)` makes clips in `steps(frames)` steps, which read `weights` parameters each."""

    name: str
    weights: int
    bytes: int
    steps: Callable[[int], int]
    run: Callable[[int, int], object]


@dataclass(frozen=True)
class Row:
    """Medians over the rounds of one system."""

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
    parser.add_argument("model", nargs="?", help="language model whose sizes to use: name, file, or training run")
    parser.add_argument("--codec", help="codec of the codes (default: the model's, or the default codec)")
    for name, size in (("width", 256), ("layers", 6), ("heads", 4), ("context", 512)):
        parser.add_argument(f"--{name}", type=int, default=size, help=f"without a model (default {size})")
    parser.add_argument("--codebooks", dest="num_codebooks", type=int, default=8, help="without a model (default 8)")
    parser.add_argument("--against", choices=["musicgen"], help="another system to compare with")
    parser.add_argument("--frames", type=int, default=50, help="frames of a clip (default 50)")
    parser.add_argument("--rounds", type=int, default=9, help="clips per system (default 9)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="batch sizes (default 1 8)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads (default 1 2)")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args()

    model, codec = chosen(arguments)
    ours = [system(name, untrained(config, model.source)) for name, config in variants(model.config).items()]
    delay = untrained(variants(model.config)["delay"], model.source)
    others = musicgen(ours[0].weights, model) if arguments.against else []
    systems = [*ours, *others, sampled(delay), audio(model, codec)]
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
    """The language model, with random weights if none is named, and the codec of its codes."""
    if arguments.model:
        model = pretrained.load_lm(arguments.model, "cpu")
        if not isinstance(model, TransformerLM):
            raise UsageError(f"{arguments.model} is not a transformer: name one, or sizes")
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
    """The same sizes with each way to decode the codebooks of a frame."""
    delay, depth = config.pattern, config.depth
    if delay.kind != "delay" or depth:
        delay = PatternConfig()
    return {
        "delay": config.model_copy(update={"pattern": delay, "depth": None}),
        "flatten": config.model_copy(update={"pattern": PatternConfig(kind="flatten"), "depth": None}),
        "depth": config.model_copy(update={"pattern": PatternConfig(kind="parallel"), "depth": depth or DepthConfig()}),
    }


def untrained(config: TransformerConfig, source: CodebookSpec) -> TransformerLM:
    """A model with random weights, rounded to fp16 as those of a shipped model."""
    torch.manual_seed(0)
    model = TransformerLM(config, source).eval()
    for weight in model.parameters():
        weight.data = weight.data.half().float()
    return model.prepare_for_inference()


# Systems


def system(name: str, model: TransformerLM) -> System:
    """A model of ours without sampler."""

    def run(batch: int, frames: int) -> None:
        steps = model.pattern.steps(frames)
        empty_cells = (model.pattern.cells(0, steps) < 0).T  # [steps, codebooks]
        state = model.initial_state(model.conditioning([{}] * batch))
        step_tokens = torch.full((batch, model.source.num_codebooks), model.special_token)
        for empty in empty_cells:

            def most_probable(logits: Tensor, first: int, empty: Tensor = empty) -> Tensor:
                codes = logits[..., :-1].argmax(dim=-1)
                return torch.where(empty[first : first + logits.shape[1]], model.special_token, codes)

            hidden, state = model.forward_step(step_tokens, state)
            step_tokens = model.decode_step(hidden, most_probable)

    return System(name, *weights_read(model), model.pattern.steps, run)


def sampled(model: TransformerLM) -> System:
    """A model of ours with the sampler."""

    def run(batch: int, frames: int) -> None:
        for _ in generate_frames(model, seeds=range(batch), frames=frames, stop=False):
            pass

    return System("delay, sampled", *weights_read(model), model.pattern.steps, run)


def audio(model: TransformerLM, codec: Codec) -> System:
    """A language model with sampler and codec, streamed."""

    def run(batch: int, frames: int) -> None:
        seconds = frames / codec.frame_spec.frame_rate
        for _ in generate(model, codec, seed=range(batch), seconds=seconds):
            pass

    kind = "depth" if model.config.depth else model.config.pattern.kind
    return System(f"{kind}, audio", *weights_read(model), model.pattern.steps, run)


def musicgen(weights: int, like: TransformerLM) -> list[System]:
    """MusicGen's decoder with its cache and delay pattern, of the same width and depth, and of `weights` parameters.

    Once without sampler, and once with its own `generate`.
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

    per_hidden_unit = 2 * config.width * config.layers  # parameters
    model = build(max(1, round((weights - weights_read(build(1))[0]) / per_hidden_unit) + 1))
    model.generation_config.decoder_start_token_id = source.codebook_size

    def run(batch: int, frames: int) -> None:
        start = torch.full((batch * source.num_codebooks, 1), source.codebook_size)
        steps = frames + source.num_codebooks - 1
        codes, pattern = model.build_delay_pattern_mask(start, source.codebook_size, max_length=steps + 1)
        kv_cache = cache(config=model.config)
        for _ in range(steps):
            codes = model.apply_delay_pattern_mask(codes, pattern)
            out = model(codes[:, -1:], past_key_values=kv_cache, use_cache=True)
            codes = torch.cat([codes, out.logits[:, -1:].argmax(dim=-1)], dim=1)

    def run_generate(batch: int, frames: int) -> None:
        start = torch.full((batch * source.num_codebooks, 1), source.codebook_size)
        attention_mask = torch.ones(batch, 1, dtype=torch.int64)
        length = {"max_new_tokens": frames + source.num_codebooks - 1, "num_return_sequences": 1}
        model.generate(start, attention_mask=attention_mask, do_sample=True, **length)

    return [
        System(name, *weights_read(model), lambda frames: frames + source.num_codebooks - 1, one)
        for name, one in (("MusicGen", run), ("MusicGen, sampled", run_generate))
    ]


def weights_read(model: nn.Module) -> tuple[int, int]:
    """Number of weights that a step multiplies with, and their bytes."""
    weights: dict[str, Tensor] = dict(model.named_parameters())
    for name, module in model.named_modules():
        if isinstance(module, HalfLinear):
            weights[f"{name}.weight"] = module.weight.half()
    read = [weight for name, weight in weights.items() if not name.startswith(EMBEDDINGS) and UNUSED not in name]
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
    """Measure all systems in interleaved rounds; one row each."""
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
            if turn:  # the first one is a warm-up
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
    """Print a table for each number of threads and batch size."""
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
