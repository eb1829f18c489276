"""Find unknown names in `.env`, such as mistyped ones."""

from __future__ import annotations

from difflib import get_close_matches

from settings import Settings, names_in_file
from subscribers.registry import REGISTRY

#: Variables that are neither settings of the hub nor of a system.
_OTHERS = {"SYNCFLOW_PASSWORD"}


def unknown_settings() -> list[str]:
    """Return a message for each unknown name in `.env`, with the closest setting if there is one.

    Only `.env` is checked: most variables of the environment are for other programs.
    """
    known = {name.upper() for name in Settings.model_fields} | _OTHERS
    for subscriber in REGISTRY.values():
        prefix = subscriber.system.upper().replace("-", "_")
        known |= {f"{prefix}_{option.upper()}" for option in subscriber.system_class.Options.model_fields}
    return [_message(name, known) for name in names_in_file() if name not in known]


def _message(name: str, known: set[str]) -> str:
    if name == "SYNCFLOW_VAR":
        return "SYNCFLOW_VAR: set it in the environment; it has no effect in .env"
    close = get_close_matches(name.upper(), known, n=1, cutoff=0.7)
    return f"{name}: is in .env, but there is no such setting" + (f"; did you mean {close[0]}?" if close else "")
