"""The annotator section of a card: what it says, and what is refused with which words."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from facescale.errors import UsageError
from facescale.models.annotator_card import annotator_part
from facescale.models.card import ModelCard, parse_card

HEAD = {
    "name": "net",
    "task": "annotator",
    "architecture": "onnx",
    "file": "net.onnx",
    "licence": "MIT",
    "non_commercial": False,
    "source": "https://example.org",
    "input_size": 64,
}
AGE = {
    "name": "age",
    "type": "float",
    "unit": "years",
    "description": "Age.",
    "how": "expected",
    "bins": [10, 30],
}


def card(columns: Any, **more: Any) -> ModelCard:
    section = {"columns": columns} | {name: more.pop(name) for name in ("crop", "extra_key") if name in more}
    return parse_card(yaml.safe_dump({**HEAD, "annotator": section, **more}), where="net.yaml")


def test_what_a_card_says() -> None:
    mask = {
        "name": "mask",
        "type": "string",
        "description": "Mask.",
        "how": "argmax",
        "classes": ["no", "yes"],
        "output": "m",
    }
    part = annotator_part(card([AGE, mask], crop={"eyes_at": [0.5, 0.4], "eye_distance": 0.3}))
    assert [column.name for column in part.columns] == ["age", "mask"]
    assert part.columns[0].bins == (10.0, 30.0)
    assert part.crop is not None and part.crop.reach == pytest.approx(0.6 / 0.3)
    assert part.declared() == [AGE | {"bins": [10.0, 30.0]}, mask]
    whole = annotator_part(card([AGE]))
    assert whole.crop is not None and whole.crop.reach == pytest.approx(2.2)
    aligned = card([AGE], template="arcface_112", landmark_scheme="arcface5", input_size=112)
    assert annotator_part(aligned).crop is None


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"name": "face_id"}, "column 1 .face_id.: field 'name'"),
        ({"name": "Age"}, "field 'name' is 'Age'"),
        ({"description": "Age"}, "a sentence with its full stop"),
        ({"type": "double"}, "field 'type' is 'double'.*allowed: float"),
        ({"type": "list<float>"}, "field 'type'"),
        ({"how": "guess"}, "field 'how' is 'guess'.*allowed: raw, sigmoid"),
        ({"bins": []}, "field 'bins'"),
        ({"how": "raw"}, "field 'bins'"),
        ({"bins": ["a"]}, r"field 'bins': expected tuple\[float, ...\], got \['a'\]"),
        ({"pick": -1}, "field 'pick'"),
        ({"threshold": 0.5}, "field 'threshold'"),
        ({"range": [3, 1]}, "field 'range'"),
        ({"range": [1, 2, 3]}, "field 'range': expected"),
        ({"clases": ["a"]}, "unknown field 'clases'; did you mean 'classes'"),
        ({"min_probability": 0.5}, "field 'min_probability'"),
        ({"multiply": float("nan")}, "field 'multiply': expected float"),
        ({"multiply": True}, "field 'multiply': expected float"),
        ({"how": "softmax", "bins": []}, "field 'pick' is None"),
        ({"how": "argmax", "type": "string", "bins": []}, "field 'classes'"),
        ({"how": "softmax", "bins": [], "classes": ["a", "b"], "pick": "c"}, "name or number of a, b"),
    ],
)
def test_columns_refused(change: dict[str, Any], what: str) -> None:
    with pytest.raises(UsageError, match=what) as error:
        annotator_part(card([{**AGE, **change}]))
    assert "model card 'net'" in str(error.value)


def test_sections_refused() -> None:
    with pytest.raises(UsageError, match="must list at least one column"):
        annotator_part(card([]))
    with pytest.raises(UsageError, match="column 2: field 'type' is missing"):
        annotator_part(card([AGE, {"name": "x", "description": "X."}]))
    with pytest.raises(UsageError, match="declared twice"):
        annotator_part(card([AGE, AGE]))
    with pytest.raises(UsageError, match="unknown field 'extra_key'"):
        annotator_part(card([AGE], extra_key=1))
    with pytest.raises(UsageError, match=r"reaches 3.00 .*stored crops show 2.2.*at least 0.273"):
        annotator_part(card([AGE], crop={"eyes_at": [0.5, 0.4], "eye_distance": 0.2}))
    with pytest.raises(UsageError, match="eyes_at is x and y"):
        annotator_part(card([AGE], crop={"eyes_at": [0.5, 1.4]}))
    with pytest.raises(UsageError, match="eye_distance"):
        annotator_part(card([AGE], crop={"eye_distance": 0}))
    with pytest.raises(UsageError, match="leave out 'crop'"):
        annotator_part(card([AGE], crop={}, template="arcface_112", landmark_scheme="arcface5"))


def test_cards_refused() -> None:
    with pytest.raises(UsageError, match="field 'annotator'"):
        parse_card(yaml.safe_dump(HEAD), where="net.yaml")
    with pytest.raises(UsageError, match="field 'input_size'"):
        card([AGE], input_size=None)
    with pytest.raises(UsageError, match="field 'landmark_scheme'"):
        card([AGE], template="arcface_112")
    with pytest.raises(UsageError, match="call the model something else"):
        annotator_part(card([AGE], name="faces"))
