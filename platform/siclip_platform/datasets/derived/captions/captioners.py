"""The captioner that settings name."""

from __future__ import annotations

from siclip.captioning.captioner import Captioner
from siclip.captioning.coca import CoCaCaptioner, check_model
from siclip.captioning.transformers_models import TransformersCaptioner, check_folder
from siclip_platform.datasets.derived.captions.config import CaptionConfig

TRANSFORMERS = "transformers:"


def open_captioner(config: CaptionConfig, gpu: bool = False) -> Captioner:
    """Load the captioner onto a GPU or the CPU.

    Raises:
        UserError: there is no such model, or it cannot write captions.
    """
    # Not `CaptionConfig.on`: the settings of a GPU are also opened on the CPU, for the model's name and hash.
    precision = ("bf16" if gpu else "fp32") if config.precision == "auto" else config.precision
    if config.model.startswith(TRANSFORMERS):
        return TransformersCaptioner(
            config.model.removeprefix(TRANSFORMERS),
            config.sampling,
            prompt=config.prompt,
            precision=precision,
            batch_size=config.batch_size,
            gpu=gpu,
        )
    return CoCaCaptioner(
        config.model, config.pretrained, config.sampling, precision=precision, batch_size=config.batch_size, gpu=gpu
    )


def check_captioner(config: CaptionConfig) -> None:
    """Refuse a model that would run code, before work is spent on what comes before the captions.

    Raises:
        UserError: names the field or the file.
    """
    if config.model.startswith(TRANSFORMERS):
        check_folder(config.model.removeprefix(TRANSFORMERS))
    else:
        check_model(config.model)
