"""Plot quality against bit rate from the JSON of `codec evaluate`, with baselines and published values.

    python tools/plot_rates.py evaluation.json --out docs/images/rate-quality.svg
    python tools/plot_rates.py evaluation.json --out music.svg --domain music --measures visqol_audio mel_dac
    python tools/plot_rates.py new.json old.json --out both.svg       several models

The JSON is that of `codec evaluate --codebooks all --visqol --baseline opus:6,opus:8,opus:12 --json evaluation.json`.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections import defaultdict
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt


class Measure(NamedTuple):
    """Label and direction of a measure."""

    label: str
    lower_is_better: bool = False


MEASURES = {
    "pesq_wb": Measure("PESQ-wb"),
    "visqol_speech": Measure("ViSQOL, speech mode"),
    "visqol_audio": Measure("ViSQOL, audio mode"),
    "stoi": Measure("STOI"),
    "si_sdr": Measure("SI-SDR, dB"),
    "mel_dac": Measure("mel distance (mel_dac)", lower_is_better=True),
    "stft_dac": Measure("STFT distance (stft_dac)", lower_is_better=True),
}
# (kbit/s of codes, value) from the named sources, on other recordings: only the measure is the same.
PUBLISHED = {
    # LibriSpeech test-clean: table of OpenMOSS/MOSS-Audio-Tokenizer's README at 010cf64, 24 kHz models
    ("speech", "pesq_wb"): {
        "EnCodec": [(1.5, 1.56), (4.5, 2.46)],
        "DAC": [(1.5, 1.48), (3.0, 2.31), (6.0, 3.41)],
    },
    # DAC (Kumar et al. 2023), table 3: speech, music and sounds at 44.1 kHz; EnCodec is limited to 12 kHz
    ("", "visqol_audio"): {
        "EnCodec": [(1.5, 2.82), (3.0, 2.94), (6.0, 3.05), (12.0, 3.13)],
        "DAC": [(1.78, 3.76), (2.67, 3.90), (5.33, 4.09), (8.0, 4.18)],
    },
}
MODELS = ("#1f4e9c", "#8a2f8f", "#0a7d6c")
BASELINES = ("#c05a00", "#7a7a00", "#444444")
PUBLISHED_COLORS = {"EnCodec": "#888888", "DAC": "#555555"}

Points = list[tuple[float, float]]


def curves(evaluation: dict[str, Any], domain: str, measure: str, rate: str) -> dict[tuple[str, bool], Points]:
    """(kbit/s, value) of every codec by (name, is a model), in order of bit rate.

    Rows are those of the domain; "all" is all files. Bit rates of one baseline (Opus 6, Opus 8) make one curve. The
    baseline `original` is omitted.
    """
    found: dict[tuple[str, bool], Points] = defaultdict(list)
    names = [row["group"] for row in evaluation["rows"] if row["name"] == domain]
    if not names and domain == "speech" and scored_as_speech(evaluation):
        domain, names = "all", ["all"]  # without a manifest there are no domains
    group = min(names, key=("all", "domain", "set").index, default="")  # a domain and a set may have one name
    for row in evaluation["rows"]:
        value, kbps = row["measures"].get(measure), row["measures"].get(rate)
        if (row["group"], row["name"]) != (group, domain) or value is None or not kbps or row["codec"] == "original":
            continue
        ours = bool(row["codebooks"])
        found[row["codec"] if ours else program(row["codec"]), ours].append((kbps, value))
    return {key: sorted(points) for key, points in found.items()}


def scored_as_speech(evaluation: dict[str, Any]) -> bool:
    """Whether every file was scored as speech."""
    rows = [row for row in evaluation["rows"] if row["name"] == "all"]
    return bool(rows) and all(row["measures"].get("pesq_wb") is not None for row in rows)


def program(codec: str) -> str:
    """The name of a baseline without its bit rate: "opus:12 (libopus 1.3.1)" -> "opus (libopus 1.3.1)"."""
    return re.sub(r":[\d.]+", "", codec)


def published(domain: str, measure: str) -> dict[str, Points]:
    """Published curves of a measure for a domain, by codec."""
    return PUBLISHED.get((domain, measure)) or PUBLISHED.get(("", measure), {})


def chosen(evaluations: list[dict[str, Any]], domain: str, rate: str) -> list[str]:
    """Default measures: PESQ, and one that no loss imitates: ViSQOL if the JSON has it, else `mel_dac`."""
    order = [("pesq_wb",), ("visqol_speech", "visqol_audio", "mel_dac")]
    has = {name for name in MEASURES for each in evaluations if curves(each, domain, name, rate)}
    return [next(name for name in names if name in has) for names in order if has & set(names)]


def plot(evaluations: list[dict[str, Any]], measures: list[str], *, domain: str, rate: str, out: Path) -> None:
    """Draw one panel per measure."""
    style: Any = {
        "font.size": 11,
        "svg.hashsalt": "codec",
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with plt.rc_context(style):
        figure, axes = plt.subplots(1, len(measures), figsize=(5.2 * len(measures), 4.2), squeeze=False)
        for panel, name in zip(axes[0], measures, strict=True):
            draw(panel, evaluations, name, domain=domain, rate=rate)
        handles: dict[str, Any] = {}
        for panel in axes[0]:
            handles |= {label: handle for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
        columns = max(2, len(measures))
        figure.legend(handles.values(), handles.keys(), loc="upper center", ncols=columns, frameon=False)
        rows = math.ceil(len(handles) / columns)
        figure.tight_layout(rect=(0, 0, 1, 1 - 0.07 * rows))
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None, dpi=150)
        plt.close(figure)


def draw(panel: Any, evaluations: list[dict[str, Any]], measure: str, *, domain: str, rate: str) -> None:
    """Draw one panel: models as solid lines, baselines dashed, published values as gray markers."""
    found: dict[tuple[str, bool], Points] = {}
    for each in evaluations:
        found |= curves(each, domain, measure, rate)  # a baseline in several files is drawn once
    for ours, colors, form in ((True, MODELS, "o-"), (False, BASELINES, "s--")):
        of_kind = [(name, points) for (name, mine), points in found.items() if mine == ours]
        for (name, points), color in zip(of_kind, cycle(colors), strict=False):
            panel.plot(*zip(*points, strict=True), form, color=color, label=name, lw=2 if ours else 1.5, ms=5)
    for name, points in published(domain, measure).items():
        label = f"{name} (published, other recordings)"
        panel.plot(*zip(*points, strict=True), "^:", color=PUBLISHED_COLORS[name], label=label, mfc="none", lw=1)
    panel.set_xscale("log", base=2)
    panel.set_xticks([0.5, 1, 2, 4, 8, 16], labels=["0.5", "1", "2", "4", "8", "16"])
    panel.minorticks_off()
    panel.set_xlabel("kbit/s of codes" if rate == "payload_kbps" else "kbit/s of whole files")
    better = "lower is better" if MEASURES[measure].lower_is_better else "higher is better"
    panel.set_title(f"{domain}: {MEASURES[measure].label} ({better})", fontsize=11)
    panel.grid(alpha=0.3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", nargs="+", type=Path, help="output of `codec evaluate --json`")
    parser.add_argument("--out", type=Path, required=True, help="file of the figure: .svg, .png or .pdf")
    parser.add_argument("--domain", default="speech", help='a domain of the JSON, or "all"')
    parser.add_argument("--measures", nargs="+", choices=MEASURES, help="panels (PESQ, and ViSQOL or mel_dac)")
    parser.add_argument("--whole-files", action="store_true", help="bit rates of whole files, with headers")
    options = parser.parse_args()
    evaluations = [json.loads(path.read_text("utf-8")) for path in options.json]
    rate = "file_kbps" if options.whole_files else "payload_kbps"
    measures = options.measures or chosen(evaluations, options.domain, rate)
    empty = [name for name in measures if not any(curves(each, options.domain, name, rate) for each in evaluations)]
    if empty or not measures:
        names = sorted({row["name"] for each in evaluations for row in each["rows"]})
        parser.error(f"no {' or '.join(empty) or 'measures'} of {options.domain}: the rows are of {', '.join(names)}")
    plot(evaluations, measures, domain=options.domain, rate=rate, out=options.out)


if __name__ == "__main__":
    main()
