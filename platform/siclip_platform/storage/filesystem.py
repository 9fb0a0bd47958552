"""The pyarrow filesystem of a URI, and error messages for the failures of an object store."""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pyarrow as pa
from pyarrow import fs as pafs

from siclip.errors import UserError

READ_ERRORS = (OSError, pa.ArrowException, ValueError)
"""What reading a file raises if it is missing, damaged or not in the expected format."""
PYARROW_SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs")
"""URI schemes of pyarrow: their query holds options of the filesystem. In any other scheme it is part of the file."""
STORE_MESSAGES = ("AWS Error", "google::cloud", "Azure Error", "HDFS")
# A dead endpoint must fail within seconds; pyarrow's defaults retry for minutes.
CONNECT_SECONDS, REQUEST_SECONDS, ATTEMPTS = 3, 30, 4
OPENING = "waits for a store"
"""The name of threads that wait for the first answer of a store."""
ANSWER_SECONDS = 12
"""How long a store may take for its first answer; later requests have the longer limits of their clients."""


class StoreError(UserError):
    """An object store does not answer or refuses a request, so the state of its files is unknown."""


# Cached: a new client opens connections and may ask for the region of the bucket.
@lru_cache(maxsize=64)
def open_filesystem(uri: str) -> tuple[Any, str]:
    """Return the pyarrow filesystem of a URI and the path in it. S3 clients have bounded timeouts and retries.

    Raises:
        StoreError: no library reads this scheme, or the store does not answer within `ANSWER_SECONDS`.
    """
    parts = urlsplit(uri)
    clean = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()
    # The options of an S3 client, such as its endpoint, are part of the message; other queries may be signed.
    shown = f"{clean}?{parts.query}" if parts.scheme == "s3" and parts.query else clean
    opened: Future[tuple[Any, str]] = Future()

    def ask() -> None:
        try:
            filesystem, path = open_unasked(uri)
            try:
                filesystem.get_file_info(path or "/")
            except Exception as error:
                if _is_silent(error):
                    raise
                # The store answered; what it refuses is reported by the request that needs it.
            opened.set_result((filesystem, path))
        except BaseException as error:
            opened.set_exception(error)

    # In a thread that is abandoned: the clients of most schemes take no limit, and wait for minutes.
    threading.Thread(target=ask, daemon=True, name=OPENING).start()
    try:
        return opened.result(ANSWER_SECONDS)
    except TimeoutError:
        raise StoreError(f"{_no_server(shown)} (nothing within {ANSWER_SECONDS} s)") from None
    except READ_ERRORS as error:
        if isinstance(error, UserError):
            raise
        raise StoreError(explain(shown, error)) from None


def open_unasked(uri: str) -> tuple[Any, str]:
    """As `open_filesystem`, without asking the store for a first answer; errors are those of the libraries."""
    parts = urlsplit(uri)
    clean = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()
    try:
        if parts.scheme == "s3":
            return _s3(parts.netloc, dict(parse_qsl(parts.query))), parts.netloc + parts.path.rstrip("/")
        filesystem, path = pafs.FileSystem.from_uri(uri)
        return filesystem, path
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return _from_fsspec(uri, clean)


def read_file(filesystem: Any, path: str, *, decompress: bool = False) -> bytes:
    """Return a file's content; ``decompress`` undoes a compression that the file's extension names."""
    with filesystem.open_input_stream(path, compression="detect" if decompress else None) as file:
        return bytes(file.read())


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
        # Only AWS itself can report the region of a bucket; other servers accept any region.
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
    except (ImportError, *READ_ERRORS) as error:
        raise StoreError(
            f"{clean} cannot be opened: {error}. Install the package that fsspec needs, or copy the files to this "
            "machine"
        ) from None
    return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), path


def is_store_failure(error: BaseException) -> bool:
    """Return whether the store reported the error, as opposed to the parser of the bytes that it delivered."""
    if isinstance(error, (ConnectionError, TimeoutError, PermissionError)):
        return True
    return any(mark in str(error) for mark in STORE_MESSAGES)


def explain(uri: str, error: BaseException) -> str:
    """Return a message with a remedy for an error that a store reported for ``uri``."""
    text = str(error).strip()
    if "NO_SUCH_BUCKET" in text:
        return f"{uri}: there is no such bucket; create it or correct the name"
    if any(mark in text for mark in ("ACCESS_DENIED", "ACCESS_KEY", "SIGNATURE", "TOKEN", "HTTP status 403")):
        return (
            f"{uri}: the store refuses the credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile "
            "or a role that may read (and for --checkpoints and --artifacts write) there"
        )
    if _is_silent(error):
        return _no_server(uri)
    return f"{uri} cannot be used: {text.splitlines()[0][:300] if text else type(error).__name__}"


def _is_silent(error: BaseException) -> bool:
    return "NETWORK_CONNECTION" in str(error) or "timed out" in str(error).lower()


def _no_server(uri: str) -> str:
    parts = urlsplit(uri)
    if parts.scheme != "s3":
        return f"{uri}: no server answers at {parts.netloc.rpartition('@')[2]}; start it, or correct the URI"
    endpoint = dict(parse_qsl(parts.query)).get("endpoint_override") or _endpoint()
    address = endpoint or "its default address"
    return f"{uri}: no server answers at {address}; start it, or correct AWS_ENDPOINT_URL"
