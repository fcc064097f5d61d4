#!/usr/bin/env bash
# What: autocast to bfloat16 makes a linear layer about 2.5 times faster than float32 on an x86 CPU with AMX, and slower than float32 on one with
#   AVX512_BF16 but no AMX, 4 to 5 times slower with AVX-512 alone, and 10 times and more with AVX2 only.
# Why it surprises: AVX512_BF16 is an instruction set made for exactly this product, and torch reports bfloat16 as supported either way; autocast
#   neither falls back to float32 nor warns. A gain measured on one server turns into a loss on the next one or on a laptop.
# Consequence: never make bfloat16 the default for CPU inference: time both for a moment on your machine, or ask for AMX
#   (torch.backends.cpu / the CPU's flags) first. Sizes here: 600 frames through 384 -> 1152, the inner layer of a small codec transformer.
# Versions: torch 2.13.0, numpy 2.4.6. Lesser CPUs are made with oneDNN's own switch ONEDNN_MAX_CPU_ISA on one machine; sets the CPU lacks are left out.
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
torch.manual_seed(0)
layer, frames = torch.nn.Linear(384, 1152), torch.randn(600, 384)


def half():
    with torch.autocast("cpu", torch.bfloat16):
        layer(frames)


spent = {"float32": [], "bfloat16": []}
with torch.inference_mode():
    for _ in range(15):
        for name, run in (("float32", lambda: layer(frames)), ("bfloat16", half)):
            start = time.process_time()
            run()
            spent[name].append(time.process_time() - start)
middle = {name: 1e3 * statistics.median(times[2:]) for name, times in spent.items()}
ratio = middle["bfloat16"] / middle["float32"]
print(f"{sys.argv[1]:16} float32 {middle['float32']:.2f} ms  autocast {middle['bfloat16']:.2f} ms  ratio {ratio:.2f}")
sys.exit(not float(sys.argv[2]) < ratio < float(sys.argv[3]))
EOF
venv/bin/python -c 'import torch; print("torch", torch.__version__)'
same=0
try() { # the set, the flag of the CPU, bounds of the ratio
    if grep -qw "$2" /proc/cpuinfo; then
        ONEDNN_MAX_CPU_ISA=$1 venv/bin/python measure.py "$1" "$3" "$4" || same=1
    else
        echo "$1: this CPU has no $2, left out"
    fi
}
try AVX512_CORE_AMX amx_bf16 0 0.8
try AVX512_CORE_BF16 avx512_bf16 1.1 10
try AVX512_CORE avx512bw 2 50
try AVX2 avx2 4 1000
echo "expected: at least as fast as float32 wherever the CPU has instructions for bfloat16, float32's speed elsewhere"
[ $same = 0 ] && echo "seen: a gain with AMX, a loss without" || echo "the behavior has changed"
exit $same
