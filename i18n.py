"""The language people read in: `gettext` puts a text into the one chosen for the request at hand.

English stands in the code and is the key; another language is a gettext catalogue, which the panel reads at its start
(panel/rendering/locale.py). Who chooses none, such as a worker or a command, says everything in English. What is stored
(reasons, the audit trail, what a system answered) is not said but told as it is: it is never put into a language.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from gettext import NullTranslations
from typing import Any


@dataclass(frozen=True)
class Language:
    """A language the panel speaks."""

    #: As HTML and Accept-Language name it: de.
    tag: str
    #: As those who speak it do: Deutsch.
    name: str
    catalogue: NullTranslations


ENGLISH = Language("en", "English", NullTranslations())

_chosen: ContextVar[Language] = ContextVar("language", default=ENGLISH)


def current_locale() -> Language:
    """The language of the request at hand; English outside of one."""
    return _chosen.get()


def set_locale(language: Language) -> None:
    """Say everything in this language from now on, in this thread."""
    _chosen.set(language)


def gettext(text: str, /, **values: Any) -> str:
    """A text in the chosen language, its `{names}` filled in as `str.format` does."""
    said = _chosen.get().catalogue.gettext(text) if text else text
    return said.format(**values) if values else said


def ngettext(one: str, many: str, number: int, /, **values: Any) -> str:
    """The text that fits a number, which is there as `{n}`, in the chosen language."""
    return _chosen.get().catalogue.ngettext(one, many, number).format(n=number, **values)


def gettext_noop(text: str) -> str:
    """A text that is said later, from a table: marked for the catalogues, and returned as it is."""
    return text
