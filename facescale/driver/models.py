"""What `facescale models` answers: the registry, a card, downloads, checks, and the user's own models.

Names come in, rows for the screen or for --json go out. Called by facescale.cli_models.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facescale.errors import CorruptError, FacescaleError, UsageError
from facescale.models.annotator_card import annotator_part
from facescale.models.cache import cache_folder, recorded_digest
from facescale.models.card import ModelCard
from facescale.models.fetch import fetch
from facescale.models.register import register_model
from facescale.models.registry import card, cards, own_card_path
from facescale.models.weights import MissingWeightsError, local_weights, verify
from facescale.vision.registry import architectures

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from facescale.models.register import Registered
    from facescale.models.transfer import Progress


@dataclass(frozen=True)
class ModelRow:
    """A model in short; `weights` is a path, "to download", "by hand: SOURCE", or what is missing."""

    name: str
    task: str
    runtimes: list[str]
    licence: str
    non_commercial: bool
    size_bytes: int | None
    weights: str


@dataclass(frozen=True)
class ModelDetails:
    """A card with every field that it sets, and where it and each runtime's weights are."""

    card: dict[str, Any]
    from_file: str
    weights: dict[str, str]
    recorded_sha256: str | None


@dataclass(frozen=True)
class Verified:
    """Whether a model's weights are here and right."""

    name: str
    runtime: str
    ok: bool
    found: str


@dataclass(frozen=True)
class Pulled:
    """A model whose weights are here now."""

    name: str
    runtime: str
    path: str
    size_bytes: int
    downloaded: bool
    licence: str
    non_commercial: bool


def list_models(task: str | None = None) -> list[ModelRow]:
    """Every registered model, in order of name."""
    return [
        ModelRow(
            known.name,
            known.task,
            list(known.backends),
            known.licence,
            known.non_commercial,
            known.size_bytes,
            _where(known),
        )
        for known in cards(task)
    ]


def show_model(name: str) -> ModelDetails:
    """Everything about one model.

    Raises:
        UsageError: there is no such model.
    """
    known = card(name)
    blank = {field.name: field.default for field in dataclasses.fields(ModelCard)}
    values = {
        field: value
        for field, value in dataclasses.asdict(known).items()
        if value not in (blank[field], {}, ()) or field in ("non_commercial", "sha256")
    }
    own = own_card_path(name)
    return ModelDetails(
        card=values,
        from_file=str(own) if own.is_file() else "facescale or a plug-in",
        weights={runtime: _where(known.for_backend(runtime)) for runtime in known.backends},
        recorded_sha256=recorded_digest(known) if known.sha256 is None else None,
    )


def _where(known: ModelCard) -> str:
    try:
        return str(local_weights(known))
    except MissingWeightsError:
        return "to download" if known.urls else f"by hand: {known.source}"
    except FacescaleError as error:
        return f"missing: {error}"


def pull_models(
    names: Sequence[str],
    *,
    runtime: str | None = None,
    progress: Callable[[str], Progress] | None = None,
) -> list[Pulled]:
    """Bring models' weights to this machine, and check those that are here.

    Args:
        names: registry names.
        runtime: "torch" or "onnx", "all" for both; None is what the card names first.
        progress: called with a model's name, gives what is told the bytes.

    Raises:
        UsageError: no such model or runtime; downloads are forbidden.
        FacescaleError: the weights cannot be had (facescale.models.fetch).
    """
    chosen = [card(name) for name in names]
    return [
        _pull(file, progress)
        for known in chosen
        for one in (known.backends if runtime == "all" else [runtime or known.backend])
        for file in _files(known.for_backend(one))
    ]


def _files(known: ModelCard) -> list[ModelCard]:
    """A card for each file that the weights of one consist of."""
    return [known, *known.parts.values()]


def _pull(known: ModelCard, progress: Callable[[str], Progress] | None) -> Pulled:
    downloaded = False
    try:
        path = local_weights(known)
        verify(known, path)
    except (MissingWeightsError, CorruptError) as error:
        in_cache = not isinstance(error, CorruptError) or path.is_relative_to(cache_folder())
        if not (known.urls and in_cache):  # what the user put somewhere is not replaced
            raise
        path = fetch(known, progress=progress(known.name) if progress else None)
        downloaded = True
    return Pulled(
        known.name,
        known.backend,
        str(path),
        path.stat().st_size,
        downloaded,
        known.licence,
        known.non_commercial,
    )


def verify_models(names: Sequence[str] | None = None) -> list[Verified]:
    """Read models' weights and hold them against their cards; nothing is downloaded.

    Args:
        names: registry names; None takes every model that has weights here or should have: one that is yet to be
            downloaded is left out.
    """
    rows = []
    for known in [card(name) for name in names] if names else cards():
        for runtime in known.backends:
            for used in _files(known.for_backend(runtime)):
                try:
                    path = local_weights(used)
                    verify(used, path)
                except MissingWeightsError as error:
                    if names and runtime == known.backend:
                        rows.append(Verified(used.name, runtime, False, str(error)))
                except FacescaleError as error:
                    rows.append(Verified(used.name, runtime, False, str(error)))
                else:
                    digest = used.sha256 or f"{recorded_digest(used)} (recorded)"
                    rows.append(Verified(used.name, runtime, True, f"sha256 {digest} at {path}"))
    return rows


def register(file: str, card_file: str, *, link: bool = False, replace: bool = False) -> Registered:
    """Keep a user's own model; see facescale.models.register.

    Raises:
        UsageError: as register_model; or no architecture of facescale or a plug-in reads such a model.
    """

    def check(own: ModelCard) -> None:
        known = architectures(own.task)
        if own.architecture not in known:
            raise UsageError(
                f"{card_file}: there is no {own.task} architecture {own.architecture!r}; there are {', '.join(known)} "
                "(an embedder or annotator in an ONNX file is `onnx`), and those of plug-ins (--plugin)"
            )
        if own.task == "annotator":
            annotator_part(own)

    return register_model(Path(file), Path(card_file), check=check, link=link, replace=replace)
