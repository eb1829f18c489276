"""Choose the language of a response: the user's, else the browser's, else English.

Each language is a file: translations/TAG/LC_MESSAGES/messages.po. Flask-Admin, Flask-Security and WTForms have
their own catalogues, which follow the same choice through Flask-Babel.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import lru_cache
from gettext import GNUTranslations
from pathlib import Path
from typing import Any

from babel import Locale
from babel.core import get_global
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from flask import Flask, request
from flask_babel import Babel, refresh
from flask_security import current_user
from flask_security.babel import FsDomain
from markupsafe import Markup

from i18n import ENGLISH, Language, current_locale, gettext, set_locale

FOLDER = Path(__file__).parents[1] / "translations"


def init(app: Flask, for_program: Callable[[], bool]) -> None:
    """Set the language of each request; English if `for_program` says that the client is a program."""

    def before_request() -> None:
        set_locale(ENGLISH)
        if request.endpoint != "static" and not for_program():
            # Use the browser's first: loading the user may fail if the database is down.
            set_locale_of(None)
            if current_user.is_authenticated:
                set_locale_of(current_user)

    all_languages()  # Load them now, not during a request.
    app.before_request(before_request)
    app.teardown_request(lambda _error: set_locale(ENGLISH))
    Babel(app, locale_selector=lambda: _locale(current_locale().tag), configure_jinja=False)
    app.jinja_env.globals.update(_=_gettext_html, ngettext=_ngettext_html, language=current_locale)
    app.jinja_env.filters["translated"] = _translated


def set_locale_of(user: Any) -> None:
    """Set the language to the user's, or else to the browser's."""
    languages = all_languages()
    set_locale(languages.get((user and user.language) or "") or _browser_language(languages))
    refresh()


def _browser_language(languages: dict[str, Language]) -> Language:
    """Return the first available language of the browser's list, with or without its country."""
    known = {tag.lower(): language for tag, language in languages.items()}
    for tag, quality in request.accept_languages:
        found = known.get(tag.lower()) or known.get(tag.lower().partition("-")[0])
        if found is not None and quality > 0:
            return found
    return ENGLISH


def translate_login(app: Flask) -> None:
    """Have Flask-Security look up its texts in the panel's catalogue first."""
    app.extensions["security"].i18n_domain = _LoginDomain(app)  # type: ignore[no-untyped-call]


@lru_cache(maxsize=1)
def all_languages() -> dict[str, Language]:
    """Map tag to language: English, and one for each catalogue."""
    files = sorted(FOLDER.glob("*/LC_MESSAGES/messages.po"))
    others = [Language(_tag(file), _own_name(_tag(file)), _catalogue(file)) for file in files]
    return {language.tag: language for language in (ENGLISH, *others)}


def _tag(file: Path) -> str:
    return file.parts[-3].replace("_", "-")


def _catalogue(file: Path) -> GNUTranslations:
    with file.open("rb") as source:
        catalogue = read_po(source)
    compiled = io.BytesIO()
    write_mo(compiled, catalogue)
    compiled.seek(0)
    return GNUTranslations(compiled)


def _own_name(tag: str) -> str:
    return str(Locale.parse(tag, sep="-").get_display_name()).capitalize()


@lru_cache(maxsize=16)
def _locale(tag: str) -> str:
    # With the likely country: Flask-Security's catalogue is de_DE, and a plain de matches that as well.
    name = tag.replace("-", "_")
    parts = get_global("likely_subtags").get(name, name).split("_")
    return f"{parts[0]}_{parts[-1]}" if len(parts) > 1 else name


def _translated(word: Any) -> str:
    """Translate a text that is known only at run time: `{{ remedy.words | translated }}`."""
    return gettext(str(word))


def _gettext_html(text: str, /, **values: Any) -> Markup:
    """`gettext` for templates: the text is HTML, its values are escaped."""
    said = Markup(gettext(text))  # the template's text or its translation, never user input
    return said.format(**values) if values else said


def _ngettext_html(one: str, many: str, number: int, /, **values: Any) -> Markup:
    said = Markup(current_locale().catalogue.ngettext(one, many, number))
    return said.format(n=number, **values)


class _LoginDomain(FsDomain):
    """Looks up a text in the panel's catalogue, then in Flask-Security's."""

    def gettext(self, string: str, **variables: Any) -> str:
        ours = gettext(string)
        if ours == string:
            theirs: str = super().gettext(string, **variables)  # type: ignore[no-untyped-call]
            return theirs
        return ours % variables if variables else ours
