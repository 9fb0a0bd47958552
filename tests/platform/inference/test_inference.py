"""Embeddings, search, the MLflow model and the model card, compared with the library's own forward pass."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from siclip import load_model, preprocess, tokenize
from siclip.checkpoints.formats import save_checkpoint
from siclip.errors import UserError
from siclip.models import create_model
from siclip_platform.cli import app
from siclip_platform.cluster import connect
from siclip_platform.datasets.derived.actors import one_thread
from siclip_platform.inference.embed import _Actor, embed
from siclip_platform.inference.encoder import Encoder
from siclip_platform.inference.index import open_index
from siclip_platform.inference.inputs import find_parts, read_image_at, read_rows
from siclip_platform.inference.model_card import Origin, model_card
from siclip_platform.inference.serving import SiclipModel, export_mlflow

TEXTS = ["a red square", "a green square", "a blue <square> & more"]
COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = create_model("siclip-nano")
    path = tmp_path_factory.mktemp("model") / "model.pt"
    save_checkpoint(path, model)
    return path


def encoded(colour: str, side: int = 80) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 40, (side, side + 16, 3)) + np.array(COLOURS[colour])
    Image.fromarray(pixels.astype(np.uint8)).save(out, "JPEG", quality=95)
    return out.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    (folder / "more").mkdir()
    for name, colour in (("a.jpg", "red"), ("b.jpg", "green"), ("more/c.jpg", "blue")):
        (folder / name).write_bytes(encoded(colour))
    (folder / "broken.png").write_bytes(b"not an image")
    (folder / "notes.md").write_text("not an image")
    return folder


def expected_image(checkpoint: Path, file: bytes) -> np.ndarray:
    """With the library alone: torchvision's preprocessing, the model in its train form and in eval mode."""
    model = load_model(checkpoint).eval()
    image = preprocess(train=False, size=model.config.image.image_size)(Image.open(io.BytesIO(file)))
    with torch.no_grad():
        found: np.ndarray = model.encode_image(image[None], normalize=True)[0].numpy()
    return found


def expected_text(checkpoint: Path, text: str) -> np.ndarray:
    model = load_model(checkpoint).eval()
    with torch.no_grad():
        tokens = tokenize([text], model.config.text.context_length)
        found: np.ndarray = model.encode_text(tokens, normalize=True)[0].numpy()
    return found


