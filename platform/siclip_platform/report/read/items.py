"""The artifact ``items.json`` of a study: which items of its final split each model gets right at rank 1."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, ValidationError, model_validator

from siclip.config import Config

NAME = "items.json"
LEADING, START, CONTROL, TEACHER = "leading", "start", "control", "teacher"

Hits = Annotated[float, Field(ge=0)]


class ModelItems(Config):
    """One model's outcomes, an entry per image.

    Attributes:
        trial: the trial that the model belongs to; empty if it belongs to none.
        text_to_image: captions of the image whose first image is this one; fractions where scores tie.
        image_to_text: 1 if the first caption is one of the image's own, else 0; fractions where scores tie.
    """

    trial: str = ""
    text_to_image: tuple[Hits, ...]
    image_to_text: tuple[Hits, ...]


class Items(Config):
    """The outcomes of the models that a study compares, on the same items.

    Attributes:
        split: the split that was searched.
        captions: number of captions of each image.
        models: ``leading``, ``start`` (the starting recipe), ``control`` or ``teacher`` → outcomes.
    """

    split: str
    captions: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)
    models: dict[str, ModelItems]

    @model_validator(mode="after")
    def _same_items(self) -> Items:
        for name, model in self.models.items():
            if not len(model.text_to_image) == len(model.image_to_text) == len(self.captions):
                raise ValueError(f"{name} has outcomes of another number of images than {len(self.captions)}")
        return self


def read_items(text: str | None) -> Items | str | None:
    """Parse the artifact; None without text, a sentence for the report if it cannot be read."""
    if not text:
        return None
    try:
        return Items.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "(file)"
        return f"The study's {NAME} cannot be read: {field}: {first['msg']}."
