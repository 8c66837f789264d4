"""Open files, decompressed by their last suffix, so that broken compression is an error and never a short file."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from posttrain.errors import DataError, Problem

COMPRESSIONS = (".gz", ".zst")


@contextmanager
def open_binary(path: Path) -> Iterator[BinaryIO]:
    """The decompressed bytes of `path`. Raises DataError where it cannot be read or its compression is broken."""
    import zstandard

    try:
        with path.open("rb") as raw:
            yield _decompressed(raw, path.suffix.lower())
    except (gzip.BadGzipFile, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise DataError(Problem(str(path), f"broken {path.suffix} file: {error}", "fetch or write it again")) from error
    except OSError as error:
        raise DataError(Problem(str(path), f"cannot be read: {error.strerror or error}")) from error


def _decompressed(raw: BinaryIO, suffix: str) -> BinaryIO:
    if suffix == ".gz":
        return cast("BinaryIO", gzip.GzipFile(fileobj=raw, mode="rb"))
    if suffix == ".zst":
        return io.BufferedReader(_ZstdStream(raw), 1 << 20)
    return raw


class _ZstdStream(io.RawIOBase):
    """Frames of a zstd file, one after the other; a file that ends inside a frame raises EOFError (the library's reader would not)."""

    def __init__(self, raw: BinaryIO):
        self._raw = raw
        self._frame: Any = None
        self._input = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready and self._fill():
            pass
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _fill(self) -> bool:
        """Decompress the next piece; False at the end of the file."""
        import zstandard

        self._input = self._input or self._raw.read(1 << 18)
        if not self._input:
            if self._frame is not None:
                raise EOFError("it ends inside a frame")
            return False
        if self._frame is None:
            self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._ready = memoryview(self._frame.decompress(self._input))
        self._input = b""
        if self._frame.eof:
            self._input, self._frame = self._frame.unused_data, None
        return True
