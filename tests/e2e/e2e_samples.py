"""What the end-to-end tests share: pictures of a real face, the command line in this process, tables to compare."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from facescale.cli import main
from facescale.lake.lake import Lake
from facescale.lake.schema import table_names

FAST = ("--min-face-px", "80", "--threads", "1")


def portrait() -> Image.Image:
    """A face with its surroundings, 220 px square."""
    from skimage import data

    return Image.fromarray(data.astronaut()).crop((124, 0, 344, 220))


def face(side: int, degrees: float = 0.0) -> Image.Image:
    """The portrait, turned and scaled: another photograph of the same person."""
    return portrait().rotate(degrees).resize((side, side))


def noise(seed: int = 0) -> Image.Image:
    """An image without a face."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (120, 160, 3), np.uint8))


@dataclass(frozen=True)
class Answer:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, which must be one JSON document and nothing else."""
        return json.loads(self.out)


def facescale(*arguments: str | os.PathLike[str]) -> Answer:
    """Run a command as `facescale …` does, in this process, and leave no trace in it."""
    out, err = io.StringIO(), io.StringIO()
    handler, threads = signal.getsignal(signal.SIGTERM), (torch.get_num_threads(), cv2.getNumThreads())
    code: object = None
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main([os.fspath(argument) for argument in arguments])
    except SystemExit as end:
        code = end.code
    finally:
        signal.signal(signal.SIGTERM, handler)
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])
    assert isinstance(code, int)
    return Answer(code, out.getvalue(), err.getvalue())


def current_tables(lake: Path) -> dict[str, pa.Table]:
    """{folder: rows} of every current table (not the index), its parts in order of their names."""
    opened = Lake.open(str(lake))
    tables = {}
    for version in opened.current_versions():
        if version.table in table_names():
            paths = sorted(path for path, _ in opened.store.list(version.folder) if path.endswith(".parquet"))
            tables[version.folder] = pa.concat_tables([opened.store.read_table(path) for path in paths])
    return tables


def files_of(lake: Path) -> dict[str, tuple[int, int]]:
    """{path: (inode, mtime_ns)} of every file below a folder."""
    return {
        str(path): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in sorted(lake.rglob("*"))
        if path.is_file()
    }


def encoded(image: Image.Image, kind: str) -> bytes:
    """The image as a file of this kind."""
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def on_terminal(*arguments: str | Path) -> tuple[int, str]:
    """Run the command with a terminal of 120 columns for input and output; its exit code and all that it showed."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    environment = {
        name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "CI", "COLUMNS")
    }
    process = subprocess.Popen(
        [str(Path(sys.executable).parent / "facescale"), *map(str, arguments)],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environment | {"TERM": "xterm-256color"},
        start_new_session=True,
    )
    os.close(slave)
    shown = bytearray()
    try:
        while piece := os.read(master, 65_536):
            shown += piece
    except OSError as error:
        if error.errno != errno.EIO:  # how Linux says that the other side is closed
            raise
    finally:
        os.close(master)
    return process.wait(200), shown.decode()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is this large."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def damaged(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]
