"""Conditions: what they mean, against three-valued logic in plain Python; what is refused, and where it points."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facescale.errors import UsageError
from facescale.lake.where import MAX_DEPTH, parse_where

ROWS = pa.table(
    {
        "age": pa.array([4, 17, 18, None, 60], pa.int32()),
        "score": pa.array([0.1, 0.5, None, 0.9, 1.5], pa.float32()),
        "mask": pa.array(["none", "it's", "hand", None, "NONE"]),
        "good": pa.array([True, False, None, True, False]),
        "points": pa.array([[1.0], None, [], [2.0], [3.0]], pa.list_(pa.float32())),
        "net.age": pa.array([1, 2, 3, 4, 5], pa.int64()),
    }
)
TYPES = {field.name: field.type for field in ROWS.schema}


def kept(text: str) -> list[int]:
    """Rows that a condition lets through."""
    found = ROWS.append_column("row", pa.array(range(5))).filter(parse_where(text).bind(TYPES))
    rows: list[int] = found["row"].to_pylist()
    return rows


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("age < 18", [0, 1]),
        ("age >= 17 and score <= 0.5", [1]),
        ("NOT age < 18", [2, 4]),  # row 3 has no age: unknown either way
        ("age < 18 or age is null", [0, 1, 3]),
        ("age is not null", [0, 1, 2, 4]),
        ("18 > age", [0, 1]),
        ("score = 0.1", [0]),  # as float32 has it
        ("score != .9", [0, 1, 4]),
        ("age = 1.7e1", [1]),
        ("mask in ('none', 'it''s')", [0, 1]),
        ("mask not in ('none', 'it''s')", [2, 4]),
        ("age in (4, 60)", [0, 4]),
        ("good", [0, 3]),
        ("not good", [1, 4]),
        ("good = false", [1, 4]),
        ("points is null", [1]),
        ("net.age > age", []),
        ('"net"."age" >= 4', [3, 4]),
        ("age <> 4 and (mask = 'hand' or good) or score > 1", [2, 4]),
        ("age = 4 or age = 17 and good", [0]),  # and binds tighter
        ("age > -5", [0, 1, 2, 4]),
    ],
)
def test_meaning(text: str, rows: list[int]) -> None:
    assert kept(text) == rows


def test_columns_are_named_in_order() -> None:
    where = parse_where("b < 1 and (a.x = 'c' or b is null)")
    assert dict(where.columns) == {"b": 0, "a.x": 11}


@pytest.mark.parametrize(
    ("text", "at", "what"),
    [
        ("", 1, "expected a column"),
        ("age", 1, "column age is a number: compare it with something"),
        ("age <", 6, "expected a column, a number or a 'text', found the end"),
        ("age < 18 18", 10, "expected `and`, `or` or the end"),
        ("(age < 18", 10, r"expected `and`, `or` or `\)`"),
        ("age < 'x'", 7, "column age is a number, and cannot be compared with text"),
        ("mask = 3", 8, "column mask is text, and cannot be compared with a number"),
        ("mask in ('a', 3)", 15, "column mask is text"),
        ("points > 1", 1, "can only be held against null"),
        ("good < true", 6, "does not order true and false"),
        ("size > 1", 1, "there is no column size"),
        ("age = null", 7, "`is null`"),
        ("age is 3", 8, "expected `null`"),
        ("age not 3", 9, "expected `in`"),
        ("age in 3", 8, r"expected `\(`"),
        ("age in (3", 10, r"expected `,` or `\)`"),
        ("mask = 'a", 8, "no closing '"),
        ("age ; 3", 5, "';' means nothing here"),
        ("__import__('os')", 11, "expected `and`, `or` or the end"),
        ("1 = 1", 1, "one side has to be a column"),
        ("age < 99999999999999999999", 7, "too large"),
        ("\n  age\n  <<", 11, "expected a column"),
    ],
)
def test_refused(text: str, at: int, what: str) -> None:
    with pytest.raises(UsageError, match=what) as error:
        parse_where(text).bind(TYPES)
    lines = str(error.value).split("\n")
    assert lines[0].startswith(f"--where, character {at}:")
    # The mark stands under the character.
    assert len(lines[2]) - 3 == at - 1 - (text.rfind("\n", 0, at - 1) + 1)


def test_no_text_is_too_much() -> None:
    with pytest.raises(UsageError, match="nested more than"):
        parse_where("(" * 3000 + "age < 1" + ")" * 3000)
    with pytest.raises(UsageError, match="at most 10,000"):
        parse_where("age < 1 or " * 2000 + "age < 1")
    assert kept("(" * MAX_DEPTH + "age < 18" + ")" * MAX_DEPTH) == [0, 1]
    assert kept(" or ".join(["age = 4"] * 900)) == [0]
    assert kept(f"age in ({', '.join(map(str, range(1500)))})") == [0, 1, 2, 4]


# A condition as text, and as a function of a row that says True, False or None (unknown).
Condition = tuple[str, Any]


def _compare(name: str, sign: str, value: Any) -> Condition:
    signs = {
        "<": lambda a: a < value,
        "<=": lambda a: a <= value,
        "=": lambda a: a == value,
        "!=": lambda a: a != value,
        ">": lambda a: a > value,
        ">=": lambda a: a >= value,
    }
    shown = f"'{value}'" if isinstance(value, str) else repr(value)
    return f"{name} {sign} {shown}", lambda row: None if row[name] is None else signs[sign](row[name])


_SIGNS = st.sampled_from(["<", "<=", "=", "!=", ">", ">="])
_LEAVES = st.one_of(
    st.builds(_compare, st.just("age"), _SIGNS, st.integers(0, 70)),
    st.builds(_compare, st.just("score"), _SIGNS, st.sampled_from([0.25, 0.5, 1.5, 2])),
    st.builds(_compare, st.just("mask"), _SIGNS, st.sampled_from(["none", "hand", "z"])),
    st.sampled_from(["age", "score", "mask", "good"]).map(
        lambda name: (f"{name} is null", lambda row: row[name] is None)
    ),
    st.just(("good", lambda row: row["good"])),
    st.lists(st.integers(0, 70), min_size=1, max_size=3).map(
        lambda some: (
            f"age in ({', '.join(map(str, some))})",
            lambda row: None if row["age"] is None else row["age"] in some,
        )
    ),
)


def _not(a: Condition) -> Condition:
    return f"not ({a[0]})", lambda row: None if a[1](row) is None else not a[1](row)


def _and(a: Condition, b: Condition) -> Condition:
    def both(row: Any) -> bool | None:
        found = (a[1](row), b[1](row))
        return False if False in found else None if None in found else True

    return f"({a[0]}) and ({b[0]})", both


def _or(a: Condition, b: Condition) -> Condition:
    def either(row: Any) -> bool | None:
        found = (a[1](row), b[1](row))
        return True if True in found else None if None in found else False

    return f"({a[0]}) or ({b[0]})", either


_CONDITIONS = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(inner.map(_not), st.builds(_and, inner, inner), st.builds(_or, inner, inner)),
    max_leaves=8,
)


@given(_CONDITIONS)
@settings(max_examples=200)
def test_against_three_valued_logic(condition: Condition) -> None:
    text, truth = condition
    assert kept(text) == [i for i, row in enumerate(ROWS.to_pylist()) if truth(row) is True], text


@given(st.text(alphabet="ab_.'\"()<>=!, \n\t09null insot", max_size=40))
@settings(max_examples=300)
def test_any_text_is_understood_or_refused(text: str) -> None:
    try:
        where = parse_where(text)
    except UsageError:
        return
    assert where.columns and np.all([name.strip() for name in where.columns])
