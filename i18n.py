"""Translation: `gettext` translates a text into the language of the current request.

The code contains the English texts, which are the keys. Every other language is a gettext catalogue, loaded when the
panel starts (panel/rendering/locale.py). Workers and commands set no language and use English. Stored texts are never
translated: reasons, the audit trail, answers of a system.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from gettext import NullTranslations
from typing import Any


@dataclass(frozen=True)
class Language:
    """A language of the panel."""

    #: The language tag of HTML and Accept-Language: de.
    tag: str
    #: The language's own name: Deutsch.
    name: str
    catalogue: NullTranslations


ENGLISH = Language("en", "English", NullTranslations())

_chosen: ContextVar[Language] = ContextVar("language", default=ENGLISH)


def current_locale() -> Language:
    """Return the language of the current request; English outside of requests."""
    return _chosen.get()


def set_locale(language: Language) -> None:
    """Set the language of this thread's texts."""
    _chosen.set(language)


def gettext(text: str, /, **values: Any) -> str:
    """Return a text in the current language, with its `{names}` filled in as by `str.format`."""
    translated = _chosen.get().catalogue.gettext(text) if text else text
    return translated.format(**values) if values else translated


def ngettext(one: str, many: str, number: int, /, **values: Any) -> str:
    """Return the form of a text for a number, `{n}`, in the current language."""
    return _chosen.get().catalogue.ngettext(one, many, number).format(n=number, **values)


def gettext_noop(text: str) -> str:
    """Mark a text of a table for the catalogues, and return it unchanged; it is translated where it is shown."""
    return text
