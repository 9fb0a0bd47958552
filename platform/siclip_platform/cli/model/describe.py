"""``siclip-platform model describe``: the cost of a model, stage by stage."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from siclip.config import FreezePolicy
from siclip.errors import UserError
from siclip.open_clip_models import OPEN_CLIP
from siclip_platform.cli.model.group import app

if TYPE_CHECKING:
    from rich.table import Table

    from siclip.config import ModelConfig
    from siclip.diagnostics.describe import ModelDescription, StageDescription
    from siclip.models import Clip

COLUMNS = (
    "parameters\ntrain form",
    "parameters\nreparameterized",
    "multiply-\nadds, M",
    "activations\nMiB",
    "trainable\n%",
)
LEGEND = """\
Multiply-adds and activations: per image or text; in the total, per pair.
Multiply-adds: matrix products and convolutions of the reparameterized model.
Activations: what autograd keeps for the backward pass, in bf16 autocast."""


@app.command("describe")
def describe_command(
    name: Annotated[str, typer.Argument(help="A model name such as siclip-s0, a checkpoint, or open_clip:NAME:TAG.")],
    image_sharing: Annotated[str | None, typer.Option(help="A pattern such as qk:0-0; default: the model's.")] = None,
    text_sharing: Annotated[str | None, typer.Option(help="A pattern such as qk:0-0-1-1.")] = None,
    freeze: Annotated[
        FreezePolicy | None,
        typer.Option(help="What is not trained; default: inherited for models with SAS-P blocks, else none."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Parameters, multiply-adds, activation memory and trainable share of a model, stage by stage."""
    from siclip.checkpoints.inherit import freeze_inherited
    from siclip.diagnostics.describe import describe_model
    from siclip_platform.display import echo

    model = _model(name, image_sharing, text_sharing)
    policy = freeze or _default_policy(model.config)
    freeze_inherited(model, policy)
    description = describe_model(model)
    if as_json:
        echo(as_text(model.config, policy, description))
    else:
        _show(model.config, policy, description)


def as_text(config: ModelConfig, policy: FreezePolicy, description: ModelDescription) -> str:
    """The description as JSON.

    Its keys are ``model``, ``image_sharing``, ``text_sharing`` and ``freeze``; ``stages``, a list of objects in the
    order of the forward pass; ``towers``, with an object each under ``image`` and ``text``; and ``total``, an object.
    Each object has ``tower`` (image, text, both), ``stage``, ``parameters``, ``reparameterized_parameters``,
    ``multiply_adds``, ``activation_bytes`` and ``trainable_parameters`` (see `StageDescription`).
    """
    content = {
        "model": config.name,
        "image_sharing": config.image.sharing,
        "text_sharing": config.text.sharing,
        "freeze": policy,
        "stages": [asdict(stage) for stage in description.stages],
        "towers": {tower: asdict(description.tower(tower)) for tower in ("image", "text")},
        "total": asdict(description.total),
    }
    return json.dumps(content, indent=2)


def _model(name: str, image_sharing: str | None, text_sharing: str | None) -> Clip:
    from siclip import create_model, list_models
    from siclip_platform.storage.checkpoints import read_model

    path = Path(name)
    is_file = name.startswith(OPEN_CLIP) or (
        name not in list_models() and (path.exists() or path.suffix != "" or len(path.parts) > 1)
    )
    if not is_file:
        return create_model(name, image_sharing=image_sharing, text_sharing=text_sharing)
    if image_sharing is not None or text_sharing is not None:
        raise UserError(
            f"{name} is a checkpoint and has its own sharing patterns: omit --image-sharing and --text-sharing"
        )
    return read_model(name)


def _default_policy(config: ModelConfig) -> FreezePolicy:
    return "inherited" if "sasp" in (config.image.block, config.text.block) else "none"


def _show(config: ModelConfig, policy: FreezePolicy, description: ModelDescription) -> None:
    from siclip_platform.display import Terminal, echo

    sharing = f"image sharing {config.image.sharing}, text sharing {config.text.sharing}"
    echo(f"{config.name}: {sharing}, freeze {policy}\n")
    # A fixed width: in a pipe rich would wrap the table at 80 columns or at $COLUMNS.
    Terminal(width=200).print(_table(description))
    echo(f"\n{LEGEND}")


def _table(description: ModelDescription) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("stage", no_wrap=True)
    for title in COLUMNS:
        table.add_column(title, justify="right", no_wrap=True)
    for tower in ("image", "text"):
        table.add_row(f"{tower} tower", *_figures(description.tower(tower)), style="bold")
        for stage in description.stages:
            if stage.tower == tower:
                table.add_row(f"  {stage.stage}", *_figures(stage))
    for row in (*(stage for stage in description.stages if stage.tower == "both"), description.total):
        table.add_row(row.stage, *_figures(row), style="bold")
    return table


def _figures(row: StageDescription) -> list[str]:
    return [
        f"{row.parameters:,}",
        f"{row.reparameterized_parameters:,}",
        f"{row.multiply_adds / 1e6:,.1f}",
        f"{row.activation_bytes / 2**20:,.2f}",
        f"{100 * row.trainable_parameters / row.parameters:.1f}",
    ]
