"""``siclip-platform model convert``: a checkpoint with other sharing patterns, or in the other file format."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from siclip.errors import UserError
from siclip.open_clip_models import OPEN_CLIP
from siclip_platform.cli.model.group import app

if TYPE_CHECKING:
    from siclip.config import ModelConfig


class How(StrEnum):
    """The weights of blocks that newly share."""

    AVERAGE = "average"
    FIRST = "first"


@app.command()
def convert(
    checkpoint: Annotated[
        str, typer.Argument(help="A checkpoint that training wrote, .pt or .safetensors; or open_clip:NAME:TAG.")
    ],
    out: Annotated[Path, typer.Argument(help="A new file, .pt or .safetensors.")],
    image_sharing: Annotated[str | None, typer.Option(help="Pattern such as qk:0-0; default: unchanged.")] = None,
    text_sharing: Annotated[str | None, typer.Option(help="Pattern such as qk:0-0-1-1; default: unchanged.")] = None,
    how: Annotated[How, typer.Option(help="The mean of the blocks' weights, or the first block's.")] = How.AVERAGE,
    model: Annotated[
        str | None, typer.Option(help="The model in a file from another project, for example mobileclip-s0.")
    ] = None,
) -> None:
    """Write a model with other sharing patterns, in the other file format, or from another project's file.

    --model reads files of other projects: Apple's mobileclip_s0.pt, and MobileCLIP state dicts such as open_clip's.
    open_clip:MobileCLIP2-S0:dfndr2b downloads open_clip's weights. Training state is not written.

    Blocks that no longer share get a copy each, so the model computes the same. Blocks that newly share get the mean
    of their weights, or those of the first: a heuristic start for further training.
    """
    # Before torch is imported, so that a wrong file name is reported at once.
    _check_out(out)
    if checkpoint.startswith(OPEN_CLIP):
        _convert_open_clip(checkpoint, out, (image_sharing, text_sharing, model))
        return
    from siclip.checkpoints.formats import checkpoint_config, load_checkpoint, read_checkpoint, save_checkpoint
    from siclip.models import Clip, count_parameters, model_config
    from siclip.models.finite import check_finite
    from siclip_platform.display import echo
    from siclip_platform.storage import local_copy

    with local_copy(checkpoint) as path:
        config = model_config(model) if model else checkpoint_config(read_checkpoint(path), path)
        changed = _with_sharing(config, image_sharing, text_sharing, checkpoint)
        before, after = Clip(config), Clip(changed)
        load_checkpoint(after, path, sharing=how.value)
    check_finite(after, checkpoint)
    save_checkpoint(out, after)
    for tower in ("image", "text"):
        old, new = getattr(config, tower).sharing, getattr(changed, tower).sharing
        echo(f"{tower} sharing: {old} → {new}")
    echo(f"parameters: {count_parameters(before):,} → {count_parameters(after):,}")
    echo(f"{out}: {out.stat().st_size:,} bytes")


def _convert_open_clip(named: str, out: Path, options: tuple[str | None, ...]) -> None:
    from siclip.checkpoints.formats import save_checkpoint
    from siclip.checkpoints.open_clip_weights import OpenClipWeights
    from siclip.data.transforms import preprocessing_text
    from siclip.models import count_parameters
    from siclip.models.finite import check_finite
    from siclip_platform.display import echo

    if any(options):
        raise UserError(f"{named} is a known model with nothing to share: omit --model and the sharing patterns")
    weights = OpenClipWeights.of(named)
    model = weights.load()
    check_finite(model, named)
    save_checkpoint(out, model)
    echo(f"{model.config.name}: {count_parameters(model):,} parameters")
    echo(f"images: {preprocessing_text(model.config.image.image_size)} ({weights.card})")
    echo(f"{out}: {out.stat().st_size:,} bytes")


def _check_out(out: Path) -> None:
    if out.suffix not in (".pt", ".safetensors"):
        raise UserError(f"{out}: choose a file name that ends in .pt or .safetensors")
    if out.exists():
        raise UserError(f"{out} exists: choose another file, or remove it first")
    if not out.parent.is_dir():
        raise UserError(f"{out}: the folder {out.parent} does not exist")


def _with_sharing(config: ModelConfig, image: str | None, text: str | None, checkpoint: str) -> ModelConfig:
    """The config with other patterns. The model refuses a pattern that does not fit its tower."""
    tree = config.model_dump()
    for tower, sharing in (("image", image), ("text", text)):
        if sharing is None:
            continue
        if tree[tower]["block"] != "sasp":
            raise UserError(
                f"{checkpoint} contains {config.name!r}, whose {tower} tower has no SAS-P blocks to share: "
                f"omit --{tower}-sharing"
            )
        tree[tower]["sharing"] = sharing
    return type(config).model_validate(tree)
