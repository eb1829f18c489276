"""Redaction: no secret of the hub or of a system stands in what is stored for operators, logged, shown or exported.

Each process remembers its secrets: those of the settings, of each system's options, and tokens as they are obtained.
`hide` masks them in a text in every form in which another program may quote them; `hide_in` does so in data, and masks
the values of fields whose name marks them as secret. The places where it is called:

| where text enters | what calls it |
|---|---|
| an error of a system | `subscribers.errors.SyncError` |
| the ledger | the column types `ShownText` and `ShownJson` of `models.base` |
| a record or an event of a system | `subscribers.base.normalize_incoming` and the inbox, only for long secrets |
| the log | the last processor of `workers.runtime.configure_logging` |
| a page | the filters `as_text` and `pretty`; and, for long secrets, each response of the web process |
| a CSV file | `panel.rendering.csv_export.cell` |
| the output of a command | `cli.main` |
"""

from __future__ import annotations

import base64
import io
import json
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from html.entities import codepoint2name
from typing import IO, Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import orjson

MASK = "••••••••"

#: Characters of a response that are stored.
LONGEST_RESPONSE = 2000

#: Characters of a refused webhook's body that are stored.
LONGEST_REFUSED_BODY = 500

#: Characters from which a secret can be no ordinary text: it is also masked in the data of records.
LONG_SECRET = 12

#: Shorter secrets would match any text. Those of letters and digits only that are shorter than LONG_SECRET are masked
#: where they stand alone.
_SHORTEST_SECRET = 4
_SHORTEST_ENCODED = 10

#: Secrets that are remembered for one owner, such as the tokens of one system.
_MOST_SECRETS = 64

_MARKED = (
    r"secret|token|password|passwd|passphrase|credential|private[_-]?key|(?:api|access|auth)[_-]?key"
    r"|authorization|cookie|signature"
)
_SECRET_NAME = re.compile(_MARKED, re.IGNORECASE)
_SECRET_SETTING = re.compile(rf"{_MARKED}|private|(^|_)key$", re.IGNORECASE)

#: Settings whose value is sent together with a secret.
_USER_NAME = re.compile(r"user|login|email|account|client_id|consumer_key", re.IGNORECASE)

#: A field of a text that is no JSON, such as one that was cut off: "name": "value", name=value and <name>value<.
_SECRET_FIELD = re.compile(
    rf'("[^"\\]{{0,64}}(?:{_MARKED})[^"\\]{{0,64}}"\s{{0,9}}:\s{{0,9}})("(?:[^"\\]|\\.)*"?|[^\s",}}\]]+)'
    rf"|(\b[\w.\[\]-]{{0,64}}(?:{_MARKED})[\w.\[\]-]{{0,64}}=)([^\s&;\"'<>]+)"
    rf"|(<[\w:.-]{{0,64}}(?:{_MARKED})[\w:.-]{{0,64}}>)([^<]+)",
    re.IGNORECASE,
)

#: Headers of a webhook that are stored.
_MAX_HEADERS = 40

#: Characters of each of them.
_LONGEST_HEADER = 300
_LONGEST_HEADER_NAME = 100

#: No record that an operator reads is nested deeper, or has longer lists.
_DEEPEST = 8
_LONGEST_LIST = 50


# --- forms of a secret ----------------------------------------------------------------------------------


class _Form:
    """One secret in one encoding: a pattern, and a text that each of its matches contains."""

    def __init__(
        self, text: str, *, alone: bool = False, is_long: bool = True, variants: Mapping[str, str] = {}
    ) -> None:
        """`alone`: only where no letter or digit stands beside it. `variants`: character -> further forms of it."""
        pattern = "".join(_character(one, *variants.get(one, "")) for one in text)
        if alone:
            pattern = rf"(?:(?<![A-Za-z0-9])|{_AFTER_ESCAPE}){pattern}(?![A-Za-z0-9])"
        self.pattern = re.compile(pattern)
        self.part = max(re.findall("[A-Za-z0-9]+", text), key=len, default="")
        self.is_long = is_long


