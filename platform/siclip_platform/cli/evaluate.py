"""``siclip-platform evaluate``."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from siclip.errors import UserError
from siclip_platform.cli.experiments import RecipeOption, SetOption, recipe_beside

if TYPE_CHECKING:
    from siclip.evaluation.cost import Cost
    from siclip_platform.evaluation.find import Found
    from siclip_platform.evaluation.kept import KeptResults
    from siclip_platform.evaluation.measure import Subject
    from siclip_platform.evaluation.results import Sampling, SetResult, SuiteResult
    from siclip_platform.storage import AnyPath

DEFAULT_CACHE = Path("runs/evaluate")
"""For an evaluation of several sets, which may be interrupted and resumed."""


def evaluate(
    model: Annotated[str, typer.Argument(help="A checkpoint (file or URI), or open_clip:NAME:TAG.")],
    recipe: RecipeOption = None,
    data: Annotated[
        str | None,
        typer.Option(help="The folder of the sets; without --suite, the folder of one set or the URI of a dataset."),
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="A model to measure too; default: the recipe's teacher.")
    ] = None,
    changes: SetOption = None,
    suite: Annotated[
        str | None, typer.Option(help="datacomp (38 sets), or names of sets or folders, separated by commas.")
    ] = None,
    split: Annotated[str, typer.Option(help="The split of the sets.")] = "test",
    compare: Annotated[list[str] | None, typer.Option(help="Another model; may be given several times.")] = None,
    pair_matching: Annotated[
        bool, typer.Option("--pair-matching", help="Also score and re-rank with the model's pair-matching head.")
    ] = False,
    top: Annotated[int, typer.Option(min=1, help="The number of candidates that the head re-ranks.")] = 16,
    cost: Annotated[bool, typer.Option("--cost", help="Also measure size, latency and memory.")] = False,
    resamples: Annotated[int, typer.Option(min=0, help="Resamples of the bootstrap.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")] = 0,
    cache: Annotated[
        Path | None,
        typer.Option(help="Folder for finished sets and class embeddings; default for several sets: runs/evaluate."),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure finished sets again.")] = False,
    tracking_uri: Annotated[str | None, typer.Option(help="Also log to this MLflow store.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Zero-shot classification, retrieval and composition of a model, with confidence intervals.

    A recipe gives its dataset and its teacher.

    Without a teacher and without further options, a checkpoint of this project on one of its datasets gets retrieval
    R@1/5/10 in both directions, and how often the true caption beats all false ones.
    """
    from siclip_platform.display import Terminal, echo
    from siclip_platform.evaluation.find import find_sets
    from siclip_platform.evaluation.kept import KeptResults
    from siclip_platform.evaluation.record import as_dict, record
    from siclip_platform.evaluation.results import Sampling
    from siclip_platform.evaluation.show import show
    from siclip_platform.storage import as_path

    loaded = recipe_beside(recipe, data, teacher, changes)
    data = loaded.data.path if loaded else data
    teacher = loaded.teacher if loaded else teacher
    if data is None:
        raise UserError("name the folder of the sets with --data, or a recipe with --recipe")
    models = [model, *(compare or []), *([teacher] if teacher else [])]
    if len(set(models)) != len(models):
        raise UserError("the same model is named twice: name another with --compare")
    folder = as_path(data)
    is_simple = suite is None and len(models) == 1 and not (pair_matching or cost or cache or tracking_uri)
    if is_simple and not model.startswith("open_clip:") and (folder / "manifest.json").is_file():
        _print_metrics(model, folder, split, as_json)
        return
    found = find_sets(suite, folder)
    cache = cache or (DEFAULT_CACHE if len(found) > 1 else None)
    subjects = _prepare(models, pair_matching, top, cache, tracking_uri)
    sampling = Sampling(resamples=resamples, seed=seed)
    kept = KeptResults(cache, subjects, split, sampling, fresh=fresh) if cache else None
    result = _measure(subjects, found, suite, split, sampling, kept)
    costs = _costs(subjects) if cost else {}
    if as_json:
        echo(json.dumps(as_dict(result, costs), indent=2))
    else:
        show(result, costs, Terminal(), confidence=sampling.confidence)
    if tracking_uri:
        record(tracking_uri, result, costs, data=folder, split=split, suite=suite or folder.name)
    _fail_if_incomplete(result)


