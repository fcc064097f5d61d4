"""Signal checks of a codec: tones, clicks, noise, silence and repeated coding, with target ranges.

    python tools/check_signals.py general-24k --data DIR           all checks, some minutes
    python tools/check_signals.py runs/mine --data DIR --quick     fewer and shorter signals, within a minute

DIR is a corpus with a manifest that has a valid split (read speech, music, rain); without it, a synthetic voice and
plucked strings replace the recordings, and their figures mean less. An exclamation mark marks figures outside their
target range; the exit status is 0 nevertheless.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from time import perf_counter

import codec
from codec.errors import CodecError
from codec.evaluation.signal_checks import Result, check_all, read_recordings, synthetic_recordings

UNITS = {"db": "dB", "dbfs": "dBFS", "khz": "kHz", "hz": "Hz", "pesq": "PESQ"}


def main() -> None:
    parser = argparse.ArgumentParser(description="Signal checks of a codec, with target ranges.")
    parser.add_argument("model", help="name of a shipped model, .safetensors file, or folder of a training run")
    parser.add_argument("--data", type=Path, help="corpus with a manifest (default: synthetic signals)")
    parser.add_argument("--json", type=Path, help="also write the figures to this JSON file")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter signals")
    arguments = parser.parse_args()

    model = codec.load(arguments.model, "cpu")
    rate, codebooks = model.frame_spec.sample_rate, model.frame_spec.num_codebooks
    recordings = read_recordings(arguments.data, rate=rate, quick=arguments.quick) if arguments.data else None
    counts = f"full = {codebooks}, half = {max(1, codebooks // 2)}, quarter = {max(1, codebooks // 4)} codebooks"
    print(f"{arguments.model}: {counts}; output minus input; ! is outside its target range")
    results: list[Result] = []
    started = perf_counter()
    for result in check_all(model, recordings or synthetic_recordings(rate), quick=arguments.quick):
        results.append(result)
        print(line(result), flush=True)
    aims = sum(result.aim(figure) is not None for result in results for figure in result.figures)
    missed = sum(len(result.missed()) for result in results)
    print(f"{missed} of {aims} aims missed; {perf_counter() - started:.0f} s")
    if arguments.json:
        arguments.json.write_text(json.dumps([as_row(result) for result in results], indent=1) + "\n")


def line(result: Result) -> str:
    """Format a check's figures, with target ranges in parentheses."""
    missed = result.missed()
    cells = []
    for figure, value in result.figures.items():
        aim = result.aim(figure)
        cells.append(f"{'!' if figure in missed else ''}{text(figure, value)}" + (f" ({aim})" if aim else ""))
    return f"{result.check:25} " + ", ".join(cells) + (f"  | {result.note}" if result.note else "")


def text(figure: str, value: float) -> str:
    """`worst_db`, -3.21 -> "worst -3.2 dB"; shares, ratios and correlations have two decimals, counts none."""
    words = [UNITS.get(word, word) for word in figure.split("_")]
    match words[-1]:
        case "dB" | "dBFS" as unit:
            return f"{' '.join(words[:-1])} {value:.1f} {unit}"
        case "samples":
            return f"{' '.join(words)} {value:.0f}"
        case "share":
            return f"{' '.join(words[:-1])} {value:.2f}"
    return f"{' '.join(words)} {value:.2f}"


def as_row(result: Result) -> dict[str, object]:
    """Convert a result to JSON; undefined figures are null."""
    figures = {name: None if math.isnan(value) else value for name, value in result.figures.items()}
    aims = {name: str(aim) for name in figures if (aim := result.aim(name))}
    return {"check": result.check, "figures": figures, "aims": aims, "missed": result.missed(), "note": result.note}


if __name__ == "__main__":
    try:
        main()
    except CodecError as error:
        sys.exit(f"check_signals: {error}")
