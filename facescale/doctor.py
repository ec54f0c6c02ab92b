"""What this machine can do, what is missing, and the command that installs it. Called by `facescale doctor`.

Nothing is fixed and nothing is written. A problem that makes jobs fail or lie (two FAISS builds in one environment)
makes the exit code 2; a missing optional part does not.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from dataclasses import dataclass

from facescale.errors import EXIT_DONE, EXIT_USAGE


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's answer; `state` is ok, missing (optional) or problem."""

    what: str
    state: str
    found: str
    remedy: str = ""


_OPTIONAL = (
    ("hnswlib", "hnswlib", "hnsw", "the hnswlib index backend"),
    ("skimage", "scikit-image", "synth", "facescale synth and demo"),
    ("onnxruntime", "onnxruntime", "onnx", "ONNX models"),
    ("s3fs", "s3fs", "s3", "lakes and sources on s3://"),
)


def examine(path: str = ".") -> list[Finding]:
    """Look at Python, torch, CUDA, FAISS, Ray, models, memory and disk.

    Args:
        path: folder whose disk is looked at, usually where a lake is to be.
    """
    findings = [_python(), *_torch(), *_faiss(), _ray(), _default_models()]
    for module, package, extra, purpose in _OPTIONAL:
        findings.append(_optional(module, package, extra, purpose))
    return [*findings, _memory(), _disk("disk", path), _disk("temporary disk", tempfile.gettempdir())]


def exit_code(findings: list[Finding]) -> int:
    """2 when anything is a problem."""
    return EXIT_USAGE if any(finding.state == "problem" for finding in findings) else EXIT_DONE


def _python() -> Finding:
    version = platform.python_version()
    where = f"{version} at {sys.executable}"
    return Finding("Python", "ok", where)


def _torch() -> list[Finding]:
    try:
        import torch
    except (ImportError, OSError) as error:
        return [Finding("torch", "problem", str(error), "pip install torch")]
    found = [Finding("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads")]
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        found.append(Finding("CUDA", "ok", f"{torch.version.cuda}: {', '.join(names)}"))
        return found
    built = "torch is built without CUDA" if torch.version.cuda is None else "no CUDA device is visible"
    found.append(
        Finding("CUDA", "missing", built, "to use GPUs: a CUDA build of torch and nvidia-smi that works")
    )
    return found


def _faiss() -> list[Finding]:
    installed = sorted(
        {
            name
            for distribution in importlib.metadata.distributions()
            if (name := (distribution.metadata["Name"] or "").lower().replace("_", "-")).startswith("faiss")
        }
    )
    cpu = [name for name in installed if name == "faiss-cpu"]
    gpu = [name for name in installed if name.startswith("faiss-gpu")]
    if cpu and gpu:
        remedy = f"they overwrite each other's files: pip uninstall {' '.join(cpu)} {' '.join(gpu)}, then one of them"
        return [Finding("FAISS", "problem", f"{' and '.join(cpu + gpu)} are both installed", remedy)]
    try:
        faiss = importlib.import_module("faiss")
    except ImportError as error:
        if installed:
            return [
                Finding("FAISS", "problem", f"{', '.join(installed)} does not load: {error}", "reinstall it")
            ]
        return [
            Finding("FAISS", "missing", "not installed", "pip install 'facescale[cpu]' or 'facescale[gpu]'")
        ]
    gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
    build = ", ".join(installed) or "built from source"
    return [Finding("FAISS", "ok", f"{faiss.__version__} ({build}), {gpus} GPUs")]


def _ray() -> Finding:
    try:
        import ray
    except ImportError as error:
        return Finding("Ray", "problem", str(error), "pip install 'ray[default]'")
    logs = os.path.join(os.environ.get("RAY_TMPDIR", "/tmp"), "ray/session_latest/logs")
    address = os.environ.get("RAY_ADDRESS")
    where = f"joins {address} (RAY_ADDRESS)" if address else "starts on this machine for each job"
    return Finding("Ray", "ok", f"{ray.__version__}, {where}; worker logs in {logs}")


def _default_models() -> Finding:
    from facescale.errors import FacescaleError
    from facescale.models.registry import cards
    from facescale.models.weights import MissingWeightsError, local_weights

    here, elsewhere = [], 0
    for card in cards():
        try:
            here.append(local_weights(card))
        except MissingWeightsError:
            elsewhere += 1
        except FacescaleError as error:
            return Finding("models", "missing", str(error), "pip install 'facescale[default-models]'")
    found = f"{len(here)} with weights here, {elsewhere} without (facescale models list)"
    return Finding("models", "ok", f"{found}; facescale models verify checks their sha256")


def _optional(module: str, package: str, extra: str, purpose: str) -> Finding:
    if importlib.util.find_spec(module) is None:
        return Finding(package, "missing", f"for {purpose}", f"pip install 'facescale[{extra}]'")
    return Finding(package, "ok", importlib.metadata.version(package))


def _memory() -> Finding:
    import psutil

    memory = psutil.virtual_memory()
    text = f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free, {os.cpu_count()} CPUs"
    if memory.available < 2 << 30:
        return Finding(
            "memory", "problem", text, "a worker needs about 1 GiB: close something, or --workers 1"
        )
    return Finding("memory", "ok", text)


def _disk(what: str, path: str) -> Finding:
    path = path if os.path.isdir(path) else "."
    usage = shutil.disk_usage(path)
    text = f"{usage.free / 2**30:.1f} of {usage.total / 2**30:.1f} GiB free at {os.path.abspath(path)}"
    if usage.free < 1 << 30:
        return Finding(what, "problem", text, "free some space: a lake takes about 20 KiB a face")
    return Finding(what, "ok", text)