def _print_metrics(checkpoint: str, data: AnyPath, split: str, as_json: bool) -> None:
    from siclip_platform.display import echo
    from siclip_platform.evaluation import evaluate_checkpoint

    metrics = evaluate_checkpoint(checkpoint, data, split)
    if as_json:
        echo(json.dumps(metrics, indent=2))
        return
    for name, value in metrics.items():
        echo(f"{name:<36} {value:.4f}")


def _prepare(
    models: list[str], pair_matching: bool, top: int, cache: Path | None, tracking_uri: str | None
) -> list[Subject]:
    """Open the models and check the store, so that errors are reported before anything is measured.

    Raises:
        UserError: a model or the store cannot be used.
    """
    import torch

    from siclip.evaluation.classification import ClassEmbeddings
    from siclip.evaluation.encoder import check_encoder
    from siclip.evaluation.reranking import load_pair_head
    from siclip.open_clip_models import OPEN_CLIP
    from siclip_platform.evaluation.measure import Subject
    from siclip_platform.evaluation.models import open_model
    from siclip_platform.storage import local_copy
    from siclip_platform.tracking.store import check_usable

    # First of all: opening a model of open_clip may download it.
    local = [name for name in models if not name.startswith(OPEN_CLIP) and "://" not in name]
    missing = [name for name in local if not Path(name).is_file()]
    if missing:
        raise UserError(f"checkpoint {missing[0]} does not exist")
    if tracking_uri:
        check_usable(tracking_uri)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    subjects = []
    for name in models:
        encoder = open_model(name, device)
        if pair_matching and name.startswith(OPEN_CLIP):
            raise UserError(f"{name} has no pair-matching head: omit --pair-matching or the model")
        check_encoder(encoder)
        with local_copy(name) if pair_matching else nullcontext() as path:
            head = load_pair_head(path) if path else None
        subjects.append(Subject(encoder, ClassEmbeddings(encoder, cache), head, top))
    return subjects


def _measure(
    subjects: list[Subject],
    found: list[Found],
    suite: str | None,
    split: str,
    sampling: Sampling,
    kept: KeptResults | None,
) -> SuiteResult:
    """Measure the sets and print the state of each when it is finished."""
    from siclip.evaluation.suite import suite_sets
    from siclip_platform.display import Terminal
    from siclip_platform.evaluation.runner import run_suite

    console = Terminal(stderr=True)

    def progress(each: SetResult) -> None:
        if len(found) > 1:
            console.print(f"{each.name}: {'reused from an earlier run' if each.kept else each.state}")

    whole = suite is not None and suite_sets(suite) is not None
    return run_suite(subjects, found, split=split, suite=whole, sampling=sampling, progress=progress, kept=kept)


def _costs(subjects: list[Subject]) -> dict[str, Cost]:
    from siclip.evaluation.cost import measure_cost, reference

    against = reference(subjects[0].encoder.device)
    return {each.encoder.name: measure_cost(each.encoder, against) for each in subjects}


def _fail_if_incomplete(result: SuiteResult) -> None:
    """Fail if a set could not be measured, so that scripts notice; sets that are missing were listed before."""
    failed = [each.name for each in result.sets if each.state == "failed"]
    if failed:
        raise UserError(f"{len(failed)} sets could not be measured: {', '.join(failed)}; the reasons are above")
    if not any(each.state == "measured" for each in result.sets):
        raise UserError("none of the sets was found: name their folder with --data")
