#!/usr/bin/env bash
# What: the first call of a numba function with parallel=True raises torch's thread count from the 1 that OMP_NUM_THREADS=1 or
#   torch.set_num_threads(1) asked for to numba's own number (all cores), if torch has counted its threads in that Python thread before.
# Why it surprises: two libraries that know nothing of each other, whatever the order of their imports. Both end in one libgomp (equal SONAME), and
#   numba's OpenMP layer, when it starts its pool, sets the OpenMP count of the calling thread, which torch takes for its own. numba does not read
#   OMP_NUM_THREADS. With the workqueue layer, or when the first call is made by another Python thread, nothing happens. It happens only once: a torch.set_num_threads
#   afterwards holds through all later numba calls.
# Consequence: a measure computed between two batches (ViSQOL, resampling, librosa-like tools) changes the speed and the summation order of the
#   model calls after it; several workers with one thread each suddenly run all cores each. Set NUMBA_NUM_THREADS=1 too, or
#   NUMBA_THREADING_LAYER=workqueue, or call torch.set_num_threads again after the first call.
# Versions: torch 2.13.0 (2.14.1 too), numba 0.68.1, numpy 2.4.6, Linux.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numba==0.68.1 numpy==2.4.6
cd "$work"
cat >count.py <<'EOF'
import importlib
import sys
import threading

first, caller, want = sys.argv[1:]
for name in ("torch", "numba") if first == "torch" else ("numba", "torch"):
    importlib.import_module(name)
import numba
import numpy as np
import torch


@numba.njit(parallel=True)
def total(values):
    result = 0.0
    for i in numba.prange(values.size):
        result += values[i]
    return result


def call():
    total(np.ones(9))


def call_elsewhere():
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


torch.set_num_threads(1)
counts = [1 if caller == "unasked" else torch.get_num_threads()]
call_elsewhere() if caller == "other" else call()
counts.append(torch.get_num_threads())
torch.set_num_threads(1)
call()
counts.append(torch.get_num_threads())
print(f"{numba.threading_layer():9} {first} imported first, first call by the {caller} thread: torch's threads before, after, after setting 1 and calling again:", *counts)
sys.exit(counts != [int(n) for n in want.split(",")])
EOF
venv/bin/python -c 'import torch, numba; print("torch", torch.__version__, "numba", numba.__version__)'
export OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=3
same=0
NUMBA_THREADING_LAYER=omp venv/bin/python count.py torch main 1,3,1 || same=1
NUMBA_THREADING_LAYER=omp venv/bin/python count.py numba main 1,3,1 || same=1
NUMBA_THREADING_LAYER=omp venv/bin/python count.py torch other 1,1,1 || same=1
NUMBA_THREADING_LAYER=omp venv/bin/python count.py torch unasked 1,1,1 || same=1 # main thread, torch has not counted before
NUMBA_THREADING_LAYER=workqueue venv/bin/python count.py torch main 1,1,1 || same=1
echo "expected: 1 1 1 in every line"
[ $same = 0 ] && echo "seen: 3 threads after the first call with the OpenMP layer by the main thread" || echo "the behavior has changed"
exit $same
