#!/usr/bin/env bash
# What: constriction codes with the wrong probabilities if the matrix of them lies column by column in memory, as any transposed numpy array does: it reads
#   the memory row by row and takes no notice of the strides. No error, and decoding with the same matrix restores every symbol.
# Why it surprises: every other layout is refused ("not contiguous"), a view of every second row for one, so layouts look checked; and a round trip, which is
#   the test that one writes, passes. Only the size is wrong: here 4.2 to 4.5 times the entropy, and almost twice the raw bits.
# Consequence: a model that gives [entries, steps] and a `.T` behind it lose all that the model knows. The stream cannot be decoded with the same
#   probabilities computed in the other layout (another framework, a copy, a loaded file). Pass np.ascontiguousarray, compare the size with the entropy.
# Versions: constriction 0.5.0, numpy 2.4.6. The same in RangeEncoder and AnsCoder, in float32 and float64.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile constriction==0.5.0 numpy==2.4.6
cd "$work"
venv/bin/python - <<'EOF'
import importlib.metadata
import sys

import constriction
import numpy as np

STEPS, ENTRIES = 2000, 64
print("constriction", importlib.metadata.version("constriction"), "numpy", np.__version__)
random = np.random.default_rng(0)
family = constriction.stream.model.Categorical(perfect=False)
queue, stack = constriction.stream.queue, constriction.stream.stack.AnsCoder
coders = (("RangeEncoder", queue.RangeEncoder, queue.RangeDecoder), ("AnsCoder", stack, stack))
same = True
for kind in ("float32", "float64"):
    scores = np.exp(3 * random.standard_normal((ENTRIES, STEPS))).astype(kind)  # as a network gives them: [entries, steps]
    columns = (scores / scores.sum(axis=0)).T  # [steps, entries], a view
    rows = np.ascontiguousarray(columns)
    assert (rows == columns).all() and rows.shape == columns.shape and rows.flags.c_contiguous and not columns.flags.c_contiguous
    symbols = np.array([random.choice(ENTRIES, p=row / row.sum()) for row in rows.astype(float)], np.int32)
    entropy = -np.log2(rows[np.arange(STEPS), symbols]).sum()
    for name, encoder, decoder in coders:

        def coded(probabilities):
            coder = encoder()
            (coder.encode if name == "RangeEncoder" else coder.encode_reverse)(symbols, family, probabilities)
            return coder.get_compressed()

        def decoded(words, probabilities):
            return decoder(words).decode(family, probabilities)

        right, wrong = coded(rows), coded(columns)
        trip = (decoded(wrong, columns) == symbols).all()
        other = (decoded(wrong, rows) == symbols).mean()
        print(f"{name:12} {kind}: entropy {entropy / 8:.0f} bytes, raw {STEPS * 6 // 8}; rows {4 * len(right)}, columns {4 * len(wrong)};", end=" ")
        print(f"columns decoded with columns: {'all right' if trip else 'wrong'}, with rows: {other:.0%} right")
        same &= bool(4 * len(right) < 1.02 * entropy / 8 and 4 * len(wrong) > 2 * entropy / 8 and trip and other < 0.6)
try:
    queue.RangeEncoder().encode(symbols[: STEPS // 2], family, rows[::2])
    refused = False
except TypeError as error:
    refused = True
    print(f"every second row: TypeError, {error}")
print("expected: equal matrices give equal streams, or an error")
print("seen: another, far longer stream, which only the same layout decodes" if same and refused else "the behavior has changed")
sys.exit(not (same and refused))
EOF
