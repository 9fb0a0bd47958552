"""A model card in Markdown: the model, its origin, its measurements, its licence and its limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from siclip.data.transforms import preprocessing_text
from siclip.diagnostics.describe import describe_model
from siclip.errors import UserError
from siclip.models.clip import Clip

SHOWN_METRICS = ("test/", "eval/", "validation/")
UNKNOWN = "not recorded: name the run with --run and --tracking-uri"


@dataclass(frozen=True)
class Origin:
    """The MLflow run that trained a model, with its parameters, tags and last metrics."""

    run_id: str
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)


def read_origin(tracking_uri: str, run_id: str) -> Origin:
    """A run from a tracking store.

    Raises:
        UserError: the store or the run does not exist.
    """
    from mlflow.exceptions import MlflowException

    from siclip_platform.metrics import metric_name
    from siclip_platform.tracking import check_store_exists, check_tracking
    from siclip_platform.tracking.store import connect

    check_tracking(tracking_uri)
    check_store_exists(tracking_uri)
    try:
        run = connect(tracking_uri).get_run(run_id)
    except MlflowException as error:
        raise UserError(f"no run {run_id!r} in this tracking store: {error.message}") from None
    metrics = {metric_name(key): value for key, value in run.data.metrics.items()}
    return Origin(run_id, run.data.params, run.data.tags, metrics)


def model_card(model: Clip, checkpoint: str, origin: Origin | None) -> str:
    """The text of the card.

    Args:
        model: the model.
        checkpoint: the checkpoint's name.
        origin: the run that trained it; None marks its data, metrics and licence as not recorded.
    """
    config = model.config
    total = describe_model(model).total
    lines = [
        f"# {config.name}",
        "",
        f"A CLIP model: images of {config.image.image_size} px and texts of {config.text.context_length} tokens into "
        f"{config.embed_dim} numbers. Sharing patterns: image {config.image.sharing}, text {config.text.sharing}.",
        f"Images: {preprocessing_text(config.image.image_size)}.",
        "",
        "## Size",
        "",
        f"- parameters, reparameterized: {total.reparameterized_parameters:,}",
        f"- multiply-adds per pair: {total.multiply_adds / 1e6:,.1f} M",
        f"- checkpoint: `{checkpoint}`",
        "",
        "## Data and recipe",
        "",
        *_recipe(origin),
        "",
        "## Measured",
        "",
        *_metrics(origin),
        "",
        "## Licence",
        "",
        *_licence(origin),
        "",
        "## Limits",
        "",
        "Similarity is not truth: the model reproduces what its captions state and omit. It was not examined for "
        "fairness, faces or safety-critical use. The metrics are valid for the data on which they were measured.",
    ]
    return "\n".join(lines) + "\n"


def write_card(exported: Path, text: str) -> Path:
    """Write the card as ``README.md`` into an exported folder, or as ``NAME.md`` beside an exported file."""
    path = exported / "README.md" if exported.is_dir() else exported.with_name(f"{exported.name}.md")
    path.write_text(text, encoding="utf-8")
    return path


def _recipe(origin: Origin | None) -> list[str]:
    if origin is None:
        return [UNKNOWN]
    known = {
        "run": origin.run_id,
        "dataset (hash of its manifest)": origin.tags.get("siclip.dataset_hash"),
        "recipe (hash)": origin.tags.get("siclip.recipe_hash"),
        "code": origin.tags.get("siclip.git_commit"),
    }
    rows = [f"- {name}: `{value}`" for name, value in known.items() if value]
    return [*rows, "", *_table(("parameter", "value"), origin.params)]


def _metrics(origin: Origin | None) -> list[str]:
    found = {k: f"{v:.4f}" for k, v in (origin.metrics if origin else {}).items() if k.startswith(SHOWN_METRICS)}
    if not found:
        return ["no evaluation of this model is recorded" if origin else UNKNOWN]
    return _table(("metric", "value"), found)


def _licence(origin: Origin | None) -> list[str]:
    code = "- code: Apache-2.0"
    apple = "Weights that come from Apple's MobileCLIP are licensed for non-commercial research."
    if origin is None:
        return [code, f"- weights: {UNKNOWN}. {apple}"]
    teacher = origin.params.get("teacher", "None")
    if origin.params.get("model.inherit") != "True" or teacher == "None":
        return [code, "- weights: trained from scratch; the licences of the training data apply"]
    return [
        code,
        f"- weights: inherited in part from `{Path(teacher).name}`, whose licence applies to these. {apple}",
    ]


def _table(head: tuple[str, str], rows: Mapping[str, str]) -> list[str]:
    cells = [f"| {_cell(name)} | {_cell(value)} |" for name, value in sorted(rows.items())]
    return [f"| {head[0]} | {head[1]} |", "| --- | --- |", *cells]


def _cell(text: str) -> str:
    # A pipe would end the cell, and < would start HTML.
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")
