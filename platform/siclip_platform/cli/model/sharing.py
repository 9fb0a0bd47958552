"""``siclip-platform model propose-sharing``: which attention blocks are similar enough to share weights."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from siclip.errors import UserError
from siclip_platform.cli.model.group import app

if TYPE_CHECKING:
    from siclip.config import ModelConfig
    from siclip.diagnostics import AttentionDivergence
    from siclip.diagnostics.proposal import Tower
    from siclip.models import Clip
    from siclip_platform.display import Display

Findings = dict[str, Any]

CHUNK = 32  # pairs whose attention maps are in memory at a time
CAUTION = (
    "An entropy share of 1 is uniform attention: such maps are all similar, and a low divergence proves nothing.\n"
    "Compare a low divergence with the mean of the non-adjacent pairs."
)


@app.command("propose-sharing")
def propose_sharing_command(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint that training wrote; usually of a teacher.")],
    data: Annotated[str, typer.Argument(help="The dataset, a folder or a URI.")],
    split: Annotated[str, typer.Option(help="A split of the dataset.")] = "validation",
    samples: Annotated[int, typer.Option(min=0, help="The first samples of the split; 0 for all.")] = 256,
    out: Annotated[Path, typer.Option(help="The search space file to write; it must not exist.")] = Path(
        "proposed_sharing.yaml"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare the attention of a model's blocks; print proposed sharing patterns and write them as a search space."""
    from siclip.models.finite import check_finite
    from siclip_platform.display import Display, echo
    from siclip_platform.storage.checkpoints import read_model

    # Before the measurement, which takes minutes.
    _check_out(out)
    model = read_model(checkpoint)
    check_finite(model, checkpoint)
    divergences = _probe(model, data, split, samples)
    findings = {
        "checkpoint": checkpoint,
        "model": model.config.name,
        "student": _student(model.config.name),
        "data": data,
        "split": split,
        "samples": divergences["text"].samples,
        "space": str(out),
        "towers": {
            "image": _tower(model.config, "image", divergences["image"]),
            "text": _tower(model.config, "text", divergences["text"]),
        },
    }
    space = space_text(findings)
    if as_json:
        echo(json.dumps(findings, indent=2))
    else:
        _show(findings, Display())
    _write(out, space)
    if not as_json:
        echo(f"search space: {out}")


def space_text(findings: Mapping[str, Any]) -> str:
    """A search space over the proposed patterns: YAML, with the evidence in a comment at the top.

    Raises:
        UserError: no tower has two blocks that could share.
    """
    from siclip_platform.recipes.yaml_file import dump_yaml

    proposed = {
        f"model.{tower}_sharing": {
            "distribution": "choice",
            "values": ["none", *(proposal["pattern"] for proposal in found["proposals"])],
        }
        for tower, found in findings["towers"].items()
        if found["proposals"]
    }
    if not proposed:
        raise UserError(f"{findings['checkpoint']} has one attention block per tower: there is nothing to share")
    space = {
        "name": "proposed_sharing",
        "metric": "validation/mean_recall@1",
        "parameters": proposed,
    }
    head = "\n".join(_head(findings)).splitlines()  # a path may contain a line break
    body = dump_yaml(space, allow_unicode=True, default_flow_style=None, width=110)
    return "".join(f"# {line}".rstrip() + "\n" for line in head) + body


def _check_out(out: Path) -> None:
    if out.exists():
        raise UserError(f"{out} exists and is not overwritten: remove it or choose another file with --out")
    if not out.parent.is_dir():
        raise UserError(
            f"{out} cannot be written: the folder {out.parent} does not exist; create it or choose another --out"
        )


def _write(out: Path, text: str) -> None:
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UserError(f"search space {out} cannot be written: {error.strerror}; choose another --out") from None


def _probe(model: Clip, data: str, split: str, samples: int) -> dict[str, AttentionDivergence]:
    import torch

    from siclip.data.batch import to_float_images
    from siclip.diagnostics import attention_divergence
    from siclip_platform.stream import load_evaluation_set

    pairs = load_evaluation_set(data, split, model.config, samples)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chunks = zip(torch.split(pairs.images, CHUNK), torch.split(pairs.first_tokens, CHUNK), strict=True)
    return attention_divergence(model.to(device), ((to_float_images(images), tokens) for images, tokens in chunks))


