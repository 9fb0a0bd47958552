"""Bad search spaces: each mistake in a file is reported with its line, its path and a remedy."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from siclip.errors import UserError
from siclip.models.sharing import parse_pattern
from siclip_platform.metrics import METRICS
from siclip_platform.spaces import load_space
from siclip_platform.spaces.definition import SearchSpace
from siclip_platform.spaces.parsing import parse_space

HEAD = "name: t\nmetric: validation/mean_recall@1\nparameters:\n"  # parameters start in line 4
RATE = "  training.learning_rate: {distribution: log_uniform, low: 1e-4, high: 1e-2}\n"


def parse(parameters: str, head: str = HEAD, **options: Any) -> SearchSpace:
    options = {"metrics": METRICS, "check_value": None} | options
    return parse_space(head + parameters, "space.yaml", **options)


def check_pattern(path: str, value: Any) -> str | None:
    try:
        parse_pattern(value, 2) if path == "model.image_sharing" else None
    except UserError as error:
        return str(error)
    return None


BAD_PARAMETERS = {
    "unknown path": (
        "loss.feature_distilation: {distribution: uniform, low: 0, high: 1}",
        "loss.feature_distilation: no recipe field 'feature_distilation' in LossConfig",
    ),
    "unknown path, hint": (
        "loss.feature_distilation: {distribution: uniform, low: 0, high: 1}",
        "; did you mean 'loss.feature_distillation'",
    ),
    "path without its group": (
        "pair_head: {distribution: choice, values: [mlp]}",
        "did you mean 'loss.pair_head'",
    ),
    "a group": ("loss: {distribution: choice, values: [1]}", "is a group"),
    "below a value": ("data.path.x: {distribution: choice, values: [a]}", "has no parts"),
    "the budget": ("training.steps: {distribution: int_uniform, low: 1, high: 9}", "same budget"),
    "low above high": (
        "loss.contrastive: {distribution: uniform, low: 2, high: 1}",
        "loss.contrastive.high: low 2.0 is not below high 1.0",
    ),
    "low equals high": ("loss.contrastive: {distribution: uniform, low: 1, high: 1}", "is not below high"),
    "log from 0": ("loss.contrastive: {distribution: log_uniform, low: 0, high: 1}", "low: 0 is not above 0"),
    "log below 0": ("loss.contrastive: {distribution: log_uniform, low: -1, high: 1}", "not above 0"),
    "field refuses low": (
        "loss.contrastive: {distribution: uniform, low: -1, high: 1}",
        "greater than or equal to 0",
    ),
    "field refuses an open end": (
        "training.weight_decay: {distribution: uniform, low: -0.1, high: 1}",
        "training.weight_decay.low: -0.1 does not fit",
    ),
    "field refuses high": (
        "data.synthetic_share: {distribution: uniform, low: 0, high: 1.5}",
        "data.synthetic_share.high: 1.5 does not fit",
    ),
    "infinite": ("loss.contrastive: {distribution: uniform, low: 0, high: .inf}", "finite"),
    "quoted number": ('loss.contrastive: {distribution: uniform, low: "0", high: 1}', "without quotes"),
    "word for a number": (
        "loss.contrastive: {distribution: uniform, low: no, high: 1}",
        "'no' is not a finite number",
    ),
    "range is a list": ("loss.contrastive: {distribution: uniform, low: [0], high: 1}", "write one value"),
    "not whole": ("training.batch_size: {distribution: int_uniform, low: 2.5, high: 8}", "not whole"),
    "octal": (
        "training.batch_size: {distribution: int_uniform, low: 010, high: 12}",
        "low: versions of YAML read 010",
    ),
    "base 60": ("loss.contrastive: {distribution: uniform, low: 0, high: 1:30}", "versions of YAML read 1:30"),
    "float range of an integer field": (
        "training.batch_size: {distribution: uniform, low: 2, high: 8}",
        "integer",
    ),
    "range of text": ("loss.negatives: {distribution: uniform, low: 0, high: 1}", "'sampled'"),
    "log from half": ("data.limit: {distribution: log_int_uniform, low: 0, high: 9}", "not above 0"),
    "log of a part": ("data.limit: {distribution: log_int_uniform, low: 1.5, high: 9}", "not whole"),
    "step of 0": ("loss.contrastive: {distribution: uniform, low: 0, high: 1, step: 0}", "not a number above 0"),
    "step that does not divide": (
        "loss.contrastive: {distribution: uniform, low: 0, high: 1, step: 0.3}",
        "loss.contrastive.step: 0.3 does not divide high - low, 1.0",
    ),
    "part of a step": ("data.limit: {distribution: int_uniform, low: 1, high: 9, step: 0.5}", "not whole"),
    "step of a logarithm": (
        "loss.contrastive: {distribution: log_uniform, low: 1, high: 2, step: 1}",
        "unknown key 'step'; it takes distribution, when, low, high",
    ),
    "empty choice": ("loss.pair_head: {distribution: choice, values: []}", "empty"),
    "choice is no list": ("loss.pair_head: {distribution: choice, values: mlp}", "not a list"),
    "duplicate value": (
        "loss.contrastive: {distribution: choice, values: [1, 0, 1.0]}",
        "loss.contrastive.values.2: value 1.0 is given twice",
    ),
    "nested value": ("training.betas: {distribution: choice, values: [[0.9, 0.98]]}", "write one value"),
    "unknown strategy": (
        "loss.negatives: {distribution: choice, values: [sampled, semihard]}",
        "did you mean 'semi_hard'?",
    ),
    "pattern is not text": ("model.text_sharing: {distribution: choice, values: [0]}", "valid string"),
    "truth value for a number": ("loss.contrastive: {distribution: choice, values: [true]}", "valid number"),
    "word for a truth value": ("model.inherit: {distribution: choice, values: [yes]}", "valid boolean"),
    "misspelt distribution": (
        "loss.contrastive: {distribution: loguniform, low: 1, high: 2}",
        "loss.contrastive.distribution: unknown value 'loguniform'; did you mean 'log_uniform'",
    ),
    "unlike any distribution": ("loss.contrastive: {distribution: zipf, low: 1, high: 2}", "choose one of"),
    "distribution is no word": ("loss.contrastive: {distribution: 3, low: 1, high: 2}", "unknown value 3"),
    "no distribution": ("loss.contrastive: {low: 1, high: 2}", "lacks distribution; choose one of choice"),
    "distribution's key": (
        "loss.contrastive: {distributoin: uniform, low: 1, high: 2}",
        "unknown key 'distributoin'; did you mean 'distribution'",
    ),
    "misspelt key": ("loss.contrastive: {distribution: uniform, low: 1, hihg: 2}", "did you mean 'high'"),
    "key of a choice": (
        "loss.contrastive: {distribution: uniform, low: 1, high: 2, values: [1]}",
        "unknown key 'values'",
    ),
    "missing key": ("loss.contrastive: {distribution: uniform, low: 1}", "lacks high"),
    "not a mapping": ("loss.contrastive: 1", "not a mapping"),
    "duplicate parameter": (
        "training.learning_rate: {distribution: uniform, low: 1, high: 2}",
        "parameters.training.learning_rate: given twice, first in line 4",
    ),
    "duplicate key": (
        "loss.contrastive: {distribution: uniform, low: 0, low: 1, high: 2}",
        "loss.contrastive.low: given twice, first in line 5",
    ),
    "key is a number": ("3: {distribution: uniform, low: 0, high: 1}", "a key of parameters is 3, not text"),
    "when outside the space": (
        "loss.pair_head: {distribution: choice, values: [mlp], when: {loss.pair_matching: 1}}",
        "'loss.pair_matching' is not searched by the space",
    ),
    "when itself": (
        "loss.pair_head: {distribution: choice, values: [mlp], when: {loss.pair_head: mlp}}",
        "itself",
    ),
    "when equals a continuum": (
        "loss.contrastive: {distribution: uniform, low: 0, high: 1, when: {training.learning_rate: 1e-3}}",
        "never hold",
    ),
    "when out of reach": (
        'loss.contrastive: {distribution: uniform, low: 0, high: 1, when: {training.learning_rate: ">1"}}',
        "loss.contrastive.when.training.learning_rate: it can never hold",
    ),
    "when is not a number": (
        'loss.contrastive: {distribution: uniform, low: 0, high: 1, when: {training.learning_rate: ">e"}}',
        "never hold",
    ),
    "when is no mapping": (
        "loss.contrastive: {distribution: uniform, low: 0, high: 1, when: 3}",
        "loss.contrastive.when: not a mapping",
    ),
    "python object": (
        "loss.pair_head: {distribution: choice, values: [!!python/name:os.system x]}",
        "cannot be read",
    ),
}


@pytest.mark.parametrize(("text", "words"), BAD_PARAMETERS.values(), ids=BAD_PARAMETERS.keys())
def test_a_bad_parameter_is_reported_with_its_line_and_path(text: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(f"{RATE}  {text}\n")
    lines = str(caught.value).splitlines()
    assert any(words in line for line in lines), lines
    assert all(line.startswith("space.yaml:5: parameters") and ";" in line for line in lines), lines  # ; the remedy


def test_the_line_is_that_of_the_value() -> None:
    with pytest.raises(
        UserError, match=r"^space.yaml:7: parameters\.loss\.contrastive\.high: -3.0 does not fit loss.contrastive: "
    ):
        parse("  loss.contrastive:\n    distribution: uniform\n    low: 0\n    high: -3\n")


def test_a_condition_on_a_parameter_below_is_refused() -> None:
    with pytest.raises(UserError, match=r"^space.yaml:4: .*'loss.pair_matching' comes after loss.pair_head"):
        parse(
            "  loss.pair_head: {distribution: choice, values: [mlp], when: {loss.pair_matching: 1}}\n"
            "  loss.pair_matching: {distribution: choice, values: [0, 1]}\n"
        )


BAD_FILES = {
    "unknown metric": (HEAD.replace("mean_recall@1", "mean_recal@1") + RATE, 2, "did you mean"),
    "test metric": (HEAD.replace("validation", "test") + RATE, 2, "select on the test split"),
    "mode": ("mode: max\n" + HEAD + RATE, 1, "'mode' is not a key any more: the metric is always maximised"),
    "not measured": (HEAD.replace("mean_recall@1", "loss") + RATE, 2, "unknown metric"),
    "name": (HEAD.replace("name: t", "name: a/b") + RATE, 1, "not plain"),
    "name is a number": (HEAD.replace("name: t", "name: 3") + RATE, 1, "not text"),
    "unknown key": (HEAD.replace("parameters:", "metrics: x\nparameters:") + RATE, 3, "did you mean 'metric'"),
    "no metric": ("name: t\nparameters:\n" + RATE, 1, "lacks metric"),
    "twice": ("name: t\n" + HEAD + RATE, 2, "name: given twice, first in line 1"),
    "no parameters": (HEAD.replace("parameters:", "parameters: {}"), 3, "at least one"),
    "parameters are a list": (HEAD + "  - a\n", 4, "not a mapping"),
    "a list": ("- a\n- b\n", 1, "not a mapping"),
    "not YAML": (HEAD + "  a: [1, 2\nb: 1\n", 5, "not YAML"),
    "a tab": (HEAD + "\ta: 1\n", 4, "not YAML"),
    "two documents": (HEAD + RATE + "---\na: 1\n", 5, "not YAML"),
    "control character": (HEAD + "  a: \x01\n", 4, "not YAML"),
    "empty": ("# nothing\n", 1, "empty; compare with search_spaces/wikd.yaml"),
}


@pytest.mark.parametrize(("text", "line", "words"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_bad_file_is_reported_with_its_line(text: str, line: int, words: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_space(str(path))
    (message,) = str(caught.value).splitlines()
    assert message.startswith(f"{path}:{line}: ") and words in message


def test_all_problems_of_a_file_are_reported_in_its_order() -> None:
    text = dedent(
        """\
        name: t
        metric: validation/los
        parameters:
          loss.nothing: {distribution: uniform, low: 2, high: 1}
          loss.negatives:
            distribution: choice
            values:
              - sampled
              - wrong
              - 3
          loss.contrastive: {distribution: norml, low: 1, high: 2}
        extra: 1
        sampler:
          name: tp
          startup_trials: 0
        name: u
        """
    )
    with pytest.raises(UserError) as caught:
        parse("", head=text)
    lines = [int(line.split(":")[1]) for line in str(caught.value).splitlines()]
    assert lines == [2, 4, 4, 9, 10, 11, 12, 14, 15, 16]


def test_the_callers_check_is_asked_about_accepted_values() -> None:
    asked: list[tuple[str, Any]] = []

    def check(path: str, value: Any) -> str | None:
        asked.append((path, value))
        return check_pattern(path, value)

    text = RATE + "  model.image_sharing:\n    distribution: choice\n"
    text += '    values: [none, "qk:0-0",\n      "qk:1-1", 7]\n'
    with pytest.raises(UserError) as caught:
        parse(text, check_value=check)
    first, second = str(caught.value).splitlines()
    assert first.startswith("space.yaml:8: ") and "'qk:1-1' does not fit model.image_sharing" in first
    assert second.startswith("space.yaml:8: ") and "valid string" in second
    sharing = "model.image_sharing"
    rate = "training.learning_rate"
    assert asked == [(rate, 1e-4), (rate, 1e-2), (sharing, "none"), (sharing, "qk:0-0"), (sharing, "qk:1-1")]
