"""Files of torch.save that others may have written, read without executing code in them."""

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from codec.io.bounded_zip import check_expansion

if TYPE_CHECKING:
    import torch


class NotPlainError(Exception):
    """A file holds more than tensors and plain data."""


def load_plain(file: BinaryIO | Path, device: "str | torch.device" = "cpu") -> Any:
    """The tensors and plain data of a file of torch.save.

    Raises NotPlainError for a file with other objects, ValueError for one that is damaged or would unpack to far more
    than its size, and OSError.
    """
    import torch

    check_expansion(file)
    try:
        return torch.load(file, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise NotPlainError(str(error)) from error
    except (OSError, MemoryError):
        raise
    except Exception as error:  # torch's unpickler lets through whatever damaged bytes lead to, such as struct.error
        # the first sentence, because the others of torch are about its own zip reader
        raise ValueError((str(error) or type(error).__name__).splitlines()[0].partition(". ")[0]) from error
