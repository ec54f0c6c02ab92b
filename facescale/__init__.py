"""facescale: from a crawl of web images to a clean, searchable face data set.

    import facescale

    facescale.run("photos", "photos.lake", labels="folder")
    lake = facescale.Lake.open("photos.lake")
    with facescale.Searcher.open(lake) as searcher:
        found = searcher.search_files(["someone.jpg"])

The names below are the public API (docs/GUIDE.md); everything else may change. Importing this package loads nothing:
a name comes from its module when it is first used, and torch, ray and faiss with the functions that need them.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "Hit",
    "JobConfig",
    "JobSummary",
    "Lake",
    "SearchResult",
    "Searcher",
    "__version__",
    "annotate",
    "build_index",
    "calibrate",
    "clean",
    "cluster",
    "dedup",
    "embed",
    "errors",
    "evaluate_cleaning",
    "evaluate_clusters",
    "export",
    "extract",
    "import_embeddings",
    "neighbors",
    "run",
    "search",
    "write_report",
]

if TYPE_CHECKING:
    from facescale import errors
    from facescale.api.annotate import annotate
    from facescale.api.export import export
    from facescale.api.imports import import_embeddings
    from facescale.api.jobs import (
        build_index,
        clean,
        cluster,
        dedup,
        embed,
        extract,
        neighbors,
        run,
        write_report,
    )
    from facescale.api.lake import Lake
    from facescale.api.questions import calibrate, evaluate_cleaning, evaluate_clusters, search
    from facescale.config.job import JobConfig
    from facescale.driver.context import JobSummary
    from facescale.driver.searcher import Hit, Searcher, SearchResult
else:
    # Where each name comes from. Not seen by type checkers, so that they know these names and no others.
    _NAMES = {
        "facescale.api.annotate": "annotate",
        "facescale.api.export": "export",
        "facescale.api.imports": "import_embeddings",
        "facescale.api.jobs": "build_index clean cluster dedup embed extract neighbors run write_report",
        "facescale.api.lake": "Lake",
        "facescale.api.questions": "calibrate evaluate_cleaning evaluate_clusters search",
        "facescale.config.job": "JobConfig",
        "facescale.driver.context": "JobSummary",
        "facescale.driver.searcher": "Hit SearchResult Searcher",
    }
    _HOME = {name: module for module, names in _NAMES.items() for name in names.split()}

    def __getattr__(name):
        from importlib import import_module

        if name == "errors":
            return import_module("facescale.errors")
        if name not in _HOME:
            raise AttributeError(f"module 'facescale' has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_HOME[name]), name)
        return value

    def __dir__():
        return sorted({*globals(), *__all__})
