"""Parameter counts of the method (arXiv 2411.14789; MobileCLIP-S0, arXiv 2311.17049)."""

from __future__ import annotations

import pytest
import torch

from siclip.models import Clip, count_parameters, create_model

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


def test_nano_keeps_sixteen_tokens_in_the_attention_stage() -> None:
    siclip = create_model("siclip-nano")
    features = siclip.eval().image_encoder.trunk(torch.rand(1, 3, 64, 64))
    assert features.shape[2] * features.shape[3] == 16
