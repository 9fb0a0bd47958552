"""Files and models that are almost valid."""

from __future__ import annotations

import zipfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.utils.checkpoint_saver import CheckpointSaver
from torch import nn

import siclip
from siclip.checkpoints.formats import load_checkpoint, load_model, save_checkpoint
from siclip.checkpoints.layouts import to_timm
from siclip.errors import UserError
from siclip.models import Clip, create_model


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("marked") / "model.pt"
    save_checkpoint(path, create_model("siclip-nano"))
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": 3}, "its model is not a state dict"),
        ({"model": None}, "its model is not a state dict"),
        ({"model": {3: torch.zeros(1)}}, "its keys are not names"),
        ({"model": {"logit_scale": "high"}}, "no tensor under logit_scale"),
        ({"version": "1"}, "of version '1', this code reads 1"),
        ({"config": {"name": "siclip-nano", "depth": 3}}, "depth: Extra inputs"),
    ],
)
def test_a_marked_file_with_a_damaged_body_is_refused(
    marked: dict[str, Any], changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    torch.save(marked | changes, tmp_path / "bad.pt")
    with pytest.raises(UserError, match=message) as error:
        load_model(tmp_path / "bad.pt")
    assert "\n" not in str(error.value)


def test_compressed_records_are_refused_before_they_fill_the_memory(tmp_path: Path) -> None:
    plain, packed = tmp_path / "plain.pt", tmp_path / "packed.pt"
    torch.save({"state_dict": {"weight": torch.zeros(2_000_000)}}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for record in source.infolist():
            archive.writestr(record.filename, source.read(record))
    assert packed.stat().st_size < 100_000
    assert (
        torch.load(packed, weights_only=True)["state_dict"]["weight"].numel() == 2_000_000
    )  # why the check is needed
    with pytest.raises(UserError, match=r"packed.pt is refused: its records unpack to 8,\d{3},\d{3} bytes"):
        load_checkpoint(create_model("siclip-nano"), packed)


def test_a_folder_and_an_unreadable_path_have_different_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder"):
        load_model(tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        load_model(tmp_path / ("x" * 300))


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.model\.pt cannot be written"):
        save_checkpoint(tmp_path / "nowhere" / "model.pt", create_model("siclip-nano"))


def test_a_checkpoint_of_timms_saver_with_its_arguments_loads(tmp_path: Path) -> None:
    source = create_model("mobileclip-nano")

    class Network(nn.Module):
        def state_dict(self, *args: Any, **kwargs: Any) -> Any:
            return to_timm(source)

    network = Network()
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    saver = CheckpointSaver(network, optimizer, args=Namespace(model="fastvit", lr=0.1), checkpoint_dir=str(tmp_path))
    saver.save_checkpoint(epoch=1, metric=0.5)
    target = create_model("mobileclip-nano")
    load_checkpoint(target, next(tmp_path.glob("checkpoint-*.pth.tar")), part="image")
    for name, value in source.image_encoder.state_dict().items():
        assert torch.equal(value, target.image_encoder.state_dict()[name])


def test_paths_may_be_strings(tmp_path: Path) -> None:
    path = str(tmp_path / "model.pt")
    siclip.save_checkpoint(path, create_model("siclip-nano"))
    assert siclip.load_model(path).config.name == "siclip-nano"
    assert siclip.export_official(create_model("mobileclip-nano"), str(tmp_path / "official.pt")).files


def deployable() -> Clip:
    return create_model("mobileclip-nano").reparameterize()


def test_reparameterizing_again_gives_a_copy() -> None:
    once = deployable()
    twice = once.reparameterize()
    images, tokens = torch.rand(2, 3, 64, 64), torch.randint(1, 400, (2, 20))
    assert all(torch.equal(a, b) for a, b in zip(once(images, tokens), twice(images, tokens), strict=True))
    assert twice is not once


def test_a_deployable_model_is_refused_where_the_train_form_is_required(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "model.pt", create_model("mobileclip-nano"))
    with pytest.raises(UserError, match="checkpoints hold the train form"):
        load_checkpoint(deployable(), tmp_path / "model.pt")
    with pytest.raises(UserError, match="use its train form"):
        siclip.inherit(create_model("siclip-nano"), deployable())
    for export in (siclip.export_official, siclip.export_open_clip):
        with pytest.raises(UserError, match="is reparameterized"):
            export(deployable(), tmp_path / "out.pt")
