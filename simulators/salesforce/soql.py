"""Parse SOQL: from the text of a query to a `Query`. Only the grammar; `queries.py` runs the query.

Covered: a list of plain fields, FIELDS(ALL|STANDARD|CUSTOM) or COUNT(); WHERE with = != <> < > <= >= IN, NOT
IN, LIKE, AND, OR, NOT and parentheses; ORDER BY ... ASC|DESC NULLS FIRST|LAST; LIMIT, OFFSET; all literals.
Not covered: relationships, subqueries, GROUP BY and aggregates; the parser rejects them.
SOQL and SOSL reference: "SOQL SELECT Syntax", "Quoted String Escape Sequences", "Date Formats and Date
Literals in WHERE".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from .errors import SalesforceError


@dataclass(frozen=True)
class Value:
    """A literal as written in the query; strings are unescaped, except in the pattern of a LIKE."""

    kind: Literal["string", "number", "boolean", "null", "date", "datetime", "literal"]
    text: str


@dataclass(frozen=True)
class Comparison:
    """A comparison. `operator` is one of = != < > <= >= like in, not in; only the last two have several values."""

    field: str
    operator: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Not:
    condition: Condition


@dataclass(frozen=True)
class Both:
    """Several conditions joined by `word`, which is AND or OR."""

    word: str
    conditions: tuple[Condition, ...]


Condition = Comparison | Not | Both


@dataclass(frozen=True)
class Order:
    field: str
    descending: bool
    nulls_last: bool


@dataclass(frozen=True)
class Query:
    """A parsed query. `fields` as written (FIELDS() is `"*all"`, `"*standard"` or `"*custom"`), empty for COUNT()."""

    fields: tuple[str, ...]
    object_name: str
    where: Condition | None
    order: tuple[Order, ...]
    limit: int | None
    offset: int
    count: bool


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    position: int


_TOKENS = re.compile(
    r"""(?P<space>\s+)
    |(?P<string>'(?:\\.|[^'\\])*')
    |(?P<datetime>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:?\d\d))
    |(?P<date>\d{4}-\d\d-\d\d)
    |(?P<number>[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)
    |(?P<literal>[A-Za-z_]\w*:\d+)
    |(?P<word>[A-Za-z_][\w.]*)
    |(?P<operator><=|>=|!=|<>|[=<>(),])""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f", '"': '"', "'": "'", "\\": "\\"}
_RESERVED = frozenset((
    "AND", "ASC", "DESC", "EXCLUDES", "FIRST", "FROM", "GROUP", "HAVING", "IN", "INCLUDES", "LAST", "LIKE",
    "LIMIT", "NOT", "NULL", "NULLS", "OFFSET", "OR", "ORDER", "SELECT", "USING", "WHERE", "WITH",
))  # fmt: skip
#: The most characters of a query.
LONGEST = 100_000
LARGEST_OFFSET = 2000


def parse(text: str) -> Query:
    """Parse a query. Raises MALFORMED_QUERY with the position of the unexpected text."""
    if len(text) > LONGEST:
        raise SalesforceError("QUERY_TOO_COMPLICATED", f"a query may have {LONGEST} characters")
    return _Parser(text).query()


def quote(text: str) -> str:
    """Return text as an escaped string literal of a query."""
    letters = {char: f"\\{letter}" for letter, char in _ESCAPES.items() if char != '"'}
    return "'" + "".join(letters.get(char, char) for char in text) + "'"


class _Parser:
    def __init__(self, text: str) -> None:
        self._source = text
        self._tokens = list(self._tokenize(text))
        self._index = 0

    def query(self) -> Query:
        self._word("SELECT")
        fields, count = self._select_list()
        self._word("FROM")
        object_name = self._name()
        alias = "" if self._at_end() or self._peek().text.upper() in _RESERVED else self._name()
        prefixes = {object_name.lower(), alias.lower()} - {""}
        where = self._condition() if self._take("WHERE") else None
        order = self._order() if self._take("ORDER") else ()
        limit = self._number() if self._take("LIMIT") else None
        offset = self._number() if self._take("OFFSET") else 0
        if not self._at_end():
            raise self._unexpected()
        if offset > LARGEST_OFFSET:
            message = f"Maximum SOQL offset allowed is {LARGEST_OFFSET}"
            raise SalesforceError("NUMBER_OUTSIDE_VALID_RANGE", message)
        query = Query(fields, object_name, where, order, limit, offset, count)
        return _without_prefix(query, prefixes)

    # --- clauses ---

    def _select_list(self) -> tuple[tuple[str, ...], bool]:
        if self._is("COUNT") and self._peek(1).text == "(" and self._peek(2).text == ")":
            self._index += 3
            return (), True
        fields = [self._selected()]
        while self._take(","):
            fields.append(self._selected())
        names = [field.lower() for field in fields]
        for field in fields:
            if names.count(field.lower()) > 1:
                raise SalesforceError("MALFORMED_QUERY", f"duplicate field selected: {field}")
        return tuple(fields), False

    def _selected(self) -> str:
        name = self._name()
        if name.upper() != "FIELDS" or not self._take("("):
            return name
        which = self._name()
        self._symbol(")")
        if which.upper() not in ("ALL", "STANDARD", "CUSTOM"):
            raise SalesforceError("MALFORMED_QUERY", f"FIELDS({which}) is not understood")
        return f"*{which.lower()}"

    def _condition(self) -> Condition:
        conditions = [self._term()]
        word = next((one for one in ("AND", "OR") if self._is(one)), "")
        while word and self._take(word):
            conditions.append(self._term())
        if word and (self._is("AND") or self._is("OR")):
            raise self._unexpected()  # mixing the two without parentheses is an error in SOQL
        return Both(word, tuple(conditions)) if word else conditions[0]

    def _term(self) -> Condition:
        if self._take("NOT"):
            return Not(self._term())
        if self._take("("):
            condition = self._condition()
            self._symbol(")")
            return condition
        return self._comparison()

    def _comparison(self) -> Comparison:
        field = self._name()
        if self._take("IN"):
            return Comparison(field, "in", self._list())
        if self._take("NOT"):
            self._word("IN")
            return Comparison(field, "not in", self._list())
        if self._take("LIKE"):
            return Comparison(field, "like", (self._value(pattern=True),))
        operator = self._next()
        if operator.text not in ("=", "!=", "<>", "<", ">", "<=", ">="):
            raise self._unexpected(operator)
        return Comparison(field, "!=" if operator.text == "<>" else operator.text, (self._value(),))

    def _list(self) -> tuple[Value, ...]:
        self._symbol("(")
        values = [self._value()]
        while self._take(","):
            values.append(self._value())
        self._symbol(")")
        return tuple(values)

    def _order(self) -> tuple[Order, ...]:
        self._word("BY")
        orders = [self._one_order()]
        while self._take(","):
            orders.append(self._one_order())
        return tuple(orders)

    def _one_order(self) -> Order:
        field = self._name()
        descending = self._take("DESC")
        if not descending:
            self._take("ASC")
        nulls_last = False
        if self._take("NULLS"):
            nulls_last = self._take("LAST")
            if not nulls_last:
                self._word("FIRST")
        return Order(field, descending, nulls_last)

    def _value(self, pattern: bool = False) -> Value:
        token = self._next()
        if token.kind == "string":
            return Value("string", self._unescape(token, pattern))
        if token.kind in ("number", "date", "datetime"):
            return Value(token.kind, token.text)  # type: ignore[arg-type]
        upper = token.text.upper()
        if token.kind == "literal":
            return Value("literal", upper)
        if token.kind == "word" and upper in ("TRUE", "FALSE"):
            return Value("boolean", upper.lower())
        if token.kind == "word" and upper == "NULL":
            return Value("null", "")
        if token.kind == "word" and upper not in _RESERVED:
            return Value("literal", upper)
        raise self._unexpected(token)

    def _unescape(self, token: _Token, pattern: bool) -> str:
        """Return the text between the quotes. In a pattern, escaped % and _ (and backslashes) stay escaped."""
        out: list[str] = []
        body = token.text[1:-1]
        index = 0
        while index < len(body):
            char = body[index]
            index += 1
            if char != "\\":
                out.append(char)
                continue
            letter = body[index]
            index += 1
            if letter == "u" and re.fullmatch(r"[0-9a-fA-F]{4}", body[index : index + 4]):
                out.append(chr(int(body[index : index + 4], 16)))
                index += 4
            elif pattern and letter in "%_\\":
                out.append("\\" + letter)
            elif letter.lower() in _ESCAPES:
                out.append(_ESCAPES[letter.lower()])
            else:
                message = f"Invalid string literal. Illegal character sequence '\\{letter}' in string literal."
                raise self._error(token.position, message)
        return "".join(out)

    # --- tokens ---

    def _tokenize(self, text: str) -> list[_Token]:
        tokens: list[_Token] = []
        position = 0
        while position < len(text):
            match = _TOKENS.match(text, position)
            if match is None:
                raise self._error(position, f"unexpected token: '{text[position : position + 20]}'")
            if match.lastgroup != "space":
                tokens.append(_Token(str(match.lastgroup), match.group(), position))
            position = match.end()
        return tokens

    def _peek(self, ahead: int = 0) -> _Token:
        index = self._index + ahead
        return self._tokens[index] if index < len(self._tokens) else _Token("end", "<EOF>", len(self._source))

    def _at_end(self) -> bool:
        return self._peek().kind == "end"

    def _next(self) -> _Token:
        token = self._peek()
        self._index += 1
        return token

    def _is(self, word: str) -> bool:
        token = self._peek()
        return token.kind in ("word", "operator") and token.text.upper() == word

    def _take(self, word: str) -> bool:
        found = self._is(word)
        self._index += found
        return found

    def _word(self, word: str) -> None:
        if not self._take(word):
            raise self._unexpected()

    _symbol = _word

    def _name(self) -> str:
        token = self._next()
        if token.kind != "word" or token.text.upper() in _RESERVED:
            raise self._unexpected(token)
        return token.text

    def _number(self) -> int:
        token = self._next()
        if token.kind != "number" or not token.text.isdigit():
            raise self._unexpected(token)
        return int(token.text)

    def _unexpected(self, token: _Token | None = None) -> SalesforceError:
        token = token or self._peek()
        return self._error(token.position, f"unexpected token: '{token.text}'")

    def _error(self, position: int, message: str) -> SalesforceError:
        excerpt = self._source[max(0, position - 30) : position + 30].replace("\n", " ")
        return SalesforceError("MALFORMED_QUERY", f"\n{excerpt}\n^\nERROR at Row:1:Column:{position + 1}\n{message}")


def _without_prefix(query: Query, prefixes: set[str]) -> Query:
    """Return the query without prefixes: `SELECT a.Name FROM Account a` selects `Name`."""

    def plain(name: str) -> str:
        head, dot, rest = name.partition(".")
        return rest if dot and head.lower() in prefixes else name

    def walk(condition: Condition) -> Condition:
        if isinstance(condition, Comparison):
            return Comparison(plain(condition.field), condition.operator, condition.values)
        if isinstance(condition, Not):
            return Not(walk(condition.condition))
        return Both(condition.word, tuple(walk(one) for one in condition.conditions))

    order = tuple(Order(plain(one.field), one.descending, one.nulls_last) for one in query.order)
    fields = tuple(plain(one) for one in query.fields)
    where = walk(query.where) if query.where else None
    return Query(fields, query.object_name, where, order, query.limit, query.offset, query.count)
