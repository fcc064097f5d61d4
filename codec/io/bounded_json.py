"""JSON of files that others may have written."""

import json
from typing import Any

MAX_DEPTH = 32  # of nested JSON; Python's own limit depends on the caller


def read_json(text: str | bytes) -> Any:
    """Parse JSON that others may have written. Raises ValueError, also where it is nested too deep to be handled."""
    try:
        data = json.loads(text)
    except RecursionError as error:
        raise ValueError(f"nested more than {MAX_DEPTH} deep") from error
    level = [data]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return data
    raise ValueError(f"nested more than {MAX_DEPTH} deep")
