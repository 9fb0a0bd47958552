"""A checkpoint that is not finite is refused by its name, before any compute, by every command that uses models."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from siclip.checkpoints.formats import save_checkpoint
from siclip.errors import UserError
from siclip.models import create_model
from siclip.models.finite import NotFinite
from siclip_platform.cli import app
from siclip_platform.datasets.derived.embeddings.teacher import EmbeddingTeacher
from siclip_platform.inference import embed as embed_module
from siclip_platform.inference.embed import embed
from siclip_platform.inference.encoder import Encoder
from siclip_platform.inference.serving import SiclipModel


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose training diverged."""
    torch.manual_seed(0)
    model = create_model("siclip-nano")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e30)
    path = tmp_path_factory.mktemp("broken") / "broken.pt"
    save_checkpoint(path, model)
    return path


@pytest.mark.parametrize("case", ["simple", "compare", "mlflow", "open_clip", "convert", "sharing"])
def test_every_command_refuses_it_by_name(
    case: str, broken: Path, nano_teacher: Path, digits: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    model, data = str(broken), str(digits)
    command = {
        "simple": ["evaluate", model, "--data", data],
        "compare": ["evaluate", str(nano_teacher), "--compare", model, "--data", data, "--resamples", "2"],
        "mlflow": ["model", "export", model, str(out), "--format", "mlflow"],
        "open_clip": ["model", "export", model, str(out), "--format", "open_clip"],
        "convert": ["model", "convert", model, str(out.with_suffix(".pt"))],
        "sharing": ["model", "propose-sharing", model, data, "--out", str(out.with_suffix(".yaml"))],
    }[case]
    done = CliRunner().invoke(app, command)
    assert isinstance(done.exception, NotFinite), (done.output, done.exception)
    assert str(done.exception).startswith(f"{model} is not finite")
    assert not list(tmp_path.iterdir())


def test_embedding_searching_and_serving_refuse_it(broken: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("a\n")
    with pytest.raises(NotFinite, match=r"broken\.pt is not finite"):
        embed(broken, tmp_path / "texts.txt", tmp_path / "index")
    assert not (tmp_path / "index").exists()
    with pytest.raises(NotFinite, match=r"broken\.pt is not finite"):
        Encoder.load(broken)
    with pytest.raises(NotFinite, match=r"the teacher .*broken\.pt is not finite"):
        EmbeddingTeacher(str(broken))


@pytest.mark.slow
def test_a_part_that_is_not_finite_leaves_no_index(
    own_ray: None, nano_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first look at the model passes, and an actor finds what it does with other inputs."""

    class Late(embed_module._Actor):
        def __init__(self, checkpoint: str, folder: str) -> None:
            super().__init__(checkpoint, folder)
            with torch.no_grad():
                self.embed.encoder.model.text_encoder.projection_layer.fill_(float("nan"))

    monkeypatch.setattr(embed_module, "_Actor", Late)
    pq.write_table(pa.table({"text": ["a", "b"]}), tmp_path / "texts.parquet")
    with pytest.raises(NotFinite, match=r"^\S*teacher.pt is not finite: 2 of 2"):
        embed(nano_teacher, tmp_path / "texts.parquet", tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_a_part_that_is_not_finite_leaves_no_index_of_this_process(
    nano_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Late(embed_module._Embed):
        def __init__(self, encoder: Encoder, folder: Path) -> None:
            super().__init__(encoder, folder)
            with torch.no_grad():
                encoder.model.text_encoder.projection_layer.fill_(float("nan"))

    monkeypatch.setattr(embed_module, "_Embed", Late)
    (tmp_path / "texts.txt").write_text("a\nb\n")
    with pytest.raises(NotFinite, match=r"^\S*teacher.pt is not finite: 2 of 2"):
        embed(nano_teacher, tmp_path / "texts.txt", tmp_path / "index", here=True)
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize("column", ["text", "image"])
@pytest.mark.parametrize("value", [None, float("nan"), pd.NA, pd.NaT, 5])
def test_a_null_in_a_request_is_not_a_word(nano_teacher: Path, column: str, value: object) -> None:
    model = SiclipModel()
    model.encoder = Encoder.load(nano_teacher)
    frame = pd.DataFrame({column: pd.Series(["a", value], dtype=object)})
    with pytest.raises(UserError, match=rf"the {column} of row (0|1) is .*, not a string|row 0 is not base64"):
        model.predict(None, frame)
    with pytest.raises(UserError, match=rf"the {column} of row 0 is .*, not a string"):
        model.predict(None, frame[1:])
