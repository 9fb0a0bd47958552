"""``siclip-platform model export``: a checkpoint in the format of another tool, with a model card."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from siclip.errors import UserError
from siclip.open_clip_models import OPEN_CLIP
from siclip_platform.cli.model.group import app


class Format(StrEnum):
    """The formats that `export` writes."""

    ONNX = "onnx"
    OFFICIAL = "official"
    OPEN_CLIP = "open_clip"
    MLFLOW = "mlflow"


@app.command()
def export(
    checkpoint: Annotated[
        str, typer.Argument(help="A checkpoint that training wrote, a file or a URI; or open_clip:NAME:TAG.")
    ],
    out: Annotated[
        Path, typer.Argument(help="A new folder; with --format official a new file, .pt or .safetensors.")
    ],
    format: Annotated[Format, typer.Option(help="The format to write.")],
    run: Annotated[str | None, typer.Option(help="The MLflow run that trained it, for the model card.")] = None,
    tracking_uri: Annotated[str | None, typer.Option(help="The MLflow store of that run.")] = None,
) -> None:
    """Write a model in another tool's format and check that its outputs differ by at most 1e-4.

    onnx: image.onnx and text.onnx, for any batch size, all train-form branches fused. official: the flat state
    dict of MobileCLIP, for models without SAS-P blocks. open_clip: a config and a state dict with open_clip's
    names, which siclip.export.load_open_clip reads. mlflow: a model for `mlflow models serve`.
    A model card is written too: README.md in the folder, or NAME.md beside the file.
    """
    from siclip.export.check import check_new_output
    from siclip.export.official import check_suffix
    from siclip.models.finite import check_finite
    from siclip_platform.display import echo
    from siclip_platform.storage import as_path, local_copy
    from siclip_platform.storage.checkpoints import read_model

    if (run is None) != (tracking_uri is None):
        raise UserError("--run and --tracking-uri require each other: a run is looked up in its store")
    if format is Format.MLFLOW and checkpoint.startswith(OPEN_CLIP):
        raise UserError(f"{checkpoint}: an MLflow model contains a checkpoint; make one first with model convert")
    if format is Format.OFFICIAL:
        check_suffix(out)
    check_new_output(out)
    model = read_model(checkpoint)
    from siclip_platform.inference.model_card import model_card, read_origin, write_card

    check_finite(model, checkpoint)
    origin = read_origin(tracking_uri, run) if run and tracking_uri else None
    name = checkpoint if checkpoint.startswith(OPEN_CLIP) else as_path(checkpoint).name
    card = model_card(model, name, origin)
    if format is Format.MLFLOW:
        from siclip_platform.inference.serving import export_mlflow

        with local_copy(checkpoint) as path:
            export_mlflow(path, out)
        echo(f"{out}: serve it with mlflow models serve --model-uri {out} --env-manager local")
    else:
        from siclip.export import export_official, export_onnx, export_open_clip

        writers = {Format.ONNX: export_onnx, Format.OFFICIAL: export_official, Format.OPEN_CLIP: export_open_clip}
        exported = writers[format](model, out)
        for file in exported.files:
            echo(f"{file}: {file.stat().st_size:,} bytes")
        echo(f"largest difference from the model's outputs: {exported.largest_difference:.1e} (limit 1e-4)")
    echo(f"model card: {write_card(out, card)}")