#: The end of an escape whose last character is a letter or digit: %3A, \n, \u0022, \x27.
_AFTER_ESCAPE = r"(?<=%[0-9A-Fa-f]{2})|(?<=\\[nrtbf])|(?<=\\u[0-9A-Fa-f]{4})|(?<=\\x[0-9A-Fa-f]{2})"


@lru_cache(maxsize=4096)
def _character(one: str, *variants: str) -> str:
    """Return the pattern of a character as URLs, JSON, HTML, CSV and quotes write it, also one within another."""
    if one.isascii() and one.isalnum():
        return one
    code = ord(one)
    forms = [re.escape(one), *map(re.escape, variants)]
    forms.append("".join(f"%(?:25){{0,4}}{_any_case(f'{byte:02x}')}" for byte in one.encode("utf-8", "surrogatepass")))
    forms.append(rf"\\{{1,16}}u{_any_case(f'{code:04x}')}")
    forms.append(f"&(?:amp;){{0,4}}#0{{0,6}}{code};")
    forms.append(f"&(?:amp;){{0,4}}#[xX]0{{0,6}}{_any_case(f'{code:x}')};")
    if code in codepoint2name or one == "'":
        forms.append(f"&(?:amp;){{0,4}}{codepoint2name.get(code, 'apos')};")
    if code < 256:
        forms += [rf"\\{{1,16}}x{_any_case(f'{code:02x}')}", f"%{_any_case(f'{code:02x}')}"]
    if code > 127:
        content = one.encode("utf-8", "surrogatepass")
        forms.append("".join(rf"\\{{1,16}}x{_any_case(f'{byte:02x}')}" for byte in content))
        # Read in the wrong encoding, or replaced.
        forms += [
            re.escape(content.decode("latin-1")),
            re.escape(content.decode("cp1252", "replace")),
            "\ufffd{1,4}",
            r"\?",
        ]
    if code > 0xFFFF:
        high, low = divmod(code - 0x10000, 0x400)
        forms.append(rf"\\{{1,16}}u{_any_case(f'{0xD800 + high:04x}')}\\{{1,16}}u{_any_case(f'{0xDC00 + low:04x}')}")
    if one == " ":
        forms.append(r"\+")
    pattern = rf"\\{{0,16}}(?:{'|'.join(sorted(forms, key=len, reverse=True))})"
    return f"(?:{pattern}){{1,2}}" if one in "\"'" else pattern  # doubled, as in CSV and SQL


def _any_case(digits: str) -> str:
    return "".join(f"[{one}{one.upper()}]" if one.isalpha() else one for one in digits)


#: The characters of base64 that its form for URLs replaces.
_URL_SAFE = {"+": "-", "/": "_"}


def _forms(secret: str) -> Iterable[_Form]:
    """Yield the forms of a secret, those that match more text first."""
    is_long = len(secret) >= LONG_SECRET
    escaped = {json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1], quote(secret, safe="")}
    contents = dict.fromkeys(one.encode("utf-8", "surrogatepass") for one in (secret, *sorted(escaped)))
    contents |= {secret.encode("latin-1", "replace"): None}  # as HTTP clients encode a login
    for content in contents:
        yield from _encoded(content, is_long=is_long)
    yield _Form(secret, alone=secret.isalnum() and not is_long, is_long=is_long)


def _encoded(content: bytes, *, is_long: bool) -> Iterable[_Form]:
    if len(content) >= _SHORTEST_ENCODED:
        # As a part of any text in base64, such as user:secret: the characters that do not depend on what is beside it.
        for before in range(3):
            encoded = base64.b64encode(b"\0" * before + content).decode().rstrip("=")
            end = len(encoded) - ((before + len(content)) % 3 != 0)
            yield _Form(encoded[(0, 2, 3)[before] : end], variants=_URL_SAFE)
        yield _Form(content.hex(), is_long=is_long)
        yield _Form(content.hex().upper(), is_long=is_long)
    encoded = base64.b64encode(content).decode()
    if len(encoded) >= _SHORTEST_ENCODED:
        yield _Form(encoded.rstrip("="), is_long=is_long, variants=_URL_SAFE)


# --- what is remembered ---------------------------------------------------------------------------------


