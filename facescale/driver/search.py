"""Drive search: query images (or embeddings) in, a table of the nearest faces out; on screen and as Parquet.

One search of a Searcher (facescale.driver.searcher), with its warnings told and its hits written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from facescale.driver.searcher import Searcher, SearchResult
from facescale.errors import UsageError
from facescale.index.results import write_results

if TYPE_CHECKING:
    from collections.abc import Sequence

    from facescale.config.index import SearchConfig
    from facescale.driver.context import Reporter


def run_search(
    lake_uri: str,
    queries: Sequence[str],
    config: SearchConfig,
    *,
    output: str | None = None,
    reporter: Reporter,
) -> SearchResult:
    """Search a lake.

    Args:
        lake_uri: root of the lake.
        queries: images, folders of images, tars are not taken; files that end in .parquet hold embeddings.
        config: which index, how many faces, which label.
        output: Parquet file for the hits; written atomically.
        reporter: where warnings go.

    Raises:
        UsageError: no lake, no index, a query that does not exist, or not one query gave a face.
        MismatchError: the queries are not of the index's model or dimension.
    """
    with Searcher.open(
        lake_uri, embedder=config.embedder, device=config.device, plugins=config.plugins
    ) as searcher:
        for warning in searcher.warnings:
            reporter.warn(warning)
        result = searcher.search_files(
            queries,
            config.k,
            label=config.label,
            min_similarity=config.min_similarity,
            min_quality=config.min_quality,
            where=config.where,
        )
    for name, problem in result.problems:
        reporter.warn(f"{name}: {problem}")
    if not result.queries:
        raise UsageError(
            "no query gave a face to search for: " + "; ".join(f"{n}: {p}" for n, p in result.problems)
        )
    if output is not None:
        write_results(result.hits, output)
        result.output = output
    return result
