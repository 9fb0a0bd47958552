"""The inheritance report adds up and gives reasons."""

from __future__ import annotations

import re

import pytest
import torch

from siclip.checkpoints.inherit import inherit
from siclip.checkpoints.inheritance_report import InheritanceReport
from siclip.models import Clip, count_parameters, create_model


@pytest.fixture(scope="module")
def teacher() -> Clip:
    return create_model("mobileclip-nano")


def reasons(report: InheritanceReport, action: str, words: str) -> set[str]:
    return {row.reason for row in report.rows() if row.action == action and re.search(words, row.module)}


@pytest.mark.parametrize("policy", ["inherited", "before_sasp", "none"])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"image_sharing": "none", "text_sharing": "none"},
        {"image_sharing": "mlp:0-0", "text_sharing": "mlp:0-0-1-1"},
        {"image_sharing": "block:0-0", "text_sharing": "block:0-1-0-1"},
        {"image": {"sasp": {"ffn": "plain", "first_value": True, "norm": "rms"}}, "text": {"mlp_ratio": 3.0}},
        {"text": {"sasp": {"first_value": True, "norm": "batch", "trainable_gains": False}}},
    ],
)
def test_the_counts_add_up_to_both_models(teacher: Clip, change: dict, policy: str) -> None:
    student = create_model("siclip-nano", **change)
    report = inherit(student, teacher, policy)  # type: ignore[arg-type]
    copied, started, fresh, left = (report.parameters(a) for a in ("copied", "started", "fresh", "left"))
    assert copied + started + fresh == count_parameters(student)
    assert copied + started + left == count_parameters(teacher)
    assert report.trained() == count_parameters(student, trainable=True)
    assert report.trained() + report.trained(False) == count_parameters(student)
    assert sum(row.parameters for row in report.rows()) == copied + started + fresh + left


def test_rows_count_the_parameters_of_the_module_they_name(teacher: Clip) -> None:
    student = create_model("siclip-nano", image={"sasp": {"ffn": "plain"}})
    report = inherit(student, teacher)
    counted: dict[str, int] = {}
    for row in report.rows():
        if row.action != "left" and row.module != "logit_scale":
            counted[row.module] = counted.get(row.module, 0) + row.parameters
    modules = dict(student.named_modules())
    for name, count in counted.items():
        module = modules.get(name)
        # The projection is a parameter of the tower itself, not a module.
        if module is None:
            assert name == "text_encoder.projection_layer"
        # A SAS-P block is counted by its parts; the entry of the block itself has its gains.
        elif any(other.startswith(f"{name}.") for other in counted):
            assert count == sum(p.numel() for p in module.parameters(recurse=False))
        else:
            assert count == count_parameters(module)


def test_parameters_that_are_left_have_a_reason(teacher: Clip) -> None:
    student = create_model(
        "siclip-nano",
        text_sharing="mlp:0-0-0-1",
        image={"sasp": {"ffn": "plain", "first_value": True}},
    )
    report = inherit(student, teacher)
    norm = "a SAS-P block's single norm is initialised"
    assert reasons(report, "left", r"transformer\.3\.pre_norm_ffn") == {"block 2 shares block 0's", norm}
    assert reasons(report, "left", r"transformer\.4\.pre_norm_ffn") == {norm}
    assert reasons(report, "left", r"blocks\.1\.mlp") == {"a plain FFN has no depthwise convolution"}
    with_value = {"queries, keys and values are initialised", "the output projection starts as the identity"}
    assert reasons(report, "left", r"blocks\.0\.token_mixer") == with_value
    without = {"queries and keys are initialised, SAS-P has no values", "SAS-P has no output projection"}
    assert reasons(report, "left", r"blocks\.1\.token_mixer") == without
    assert reasons(report, "left", "layer_scale") == {"SAS-P has gains instead of layer scales"}
    assert reasons(report, "fresh", r"blocks\.0\.(value|projection)") == {"starts as the identity"}
    assert reasons(report, "started", "") == {"the FFN starts from the teacher's"}


def test_an_ffn_of_another_shape_and_a_surplus_block_are_reported() -> None:
    teacher = create_model("mobileclip-nano", image={"layers": (1, 1, 3)})
    report = inherit(create_model("siclip-nano", text={"mlp_ratio": 3.0}), teacher)
    assert reasons(report, "left", r"stages\.2\.blocks\.2") == {"the student has 2 blocks"}
    assert "of another shape in the student" in reasons(report, "left", r"transformer\.1\.pre_norm_ffn")
    assert "(192, 96) in the teacher, (288, 96) here" in reasons(report, "fresh", r"transformer\.1\.mlp")


def test_the_table_contains_every_row_and_the_line_the_sums(teacher: Clip) -> None:
    torch.manual_seed(0)
    report = inherit(create_model("siclip-nano"), teacher)
    title, *lines = report.table().splitlines()
    assert title.split() == ["module", "what", "parameters", "trains", "why"]
    assert len(lines) == len(report.rows())
    for line, row in zip(lines, report.rows(), strict=True):
        assert re.split(r"\s{2,}", line)[:3] == [row.module, row.action, f"{row.parameters:,}"]
        assert line.endswith(row.reason)
    assert "\n" not in str(report)
    assert f"{report.trained():,} parameters to train, {report.trained(False):,} frozen" in str(report)
