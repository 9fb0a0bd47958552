"""Evaluation sets as they are published: numbered class folders, several annotation files, kinds without captions."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from siclip.evaluation.composition import CompositionItem, composition_statistics
from siclip_platform.evaluation.caption_files import find_annotations
from siclip_platform.evaluation.image_folder import _class_folders


def test_numbered_class_folders_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "PNG")
    for label in range(12):
        (tmp_path / str(label)).mkdir()
        (tmp_path / str(label) / "a.png").write_bytes(out.getvalue())
    assert [each.name for each in _class_folders(tmp_path, "test")] == [str(label) for label in range(12)]


def test_captions_of_the_training_images_are_not_taken_for_the_sets(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    for name in ("captions_train2017.json", "captions_val2017.json"):
        (tmp_path / "annotations" / name).write_text("{}")
    found = find_annotations(tmp_path)
    assert found is not None and found.name == "captions_val2017.json"


def test_items_without_false_captions_count_nowhere() -> None:
    image, text = torch.eye(2), torch.eye(2)
    items = [
        CompositionItem(image=0, true=0, false=(("swap", (1,)),)),  # right
        CompositionItem(image=0, true=1, false=(("swap", (0,)),)),  # wrong
        CompositionItem(image=1, true=1, false=(("swap", ()),)),
        CompositionItem(image=1, true=1, false=()),
    ]
    found = composition_statistics(items, image, text)
    everything = np.arange(len(items))
    assert {name: value(everything) for name, value in found.items()} == {
        "accuracy": 0.5, "accuracy_swap": 0.5, "beats_all_negatives": 0.5,
    }  # fmt: skip
    assert math.isnan(found["beats_all_negatives"](np.array([2, 3])))
