"""A space file's objectives, constraints, points, sampler and scheduler."""

from __future__ import annotations

from pathlib import Path

import pytest

from siclip.errors import UserError
from siclip_platform.metrics import METRICS
from siclip_platform.spaces.definition import Constraint, Objective, SearchSpace
from siclip_platform.spaces.load import load_space
from siclip_platform.spaces.parsing import parse_space
from siclip_platform.spaces.policy import SamplerConfig, SchedulerConfig

HEAD = """\
name: t
metric: validation/mean_recall@1
parameters:
  loss.pair_matching: {distribution: choice, values: [0, 1]}
  loss.pair_head: {distribution: choice, values: [product, mlp], when: {loss.pair_matching: 1}}
"""  # what follows begins in line 6


def parse(parts: str) -> SearchSpace:
    return parse_space(HEAD + parts, "space.yaml", METRICS, None)


def test_a_space_without_parts() -> None:
    space = parse("")
    assert (space.objectives, space.constraints, space.points) == ((), (), ())
    assert (space.sampler, space.scheduler) == (SamplerConfig(), SchedulerConfig())
    assert (space.sampler.name, space.scheduler.name) == ("tpe", "asha")


def test_all_parts() -> None:
    space = parse(
        """\
objectives: {cost/parameters_trainable: min}
constraints: {cost/parameters_image: "<= 9.8e6", validation/text_retrieval_recall@1: ">=0.1"}
points:
  - {loss.pair_matching: 1, loss.pair_head: mlp}
  - {loss.pair_matching: 0}
sampler: {name: gp, startup_trials: 5}
scheduler: {name: none}
"""
    )
    assert space.objectives == (Objective(metric="cost/parameters_trainable", mode="min"),)
    assert space.directions == {"validation/mean_recall@1": "max", "cost/parameters_trainable": "min"}
    upper, lower = space.constraints
    assert upper == Constraint(metric="cost/parameters_image", comparison="<=", bound=9.8e6)
    assert upper.violation(9.9e6) == pytest.approx(1e5) and upper.violation(9.8e6) == 0
    assert lower.violation(0.05) == pytest.approx(0.05) and lower.violation(0.3) < 0
    assert space.points == ({"loss.pair_matching": 1.0, "loss.pair_head": "mlp"}, {"loss.pair_matching": 0.0})
    assert space.sampler == SamplerConfig(name="gp", startup_trials=5)
    assert space.scheduler.name == "none"


def test_several_objectives_are_not_stopped_early() -> None:
    assert parse("objectives: {cost/seconds: min}\n").scheduler.name == "none"
    with pytest.raises(UserError, match=r"^space.yaml:7: scheduler: 'asha' stops trials by one metric"):
        parse("objectives: {cost/seconds: min}\nscheduler: {name: asha}\n")


def test_a_population_changes_nothing_but_loss_weights() -> None:
    head = HEAD.replace("values: [0, 1]", "values: [0.5, 1]")
    weights = "\n".join(head.splitlines()[:4])
    space = parse_space(f"{weights}\nscheduler: {{name: pbt}}\n", "space.yaml", METRICS, None)
    assert (space.scheduler.name, space.scheduler.quantile) == ("pbt", 0.25)
    with pytest.raises(
        UserError, match=r"^space.yaml:5: parameters.loss.pair_head: scheduler 'pbt' .* cannot change"
    ):
        parse_space(f"{head}scheduler: {{name: pbt}}\n", "space.yaml", METRICS, None)
    for part, words in (
        ('constraints: {cost/seconds: "<= 3"}', "ignores constraints"),
        ("objectives: {cost/seconds: min}", "several objectives"),
        ("sampler: {name: grid}", "not with a grid"),
    ):
        with pytest.raises(UserError, match=rf"^space.yaml:5: scheduler: .*{words}"):
            parse_space(f"{weights}\nscheduler: {{name: pbt}}\n{part}\n", "space.yaml", METRICS, None)


