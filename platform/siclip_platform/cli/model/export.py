"""``siclip-platform model export``: a checkpoint for other tools."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from siclip_platform.cli.model.group import app


class Format(StrEnum):
    """What `export` writes."""

    ONNX = "onnx"
    OFFICIAL = "official"
    OPEN_CLIP = "open_clip"


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint that training wrote.")],
    out: Annotated[Path, typer.Argument(help="A new folder; for official a new file, .pt or .safetensors.")],
    format: Annotated[Format, typer.Option(help="The form to write.")],
) -> None:
    """Write a model for other tools, after its outputs were found to be the model's within 1e-4.

    onnx: image.onnx and text.onnx, of any batch size, every train-form branch fused. official: the flat state
    dict of MobileCLIP, for models without SAS-P blocks. open_clip: a config and a state dict under open_clip's
    names, to be read by siclip.export.load_open_clip.
    """
    from siclip.checkpoints.formats import load_model

    model = load_model(checkpoint)
    from siclip.export import export_official, export_onnx, export_open_clip

    write = {Format.ONNX: export_onnx, Format.OFFICIAL: export_official, Format.OPEN_CLIP: export_open_clip}[format]
    exported = write(model, out)
    for file in exported.files:
        typer.echo(f"{file}: {file.stat().st_size:,} bytes")
    typer.echo(f"largest difference from the model's outputs: {exported.largest_difference:.1e} (limit 1e-4)")
