#!/usr/bin/env bash
# What: safetensors.numpy.save and save_file store an array that is not C-contiguous (a transpose, Fortran order, every second column) as the first
#   bytes of its memory under its own shape. It loads without an error, with other numbers in it.
# Why it surprises: a valid file with a valid header comes back, a transposed weight is the usual input of a conversion from another framework, and
#   safetensors.torch.save raises ValueError for the same case. numpy.save stores all of these arrays right.
# Consequence: numpy.ascontiguousarray before every save; a converted model is tested by its output, not by its shapes.
# Versions: safetensors 0.8.0, numpy 2.4.6. The script also runs 0.6.2 and 0.7.0 and prints whether they do the same.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/try.py" <<'EOF'
import io
import sys

import numpy as np
import safetensors
from safetensors.numpy import load, save

print("safetensors", safetensors.__version__, "numpy", np.__version__)
plain = np.arange(12.0).reshape(3, 4)
arrays = {"plain": plain, "transpose": plain.T, "Fortran order": np.asfortranarray(plain), "every second column": plain[:, ::2]}
wrong = []
for name, array in arrays.items():
    loaded = load(save({"a": array}))["a"]
    file = io.BytesIO()
    np.save(file, array)
    file.seek(0)
    assert (np.load(file) == array).all()
    same = loaded.shape == array.shape and bool((loaded == array).all())
    print(f"  {name}: {'same' if same else f'first row {loaded[0].tolist()}, not {array[0].tolist()}'}")
    if not same:
        wrong.append(name)
sys.exit(0 if len(sys.argv) < 2 or wrong == ["transpose", "Fortran order", "every second column"] else f"behavior changed: wrong are {wrong}")
EOF
"${PYTHON:-python3}" -m venv "$work/venv"
for version in 0.6.2 0.7.0 0.8.0; do
    "$work/venv/bin/pip" install --quiet --no-compile "safetensors==$version" numpy==2.4.6
    "$work/venv/bin/python" "$work/try.py" $([[ $version == 0.8.0 ]] && echo strict)
done
