"""Files of a source: a folder, a .zip or one file, on a disk or in an object store."""

import hashlib
import io
import posixpath
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, cast

import pyarrow.fs as pafs

from engine import storage
from engine.errors import DataError


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file, or a member of a zip."""

    uri: str
    member: str | None = None

    @property
    def name(self) -> str:
        """Return the name without folders."""
        return posixpath.basename(self.member or self.uri)

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Yield a buffered stream of the bytes; DataError if a zip turns out to be broken."""
        fs, path = storage.filesystem(self.uri)
        with fs.open_input_file(path) as outer:
            if self.member is None:
                yield _buffered(outer)
                return
            try:
                with zipfile.ZipFile(outer) as archive, archive.open(self.member) as inner:
                    yield _buffered(inner)
            except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                raise DataError(f"{self.uri} is broken at {self.member}: {error}") from error

    def digest(self) -> str:
        """Return the sha256 of the content; equal data under another path has an equal one."""
        total = hashlib.sha256()
        with self.open() as stream:
            while block := stream.read(1 << 20):
                total.update(block)
        return total.hexdigest()


def _buffered(raw: object) -> BinaryIO:
    return cast(BinaryIO, io.BufferedReader(raw, 1 << 20))


def list_source(path: str) -> list[SourceFile]:
    """Return the files of a folder or .zip (or the file itself), sorted by name.

    Hidden files and what macOS adds to a zip are left out. Raises DataError if nothing is there.
    """
    uri = storage.absolute(path)
    fs, inner = storage.filesystem(uri)
    info = fs.get_file_info(inner)
    if info.type == pafs.FileType.NotFound:
        raise DataError(f"source {path!r} does not exist (it means {uri})")
    if info.type == pafs.FileType.Directory:
        return [SourceFile(storage.join(uri, n)) for n in storage.list_files(uri) if _counts(n)]
    if not uri.endswith(".zip"):
        return [SourceFile(uri)]
    try:
        with fs.open_input_file(inner) as stream, zipfile.ZipFile(stream) as archive:
            names = sorted(name for name in archive.namelist() if _counts(name))
    except zipfile.BadZipFile as error:
        raise DataError(f"source {path!r} is not a zip: {error}") from error
    return [SourceFile(uri, name) for name in names]


def _counts(name: str) -> bool:
    hidden = any(part.startswith((".", "__MACOSX")) for part in name.split("/"))
    return not hidden and not name.endswith("/")


def find_file(files: Sequence[SourceFile], name: str) -> SourceFile | None:
    """Return the file of that name, in whatever folder; DataError if there are two."""
    found = [file for file in files if file.name == name]
    if len(found) > 1:
        places = [file.member or file.uri for file in found]
        raise DataError(f"source has {name!r} {len(found)} times: {places}")
    return found[0] if found else None
