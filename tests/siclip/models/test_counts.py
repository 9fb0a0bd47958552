"""Parameter counts of the method (arXiv 2411.14789), MobileCLIP-S0 (arXiv 2311.17049) and open_clip's MobileCLIP2."""

from __future__ import annotations

import pytest
import torch

from siclip.models import Clip, count_parameters, create_model, list_models, model_config
from siclip.models.registry import base_of, student_of

IMAGE = {
    "none": (10_354_916, 10_305_444),
    "qk:0-0": (9_830_628, 9_781_156),
    "mlp:0-0": (8_753_892, 8_704_420),
    "block:0-0": (8_228_530, 8_179_058),
}
TEXT = {
    "none": 40_335_976,
    "qk:0-0-1-1": 39_285_352,
    "qk:0-0-0-0": 38_760_040,
    "block:0-0-0-0": 32_457_754,
}


def model(name: str, **sharing: str) -> Clip:
    with torch.device("meta"):
        return create_model(name, **sharing)


def test_mobileclip_s0_counts() -> None:
    s0 = create_model("mobileclip-s0")
    deployable = s0.reparameterize()
    counts = [count_parameters(part) for part in (s0.image_encoder, s0.text_encoder, s0)]
    fused = [count_parameters(part) for part in (deployable.image_encoder, deployable.text_encoder, deployable)]
    assert counts == [11_406_464, 42_441_216, 53_847_681]
    assert fused == [11_356_992, 42_435_072, 53_792_065]


@pytest.mark.parametrize(("pattern", "counts"), IMAGE.items())
def test_image_tower_of_siclip_s0(pattern: str, counts: tuple[int, int]) -> None:
    siclip = create_model("siclip-s0", image_sharing=pattern, text={"layers": 1}, text_sharing="none")
    fused = siclip.reparameterize()
    assert (count_parameters(siclip.image_encoder), count_parameters(fused.image_encoder)) == counts


@pytest.mark.parametrize(("pattern", "count"), TEXT.items())
def test_text_tower_of_siclip_s0(pattern: str, count: int) -> None:
    assert count_parameters(model("siclip-s0", text_sharing=pattern).text_encoder) == count


def test_mobileclip2_s0_counts() -> None:
    base = model("mobileclip2-s0")
    counts = [count_parameters(part) for part in (base.image_encoder, base.text_encoder, base)]
    assert counts == [11_406_976, 63_428_096, 74_835_073]


@pytest.mark.parametrize(
    ("pattern", "sets"),
    [(None, 6), ("none", 12), ("qk:0-0-0-0-0-0-0-0-0-0-0-0", 1), ("qk:0-0-0-1-1-1-2-2-2-3-3-3", 4)],
)
def test_text_tower_of_siclip2_s0(pattern: str | None, sets: int) -> None:
    """By hand; by default six pairs of adjacent blocks share their queries and keys."""
    siclip2 = model("siclip2-s0", text_sharing=pattern)
    around = 49408 * 512 + 77 * 512 + 2 * 512 + 512 * 512  # tokens, positions, final norm, projection
    norm, gains, ffn = 2 * 512, 3 * 8 + 2, 2 * 512 * 2048 + 2048 + 512
    queries_and_keys = 2 * (512 * 512 + 512)
    expected = around + 12 * (norm + gains + ffn) + sets * queries_and_keys
    assert count_parameters(siclip2.text_encoder) == expected
    if pattern is None:
        assert siclip2.config.text.sharing == "qk:0-0-1-1-2-2-3-3-4-4-5-5"
        # siclip-s0's with the 512 numbers of the projection's bias, and the logit scale.
        assert count_parameters(siclip2.image_encoder) == IMAGE["qk:0-0"][0] + 512
        assert count_parameters(siclip2) == IMAGE["qk:0-0"][0] + 512 + expected + 1 == 63_791_645


def test_every_student_has_its_base() -> None:
    pairs = {student_of(name): name for name in list_models() if name.startswith("mobileclip")}
    assert pairs == {name: base_of(name) for name in list_models() if name.startswith("siclip")}
    assert pairs["siclip2-s0"] == "mobileclip2-s0" and base_of("other") == student_of("other") == "other"
    for student, base in pairs.items():
        ours, theirs = model_config(student), model_config(base)
        assert (ours.text.layers, ours.text.has_mixers) == (theirs.text.layers, theirs.text.has_mixers)


@pytest.mark.parametrize("names", [("siclip-nano", "siclip-s0"), ("siclip2-nano", "siclip2-s0")])
def test_nano_has_the_blocks_and_patterns_of_the_whole_model(names: tuple[str, str]) -> None:
    nano, whole = map(model_config, names)
    assert (nano.image.layers[-1], nano.text.layers) == (whole.image.layers[-1], whole.text.layers)
    assert (nano.image.sharing, nano.text.sharing) == (whole.image.sharing, whole.text.sharing)


def test_nano_keeps_sixteen_tokens_in_the_attention_stage() -> None:
    siclip = create_model("siclip-nano")
    features = siclip.eval().image_encoder.trunk(torch.rand(1, 3, 64, 64))
    assert features.shape[2] * features.shape[3] == 16
