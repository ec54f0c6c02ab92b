"""Read a job's configuration: a YAML file, then flags on top; every complaint names the field and what is allowed.

`load_config` is called by the command line, by jobs/ and by the Python API.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from pydantic import ValidationError

from facescale.config.base import Config
from facescale.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

C = TypeVar("C", bound=Config)


def load_config(
    model: type[C],
    *,
    file: str | None = None,
    base: C | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> C:
    """Build a configuration.

    Args:
        model: the pydantic model to fill.
        file: YAML file whose sections are the model's parts.
        base: a configuration to start from, in place of a file.
        overrides: dotted path → value, e.g. {"engine.workers": 2}; None values are left out; strings are parsed
            by the model.

    Raises:
        UsageError: the file cannot be read, a key is unknown, or a value is not allowed.
    """
    values = _read_yaml(file) if file else {} if base is None else base.model_dump(exclude_unset=True)
    for path, value in (overrides or {}).items():
        if value is not None:
            _set(values, path.split("."), value)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        where = f"configuration {file}" if file else "configuration"
        raise UsageError(f"{where}: " + "; ".join(_explain(model, item) for item in error.errors())) from None


def _read_yaml(file: str) -> dict[str, Any]:
    try:
        with open(file, encoding="utf-8") as stream:
            values = yaml.safe_load(stream)
    except OSError as error:
        raise UsageError(f"configuration {file} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"configuration {file} is not YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(f"configuration {file} must hold sections and keys, not a {type(values).__name__}")
    return values


def _set(values: dict[str, Any], path: list[str], value: Any) -> None:
    for name in path[:-1]:
        inner = values.setdefault(name, {})
        if not isinstance(inner, dict):
            raise UsageError(f"configuration: {name} is a section, not {inner!r}")
        values = inner
    values[path[-1]] = value


def _explain(model: type[Config], item: Any) -> str:
    path = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        owner: Any = model
        for part in item["loc"][:-1]:
            owner = owner.model_fields[part].annotation
        return f"{path} is not known; known here: {', '.join(sorted(owner.model_fields))}"
    if item["type"] == "missing":
        return f"{path} is required"
    return f"{path}: {item['msg']} (got {item['input']!r})"