class _Known:
    """The secrets of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_owner: dict[str, dict[str, tuple[_Form, ...]]] = {}
        #: All forms, those of the longest secret first.
        self.forms: tuple[_Form, ...] = ()

    def add(self, owner: str, secrets: Iterable[str], encoded_only: Iterable[str]) -> None:
        with self._lock:
            mine = self._by_owner.setdefault(owner, {})
            before = set(mine)
            for secret in secrets:
                if len(secret) >= _SHORTEST_SECRET and secret not in mine:
                    mine[secret] = tuple(_forms(secret))
            for text in encoded_only:
                if text not in mine:
                    mine[text] = (_Form(base64.b64encode(text.encode()).decode().rstrip("="), variants=_URL_SAFE),)
            for oldest in list(mine)[:-_MOST_SECRETS]:
                del mine[oldest]
            if set(mine) != before:
                everything = {secret: forms for one in self._by_owner.values() for secret, forms in one.items()}
                by_length = sorted(everything.items(), key=lambda pair: len(pair[0]), reverse=True)
                self.forms = tuple(form for _, forms in by_length for form in forms)


_known = _Known()


def remember(owner: str, *secrets: str, users: Iterable[str] = ()) -> None:
    """Remember secrets that are to be hidden from now on. Of each owner the newest are kept.

    `users`: names that are sent together with a secret, as `user:secret` in base64.
    """
    given = [text for secret in secrets for text in dict.fromkeys((secret, secret.strip(), *_rotated(secret))) if text]
    pairs = [f"{user}:{secret}" for user in users for secret in given if secret]
    _known.add(owner, given, pairs)


def _rotated(secret: str) -> list[str]:
    """Return the secrets of a setting that holds several during a rotation, not the words of a passphrase."""
    parts = secret.split()
    return parts if all(len(part) >= LONG_SECRET for part in parts) else []


def remember_values(owner: str, values: Mapping[str, Any]) -> None:
    """Remember the secrets among settings: `SecretStr` and `SecretBytes`, fields of a secret name, logins in URLs."""
    secrets, users = [], []
    for name, value in values.items():
        hidden = getattr(value, "get_secret_value", None)
        if hidden is not None:
            content = hidden()
            secrets.append(content.decode("utf-8", "replace") if isinstance(content, bytes) else str(content))
        elif isinstance(value, str) and is_secret_setting(name) and "/" not in value:  # not the path of a file
            secrets.append(value)
        elif isinstance(value, str):
            found, user = _in_url(value)
            secrets += found
            users += [user] if user else [value] if _USER_NAME.search(name) else []
    remember(owner, *secrets, users=filter(None, users))


def _in_url(text: str) -> tuple[list[str], str]:
    """Return the password and the secret parameters of a URL, and its user."""
    if "://" not in text:
        return [], ""
    try:
        parts = urlsplit(text)
        found = [part for part in (parts.password, unquote(parts.password or "")) if part]
        found += [value for name, value in parse_qsl(parts.query) if is_secret(name)]
        return found, unquote(parts.username or "")
    except ValueError:
        return [], ""


# --- hiding ---------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
@lru_cache(maxsize=4096)
def is_secret(name: str) -> bool:
    """Return whether a field or header of this name holds a secret."""
    return _SECRET_NAME.search(name) is not None


@lru_cache(maxsize=4096)
def is_secret_setting(name: str) -> bool:
    """Return whether a setting of this name holds a secret, even if it is not declared secret."""
    return _SECRET_SETTING.search(name) is not None


def hide(text: str) -> str:
    """Return a text in which each known secret is masked; all other text is unchanged."""
    for form in _found_in(text):
        text = form.pattern.sub(MASK, text)
    return text


def hide_long(text: str) -> str:
    """Return a text in which the secrets that can be no ordinary text are masked."""
    for form in _found_in(text):
        if form.is_long:
            text = form.pattern.sub(MASK, text)
    return text


def _found_in(text: str) -> list[_Form]:
    """Return the forms that may occur in a text."""
    return [form for form in _known.forms if form.part in text]


def hide_in(value: Any, *, names: bool = True, by: Callable[[str], str] = hide) -> Any:
    """Return JSON-like data with known secrets masked in its texts and names.

    `names`: mask the values of fields with a secret name, too.
    """
    if isinstance(value, str):
        return by(value)
    if isinstance(value, Mapping):
        return {
            by(name) if isinstance(name, str) else name: MASK
            if names and inner and is_secret(str(name))
            else hide_in(inner, names=names, by=by)
            for name, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [hide_in(inner, names=names, by=by) for inner in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value if by(str(value)) == str(value) else MASK
    return value


def holds_secret(value: Any, *, only_long: bool = False) -> bool:
    """Return whether JSON-like data may hold a known secret; a quick check before `hide_in`."""
    return any(form.is_long or not only_long for form in _found_in(_dumps(value)))


def hide_shown(value: Any, *, names: bool = True) -> Any:
    """Return JSON-like data as operators may see it; as `hide_in`, and quick for data without a known secret."""
    if holds_secret(value):
        return hide_in(value, names=names)
    return hide_in(value, by=_same) if names and _has_secret_name(value) else value


def _has_secret_name(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any((inner and is_secret(str(name))) or _has_secret_name(inner) for name, inner in value.items())
    return isinstance(value, list | tuple) and any(map(_has_secret_name, value))


def _same(text: str) -> str:
    return text


def hide_in_data(data: Any) -> Any:
    """Return a record's data without our long secrets: no system has a reason to put them there.

    Shorter ones may be ordinary text, and are masked only where they are shown.
    """
    return hide_in(data, names=False, by=hide_long) if holds_secret(data, only_long=True) else data


def hide_in_body(body: str) -> str:
    """Return the body of a verified webhook without our long secrets; the rest is unchanged."""
    if (hidden := hide_long(body)) == body:
        return body
    try:
        return clean(_dumps(hide_in_data(json.loads(body))))
    except (ValueError, RecursionError):
        return hidden


def shorten(value: Any, depth: int = 0) -> Any:
    """Return JSON-like data, cut where it is too deep or too long to be read."""
    if isinstance(value, Mapping):
        return "…" if depth == _DEEPEST else {name: shorten(inner, depth + 1) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return "…" if depth == _DEEPEST else [shorten(inner, depth + 1) for inner in value[:_LONGEST_LIST]]
    return value


def response_text(answer: Any, longest: int = LONGEST_RESPONSE) -> str:
    """Return a system's response (JSON data, or the text it sent) as it may be stored."""
    if isinstance(answer, str):
        try:
            answer = json.loads(answer)
        except (ValueError, RecursionError):
            return _cut(_hide_fields(hide(clean(answer))[: longest + 1]), longest)
    return _cut(clean(_dumps(hide_shown(shorten(answer)))), longest)


