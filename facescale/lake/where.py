"""Conditions on columns as people write them: text comes in, a pyarrow expression goes out; nothing is ever evaluated.

    parse_where("age > 17 and (mask in ('none', 'chin') or quality >= 0.6) and generated_score is not null")

Called by facescale.lake.face_filter, which knows where the columns lie. The language is SQL's, the part that compares:

    condition   and, or, not, parentheses; and binds tighter than or
    comparison  =  ==  !=  <>  <  <=  >  >=   between two columns, or a column and a number, a 'text', true or false
                in (…), not in (…), is null, is not null; a column of true and false stands alone
    column      a name, or TABLE.name where several tables have the name; in double quotes where it begins with a digit

As in SQL, a comparison with null is neither true nor false, and rows for which the condition is not true are left out:
`age < 18` and `not age < 18` both leave out faces without an age; add `or age is null`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from facescale.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import NoReturn

MAX_LENGTH = 10_000
MAX_DEPTH = 50

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))
    | (?P<text>'(?:[^']|'')*')
    | (?P<name>(?:[^\W\d]\w*|"[^"]+")(?:\.(?:[^\W\d]\w*|"[^"]+"))?)
    | (?P<sign><=|>=|<>|!=|==|=|<|>|\(|\)|,)
    )""",
    re.VERBOSE,
)
_WORDS = frozenset({"and", "or", "not", "in", "is", "null", "true", "false"})
_SIGNS = {
    "=": pc.equal,
    "==": pc.equal,
    "!=": pc.not_equal,
    "<>": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
_EQUALITY = frozenset({"=", "==", "!=", "<>"})


@dataclass(frozen=True)
class _Token:
    kind: str  # number, text, name, word, sign, end
    text: str
    at: int


@dataclass(frozen=True)
class _Value:
    """A number, a text, true or false."""

    value: int | float | str | bool
    at: int


@dataclass(frozen=True)
class _Name:
    """A column."""

    name: str
    at: int


@dataclass(frozen=True)
class _Compare:
    sign: str
    left: _Name | _Value
    right: _Name | _Value
    at: int


@dataclass(frozen=True)
class _In:
    column: _Name
    values: tuple[_Value, ...]


@dataclass(frozen=True)
class _IsNull:
    column: _Name


@dataclass(frozen=True)
class _Not:
    inner: _Node


@dataclass(frozen=True)
class _Both:
    word: str  # and, or
    parts: tuple[_Node, ...]


_Node = _Name | _Compare | _In | _IsNull | _Not | _Both


@dataclass(frozen=True)
class Where:
    """A condition that was understood; `bind` makes an expression of it.

    Args:
        text: as it was written.
        tree: what it says.
        columns: the columns it speaks of, as written and without double quotes, in order of appearance, each with the
            position where it is first named.
    """

    text: str
    tree: _Node
    columns: Mapping[str, int]

    def bind(self, types: Mapping[str, pa.DataType]) -> pc.Expression:
        """The condition as an expression over columns of these names.

        Args:
            types: type of every one of `columns`.

        Raises:
            UsageError: a column is missing, or is compared with what its type cannot be compared with.
        """
        return _Binder(self.text, types).condition(self.tree)

    def fail(self, at: int, what: str) -> NoReturn:
        """Raise UsageError that points at a position of the text."""
        _fail(self.text, at, what)


def parse_where(text: str) -> Where:
    """Understand a condition.

    Raises:
        UsageError: it is not one; the message shows where reading stopped and what was expected there.
    """
    if len(text) > MAX_LENGTH:
        raise UsageError(f"--where: {len(text):,} characters; at most {MAX_LENGTH:,} are read")
    parser = _Parser(text)
    tree = parser.either(0)
    if parser.now.kind != "end":
        parser.fail("expected `and`, `or` or the end")
    return Where(text, tree, parser.columns)


def _fail(text: str, at: int, what: str) -> NoReturn:
    """The line of the text with a mark under the position, then what is wrong."""
    start = text.rfind("\n", 0, at) + 1
    line = text[start:].split("\n", 1)[0]
    shown_from = max(0, at - start - 60)
    shown = line[shown_from : shown_from + 100]
    raise UsageError(f"--where, character {at + 1}: {what}\n  {shown}\n  {' ' * (at - start - shown_from)}^")


def _tokens(text: str) -> Iterator[_Token]:
    at, end = 0, len(text.rstrip())
    while at < end:
        found = _TOKEN.match(text, at)
        if found is None:
            at += len(text[at:]) - len(text[at:].lstrip())
            what = "this text has no closing '" if text[at] == "'" else f"{text[at]!r} means nothing here"
            _fail(text, at, what)
        kind = str(found.lastgroup)
        token, start = found[kind], found.start(kind)
        if kind == "name" and token.lower() in _WORDS:
            yield _Token("word", token.lower(), start)
        else:
            yield _Token(kind, token, start)
        at = found.end()
    yield _Token("end", "", len(text))


class _Parser:
    """Recursive descent, one token ahead."""

    def __init__(self, text: str) -> None:
        self.text, self.columns = text, dict[str, int]()
        self._rest = _tokens(text)
        self.now = next(self._rest)

    def fail(self, what: str) -> NoReturn:
        found = f"`{self.now.text}`" if self.now.text else "the end"
        _fail(self.text, self.now.at, f"{what}, found {found}")

    def take(self) -> _Token:
        token = self.now
        if token.kind != "end":
            self.now = next(self._rest)
        return token

    def is_word(self, word: str) -> bool:
        return (self.now.kind, self.now.text) == ("word", word)

    def takes(self, kind: str, text: str) -> bool:
        """Whether this comes next; then it is read."""
        if (self.now.kind, self.now.text) != (kind, text):
            return False
        self.take()
        return True

    def either(self, depth: int) -> _Node:
        parts = [self.all(depth)]
        while self.takes("word", "or"):
            parts.append(self.all(depth))
        return parts[0] if len(parts) == 1 else _Both("or", tuple(parts))

    def all(self, depth: int) -> _Node:
        parts = [self.one(depth)]
        while self.takes("word", "and"):
            parts.append(self.one(depth))
        return parts[0] if len(parts) == 1 else _Both("and", tuple(parts))

    def one(self, depth: int) -> _Node:
        if depth > MAX_DEPTH:
            self.fail(f"nested more than {MAX_DEPTH} deep")
        if self.takes("word", "not"):
            return _Not(self.one(depth + 1))
        if self.takes("sign", "("):
            inner = self.either(depth + 1)
            if not self.takes("sign", ")"):
                self.fail("expected `and`, `or` or `)`")
            return inner
        return self.comparison()

    def comparison(self) -> _Node:
        left = self.operand()
        if self.now.kind == "sign" and self.now.text in _SIGNS:
            sign, right = self.take(), self.operand()
            if isinstance(left, _Value) and isinstance(right, _Value):
                _fail(self.text, left.at, "two values are compared: one side has to be a column")
            return _Compare(sign.text, left, right, sign.at)
        if isinstance(left, _Value):
            self.fail("expected a comparison such as `<`")
        if self.takes("word", "is"):
            negated = self.takes("word", "not")
            if not self.takes("word", "null"):
                self.fail("expected `null`")
            return _Not(_IsNull(left)) if negated else _IsNull(left)
        if self.is_word("not"):
            self.take()
            if not self.is_word("in"):
                self.fail("expected `in`")
            return _Not(self.listed(left))
        if self.is_word("in"):
            return self.listed(left)
        return left

    def listed(self, column: _Name) -> _Node:
        self.take()  # in
        if not self.takes("sign", "("):
            self.fail("expected `(` and a list of values")
        values = [self.value()]
        while self.takes("sign", ","):
            values.append(self.value())
        if not self.takes("sign", ")"):
            self.fail("expected `,` or `)`")
        return _In(column, tuple(values))

    def operand(self) -> _Name | _Value:
        if self.now.kind != "name":
            return self.value("expected a column, a number or a 'text'")
        token = self.take()
        name = token.text.replace('"', "")
        self.columns.setdefault(name, token.at)
        return _Name(name, token.at)

    def value(self, expected: str = "expected a number, a 'text', true or false") -> _Value:
        token = self.now
        if token.kind == "number":
            number = float(token.text) if re.search(r"[.eE]", token.text) else int(token.text)
            if abs(number) >= 2**63:
                self.fail("a number too large to compare with")
            value: int | float | str | bool = number
        elif token.kind == "text":
            value = token.text[1:-1].replace("''", "'")
        elif token.kind == "word" and token.text in ("true", "false"):
            value = token.text == "true"
        elif token.kind == "word" and token.text == "null":
            self.fail("null is compared with `is null` or `is not null`")
        else:
            self.fail(expected)
        self.take()
        return _Value(value, token.at)


class _Binder:
    """Makes the expression, and refuses comparisons that mean nothing."""

    def __init__(self, text: str, types: Mapping[str, pa.DataType]) -> None:
        self.text, self.types = text, types

    def condition(self, node: _Node) -> pc.Expression:
        if isinstance(node, _Both):
            return _joined(node.word, [self.condition(part) for part in node.parts])
        if isinstance(node, _Not):
            return ~self.condition(node.inner)
        if isinstance(node, _IsNull):
            self.kind(node.column)
            return pc.field(node.column.name).is_null()
        if isinstance(node, _In):
            kind = self.comparable(node.column)
            for value in node.values:
                self.agree(node.column, kind, value, self.kind(value))
            # Not is_in(): for it null is in no list, so that `not in` would keep what is unknown.
            column = pc.field(node.column.name)
            return _joined("or", [pc.equal(column, self.operand(v, node.column)) for v in node.values])
        if isinstance(node, _Compare):
            left, right = self.comparable(node.left), self.comparable(node.right)
            self.agree(node.left, left, node.right, right)
            if left == "true or false" and node.sign not in _EQUALITY:
                _fail(self.text, node.at, f"`{node.sign}` does not order true and false")
            return _SIGNS[node.sign](self.operand(node.left, node.right), self.operand(node.right, node.left))
        if self.kind(node) != "true or false":
            _fail(self.text, node.at, f"column {node.name} is {self.kind(node)}: compare it with something")
        return pc.field(node.name)

    def kind(self, node: _Name | _Value) -> str:
        if isinstance(node, _Value):
            dtype = pa.scalar(node.value).type
        elif node.name in self.types:
            dtype = self.types[node.name]
        else:
            _fail(self.text, node.at, f"there is no column {node.name}")
        if pa.types.is_boolean(dtype):
            return "true or false"
        if pa.types.is_integer(dtype) or pa.types.is_floating(dtype):
            return "a number"
        return "text" if pa.types.is_string(dtype) else f"of type {dtype}"

    def comparable(self, node: _Name | _Value) -> str:
        kind = self.kind(node)
        if kind.startswith("of type"):
            what = f"column {getattr(node, 'name', '')} is {kind} and can only be held against null"
            _fail(self.text, node.at, what)
        return kind

    def agree(self, a: _Name | _Value, kind: str, b: _Name | _Value, other: str) -> None:
        if kind != other:
            named, value, of = (a, b, kind) if isinstance(a, _Name) else (b, a, other)
            what = f"column {named.name} is {of}" if isinstance(named, _Name) else f"this is {of}"
            with_what = kind if value is a else other
            _fail(self.text, value.at, f"{what}, and cannot be compared with {with_what}")

    def operand(self, node: _Name | _Value, other: _Name | _Value) -> pc.Expression:
        if isinstance(node, _Name):
            return pc.field(node.name)
        dtype = self.types[other.name] if isinstance(other, _Name) else None
        if dtype is not None and pa.types.is_floating(dtype):
            # Rounded as the column is: 0.1 in float32 is not 0.1 in float64, and `= 0.1` would find nothing.
            return pc.scalar(pa.scalar(float(node.value), dtype))
        return pc.scalar(node.value)


def _joined(word: str, parts: list[pc.Expression]) -> pc.Expression:
    """All parts with `and` or `or` between them, as a tree of little depth: Arrow walks it recursively."""
    while len(parts) > 1:
        pairs = zip(parts[::2], parts[1::2], strict=False)
        joined = [a & b if word == "and" else a | b for a, b in pairs]
        parts = joined + parts[len(parts) - len(parts) % 2 :]
    return parts[0]
