"""pyarrow's filesystem for a URI, and what a store's refusals mean."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pyarrow as pa
from pyarrow import fs as pafs

from siclip.errors import UserError

READING = (OSError, pa.ArrowException, ValueError)
"""What reading a place raises when there is nothing, or not what was expected."""
OPTIONS = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs")
"""Schemes of pyarrow, whose query holds options of the filesystem; any other's belongs to the file."""
STORE_SAYS = ("AWS Error", "google::cloud", "Azure Error", "HDFS")
CONNECT_SECONDS, REQUEST_SECONDS, ATTEMPTS = 3, 30, 4


class StoreError(UserError):
    """A store does not answer or refuses: nothing is known of what lies there."""


@lru_cache(maxsize=64)
def open_filesystem(uri: str) -> tuple[Any, str]:
    """pyarrow's filesystem for a URI, and the path in it; for S3 with bounded waiting.

    Raises:
        StoreError: nothing reads this scheme, or the store does not answer.
    """
    parts = urlsplit(uri)
    clean = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()
    try:
        if parts.scheme == "s3":
            return _s3(parts.netloc, dict(parse_qsl(parts.query))), parts.netloc + parts.path.rstrip("/")
        filesystem, path = pafs.FileSystem.from_uri(uri)
        return filesystem, path
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return _from_fsspec(uri, clean)
    except READING as error:
        raise StoreError(told(clean, error)) from None


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def _s3(bucket: str, options: dict[str, str]) -> Any:
    endpoint = options.get("endpoint_override")
    scheme = ""
    if not endpoint:
        scheme, _, host = (_endpoint() or "").rpartition("://")
        endpoint = host.rstrip("/") or None
    region = options.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region is None:
        region = "us-east-1" if endpoint else pafs.resolve_s3_region(bucket)
    return pafs.S3FileSystem(
        region=region,
        endpoint_override=endpoint,
        scheme=options.get("scheme") or scheme or "https",
        connect_timeout=CONNECT_SECONDS,
        request_timeout=REQUEST_SECONDS,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
    )


def _from_fsspec(uri: str, clean: str) -> tuple[Any, str]:
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(uri)
    except (ImportError, *READING) as error:
        raise StoreError(f"{clean} cannot be opened: {error}. Install what fsspec needs, or copy it here") from None
    return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), path


def store_failed(error: BaseException) -> bool:
    """Whether it is the store that says so, and not what parses the bytes that it gave."""
    if isinstance(error, (ConnectionError, TimeoutError, PermissionError)):
        return True
    return any(mark in str(error) for mark in STORE_SAYS)


def told(where: str, error: BaseException) -> str:
    """A message with the remedy for what a store said of the URI ``where``."""
    said = str(error).strip()
    if "NO_SUCH_BUCKET" in said:
        return f"{where}: there is no such bucket; create it or correct the name"
    if any(mark in said for mark in ("ACCESS_DENIED", "ACCESS_KEY", "SIGNATURE", "TOKEN", "HTTP status 403")):
        return (
            f"{where}: the store refuses the credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile "
            "or a role that may read (and for --checkpoints and --artifacts write) there"
        )
    if "NETWORK_CONNECTION" in said or "timed out" in said.lower():
        endpoint = (
            dict(parse_qsl(urlsplit(where).query)).get("endpoint_override") or _endpoint() or "its default address"
        )
        return f"{where}: no server answers at {endpoint}; start it, or correct AWS_ENDPOINT_URL"
    return f"{where} cannot be used: {said.splitlines()[0][:300] if said else type(error).__name__}"
