"""Sources by URI: object storage, and schemes of fsspec."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from pair_shards import write_pairs

from siclip.errors import UserError
from siclip_platform.datasets.derived.stage import Pool
from siclip_platform.datasets.importing.ingest import Imported, import_dataset
from siclip_platform.datasets.importing.parts import ImportConfig
from siclip_platform.datasets.importing.sources.columns import ColumnNames
from siclip_platform.datasets.importing.sources.find import find_source


def run(root: str, folder: Path) -> Imported:
    source = find_source(root, None, ColumnNames(), 100)
    return import_dataset(source, folder, ImportConfig(), name="pairs", max_bad_share=1, pool=Pool(here=True))


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Imported]:
    folder = tmp_path_factory.mktemp("uris")
    write_pairs(folder / "pairs", 40, 20, 0.1)
    return folder / "pairs", run(str(folder / "pairs"), folder / "out")


@pytest.mark.slow
def test_a_uri_of_a_file_and_one_of_fsspec_give_the_same_dataset(
    local: tuple[Path, Imported], tmp_path: Path
) -> None:
    folder, expected = local
    assert run(folder.as_uri(), tmp_path / "file").dataset.hash == expected.dataset.hash
    memory = fsspec.filesystem("memory")
    for path in folder.iterdir():
        memory.pipe_file(f"/pairs/{path.name}", path.read_bytes())
    assert run("memory://pairs", tmp_path / "memory").dataset.hash == expected.dataset.hash
    assert run(f"memory://pairs/{sorted(p.name for p in folder.glob('*.tar'))[0]}", tmp_path / "one").read == 20


@pytest.fixture
def bucket(local: tuple[Path, Imported], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The shards in an S3 bucket of a server in this process."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "ACCESS_KEY_ID": "key",
        "SECRET_ACCESS_KEY": "secret",
        "EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    client = boto3.client("s3", region_name="us-east-1", endpoint_url=f"http://{host}:{port}")
    client.create_bucket(Bucket="pairs")
    for path in local[0].iterdir():
        client.upload_file(str(path), "pairs", f"shards/{path.name}")
    yield f"s3://pairs/shards?scheme=http&endpoint_override={host}:{port}&region=us-east-1"
    server.stop()


@pytest.mark.slow
def test_an_s3_bucket_gives_the_same_dataset(bucket: str, local: tuple[Path, Imported], tmp_path: Path) -> None:
    imported = run(bucket, tmp_path / "s3")
    assert imported.dataset.hash == local[1].dataset.hash
    assert imported.rejected == local[1].rejected
    with pytest.raises(UserError, match="s3://pairs/nowhere does not exist"):
        run(bucket.replace("shards", "nowhere"), tmp_path / "nowhere")
