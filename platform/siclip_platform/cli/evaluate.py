"""``siclip-platform evaluate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from siclip_platform.errors import UserError

if TYPE_CHECKING:
    from siclip_platform.evaluation.measure import Subject
    from siclip_platform.evaluation.runner import SuiteResult


def evaluate(
    model: Annotated[str, typer.Argument(help="A checkpoint that training wrote, or open_clip:NAME:TAG.")],
    data: Annotated[Path, typer.Option(help="The folder of the sets; without --suite, of the one set.")],
    suite: Annotated[
        str | None, typer.Option(help="datacomp (the 38 sets), or names of sets or folders, by commas.")
    ] = None,
    split: Annotated[str, typer.Option(help="A split of the sets.")] = "test",
    compare: Annotated[list[str] | None, typer.Option(help="A further model; may stand several times.")] = None,
    pair_matching: Annotated[
        bool, typer.Option("--pair-matching", help="Also judge and re-rank with the model's pair-matching head.")
    ] = False,
    top: Annotated[int, typer.Option(min=1, help="How many candidates that head re-ranks.")] = 16,
    cost: Annotated[bool, typer.Option("--cost", help="Also measure size, latency and memory.")] = False,
    resamples: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    cache: Annotated[Path | None, typer.Option(help="A folder that keeps class embeddings.")] = None,
    tracking_uri: Annotated[str | None, typer.Option(help="Also log to this MLflow store.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Zero-shot classification, retrieval and composition of a model, with confidence intervals.

    A checkpoint of ours on a dataset of ours alone: retrieval R@1/5/10 both ways, and how often a caption beats every
    false one.
    """
    models = [model, *(compare or [])]
    if len(set(models)) != len(models):
        raise UserError("the same model is named twice: name another with --compare")
    plain = suite is None and len(models) == 1 and not (pair_matching or cost or cache or tracking_uri)
    if plain and not model.startswith("open_clip:") and (data / "manifest.json").is_file():
        _print_metrics(Path(model), data, split, as_json)
        return
    subjects, found = _prepare(models, data, suite, pair_matching, top, cache, tracking_uri)
    _run(subjects, found, data, suite, split, cost, resamples, seed, tracking_uri, as_json)


def _print_metrics(checkpoint: Path, data: Path, split: str, as_json: bool) -> None:
    from siclip_platform.evaluation import evaluate_checkpoint

    metrics = evaluate_checkpoint(checkpoint, data, split)
    if as_json:
        typer.echo(json.dumps(metrics, indent=2))
        return
    for name, value in metrics.items():
        typer.echo(f"{name:<36} {value:.4f}")


def _prepare(
    models: list[str],
    data: Path,
    suite: str | None,
    pair_matching: bool,
    top: int,
    cache: Path | None,
    tracking_uri: str | None,
) -> tuple[list[Subject], list[Any]]:
    """Everything that can be wrong is found before anything is measured."""
    import torch

    from siclip.evaluation.classification import ClassEmbeddings
    from siclip.evaluation.reranking import load_pair_head
    from siclip_platform.evaluation.find import find_sets
    from siclip_platform.evaluation.measure import Subject
    from siclip_platform.evaluation.models import OPEN_CLIP, open_model
    from siclip_platform.tracking import check_tracking

    missing = [name for name in models if not name.startswith(OPEN_CLIP) and not Path(name).is_file()]
    if missing:
        raise UserError(f"checkpoint {missing[0]} does not exist")
    found = find_sets(suite, data)
    if tracking_uri:
        check_tracking(tracking_uri)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    subjects = []
    for name in models:
        encoder = open_model(name, device)
        if pair_matching and name.startswith(OPEN_CLIP):
            raise UserError(f"{name} has no pair-matching head: leave out --pair-matching or the model")
        head = load_pair_head(name) if pair_matching else None
        subjects.append(Subject(encoder, ClassEmbeddings(encoder, cache), head, top))
    return subjects, found


def _run(
    subjects: list[Subject],
    found: list[Any],
    data: Path,
    suite: str | None,
    split: str,
    cost: bool,
    resamples: int,
    seed: int,
    tracking_uri: str | None,
    as_json: bool,
) -> None:
    from rich.console import Console

    from siclip.evaluation.cost import measure_cost, reference
    from siclip.evaluation.suite import suite_sets
    from siclip_platform.evaluation.record import as_dict, record
    from siclip_platform.evaluation.runner import Sampling, run_suite
    from siclip_platform.evaluation.show import show

    sampling = Sampling(resamples=resamples, seed=seed)
    whole = suite is not None and suite_sets(suite) is not None
    progress = Console(stderr=True, highlight=False)
    result = run_suite(
        subjects, found, split=split, suite=whole, sampling=sampling,
        progress=lambda each: progress.print(f"{each.name}: {each.state}") if len(found) > 1 else None,
    )  # fmt: skip
    costs = {}
    if cost:
        against = reference(subjects[0].encoder.device)
        costs = {each.encoder.name: measure_cost(each.encoder, against) for each in subjects}
    if as_json:
        typer.echo(json.dumps(as_dict(result, costs), indent=2))
    else:
        show(result, costs, Console(highlight=False), confidence=sampling.confidence)
    if tracking_uri:
        record(tracking_uri, result, costs, data=data, split=split, suite=suite or data.name)
    _refuse_half_done(result)


def _refuse_half_done(result: SuiteResult) -> None:
    """Whoever runs this in a script must see that something was not measured; what is missing was listed."""
    failed = [each.name for each in result.sets if each.state == "failed"]
    if failed:
        raise UserError(f"{len(failed)} sets could not be measured: {', '.join(failed)}; the reasons stand above")
    if not any(each.state == "measured" for each in result.sets):
        raise UserError("none of the sets is there: name their folder with --data")
