"""The only opener of files and object URIs.

A URI is a local path or `s3://bucket/key`. An S3 endpoint and credentials come from the usual AWS
variables (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ...). A write is seen whole or not at all: local
files are written beside their place, synced and renamed; an object store's put is atomic. Names
that begin with a dot are drafts and never listed.
"""

import hashlib
import io
import json
import os
import uuid
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

Tensors = dict[str, npt.NDArray[Any]]

CHUNK_BYTES = 8 * 2**20


class Contents(NamedTuple):
    """What lies in a folder, drafts too."""

    size_bytes: int
    changed_s: float
    """When its newest file was written; 0 without any."""


def join(uri: str, *parts: str) -> str:
    """Return the URI of something below `uri`."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def is_remote(uri: str) -> bool:
    """Tell whether a URI is an object store's."""
    return "://" in uri and not uri.startswith("file://")


def absolute(uri: str) -> str:
    """Return the URI such that it means the same in every process."""
    return uri if is_remote(uri) else str(Path(uri.removeprefix("file://")).expanduser().resolve())


def filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """Return the pyarrow file system of a URI and the path in it."""
    if not is_remote(uri):
        return pafs.LocalFileSystem(), absolute(uri)
    if not uri.startswith("s3://"):
        other, path = pafs.FileSystem.from_uri(uri)
        return other, path
    path = uri.removeprefix("s3://").strip("/")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if not endpoint:
        return _bucket(path.split("/")[0]), path
    return _endpoint(endpoint, os.environ.get("AWS_DEFAULT_REGION", "us-east-1")), path


@lru_cache(maxsize=8)
def _endpoint(endpoint: str, region: str) -> pafs.FileSystem:
    """Return the file system of an S3 server other than Amazon's; a new one costs time."""
    scheme, _, host = endpoint.rstrip("/").rpartition("://")
    return pafs.S3FileSystem(endpoint_override=host, scheme=scheme or "https", region=region)


@lru_cache(maxsize=64)
def _bucket(bucket: str) -> pafs.FileSystem:
    """Return the file system of a bucket; finding its region takes a request."""
    return pafs.FileSystem.from_uri(f"s3://{bucket}")[0]


def exists(uri: str) -> bool:
    """Tell whether a file or folder is there."""
    fs, path = filesystem(uri)
    return bool(fs.get_file_info(path).type != pafs.FileType.NotFound)


def list_files(uri: str) -> list[str]:
    """Return the paths of all files below a folder, relative to it, sorted; none if absent."""
    fs, path = filesystem(uri)
    selector = pafs.FileSelector(path, recursive=True, allow_not_found=True)
    files = [info.path for info in fs.get_file_info(selector) if info.type == pafs.FileType.File]
    names = [file[len(path) :].lstrip("/") for file in files]
    return sorted(name for name in names if not name.rpartition("/")[2].startswith("."))


def list_folders(uri: str) -> list[str]:
    """Return the names of the folders directly below a folder, sorted; none if it is absent."""
    fs, path = filesystem(uri)
    found = fs.get_file_info(pafs.FileSelector(path, recursive=False, allow_not_found=True))
    return sorted(info.base_name for info in found if info.type == pafs.FileType.Directory)


def describe_folders(uri: str) -> dict[str, Contents]:
    """Return what lies in each folder directly below a folder, by name; none if it is absent."""
    fs, path = filesystem(uri)
    found: dict[str, Contents] = {}
    for info in fs.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True)):
        name, _, below = info.path[len(path) :].lstrip("/").partition("/")
        if below or info.type == pafs.FileType.Directory:
            size_bytes, changed_s = found.get(name, Contents(0, 0.0))
            if info.type == pafs.FileType.File:     # of an unknown time: as if it were new
                time_s = float("inf") if info.mtime_ns is None else info.mtime_ns / 1e9
                size_bytes, changed_s = size_bytes + info.size, max(changed_s, time_s)
            found[name] = Contents(size_bytes, changed_s)
    return found


def read_bytes(uri: str) -> bytes:
    """Return a file's content."""
    fs, path = filesystem(uri)
    with fs.open_input_file(path) as stream:
        return bytes(stream.read())


def write_bytes(uri: str, data: bytes) -> None:
    """Write a file so that a reader sees all of it or nothing."""
    if is_remote(uri):
        fs, path = filesystem(uri)
        with fs.open_output_stream(path, compression=None) as stream:     # whatever its name
            stream.write(data)
        return
    target = Path(absolute(uri))
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with draft.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(target)
        _sync_folder(target.parent)
    finally:
        draft.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename in a folder survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def delete_file(uri: str) -> None:
    """Delete a file; an absent one is fine."""
    fs, path = filesystem(uri)
    if fs.get_file_info(path).type == pafs.FileType.File:
        fs.delete_file(path)
        if not is_remote(uri):
            _sync_folder(Path(path).parent)


def delete_folder(uri: str) -> None:
    """Delete a folder and all below it, drafts too; an absent one is fine."""
    fs, path = filesystem(uri)
    if fs.get_file_info(path).type == pafs.FileType.Directory:
        fs.delete_dir(path)


def sha256(data: bytes) -> str:
    """Return the hex digest of some bytes."""
    return hashlib.sha256(data).hexdigest()


def describe_file(uri: str) -> tuple[str, int]:
    """Return the sha256 and the size in bytes of a file of any size."""
    fs, path = filesystem(uri)
    digest, size_bytes = hashlib.sha256(), 0
    with fs.open_input_stream(path, compression=None) as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
            size_bytes += len(chunk)
    return digest.hexdigest(), size_bytes


def read_json(uri: str) -> Any:
    """Return a JSON file's value."""
    return json.loads(read_bytes(uri))


def dump_json(value: Any) -> bytes:
    """Return a JSON text with sorted keys: equal values give equal bytes."""
    return (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def write_json(uri: str, value: Any) -> None:
    """Write a JSON file; NaN is refused."""
    write_bytes(uri, dump_json(value))


def read_table(uri: str, columns: list[str] | None = None) -> pa.Table:
    """Return a Parquet file as a table."""
    fs, path = filesystem(uri)
    return pq.read_table(path, filesystem=fs, columns=columns, partitioning=None)


def read_rows(
    uri: str, column: str, values: pa.Array, columns: list[str] | None = None
) -> pa.Table:
    """Return the rows of a Parquet file whose `column` is one of the values.

    Groups of rows that hold none of them, by their first and last, are not read.
    """
    fs, path = filesystem(uri)
    return pq.read_table(
        path, filesystem=fs, columns=columns, partitioning=None,
        filters=pc.field(column).isin(values),
    )


def write_table(uri: str, table: pa.Table, *, group_rows: int | None = None) -> None:
    """Write a Parquet file, cut into groups of so many rows; equal tables give equal bytes."""
    buffer = io.BytesIO()
    whole = table.replace_schema_metadata(None).combine_chunks()      # chunk borders end pages
    pq.write_table(whole, buffer, compression="zstd", row_group_size=group_rows)
    write_bytes(uri, buffer.getvalue())


def read_tensors(uri: str) -> Tensors:
    """Return a safetensors file's arrays by name."""
    return dict(load_safetensors(read_bytes(uri)))


def write_tensors(uri: str, tensors: Tensors) -> None:
    """Write arrays by name as safetensors."""
    contiguous = {name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}
    write_bytes(uri, save_safetensors(contiguous))


def copy_file(source: str, target: str) -> None:
    """Copy one file between any two URIs; it is held in memory."""
    write_bytes(target, read_bytes(source))
