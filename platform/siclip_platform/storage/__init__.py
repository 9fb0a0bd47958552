"""Files by path or URI: local folders and object storage behind one interface.

``s3://`` takes its endpoint from ``AWS_ENDPOINT_URL`` (or ``?endpoint_override=HOST:PORT&scheme=http``), its region
from ``AWS_REGION`` (or ``?region=``) and its keys from the environment, a profile or a role. pyarrow reads ``gs://``,
``abfs://`` and ``hdfs://``; fsspec reads every other scheme.
"""

from siclip_platform.storage.files import check_writable, copy_file, in_threads, local_copy
from siclip_platform.storage.filesystem import READ_ERRORS, StoreError
from siclip_platform.storage.path import (
    AnyPath,
    RemotePath,
    Stat,
    absolute_model,
    absolute_path,
    as_path,
    filesystem_of,
    refuse_credentials,
    store_errors,
    without_credentials,
)

__all__ = [
    "READ_ERRORS",
    "AnyPath",
    "RemotePath",
    "Stat",
    "StoreError",
    "absolute_model",
    "absolute_path",
    "as_path",
    "check_writable",
    "copy_file",
    "filesystem_of",
    "in_threads",
    "local_copy",
    "refuse_credentials",
    "store_errors",
    "without_credentials",
]
