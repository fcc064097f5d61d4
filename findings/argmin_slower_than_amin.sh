#!/usr/bin/env bash
# What: torch.argmin and argmax along the last axis take 5 to 13 times as long as amin on x86 CPUs, and longer than torch.min, which returns the
#   minimum and its index. numpy's argmin of the same memory takes about as long as amin.
# Why it surprises: the index comes with the minimum, so argmin looks like the cheaper half of min. amin and numpy's argmin are vectorized;
#   argmin and min compare one value at a time. Nothing but a profile shows it.
# Consequence: the search of a vector quantizer with 1024 entries of 128 dimensions spends a third of its time in argmin, as much as half the matrix
#   product. distances.numpy().argmin(axis=1) shares the memory, gives the same indices (the first of equal ones), and all but removes that part.
# Versions: torch 2.13.0 (2.14.1 too), numpy 2.4.6. One thread; CPU time, interleaved medians. Only ratios are compared.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6
cd "$work"
cat >measure.py <<'EOF'
import statistics
import sys
import time

import torch

torch.set_num_threads(1)
print("torch", torch.__version__, torch.backends.cpu.get_cpu_capability())
same = True
for rows, entries in ((1024, 1024), (4096, 256), (64, 16384)):
    distances = torch.randn(rows, entries, generator=torch.Generator().manual_seed(0))
    runs = {
        "argmin": lambda: distances.argmin(dim=1),
        "argmax": lambda: distances.argmax(dim=1),
        "min": lambda: distances.min(dim=1),
        "amin": lambda: distances.amin(dim=1),
        "numpy": lambda: distances.numpy().argmin(axis=1),
    }
    assert torch.equal(runs["argmin"](), torch.from_numpy(runs["numpy"]()))
    assert torch.equal(runs["argmin"](), runs["min"]().indices)
    spent = {name: [] for name in runs}
    for _ in range(41):
        for name, run in runs.items():
            begin = time.process_time()
            run()
            spent[name].append(time.process_time() - begin)
    times = {name: 1e3 * statistics.median(values) for name, values in spent.items()}
    print(f"{rows} x {entries}: " + ", ".join(f"{name} {value:.2f} ms" for name, value in times.items()))
    same &= min(times["argmin"], times["argmax"]) > 3 * max(times["amin"], times["numpy"]) and times["argmin"] > 1.2 * times["min"]
print("expected: argmin costs what amin costs, or less than min")
print("seen: argmin costs many times amin, and more than min" if same else "the behavior has changed")
sys.exit(not same)
EOF
venv/bin/python measure.py