@pytest.fixture(scope="module")
def index(own_ray: None, checkpoint: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("index") / "images"
    embed(checkpoint, folder, out)
    return out


@pytest.mark.slow
def test_embeddings_of_a_folder_of_images_are_written_as_parquet(index: Path, folder: Path, checkpoint: Path) -> None:
    table = pads.dataset(index / "embeddings", format="parquet").to_table()
    assert table["id"].to_pylist() == ["a.jpg", "b.jpg", "more/c.jpg"]
    expected = np.stack(
        [expected_image(checkpoint, (folder / name).read_bytes()) for name in table["id"].to_pylist()]
    )
    np.testing.assert_allclose(np.array(table["embedding"].to_pylist()), expected, atol=1e-4)
    rejected = pq.read_table(index / "rejected.parquet").to_pylist()
    assert [row["id"] for row in rejected] == ["broken.png"]
    assert "cannot be decoded" in rejected[0]["reason"]
    description = json.loads((index / "index.json").read_text())
    assert (description["rows"], description["rejected"], description["kind"]) == (3, 1, "image")


def test_one_copy_of_the_model_embeds_without_ray_and_writes_the_bytes_of_an_actor(
    folder: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(needs: connect.Needs, address: str | None = None, verbose: bool = False) -> Any:
        raise UserError(f"Ray at {address}, {needs.concurrent} actors")

    def run(*words: str) -> Any:
        return CliRunner().invoke(app, ["embed", str(checkpoint), str(folder), str(tmp_path / "index"), *words])

    monkeypatch.setattr(connect, "ray_cluster", start)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert str(run("--address", "head:6379").exception) == "Ray at head:6379, 1 actors"
    assert str(run("--actors", "2").exception) == "Ray at None, 2 actors"
    monkeypatch.setattr("siclip_platform.inference.embed.PART_ROWS", 2)
    done = run()
    assert done.exit_code == 0, done.output
    rejected = pq.read_table(tmp_path / "index" / "rejected.parquet").to_pylist()
    assert [row["id"] for row in rejected] == ["broken.png"]
    parts = find_parts(folder, None, None, 2)
    actor = _Actor(str(checkpoint), str(tmp_path))
    with one_thread():
        rows = [
            actor({"index": np.array([index]), "part": np.array([json.dumps(asdict(part))])})
            for index, part in enumerate(parts)
        ]
    assert [row["refused"][0] for row in rows] == ["", ""]
    written = sorted((tmp_path / "index" / "embeddings").glob("*.parquet"))
    assert [path.name for path in written] == ["000000.parquet", "000001.parquet"]
    for path in written:
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()


@pytest.mark.slow
def test_search_orders_by_cosine_and_writes_a_sheet(
    index: Path, folder: Path, checkpoint: Path, tmp_path: Path
) -> None:
    sheet = tmp_path / "sheet.html"
    query = "a <script>alert(1)</script> square"
    result = CliRunner().invoke(app, ["search", str(index), query, "--sheet", str(sheet), "--count", "2"])
    assert result.exit_code == 0, result.output
    text = expected_text(checkpoint, query)
    cosines = {
        name: expected_image(checkpoint, (folder / name).read_bytes()) @ text
        for name in ("a.jpg", "b.jpg", "more/c.jpg")
    }
    best = sorted(cosines, key=lambda name: -cosines[name])[:2]
    lines = result.output.splitlines()
    assert [line.split()[1] for line in lines[:2]] == best
    assert float(lines[0].split()[0]) == pytest.approx(cosines[best[0]], abs=2e-4)
    page = sheet.read_text()
    assert "<script>" not in page
    assert page.count("data:image/jpeg") == 2


@pytest.mark.slow
def test_search_with_an_image_finds_it_first(index: Path, folder: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.html"
    result = CliRunner().invoke(app, ["search", str(index), str(folder / "b.jpg"), "--sheet", str(sheet)])
    assert result.output.splitlines()[0] == "1.0000  b.jpg"
    assert sheet.read_text().count("data:image/jpeg") == 4  # the query and three hits


@pytest.mark.slow
def test_search_refuses_another_model(index: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    other = tmp_path / "other.pt"
    save_checkpoint(other, create_model("siclip-nano"))
    result = CliRunner().invoke(app, ["search", str(index), "x", "--checkpoint", str(other)])
    assert isinstance(result.exception, UserError)
    assert "is not the model of" in str(result.exception)


@pytest.mark.slow
def test_embeddings_of_texts_in_parquet(own_ray: None, checkpoint: Path, tmp_path: Path) -> None:
    table = pa.table({"key": ["x", "y", "z", "w"], "caption": [*TEXTS, " "]})
    pq.write_table(table, tmp_path / "texts.parquet", row_group_size=3)
    description = embed(checkpoint, tmp_path / "texts.parquet", tmp_path / "index")
    assert (description.kind, description.rows, description.rejected) == ("text", 3, 1)
    found = open_index(tmp_path / "index")
    assert found.ids == ["x", "y", "z"]
    expected = np.stack([expected_text(checkpoint, text) for text in TEXTS])
    np.testing.assert_allclose(found.embeddings, expected, atol=1e-4)
    hits = found.nearest(expected[1], 3)
    assert hits[0].id == "y"
    with pytest.raises(UserError, match="exists"):
        embed(checkpoint, tmp_path / "texts.parquet", tmp_path / "index")


def test_parts_of_each_type_of_source(folder: Path, tmp_path: Path) -> None:
    parts = find_parts(folder, None, None, size=3)
    assert [len(part.files) for part in parts] == [3, 1]
    lines = tmp_path / "lines.txt"
    lines.write_text("one\ntwo\n")
    rows = list(read_rows(find_parts(lines, None, None, 10)[0]))
    assert [(row.id, row.value) for row in rows] == [("1", "one"), ("2", "two")]
    images = pa.table({"id": ["r", "g"], "jpg": [encoded("red"), encoded("green")]})
    pq.write_table(images, tmp_path / "images.parquet", row_group_size=1)
    parts = find_parts(tmp_path / "images.parquet", "image", None, 10)
    row = next(read_rows(parts[1]))
    assert row.id == "g"
    assert read_image_at(row.location) == row.value == encoded("green")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "does not exist"),
        (lambda p: p.mkdir(), "nothing to embed"),
        (lambda p: (p.mkdir(), (p / "a.parquet").write_bytes(b"x")), "not a readable Parquet"),
        (lambda p: (p.mkdir(), pq.write_table(pa.table({"a": [1]}), p / "a.parquet")), "none of the columns"),
        (lambda p: (p.mkdir(), pq.write_table(pa.table({"text": [1]}), p / "a.parquet")), "is int64"),
    ],
)
def test_a_source_that_cannot_be_embedded_is_refused(make: Any, message: str, tmp_path: Path) -> None:
    make(tmp_path / "source")
    with pytest.raises(UserError, match=message):
        find_parts(tmp_path / "source", None, None, 10)


def test_an_incomplete_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not an index"):
        open_index(tmp_path)
    (tmp_path / "index.json").write_text("{}")
    with pytest.raises(UserError, match="does not describe an index"):
        open_index(tmp_path)


@pytest.fixture(scope="module")
def served(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mlflow") / "model"
    export_mlflow(checkpoint, out)
    return out


@pytest.mark.slow
def test_the_mlflow_model_returns_the_models_embeddings(served: Path, checkpoint: Path) -> None:
    from mlflow.pyfunc import load_model as load_pyfunc
    from mlflow.pyfunc.scoring_server import init

    client = __import__("fastapi.testclient", fromlist=["TestClient"]).TestClient(init(load_pyfunc(str(served))))

    def post(column: str, values: list[str]) -> Any:
        body = {"dataframe_split": {"columns": [column], "data": [[value] for value in values]}}
        return client.post("/invocations", json=body)

    texts = post("text", TEXTS)
    assert texts.status_code == 200, texts.text
    expected = np.stack([expected_text(checkpoint, text) for text in TEXTS])
    np.testing.assert_allclose(np.array(texts.json()["predictions"]), expected, atol=1e-4)
    images = post("image", [base64.b64encode(encoded("red")).decode()])
    np.testing.assert_allclose(
        np.array(images.json()["predictions"])[0], expected_image(checkpoint, encoded("red")), atol=1e-4
    )
    assert post("image", ["%%%"]).status_code != 200
    assert "not base64" in post("image", ["%%%"]).text


def test_a_request_requires_one_column_and_at_most_1024_rows(checkpoint: Path) -> None:
    model = SiclipModel()
    model.encoder = Encoder.load(checkpoint)
    for frame in (pd.DataFrame({"other": ["x"]}), pd.DataFrame({"text": ["x"] * 1025})):
        with pytest.raises(UserError, match="a request requires one column"):
            model.predict(None, frame)
    with pytest.raises(UserError, match="row 0"):
        model.predict(None, pd.DataFrame({"image": [base64.b64encode(b"no image").decode()]}))


def test_a_card_states_what_is_recorded_and_what_is_not(checkpoint: Path) -> None:
    model = load_model(checkpoint)
    card = model_card(model, "model.pt", None)
    assert "not recorded" in card
    fused = sum(p.numel() for p in model.reparameterize().parameters())
    assert f"{fused:,}" in card
    params = {"model.inherit": "True", "teacher": "/home/someone/mobileclip_s0.pt", "odd|name": "<b>"}
    origin = Origin("r1", params, {"siclip.dataset_hash": "d1"}, {"test/mean_recall@1": 0.25, "train/loss": 3.0})
    card = model_card(model, "model.pt", origin)
    assert "inherited in part from `mobileclip_s0.pt`" in card
    assert "| test/mean_recall@1 | 0.2500 |" in card
    assert "train/loss" not in card
    assert "odd\\|name | &lt;b>" in card
    scratch = model_card(model, "model.pt", Origin("r1", {"model.inherit": "False", "teacher": "None"}))
    assert "trained from scratch" in scratch
    assert "no evaluation of this model is recorded" in scratch


def test_export_writes_a_card_into_the_folder(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["model", "export", str(checkpoint), "out", "--format", "open_clip"])
    assert done.exit_code == 0, done.output
    assert "# siclip-nano" in (tmp_path / "out" / "README.md").read_text()
    refused = CliRunner().invoke(app, ["model", "export", str(checkpoint), "x", "--format", "onnx", "--run", "r"])
    assert "--tracking-uri" in str(refused.exception)
