"""The models of a job: their cards as they are run, their licences, and their weights on this machine.

Comes in: the configuration of extract and embed. Goes out: cards with the digest of the file that is run, what the
workers have to know of them, what the versions record of their licences. Called by the drivers and the pipeline.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from facescale.errors import FacescaleError, UsageError
from facescale.models.access import ModelAccess, current
from facescale.models.registry import card, choose_scheme
from facescale.models.weights import MissingWeightsError, find_weights, local_weights, with_digest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from facescale.config.extract import ExtractConfig
    from facescale.config.job import JobConfig
    from facescale.driver.context import Reporter
    from facescale.models.card import ModelCard


def card_to_run(name: str, task: str, runtime: str = "auto") -> ModelCard:
    """The card of a model for what runs it; its sha256 is that of the file, also where its author gave none.

    Args:
        name: registry name.
        task: "detector", "landmarker" or "embedder".
        runtime: "torch", "onnx" or "auto".

    Raises:
        FacescaleError: no such model, or a card without sha256 whose weights cannot be found.
    """
    found = card(name, task)
    return with_digest(found, found.preferring(runtime).backend).preferring(runtime)


def cards_used(config: ExtractConfig, job: str) -> list[ModelCard]:
    """The models that a job runs: for "embed" the embedder; for others the detector, perhaps the landmarker, too.

    Returns:
        Whole cards, with their variants, and with the sha256 of the files that are run.

    Raises:
        MismatchError: nothing gives the landmarks that the embedder needs.
        FacescaleError: as `card_to_run`.
    """
    return [with_digest(used, runtime) for used, runtime in _models(config, job)]


def access_for_workers(config: ExtractConfig, job: str) -> ModelAccess:
    """What workers have to know: the cards as they are here, since theirs may be others, or of another day."""
    cards = {used.name: used for used in cards_used(config, job)}
    if job != "embed":
        cards.setdefault(config.landmarker, card(config.landmarker, "landmarker"))
    return ModelAccess(offline=current().offline, cards=tuple(cards.values()))


def check_licences(config: ExtractConfig, job: str) -> None:
    """Refuse models whose licence forbids commercial use, until the user says that it allows theirs.

    Nothing is read or downloaded for it.

    Raises:
        UsageError: there is such a model, and `accept_license` is not set.
    """
    refuse_licences([used for used, _ in _models(config, job)], accepted=config.accept_license)


def refuse_licences(cards: Iterable[ModelCard], *, accepted: bool) -> None:
    """Refuse cards that forbid commercial use, unless their licences are accepted; see `check_licences`."""
    refused = [used for used in cards if used.non_commercial and not accepted]
    if refused:
        told = "; ".join(
            f"{used.task} {used.name} is under {used.licence} ({used.source})" for used in refused
        )
        raise UsageError(
            f"not for commercial use: {told}. Read the licence, and if it allows what you do, add --accept-license "
            "(extract.accept_license: true); or choose another model (facescale models list)"
        )


def licences_of(cards: Iterable[ModelCard]) -> dict[str, dict[str, Any]]:
    """What a version's description says of the models that made it: by name, licence, source, and what was accepted."""
    return {
        used.name: {
            "licence": used.licence,
            "source": used.source,
            "non_commercial": used.non_commercial,
            "accepted": used.non_commercial,  # check_licences let no other through
        }
        for used in cards
    }


def fetch_weights(config: JobConfig, job: str, reporter: Reporter) -> None:
    """Download what is not on this machine, before workers start: they would all wait for it, and the lake is not made.

    Raises:
        FacescaleError: they cannot be had. Where workers run on other machines, which may have them, that is a warning.
    """
    running = [used.for_backend(runtime) for used, runtime in _models(config.extract, job)]
    fetch_cards(running, config, reporter)


def fetch_cards(cards: Iterable[ModelCard], config: JobConfig, reporter: Reporter) -> None:
    """Download the weights of cards, each for what runs it, where they are not on this machine; see `fetch_weights`."""
    for running in cards:
        for file in (running, *running.parts.values()):
            if not file.urls:  # the model itself says what it lacks; a plug-in's may need no file
                continue
            try:
                local_weights(file)
                continue
            except MissingWeightsError:
                reporter.say(f"{file.name}: downloading its weights from {file.urls[0]} ({file.licence})")
            try:
                find_weights(file)
            except FacescaleError as error:
                if not (config.engine.address or os.environ.get("RAY_ADDRESS")):
                    raise
                reporter.warn(f"{error}; the cluster's machines need them")


def _models(config: ExtractConfig, job: str) -> list[tuple[ModelCard, str]]:
    """Cards of the models that a job runs, as they are registered, and what runs each."""

    def with_runtime(found: ModelCard) -> tuple[ModelCard, str]:
        return found, found.preferring(config.runtime).backend

    embedder = card(config.embedder, "embedder")
    if job == "embed":
        return [with_runtime(embedder)]
    detector, landmarker = card(config.detector, "detector"), card(config.landmarker, "landmarker")
    _, from_detector = choose_scheme(detector, landmarker, embedder)
    used = [with_runtime(detector), with_runtime(embedder)]
    return used if from_detector else [*used, (landmarker, landmarker.backend)]
