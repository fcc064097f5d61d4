"""The kinds of conditions: the one table that manifests, token stores, language models and the command line read.

Every field of `Conditions` is a kind. A new field is a new key of manifests, a list of names in token stores, a kind
that recipes may name in `data.conditions`, and an option of `codec generate`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias


class Kind(NamedTuple):
    """A kind of condition: `key` in manifests and of clips, `name` for models and options.

    `plural` is the key of a token store's list of names; None for free text.
    """

    key: str
    name: str
    plural: str | None
    description: str


def condition(plural: str | None, description: str, *, name: str | None = None) -> Any:
    """A field of `Conditions`; `name` is how models and options call it, if not by the field's name."""
    return field(default=None, metadata={"plural": plural, "description": description, "name": name})


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What a corpus may say of a clip, for a language model to be conditioned on; None if it does not say."""

    speaker: str | None = condition("speakers", "Speaker that the model was trained on.")
    label: str | None = condition("labels", "Class label that the model was trained on, such as a word.")
    transcript: str | None = condition(None, "Text to speak, for a model that takes text.", name="text")
    language: str | None = condition("languages", "Language that the model was trained on, such as en.")


KINDS = tuple(
    Kind(one.name, one.metadata["name"] or one.name, one.metadata["plural"], one.metadata["description"])
    for one in fields(Conditions)
)
CLASSES = {kind.name: kind.plural for kind in KINDS if kind.plural is not None}
"""Kinds whose names are a closed list, and the key of that list in token stores."""


if TYPE_CHECKING:
    ClassKind: TypeAlias = str
else:
    ClassKind = Literal[tuple(CLASSES)]
"""Name of a kind in `CLASSES`."""


def conditions_last(values: dict[str, Any]) -> dict[str, Any]:
    """Fields of a dataclass that inherits `Conditions`, with its own fields before the inherited ones."""
    keys = {kind.key for kind in KINDS}
    return {key: value for key, value in values.items() if key not in keys} | {
        key: value for key, value in values.items() if key in keys
    }
