#!/usr/bin/env bash
# What: an ONNX graph exported by torch with dynamic axes holds len(rows) as a constant of the example input, although rows.shape[0] in the same
#   module stays dynamic. The graph's inputs are declared dynamic, the export gives no error, and the runtime computes with the stale number.
# Why it surprises: len(x) and x.shape[0] are the same number in every tensor library. The intermediate torch.export program is safe: it refuses other
#   sizes by a guard. The conversion to ONNX leaves this guard out, so what was an error becomes a wrong result.
# Where: only for sizes that are products of dynamic ones, as [batch * frames, dim] before a quantizer; len() of an input itself is refused on export.
# Consequence: use shape[0], and verify an exported graph at other sizes than those of the example.
# Versions: torch 2.14.1, onnx 1.23.2, onnxscript 0.7.2, onnxruntime 1.32.0.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/try.py" <<'EOF'
import sys

import onnxruntime
import torch


class Count(torch.nn.Module):
    def forward(self, latents):
        rows = latents.transpose(1, 2).flatten(0, 1)  # [batch * frames, dim]
        return rows[0, 0] * 0 + len(rows), rows[0, 0] * 0 + rows.shape[0]


dynamic = torch.export.Dim.DYNAMIC
axes = ({0: dynamic, 2: dynamic},)
example, other = torch.zeros(2, 4, 3), torch.zeros(5, 4, 7)
path = sys.argv[1]
torch.onnx.export(Count(), (example,), dynamo=True, dynamic_shapes=axes, verbose=False).save(path)
session = onnxruntime.InferenceSession(path)
(entry,) = session.get_inputs()
print(f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}; declared input {entry.shape}")
seen = {}
for audio in (example, other):
    by_len, by_shape = (int(value) for value in session.run(None, {entry.name: audio.numpy()}))
    rows = audio.shape[0] * audio.shape[2]
    print(f"input {tuple(audio.shape)}: {rows} rows expected; len(rows) gives {by_len}, rows.shape[0] gives {by_shape}")
    seen[rows] = (by_len, by_shape)
try:
    torch.export.export(Count(), (example,), dynamic_shapes=axes).module()(other)
    guarded = False
except Exception as error:
    guarded = True
    print(f"the torch.export program refuses the second input: {type(error).__name__}")
sys.exit(0 if guarded and seen == {6: (6, 6), 35: (6, 35)} else "behavior changed")
EOF
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.14.1 numpy onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0
"$work/venv/bin/python" -W ignore "$work/try.py" "$work/count.onnx" 2> "$work/log" || { status=$?; cat "$work/log"; exit $status; }
