"""Places by path or URI: a folder of this machine, or object storage.

``s3://`` takes its endpoint from ``AWS_ENDPOINT_URL`` (or ``?endpoint_override=HOST:PORT&scheme=http``), its region
from ``AWS_REGION`` (or ``?region=``), its keys from the environment, a profile or a role. ``gs://``, ``abfs://`` and
``hdfs://`` are pyarrow's; every other scheme is looked up in fsspec.
"""

from siclip_platform.storage.files import check_writable, copy_file, fetched, in_threads, within
from siclip_platform.storage.filesystem import READING, StoreError, open_filesystem
from siclip_platform.storage.path import (
    AnyPath,
    RemotePath,
    Stat,
    as_path,
    asking,
    keys_in_front,
    local_folder,
    located,
    parsing,
    refuse_credentials,
)

__all__ = [
    "READING",
    "AnyPath",
    "RemotePath",
    "Stat",
    "StoreError",
    "as_path",
    "asking",
    "check_writable",
    "copy_file",
    "fetched",
    "in_threads",
    "keys_in_front",
    "local_folder",
    "located",
    "open_filesystem",
    "parsing",
    "refuse_credentials",
    "within",
]