def body_text(body: str) -> str:
    """Return a webhook's body as it may be shown to everyone: JSON or another text, masked."""
    try:
        return json.dumps(hide_in(json.loads(body)), ensure_ascii=False)
    except (ValueError, RecursionError):
        return _hide_fields(hide(body))


def _hide_fields(text: str) -> str:
    """Mask the values of fields with a secret name in a text that is no JSON."""
    return _SECRET_FIELD.sub(lambda found: next(filter(None, found.group(1, 3, 5))) + MASK, text)


def safe_headers(headers: Mapping[str, Any]) -> dict[str, str]:
    """Return a request's headers as they may be stored: limited, and without credentials."""
    kept = list(headers.items())[:_MAX_HEADERS]
    return {
        hide(clean(name))[:_LONGEST_HEADER_NAME]: MASK if is_secret(name) else _cut(hide(clean(value)), _LONGEST_HEADER)
        for name, value in kept
    }


def clean(text: object) -> str:
    """Return text that every database stores: without NUL and lone surrogates, which systems do send."""
    said = str(text)
    if said.isascii() and "\x00" not in said:
        return said
    return said.replace("\x00", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def _dumps(value: Any) -> str:
    try:
        return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError:  # systems do send half characters and integers of any length
        return json.dumps(value, default=str, ensure_ascii=False)


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


class HidingStream(io.TextIOBase):
    """A stream that masks secrets in each text that is written to it."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text without secrets."""
        self._stream.write(hide(text))
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        self._stream.flush()

    def fileno(self) -> int:
        """Return the stream's file descriptor."""
        return self._stream.fileno()

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        return self._stream.isatty()
