"""`data push` and `data verify` with captions and embeddings, and a store that fails during reading."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from typer.testing import CliRunner

from siclip.errors import UserError
from siclip_platform.cli import app
from siclip_platform.datasets.manifest import open_dataset
from siclip_platform.datasets.sidecar import (
    SidecarManifest,
    open_sidecar,
    write_sidecar_manifest,
    write_sidecar_shard,
)
from siclip_platform.datasets.tools.push import push_dataset
from siclip_platform.datasets.tools.verify import verify_dataset
from siclip_platform.storage import RemotePath, StoreError, as_path
from siclip_platform.storage.filesystem import open_filesystem
from siclip_platform.stream.source import StreamSource

NUMBERS = pa.schema([pa.field("image", pa.float32(), nullable=False)])


def embed(folder: Path, value: float) -> list[Path]:
    """Write embeddings ``e`` of the training split, all numbers equal to ``value``; return their shards."""
    dataset, beside = open_dataset(folder), folder / "embeddings" / "e"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    entries = []
    for shard, groups in zip(dataset.shards("train"), dataset.groups("train"), strict=True):
        tables = [pa.table({"image": pa.array([value] * rows, pa.float32())}) for rows in groups]
        entries.append(write_sidecar_shard(beside / shard.name, tables, NUMBERS))
    splits = {"train": entries}
    manifest = SidecarManifest(
        kind="embeddings", name="e", version="1", dataset=dataset.hash, recipe={}, splits=splits
    )
    write_sidecar_manifest(beside, manifest)
    return sorted(beside.glob("*.parquet"))


@pytest.fixture
def embedded(digits: Path, tmp_path: Path) -> Path:
    shutil.copytree(digits, tmp_path / "digits")
    embed(tmp_path / "digits", 1.0)
    return tmp_path / "digits"


@pytest.fixture
def store() -> Iterator[RemotePath]:
    memory = fsspec.filesystem("memory")
    path = as_path("memory://pushes/digits")
    assert isinstance(path, RemotePath)
    yield path
    if memory.exists("/pushes"):
        memory.rm("/pushes", recursive=True)


def test_other_embeddings_of_the_same_size_are_never_kept_under_a_new_manifest(
    embedded: Path, store: RemotePath
) -> None:
    push_dataset(embedded, store)
    sizes = [path.stat().st_size for path in sorted((embedded / "embeddings/e").glob("*.parquet"))]
    shards = embed(embedded, 2.0)
    assert [path.stat().st_size for path in shards] == sizes
    with pytest.raises(UserError, match=r"memory://pushes/digits/embeddings/e contains other embeddings"):
        push_dataset(embedded, store)
    assert verify_dataset(store) == []

    # As after a killed upload of the first embeddings.
    (store / "embeddings/e/manifest.json").unlink()
    push_dataset(embedded, store)
    for shard in shards:
        assert (store / "embeddings" / "e" / shard.name).read_bytes() == shard.read_bytes()
    assert verify_dataset(store) == []


def test_a_damaged_file_of_the_same_size_is_found_and_sent_again(embedded: Path, store: RemotePath) -> None:
    push_dataset(embedded, store)
    there = [store / "train-00000.parquet", store / "embeddings/e/train-00001.parquet"]
    for path in there:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))
    assert [damage.path for damage in verify_dataset(store)] == there
    again = push_dataset(embedded, store)
    # Manifests are always sent, because nothing lists their checksums.
    assert again.sent == len(there) + 2  # and both manifests
    assert verify_dataset(store) == []


def test_damaged_embeddings_are_reported(embedded: Path) -> None:
    path = embedded / "embeddings/e/train-00000.parquet"
    path.unlink()
    result = CliRunner(env={"COLUMNS": "300"}).invoke(app, ["data", "verify", str(embedded)])
    assert result.exit_code == 1 and f"{path} cannot be read: No such file" in result.output
    manifest = embedded / "embeddings/e/manifest.json"
    manifest.write_text("{}")
    assert [damage.path for damage in verify_dataset(embedded)] == [manifest]


class FailingFileSystem(MemoryFileSystem):
    """The files of ``memory://``, in a store that lists them but fails to deliver Parquet files."""

    protocol = "failing"
    error: OSError = OSError("AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: 28")

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("failing://", "memory://")))

    def _open(self, path: str, *arguments: object, **options: object) -> object:
        return Failing() if path.endswith(".parquet") else super()._open(path, *arguments, **options)


class Failing:
    """An open file whose every read fails."""

    closed = False
    mode = "rb"

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, position: int, whence: int = 0) -> int:
        return position

    def tell(self) -> int:
        return 1000

    def read(self, size: int = -1) -> bytes:
        raise FailingFileSystem.error

    def close(self) -> None:
        pass


@pytest.fixture
def failing(embedded: Path, store: RemotePath) -> RemotePath:
    """The dataset in a store that fails to deliver Parquet files."""
    push_dataset(embedded, store)
    fsspec.register_implementation("failing", FailingFileSystem, clobber=True)
    path = as_path("failing://pushes/digits")
    assert isinstance(path, RemotePath)
    return path


def test_a_failure_of_the_store_is_not_reported_as_damage(failing: RemotePath) -> None:
    for read in (open_dataset, verify_dataset):
        with pytest.raises(StoreError, match=r"train-00000.parquet: no server answers at") as error:
            read(failing)
        assert "build the dataset again" not in str(error.value)
    with pytest.raises(StoreError, match=r"train-00000.parquet: no server answers"):
        (failing / "train-00000.parquet").read_bytes()


def test_a_file_in_a_store_that_is_not_parquet_is_damaged(embedded: Path, store: RemotePath) -> None:
    push_dataset(embedded, store)
    path = store / "train-00000.parquet"
    path.write_bytes(bytes(path.stat().st_size))
    (damage,) = verify_dataset(store)
    assert damage.path == path and "not a readable Parquet file" in damage.problem


def test_an_unknown_scheme_is_reported_once() -> None:
    with pytest.raises(UserError, match=r"^nosuch://a cannot be opened") as error:
        as_path("nosuch://a/b").stat()  # type: ignore[union-attr]
    assert str(error.value).count("nosuch://a") == 1


def test_the_status_of_each_shard_in_a_store_is_requested_once(
    embedded: Path, store: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_dataset(embedded, store)
    requests: Counter[str] = Counter()
    own = RemotePath.stat

    def stat(self: RemotePath) -> object:
        requests[self.key] += 1
        return own(self)

    monkeypatch.setattr(RemotePath, "stat", stat)
    StreamSource.of(store, "train", 0, 4)
    shards = [f"digits/{path.name}" for path in sorted(embedded.glob("*.parquet"))]
    assert requests == Counter(shards)
    dataset = open_dataset(store)
    requests.clear()
    open_sidecar(dataset, "embeddings", "e")
    assert requests == Counter(f"digits/embeddings/e/{path.name}" for path in dataset.shards("train"))


def test_a_store_is_opened_once_for_any_number_of_files() -> None:
    before = open_filesystem.cache_info().currsize
    for number in range(50):
        path = as_path(f"memory://rows/{number}.jpg?width={number}")
        assert isinstance(path, RemotePath) and path.path.endswith(f"{number}.jpg?width={number}")
    assert open_filesystem.cache_info().currsize <= before + 1
