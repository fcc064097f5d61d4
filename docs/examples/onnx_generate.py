"""Generate audio with a language model and a codec of `codec export`: numpy and onnxruntime alone, without torch.

    codec export digits-8k-lm --onnx LM_DIR
    codec export digits-8k --onnx CODEC_DIR
    python docs/examples/onnx_generate.py LM_DIR CODEC_DIR seven.wav label=7 seed=0

The codes of a seed are those of `codec generate`. `seconds=2` gives that length; without it, the model ends the clip.
"""

import json
import sys
import wave
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnxruntime

PLANNED_STEPS = 64  # for which random numbers are drawn at once
MAX_FRAMES = 5000
Array: TypeAlias = np.ndarray[Any, Any]


class Graph:
    """A graph with its state, for `rows` rows."""

    def __init__(self, path: Path, rows: int) -> None:
        try:
            self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            self.about = json.loads(self.session.get_modelmeta().custom_metadata_map["codec"])
        except Exception as error:  # onnxruntime has a class of its own for each kind of damage
            sys.exit(f"{path} is missing, damaged or not of codec export ({str(error).splitlines()[0]})")
        self.outputs = [one.name for one in self.session.get_outputs()]
        self.rows = rows
        self.reset()

    def reset(self) -> None:
        states = self.about["states"]
        self.state = {one["name"]: np.zeros((self.rows, *one["shape"][1:]), one["dtype"]) for one in states}

    def __call__(self, **inputs: Array) -> Array:
        output, *after = self.session.run(None, inputs | self.state)
        self.state = dict(zip(self.state, after, strict=True))
        return np.array(output)


def generate(folder: Path, seed: int, frames: int | None = None, **conditions: str) -> Array:
    """Codes [codebooks, frames]: as many frames, or up to the model's end."""
    step = Graph(folder / "lm_step.onnx", 2)  # a row with the conditions, and one without them for guidance
    one_by_one = Graph(folder / "lm_codebook.onnx", 2) if step.outputs[0] == "hidden" else None
    given, random = conditioning(folder, step.about, conditions), np.random.default_rng(seed)
    codebooks, special = step.about["num_codebooks"], step.about["codebook_size"]  # the special token is the end, too
    guidance, temperature = np.float32(step.about["guidance"]), np.float32(step.about["temperature"])
    last, ended = frames or MAX_FRAMES, MAX_FRAMES
    codes, decided = np.zeros((codebooks, last), np.int64), np.full(codebooks, -1)
    tokens = np.full((2, codebooks), special)
    for number in count():
        if number % PLANNED_STEPS == 0:
            uniform = random.random((PLANNED_STEPS, codebooks + 1), np.float32)
        cells = frames_of_step(number, **step.about["pattern"])
        hidden = step(tokens=tokens, **given)
        tokens = np.full((2, codebooks), special)
        if one_by_one:
            one_by_one.reset()
        for codebook, frame in enumerate(cells):
            if one_by_one:
                before = tokens[:, max(codebook, 1) - 1]
                logits = one_by_one(hidden=hidden, token=before, codebook=np.array(codebook))
            else:
                logits = hidden[:, codebook]
            if 0 <= frame < ended:
                may_end = codebook == 0 and frames is None
                conditional, unconditional = logits[:, : special + may_end]
                mixed = (unconditional + guidance * (conditional - unconditional)).astype(np.float32)
                probs = np.exp((mixed - mixed.max()) / temperature)
                sums = np.cumsum(probs / probs.sum(), dtype=np.float64)
                point = uniform[number % PLANNED_STEPS, codebook] * sums[-1]
                tokens[:, codebook] = np.searchsorted(sums, point, side="right")
        if cells[0] >= 0 and tokens[0, 0] == special and ended == MAX_FRAMES:
            last = ended = min(last, cells[0])
            tokens[:, cells >= ended] = special
        kept = (cells >= 0) & (cells < last)
        codes[kept, cells[kept]] = tokens[0, kept]
        decided = np.maximum(decided, cells)
        if decided.min() >= last - 1:
            return codes[:, :last]
    raise AssertionError


def frames_of_step(step: int, delays: list[int], groups: list[int], block: int) -> Array:
    """The frame that each codebook decides in a step, -1 for none: see codec/lm/patterns.py."""
    period = block * (max(groups) + 1)
    frames = step // period * block + step % block - np.array(delays)
    return np.where((step % period // block == np.array(groups)) & (frames >= 0), frames, -1)


def conditioning(folder: Path, about: dict[str, Any], conditions: dict[str, str]) -> dict[str, Array]:
    """Inputs of every step: classes, and what the model makes of a text."""
    given: dict[str, Array] = {}
    classes = about["classes"]
    if wrong := {kind: name for kind, name in conditions.items() if name not in classes.get(kind, [name])}:
        sys.exit(f"the model knows no {wrong}: it knows {classes}")
    if classes:
        numbers = [names.index(conditions[kind]) if kind in conditions else -1 for kind, names in classes.items()]
        given["classes"] = np.array([numbers, [-1] * len(numbers)])
    if about["text"]:
        graph, text = Graph(folder / "lm_text.onnx", 2), list(conditions.get("text", "").encode())
        memory = graph.session.run(None, {"text": np.array([text, [-1] * len(text)], np.int64).reshape(2, -1)})
        given |= dict(zip(graph.outputs, memory, strict=True))
    return given


def main(lm: Path, codec: Path, target: Path, *options: str) -> None:
    settings = dict(option.split("=", 1) for option in options)
    decoder, seed = Graph(codec / "decoder.onnx", 1), int(settings.pop("seed", 0))
    about, made_by = decoder.about, Graph(lm / "lm_step.onnx", 2).about["codec"]
    if about["weights_hash"] != made_by["weights_hash"]:
        ours, theirs = (f"{one['model']} (weights {str(one['weights_hash'])[:12]})" for one in (made_by, about))
        sys.exit(f"{lm} generates codes of {ours}, and {codec} is of {theirs}: export the codec of these codes")
    rate, hop, delay = about["sample_rate"], about["hop"], about["decoder_delay"]
    length = round(float(settings.pop("seconds", 0)) * rate)
    codes = generate(lm, seed, -(-(length + delay) // hop) if length else None, **settings)
    absent = about["num_codebooks"] - len(codes)
    audio = decoder(codes=np.pad(codes, ((0, absent), (0, 0)), constant_values=-1)[None])[0, :, delay:]
    with wave.open(str(target), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes((audio[0, : length or None].clip(-1, 1) * 32767).round().astype("<i2").tobytes())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])
