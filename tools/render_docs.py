"""Render docs/tables.md and the fields of docs/MODELS.md from schemas/, docs/configuration.md from facescale.config.

`make docs` runs it.

With --check nothing is written: the exit code is 1 when a page on disk is not what would be rendered.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from facescale.config.job import JobConfig
from facescale.lake.schema import Column, TableSpec, table_names, table_spec

if TYPE_CHECKING:
    from collections.abc import Sequence

DOCS = Path(__file__).resolve().parent.parent / "docs"
CARD_SCHEMA = DOCS.parent / "schemas" / "model.yaml"

# The order in which the data flows, not the alphabet's; a table that is not named here comes after these.
FLOW = (
    "sources",
    "images",
    "labels",
    "faces",
    "crops",
    "embeddings",
    "attributes",
    "duplicates",
    "neighbors",
    "clusters",
    "decisions",
)

FIELDS_BEGIN, FIELDS_END = "<!-- fields -->\n", "\n<!-- end of fields -->"

TABLES_HEAD = """\
# Tables

<!-- Rendered by `make docs` from schemas/*.yaml. Edit those. -->

One folder, `LAKE/<table>/<fingerprint>/` (`LAKE/<table>/<model>-<fingerprint>/` for tables that exist per
model), is one consistent table; the plan, made of what was found and not of settings, is `LAKE/sources/`.
Every Parquet file carries these descriptions and units in its field metadata, and the table's name and schema
version beside them.

Pixel coordinates are those of the full-size image after its EXIF orientation: x right, y down, pixel centers
at .5. Ids are 64-bit integers that say where a thing is: 23 bits of shard, 32 of row, 8 of ordinal. Ordinal 0
is the image, 1 to 255 are its faces by descending score; so `face_id - face_id % 256` is the `image_id`.
"""

CONFIGURATION_HEAD = """\
# Configuration

<!-- Rendered by `make docs` from facescale/config. Edit that. -->

The jobs (`facescale run`, `extract`, `dedup`, …) and `python -m jobs.…` read `--config file.yaml`; flags on the
command line override it. Unknown keys are refused. A section of this page is a section of the file:

    src: /data/photos
    lake: /data/photos.lake
    extract:
      min_face_px: 80
    engine:
      workers: 4

Settings under `engine` and the batch sizes never change results. Those that do are part of the fingerprint of
the tables they shape: another value makes a new table version beside the old one.
"""


def tables_page() -> str:
    """Every column of every table, as Markdown."""
    names = sorted(table_names(), key=lambda name: (FLOW.index(name) if name in FLOW else len(FLOW), name))
    return "\n".join([TABLES_HEAD, *(_table(table_spec(name)) for name in names)])


def configuration_page() -> str:
    """Every key of a job's configuration, as Markdown."""
    schema = JobConfig.model_json_schema()
    sections = {
        name: schema["$defs"][reference.rsplit("/", 1)[1]]
        for name, field in schema["properties"].items()
        if (reference := field.get("$ref"))
    }
    top = {name: field for name, field in schema["properties"].items() if name not in sections}
    pages = [_section("Top level", {**schema, "properties": top})]
    pages += [_section(f"`{name}`", section) for name, section in sections.items()]
    return "\n".join([CONFIGURATION_HEAD, *pages])


def models_page() -> str:
    """docs/MODELS.md, which people write, with its table of a card's fields made anew."""
    page = (DOCS / "MODELS.md").read_text(encoding="utf-8")
    head, _, rest = page.partition(FIELDS_BEGIN)
    _, _, tail = rest.partition(FIELDS_END)
    fields = yaml.safe_load(CARD_SCHEMA.read_text(encoding="utf-8"))["fields"]
    rows = []
    for field in fields:
        unit = f", {field['unit']}" if "unit" in field else ""
        allowed = ", ".join(f"`{value}`" for value in field.get("values", ()))
        meaning = _cell(field["description"]) + (f" One of {allowed}." if allowed else "")
        needed = "required" if field.get("required") else ""
        rows.append((f"`{field['name']}`", field["type"] + unit, needed, meaning))
    table = [f"| {' | '.join(row)} |" for row in (("field", "type", "", "meaning"), ("---",) * 4, *rows)]
    return head + FIELDS_BEGIN + "\n".join(["", *table, ""]) + FIELDS_END + tail


def _table(spec: TableSpec) -> str:
    lead = f"{_cell(spec.description)} Schema version {spec.version}, sorted by {', '.join(spec.key)}."
    rows = [(f"`{c.name}`", _type(c), c.unit, _meaning(c)) for c in spec.columns]
    return _markdown(spec.table, lead, ("column", "type", "unit", "meaning"), rows)


def _type(column: Column) -> str:
    return f"`{column.type}`" + (", may be null" if column.nullable else "")


def _meaning(column: Column) -> str:
    allowed = ", ".join(f"`{value}`" for value in column.values)
    return _cell(column.description) + (f" One of {allowed}." if allowed else "")


def _section(title: str, section: dict[str, Any]) -> str:
    required = section.get("required", [])
    rows = [
        (
            f"`{name}`",
            _allowed(field),
            "required" if name in required else _default(field.get("default")),
            _cell(field["description"]),
        )
        for name, field in section["properties"].items()
    ]
    return _markdown(title, _cell(section["description"]), ("key", "allowed", "default", "meaning"), rows)


def _allowed(field: dict[str, Any]) -> str:
    """What a JSON Schema field admits, in words; null is left out, as the default says it."""
    options = [option for option in field.get("anyOf", [field]) if option.get("type") != "null"]
    return " or ".join(_kind(option) for option in options)


def _kind(option: dict[str, Any]) -> str:
    if "enum" in option:
        return ", ".join(f"`{value}`" for value in option["enum"])
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {option[key]:,}" for key, sign in signs.items() if key in option]
    return " ".join([option["type"], *([", ".join(limits)] if limits else [])])


def _default(value: Any) -> str:
    if value is None:
        return "unset"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _markdown(title: str, lead: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join([f"## {title}", "", lead, "", *lines]) + "\n"


def _cell(text: str) -> str:
    """Text on one line, with what Markdown would take for a column's end escaped."""
    return " ".join(text.split()).replace("|", "\\|")


def main() -> int:
    """Write the pages, or with --check compare them.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is out of date")
    check = parser.parse_args().check
    stale = 0
    pages = {"tables.md": tables_page(), "configuration.md": configuration_page(), "MODELS.md": models_page()}
    for name, page in pages.items():
        path = DOCS / name
        if not check:
            path.write_text(page, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != page:
            print(f"docs/{name} is out of date: make docs", file=sys.stderr)
            stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main())
