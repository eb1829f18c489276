"""Names in `.env` that nobody reads: mistyped ones are told, with the setting that was probably meant."""

from __future__ import annotations

from difflib import get_close_matches

from settings import Settings, names_in_file
from subscribers.registry import REGISTRY

#: What is read by its own name, besides the settings and the options of systems.
_OTHERS = {"SYNCFLOW_PASSWORD"}


def unknown_settings() -> list[str]:
    """A sentence for each name in `.env` that is no setting and no option of a system known here.

    The environment itself is not looked at: most of it is for other programs.
    """
    known = {name.upper() for name in Settings.model_fields} | _OTHERS
    for subscriber in REGISTRY.values():
        prefix = subscriber.system.upper().replace("-", "_")
        known |= {f"{prefix}_{option.upper()}" for option in subscriber.system_class.Options.model_fields}
    return [_sentence(name, known) for name in names_in_file() if name not in known]


def _sentence(name: str, known: set[str]) -> str:
    if name == "SYNCFLOW_VAR":
        return "SYNCFLOW_VAR: it is read from the environment only, not from .env"
    close = get_close_matches(name.upper(), known, n=1, cutoff=0.7)
    return f"{name}: it stands in .env, but there is no such setting" + (f"; was {close[0]} meant?" if close else "")
