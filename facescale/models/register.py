"""A user's own model: a weights file and a card come in, both are kept where every later command finds them.

Called by `facescale models register`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from facescale.errors import CorruptError, UsageError
from facescale.models.card import card_from_mapping, parse_mapping
from facescale.models.fetch import store_file
from facescale.models.registry import check_own_name, put_own_card
from facescale.models.weights import sha256_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from facescale.models.card import ModelCard

_INPUTS = {"tensor(float)": "float32", "tensor(float16)": "float16"}


@dataclass(frozen=True)
class Registered:
    """What was kept where, and what is worth knowing about it."""

    card: ModelCard
    card_path: Path
    weights_path: Path
    remarks: tuple[str, ...]


def register_model(
    file: Path,
    card_file: Path,
    *,
    check: Callable[[ModelCard], None],
    link: bool = False,
    replace: bool = False,
) -> Registered:
    """Put a model's weights into the cache and its card into the user's folder of cards.

    Args:
        file: the weights.
        card_file: YAML; `file`, `sha256` and `size_bytes` may be missing, as the file tells them.
        check: raises when the card cannot be used, e.g. as its architecture is not known.
        link: leave the weights where they are, and put a symbolic link into the cache.
        replace: let the card take the place of another one that the user registered under its name.

    Raises:
        UsageError: a file cannot be read, the card is not valid or does not fit the file, its name is taken.
        CorruptError: the card gives another digest or size than the file has.
        DiskFullError: no space left.
    """
    where = str(card_file)
    try:
        values = parse_mapping(card_file.read_text(encoding="utf-8"), where=where)
        digest, size_bytes = sha256_of(file), file.stat().st_size
    except UnicodeDecodeError as error:
        raise UsageError(f"{where}: a model card is UTF-8 text; is this the weights file?") from error
    except OSError as error:
        raise UsageError(f"{error.filename}: cannot be read: {error.strerror}") from error
    values.setdefault("file", file.name)
    card = card_from_mapping({**values, "sha256": digest, "size_bytes": size_bytes}, where=where)
    for field, found in (("sha256", digest), ("size_bytes", size_bytes)):
        if values.get(field) not in (None, found):
            raise CorruptError(
                f"{where}: field {field!r} is {values[field]}, but {file} has {found}: get the right file, or "
                "leave the field out"
            )
    if card.package is not None:
        raise UsageError(f"{where}: field 'package': the weights would come from there; leave it out")
    check(card)
    check_own_name(card, replace=replace)
    remarks = check_onnx(card, file) if card.format == "onnx" else ()
    weights_path = store_file(file, digest, link=link)
    text = yaml.safe_dump(
        {**values, "sha256": digest, "size_bytes": size_bytes}, sort_keys=False, allow_unicode=True
    )
    return Registered(card, put_own_card(card, text), weights_path, remarks)


def check_onnx(card: ModelCard, path: Path) -> tuple[str, ...]:
    """Open an ONNX file once and hold its inputs and outputs against the card; an embedder is run on black chips.

    Returns:
        Remarks: what could not be checked, and what the file has.

    Raises:
        UsageError: ONNX Runtime cannot read it, or it does not fit the card.
    """
    try:
        import onnxruntime
    except ImportError:
        return ("inputs and outputs were not checked: pip install 'facescale[onnx]' first to have that done",)
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises classes of its own, without a common base
        raise UsageError(f"{path}: ONNX Runtime cannot load it: {error}") from error
    inputs, outputs = session.get_inputs(), session.get_outputs()
    told = (
        "inputs " + ", ".join(f"{entry.name} {entry.type} {entry.shape}" for entry in inputs),
        "outputs " + ", ".join(f"{entry.name} {entry.type} {entry.shape}" for entry in outputs),
    )
    shape = list(inputs[0].shape) if len(inputs) == 1 else []
    is_last = card.options.get("layout") == "nhwc"
    if is_last and len(shape) == 4:
        shape = [shape[0], shape[3], *shape[1:3]]
    if len(shape) != 4 or inputs[0].type not in _INPUTS or shape[1] not in (3, *_free(shape[1])):
        wanted = "N × height × width × 3" if is_last else "N × 3 × height × width"
        hint = "" if is_last else "; the card's option layout: nhwc is for channels that come last"
        raise UsageError(
            f"{path}: the network has {'; '.join(told)}; one input of float or float16, {wanted}, is needed{hint}"
        )
    if card.task != "embedder":
        return told
    _run_embedder(card, path, session, shape, told[0])
    if isinstance(shape[0], int):
        return (*told, f"it takes {shape[0]} chips at a time: a free batch dimension is faster")
    return told


def _free(size: Any) -> tuple[Any, ...]:
    """A dimension that is not fixed is a name or None; as a tuple to compare with."""
    return () if isinstance(size, int) else (size,)


def _run_embedder(card: ModelCard, path: Path, session: Any, shape: list[Any], told: str) -> None:
    import numpy as np

    side = card.input_size or 0
    if any(size not in (side, *_free(size)) for size in shape[2:]):
        raise UsageError(f"{path}: the network has {told}; the card's input_size is {side}")
    num = shape[0] if isinstance(shape[0], int) else 2
    black = np.zeros((num, 3, side, side), _INPUTS[session.get_inputs()[0].type])
    if card.options.get("layout") == "nhwc":
        black = black.transpose(0, 2, 3, 1)
    try:
        found = session.run(None, {session.get_inputs()[0].name: np.ascontiguousarray(black)})
    except Exception as error:  # as above
        raise UsageError(
            f"{path}: the network does not run on {num} × 3 × {side} × {side}: {error}"
        ) from error
    shapes = [list(getattr(value, "shape", ())) for value in found]
    if shapes[0] != [num, card.dim]:
        raise UsageError(
            f"{path}: for {num} chips the network's first output is {shapes[0]}, but the card's dim is {card.dim}"
        )
    if not np.isfinite(found[0]).all():
        raise UsageError(f"{path}: the network gives numbers that are not finite for black chips")
