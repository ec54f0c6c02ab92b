"""What is shipped and what installs it: the wheel, the tested versions, the rendered pages."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from facescale.models import card

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS: dict[str, list[str]] = PYPROJECT["project"]["optional-dependencies"]
UNTESTED_EXTRAS = {"gpu"}  # faiss-gpu excludes faiss-cpu, so one file cannot hold both


def constraints() -> dict[str, Version]:
    """Package name → the one version that constraints.txt allows."""
    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            match = re.fullmatch(r"([A-Za-z0-9._-]+)==(\S+)", line)
            assert match, f"constraints.txt: {line!r} is not name==version"
            name = canonicalize_name(match[1])
            assert name not in pins, f"constraints.txt holds {name} twice"
            pins[name] = Version(match[2])
    return pins


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from this checkout without network."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stderr
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path)


def test_wheel_holds_schemas_and_cards(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    schemas = {f"facescale/schemas/{path.name}" for path in (ROOT / "schemas").glob("*.yaml")}
    package = {
        str(path.relative_to(ROOT))
        for folder in ("facescale", "jobs")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".py", ".yaml", ".j2", ".css"} and "__pycache__" not in path.parts
    }
    assert "facescale/schemas/images.yaml" in schemas
    assert any(name.startswith("facescale/models/cards/") for name in package)
    assert {"facescale/report/report.html.j2", "facescale/report/report.css"} <= package
    assert schemas | package <= names
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"facescale", "jobs"}


def test_wheel_works_without_the_checkout(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """Schemas and model cards are found where a wheel puts them, not only in a checkout."""
    wheel.extractall(tmp_path)
    code = (
        "import facescale, facescale.lake.schema as schema, facescale.models.registry as registry;"
        "print(facescale.__file__); print(*schema.table_names());"
        "print(*(card.name for card in registry.cards()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    where, tables, cards = done.stdout.splitlines()
    assert Path(where).is_relative_to(tmp_path)
    assert set(tables.split()) == {path.stem for path in (ROOT / "schemas").glob("*.yaml")} - {"model"}
    assert {"dlib_mmod", "dlib_5pt", "dlib_resnet"} <= set(cards.split())


@pytest.mark.parametrize("extra", [None, *sorted(set(EXTRAS) - UNTESTED_EXTRAS)])
def test_every_dependency_has_a_tested_version(extra: str | None) -> None:
    pins = constraints()
    for text in PYPROJECT["project"]["dependencies"] if extra is None else EXTRAS[extra]:
        requirement = Requirement(text)
        if requirement.name == PYPROJECT["project"]["name"]:
            assert requirement.extras <= set(EXTRAS)
            continue
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement.name} is not in constraints.txt"
        assert pin in requirement.specifier, (
            f"constraints.txt has {requirement.name} {pin}, pyproject wants {text}"
        )


def test_torch_is_pinned_without_a_build() -> None:
    """A local version such as +cpu would refuse every other build, and is not on the usual index."""
    assert constraints()["torch"].local is None


def test_rendered_pages_are_up_to_date() -> None:
    command = [sys.executable, "tools/render_docs.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_table_page_names_every_column() -> None:
    page = (ROOT / "docs" / "tables.md").read_text(encoding="utf-8")
    for path in sorted(set((ROOT / "schemas").glob("*.yaml")) - {ROOT / "schemas" / "model.yaml"}):
        table = yaml.safe_load(path.read_text(encoding="utf-8"))
        section = page.partition(f"\n## {table['table']}\n")[2].partition("\n## ")[0]
        assert [f"| `{column['name']}` |" in section for column in table["columns"]] == [True] * len(
            table["columns"]
        )


def test_the_schema_of_cards_is_that_of_the_code() -> None:
    """Names, order, required fields, allowed values and kinds of schemas/model.yaml and of ModelCard."""
    schema = yaml.safe_load((ROOT / "schemas" / "model.yaml").read_text(encoding="utf-8"))["fields"]
    fields = dataclasses.fields(card.ModelCard)
    assert [entry["name"] for entry in schema] == [field.name for field in fields]
    allowed = {"task": card.TASKS, "channel_order": card.CHANNEL_ORDERS, "format": card.FORMATS}
    kinds = {
        "str": "string",
        "bool": "bool",
        "int": "int",
        "float": "number",
        "tuple[str, ...]": "list of string",
        "tuple[float, ...]": "number or 3 numbers",
    }
    for entry, field in zip(schema, fields, strict=True):
        needed = field.default is field.default_factory is dataclasses.MISSING
        assert entry.get("required", False) is needed, field.name
        assert tuple(entry.get("values", ())) == allowed.get(field.name, ()), field.name
        kind = str(field.type).removesuffix(" | None")
        assert entry["type"] == ("mapping" if kind.startswith("Mapping") else kinds[kind]), field.name


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").glob("*.md")), ids=lambda p: p.name
)
def test_links_between_pages_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8")):
        if not target.startswith(("https://", "http://")):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"
