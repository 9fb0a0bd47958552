"""Local paths and URIs: one interface, no credentials in URIs, and errors that name the URI."""

from __future__ import annotations

import pickle
from pathlib import Path

import fsspec
import pytest
from typer.testing import CliRunner

from siclip.errors import UserError
from siclip_platform.cli import app
from siclip_platform.cli.experiments import read_recipe
from siclip_platform.cluster.submit import compose
from siclip_platform.datasets.manifest import open_dataset
from siclip_platform.datasets.tools.push import push_dataset
from siclip_platform.datasets.tools.verify import verify_dataset
from siclip_platform.recipes.student import recipe_model
from siclip_platform.storage import RemotePath, as_path, check_writable, copy_file, local_copy
from siclip_platform.storage.filesystem import explain, open_unasked
from siclip_platform.stream import Stream, thread_batches


def test_a_path_stays_local_and_a_uri_keeps_its_slashes_and_options() -> None:
    assert as_path("data/digits") == Path("data/digits")
    assert as_path("file:///data/digits") == Path("/data/digits")
    assert as_path(Path("/data/my digits").as_uri()) == Path("/data/my digits")
    named = as_path("s3://bucket/a/b?region=eu-west-1&scheme=http")
    assert isinstance(named, RemotePath)
    assert str(named / "c.parquet") == "s3://bucket/a/b/c.parquet?region=eu-west-1&scheme=http"
    assert (named / "c.parquet").as_uri() == "s3://bucket/a/b/c.parquet"
    assert (named.name, (named / "c.pt").suffix, named.parent.plain) == ("b", ".pt", "s3://bucket/a")
    assert pickle.loads(pickle.dumps(named)) == named == as_path(str(named))
    assert as_path("s3://bucket").name == "bucket"


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIAKEY:hidden@bucket/data",
        "s3://AKIAKEY@bucket/data",
        "s3://AKIAKEY:abc/hidden@bucket/data",
        "abfs://account:abc/hidden@container/data",
        "s3://bucket/data?secret_key=hidden",
        "abfs://:hidden@account.dfs.core.windows.net/data",
    ],
)
def test_credentials_in_a_uri_are_refused_and_not_printed(uri: str) -> None:
    with pytest.raises(UserError, match=r"credentials in the URI.*in the environment") as refused:
        as_path(uri)
    assert "hidden" not in str(refused.value) and "AKIAKEY" not in str(refused.value)
    with pytest.raises(UserError, match=r"credentials|password") as refused:
        compose("train_siclip", ["--data", uri], address=None, tracking_uri=None, installed=False)
    assert "hidden" not in str(refused.value) and "AKIAKEY" not in str(refused.value)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("memory://storage/a", "/storage/a/b.csv"),
        ("local:///data/a", "/data/a/b.csv"),
        ("webhdfs://host:50070/a", "/a/b.csv"),
        ("https://host:8080/a", "https://host:8080/a/b.csv"),
    ],
)
def test_the_path_in_a_filesystem_of_fsspec_is_that_of_fsspec(uri: str, expected: str) -> None:
    path = as_path(uri) / "b.csv"
    assert isinstance(path, RemotePath) and path.path == expected
    assert fsspec.core.url_to_fs(f"{uri}/b.csv")[1] == expected


def test_a_query_is_part_of_the_file_outside_pyarrows_schemes() -> None:
    path = as_path("https://host/a/b.jpg?width=3")
    assert isinstance(path, RemotePath) and path.path == "https://host/a/b.jpg?width=3"
    signed = as_path("https://host/b.jpg?signature=hidden", signed=True)
    assert isinstance(signed, RemotePath) and "hidden" in signed.path and "hidden" not in signed.shown
    with pytest.raises(UserError, match="chain of URIs"):
        as_path("zip://a.zip::s3://bucket/b.zip")


def test_two_checks_for_write_access_do_not_interfere(tmp_path: Path) -> None:
    (tmp_path / ".siclip-write-check").mkdir()
    check_writable(tmp_path, "--out")
    assert [path.name for path in tmp_path.iterdir()] == [".siclip-write-check"]


def test_unknown_options_of_s3_are_refused() -> None:
    with pytest.raises(UserError, match="s3://bucket/data has no option 'endpoint': there are region, scheme"):
        as_path("s3://bucket/data?endpoint=localhost")
    with pytest.raises(UserError, match="names no bucket"):
        as_path("s3:///data")


@pytest.mark.parametrize(
    ("problem", "remedy"),
    [
        ("AWS Error NO_SUCH_BUCKET during ListObjectsV2 operation", "no such bucket"),
        ("AWS Error ACCESS_DENIED during HeadObject operation", "refuses the credentials"),
        ("AWS Error NETWORK_CONNECTION during HeadObject operation: curlCode: 7", "no server answers at host:1;"),
        ("something else\nand more", "cannot be used: something else"),
    ],
)
def test_errors_of_a_store_are_explained_with_a_remedy(problem: str, remedy: str) -> None:
    message = explain("s3://bucket/data?endpoint_override=host:1", OSError(problem))
    assert message.startswith("s3://bucket/data?endpoint_override=host:1") and remedy in message