def _tower(config: ModelConfig, tower: Tower, divergence: AttentionDivergence) -> Findings:
    from siclip.diagnostics.proposal import parameters_saved, propose_sharing

    return {
        "pairs": divergence.pairs,
        "adjacent": divergence.adjacent,
        "adjacent_mean": divergence.adjacent_mean,
        "non_adjacent_mean": divergence.non_adjacent_mean,
        "entropy_share": divergence.entropy_share,
        "proposals": [
            {
                "pattern": str(proposal.pattern),
                "parameters_saved": parameters_saved(config, tower, proposal.pattern),
                "within": proposal.within,
                "below_baseline": proposal.below_baseline,
            }
            for proposal in propose_sharing(divergence)
        ],
    }


def _student(name: str) -> str:
    """The model with SAS-P blocks that corresponds to a checkpoint's model."""
    from siclip.models.registry import student_of

    return student_of(name)


def _head(findings: Mapping[str, Any]) -> list[str]:
    """Lines of the comment: a command that runs the space, and the evidence."""
    command = ["siclip-platform", "tune", "--space", findings["space"], "--recipe", "RECIPE.yaml"]
    command += ["--set", f"model.name={findings['student']}", "--data", findings["data"]]
    if findings["student"] != findings["model"]:
        command += ["--teacher", findings["checkpoint"]]
    lines = [
        shlex.join(command),
        "",
        f"Proposed by the attention of {findings['model']} in {findings['checkpoint']} on {findings['samples']} "
        f"{findings['split']} samples of {findings['data']}.",
        f"The figures are mean Jensen-Shannon divergences in nats, 0 to {math.log(2):.3f}.",
        CAUTION,
    ]
    for tower, found in findings["towers"].items():
        shares = ", ".join(map(_figure, found["entropy_share"]))
        lines += ["", f"{tower}: {_means(found)}; entropy shares {shares}"]
        lines += [
            f"  {proposal['pattern']}: {_figure(proposal['within'])} between the blocks that share, "
            f"saves {proposal['parameters_saved']:,} parameters"
            for proposal in found["proposals"]
        ]
    return [*lines, ""]


def _show(findings: Mapping[str, Any], display: Display) -> None:
    from rich.table import Table

    display.say(
        f"{findings['model']} in {findings['checkpoint']}, {findings['samples']} {findings['split']} samples of "
        f"{findings['data']}"
    )
    for tower, found in findings["towers"].items():
        numbers = [str(block) for block in range(len(found["pairs"]))]
        pairs = Table("block", title=f"{tower}: JS divergence, nats")
        for title in (*numbers, "entropy share"):
            pairs.add_column(title, justify="right")
        for i, row in enumerate(found["pairs"]):
            cells = ("–" if i == j else _figure(value) for j, value in enumerate(row))
            pairs.add_row(str(i), *cells, _figure(found["entropy_share"][i]))
        display.table(pairs)
        display.say(_means(found))
        proposals = Table("pattern", title=f"{tower}: proposed sharing")
        for title in ("parameters saved", "divergence within", "below non-adjacent"):
            proposals.add_column(title, justify="right")
        for proposal in found["proposals"]:
            below = {True: "yes", False: "no", None: "–"}[proposal["below_baseline"]]
            saved = f"{proposal['parameters_saved']:,}"
            proposals.add_row(proposal["pattern"], saved, _figure(proposal["within"]), below)
        display.table(proposals)
    display.say(f"JS divergence ranges from 0 to ln 2 = {math.log(2):.3f}.\n{CAUTION}")


def _means(found: Mapping[str, Any]) -> str:
    adjacent, other = _figure(found["adjacent_mean"]), _figure(found["non_adjacent_mean"])
    return f"mean of adjacent pairs {adjacent}, of non-adjacent pairs {other}"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
