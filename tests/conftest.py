"""For all tests: shapes in signatures are checked while they run, and no example has a deadline on a busy machine."""

from hypothesis import settings
from jaxtyping import install_import_hook

# `models.base` checks the shapes users give by itself, with errors of its own, and is tested for them.
install_import_hook(["codec.nn", "codec.models.causal"], "beartype.beartype")

settings.register_profile("tests", deadline=None)
settings.load_profile("tests")