def test_the_endpoint_of_s3_comes_from_the_uri_then_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    def endpoint(uri: str) -> tuple[str, str, str]:
        # Nothing listens there, and the cache would return the clients of other environments.
        filesystem, path = open_unasked(uri)
        _, (fields,) = filesystem.__reduce__()
        return fields["scheme"], fields["endpoint_override"], path

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store.example:9000")
    assert endpoint("s3://bucket/data") == ("http", "store.example:9000", "bucket/data")
    assert endpoint("s3://bucket?endpoint_override=other:1") == ("https", "other:1", "bucket")
    assert endpoint("s3://bucket?endpoint_override=other:1&scheme=http") == ("http", "other:1", "bucket")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://s3.example")
    assert endpoint("s3://bucket/data") == ("https", "s3.example", "bucket/data")


@pytest.fixture
def pushed(digits: Path) -> RemotePath:
    """The digit scenes, uploaded to a store."""
    path = as_path("memory://storage/digits")
    assert isinstance(path, RemotePath)
    memory = fsspec.filesystem("memory")
    if memory.exists("/storage"):
        memory.rm("/storage", recursive=True)
    push_dataset(digits, path)
    return path


def test_an_uploaded_dataset_is_the_same_and_damage_is_found(digits: Path, pushed: RemotePath) -> None:
    here, there = open_dataset(digits), open_dataset(pushed)
    assert there.hash == here.hash
    assert verify_dataset(pushed) == []
    again = push_dataset(digits, pushed)
    assert (again.sent, again.files) == (1, 1 + sum(len(entries) for entries in here.manifest.splits.values()))

    shard = there.shards("train")[0]
    assert isinstance(shard, RemotePath)
    content = bytearray(shard.read_bytes())
    # The same size: only the checksum can reveal it.
    content[len(content) // 2] ^= 1
    shard.write_bytes(bytes(content))
    assert [damage.path for damage in verify_dataset(pushed)] == [shard]
    shard.write_bytes(bytes(content[:-1]))
    with pytest.raises(UserError, match=r"train-00000.* has \d+ bytes, but its manifest lists"):
        open_dataset(pushed)
    shard.unlink()
    with pytest.raises(UserError, match="is missing although"):
        open_dataset(pushed)
    assert push_dataset(digits, pushed).sent == 2
    assert verify_dataset(pushed) == []


def test_the_command_uploads_and_reads_back(digits: Path, pushed: RemotePath) -> None:
    result = CliRunner().invoke(app, ["data", "push", str(digits), "memory://storage/again"])
    assert result.exit_code == 0, result.output
    count = len(list(digits.iterdir()))
    assert f"memory://storage/again: {count} of {count} files sent" in result.output
    assert open_dataset("memory://storage/again").hash == open_dataset(digits).hash


def test_another_dataset_is_not_overwritten(digits: Path, pushed: RemotePath) -> None:
    (pushed / "manifest.json").write_bytes(b"{}")
    with pytest.raises(UserError, match="contains another dataset"):
        push_dataset(digits, pushed)


def test_a_stream_from_a_store_equals_the_local_one(digits: Path, pushed: RemotePath) -> None:
    recipe = read_recipe("digits-teacher", str(pushed), None, ["training.batch_size=40"])
    assert recipe.data.path == str(pushed)
    local = recipe.updated({"data.path": str(digits)})
    streams = [Stream.of(each, recipe_model(each)) for each in (recipe, local)]
    assert streams[0].cursor(80) == streams[1].cursor(80)
    theirs, ours = (list(thread_batches(stream, 40, 200, 320)) for stream in streams)
    for one, other in zip(theirs, ours, strict=True):
        assert one.images.equal(other.images) and one.tokens.equal(other.tokens)


def test_a_local_copy_is_cached_and_errors_name_the_uri(tmp_path: Path) -> None:
    remote = as_path("memory://storage/models/a.pt")
    with pytest.raises(UserError, match=r"there is no file memory://storage/models/a.pt"), local_copy(remote):
        pass
    (tmp_path / "a.pt").write_bytes(b"weights")
    copy_file(tmp_path / "a.pt", remote)
    with local_copy(str(remote)) as path:
        assert path.read_bytes() == b"weights" and path.suffix == ".pt"
    with local_copy(str(remote)) as again:
        assert again == path
    with pytest.raises(UserError, match=r"^memory://storage/models/a.pt is empty$"), local_copy(remote) as path:
        raise UserError(f"{path} is empty")
    with local_copy(tmp_path / "a.pt") as path:
        assert path == tmp_path / "a.pt"


def test_writing_beside_a_dataset_requires_a_local_folder(pushed: RemotePath) -> None:
    with pytest.raises(UserError, match=r"is in a store.*data push"):
        _ = open_dataset(pushed).local_folder
    with pytest.raises(UserError, match=r"there is no dataset at memory://storage/none: it has no manifest.json"):
        open_dataset("memory://storage/none")
