"""One example for every command, shown below its help."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HELP: dict[str, Any] = {"help_option_names": ["-h", "--help"]}

EXAMPLES: Mapping[str, str] = {
    "ablate": "siclip-platform ablate wikd_ablation --seeds 5 --setting pm",
    "compare": "siclip-platform compare trial-000 trial-004 --out runs/tune",
    "data build": "siclip-platform data build data/digits",
    "data caption": "siclip-platform data caption data/cc12m --name coca",
    "data captions": "siclip-platform data captions data/cc12m --name llava --from llava.csv --key id --column text",
    "data embed": "siclip-platform data embed data/digits --name nano --teacher teacher.pt",
    "data import": "siclip-platform data import cc12m/ data/cc12m --validation-share 0.01",
    "data inspect": "siclip-platform data inspect data/cc12m --sheet sheet.html",
    "data negatives": "siclip-platform data negatives data/cc12m --name near",
    "data push": "siclip-platform data push data/cc12m s3://bucket/cc12m",
    "data verify": "siclip-platform data verify data/cc12m",
    "demo": "siclip-platform demo --out runs/demo",
    "doctor": "siclip-platform doctor",
    "embed": "siclip-platform embed runs/train/train/train.pt photos/ photos-index",
    "evaluate": "siclip-platform evaluate runs/train/train/train.pt --data data/digits --split test",
    "job": "siclip-platform job tune_wikd --trials 4",
    "model convert": "siclip-platform model convert mobileclip_s0.pt teacher.pt --model mobileclip-s0",
    "model describe": "siclip-platform model describe siclip-s0 --text-sharing qk:0-0-1-1",
    "model export": "siclip-platform model export runs/train/train/train.pt served --format mlflow",
    "model propose-sharing": "siclip-platform model propose-sharing teacher.pt data/digits --out sharing.yaml",
    "plan": "siclip-platform plan --recipe siclip-s0-cc12m-syn --card rtx-3090",
    "recipe check": "siclip-platform recipe check my.yaml",
    "recipe init": "siclip-platform recipe init siclip-s0-cc12m-syn my.yaml --data data/cc12m-syn",
    "recipe list": "siclip-platform recipe list",
    "recipe show": "siclip-platform recipe show digits-student --resolved",
    "rehearse": "siclip-platform rehearse my.yaml cc12m/ --rows 100",
    "report": "siclip-platform report --out runs/tune --study wikd",
    "search": 'siclip-platform search photos-index "a red heart" --sheet hearts.html',
    "simulate": "siclip-platform simulate digits-wikd --space my_space.yaml --trials 48",
    "submit": "siclip-platform submit tune_wikd --trials 4",
    "sync": "siclip-platform sync runs/tune",
    "train": "siclip-platform train --recipe digits-student --data data/digits --out runs/train",
    "tune": "siclip-platform tune --recipe digits-student --data data/digits --trials 12 --confirm 5",
}
JOBS = {"tune_wikd": "demo", "train_siclip": "train", "ablate_siclip": "ablate"}


def add_examples(app: Any, path: str = "") -> None:
    """Put the example of each command of a typer app, and of its groups, below its help."""
    for command in app.registered_commands:
        name = command.name or command.callback.__name__.replace("_", "-")
        command.epilog = epilog(f"{path} {name}".strip())
    for group in app.registered_groups:
        add_examples(group.typer_instance, f"{path} {group.name}".strip())


def epilog(command: str) -> str | None:
    """The line below a command's help; None for a command without an example."""
    example = EXAMPLES.get(command)
    return f"Example: {example}" if example else None