def test_the_options_sampler_and_scheduler_override_the_files(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(HEAD + "sampler: {name: gp, startup_trials: 5}\nscheduler: {name: asha, min_steps: 7}\n")
    space = load_space(str(path), sampler="random", scheduler="median")
    assert (space.sampler, space.scheduler) == (SamplerConfig(name="random"), SchedulerConfig(name="median"))
    same = load_space(str(path), sampler="gp", scheduler="asha")
    assert (same.sampler.startup_trials, same.scheduler.min_steps) == (5, 7)
    for options, words in (
        ({"sampler": "gpp"}, "--sampler: unknown sampler 'gpp'; did you mean 'gp'"),
        ({"scheduler": "ash"}, "--scheduler: unknown scheduler 'ash'; did you mean 'asha'"),
        ({"scheduler": "pbt"}, "parameters.loss.pair_head: scheduler 'pbt'"),
        ({"sampler": "cmaes"}, "needs two or more numeric ranges"),
    ):
        with pytest.raises(UserError, match=words):
            load_space(str(path), **options)
    path.write_text(HEAD + "objectives: {cost/seconds: min}\n")
    with pytest.raises(UserError, match="several objectives"):
        load_space(str(path), scheduler="asha")


def test_the_hash_depends_on_what_is_searched_not_on_how() -> None:
    plain = parse("").hash
    assert parse("sampler: {name: random}\npoints: [{loss.pair_matching: 1}]\n").hash == plain
    assert parse("objectives: {cost/seconds: min}\n").hash != plain
    assert parse('constraints: {cost/seconds: "<= 3"}\n').hash != plain


BAD_PARTS = {
    "unknown objective": ("objectives: {cost/second: min}", 6, "did you mean 'cost/seconds'"),
    "the metric again": ("objectives: {validation/mean_recall@1: max}", 6, "metric already"),
    "test objective": ("objectives: {test/mean_recall@1: max}", 6, "unknown metric"),
    "mode": (
        "objectives:\n  cost/seconds: less",
        7,
        "objectives.cost/seconds: unknown value 'less'; choose one of max",
    ),
    "constraint without comparison": ('constraints: {cost/seconds: "10"}', 6, '"<= NUMBER"'),
    "constraint without number": ('constraints: {cost/seconds: "<= ten"}', 6, '"<= NUMBER"'),
    "constraint is a number": ("constraints: {cost/seconds: 10}", 6, "not text"),
    "points are no list": ("points: {loss.pair_matching: 1}", 6, "not a list"),
    "point off the space": ("points:\n  - {loss.pair_matchin: 1}", 7, "did you mean 'loss.pair_matching'"),
    "point off the range": ("points:\n  - {loss.pair_matching: 2}", 7, "points.0.loss.pair_matching: 2 cannot be"),
    "point off its condition": (
        "points:\n  - loss.pair_matching: 0\n    loss.pair_head: mlp",
        8,
        "condition is not met",
    ),
    "point with a list": ("points:\n  - {loss.pair_matching: [1]}", 7, "write one value"),
    "unknown sampler": ("sampler: {name: tp}", 6, "did you mean 'tpe'"),
    "sampler without name": ("sampler: {startup_trials: 3}", 6, "sampler: lacks name"),
    "sampler's misspelt name": ("sampler: {nmae: tpe}", 6, "sampler.nmae: unknown key 'nmae'; did you mean 'name'"),
    "sampler's number": ("sampler:\n  name: tpe\n  startup_trials: 0", 8, "greater than or equal to 1"),
    "unknown scheduler": ("scheduler: {name: ash}", 6, "did you mean 'asha'"),
    "population's weight": ("scheduler: {name: pbt}", 4, "parameters.loss.pair_matching: scheduler 'pbt'"),
    "population's number": ("scheduler: {name: pbt, quantile: 0.6}", 6, "less than or equal to 0.5"),
    "scheduler's key": ("scheduler: {name: asha, grace: 3}", 6, "scheduler.grace: unknown key 'grace'"),
    "scheduler's number": ("scheduler: {name: asha, reduction_factor: 2.5}", 6, "integer"),
}


@pytest.mark.parametrize(("text", "line", "words"), BAD_PARTS.values(), ids=BAD_PARTS.keys())
def test_a_bad_part_is_reported_with_its_line(text: str, line: int, words: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(text + "\n")
    message = str(caught.value)
    assert message.startswith(f"space.yaml:{line}: ") and words in message, message
