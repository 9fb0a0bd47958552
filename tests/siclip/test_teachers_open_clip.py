"""An open_clip teacher equals open_clip's own pipeline; token ids are truncated, padded and decoded."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as pixels

from siclip.data.batch import Batch
from siclip.errors import UserError
from siclip.teachers import OpenClipTeacher, fit_context
from siclip.tokenizer import decode, tokenize

CAPTIONS = (
    "a dog",
    "two red cars, parked!",
    "a photo of a small brown dog that runs after a ball on the beach at sunset in summer",
    "",
)
TINY: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def batch(side: int = 32, context: int = 20) -> Batch:
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (4, side, side, 3), generator=generator, dtype=torch.uint8)
    ids = torch.arange(4)
    return Batch(images, tokenize(CAPTIONS, context), ids, ids)


def images(data: Batch) -> Tensor:
    assert data.images is not None
    return data.images


def tiny(folder: Path, name: str, **text: object) -> Path:
    """A checkpoint of a random open_clip model, which is registered with open_clip."""
    (folder / f"{name}.json").write_text(json.dumps(TINY | {"text_cfg": TINY["text_cfg"] | text}))
    open_clip.add_model_config(folder / f"{name}.json")
    torch.manual_seed(6)
    torch.save(open_clip.create_model(name).state_dict(), folder / f"{name}.pt")
    return folder / f"{name}.pt"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny(tmp_path_factory.mktemp("open_clip"), "siclip-test-tiny"))


def text_of_open_clip(name: str, path: str) -> Tensor:
    model, tokenizer = open_clip.create_model(name, path).eval(), open_clip.get_tokenizer(name)
    with torch.no_grad():
        embeddings: Tensor = model.encode_text(tokenizer(list(CAPTIONS)), normalize=True)
    return embeddings


def test_embeddings_equal_those_of_open_clips_pipeline(weights: str) -> None:
    """Images have the model's size, so that open_clip's transform does not resize."""
    model, _, preprocess = open_clip.create_model_and_transforms("siclip-test-tiny", weights)
    data = batch()
    inputs = torch.stack([preprocess(Image.fromarray(image.numpy())) for image in images(data)])
    with torch.no_grad():
        expected = model.eval().encode_image(inputs, normalize=True)
    teacher = OpenClipTeacher("siclip-test-tiny", weights)
    ours = teacher.embed(data, None)
    assert teacher.widths == (24, 24)
    torch.testing.assert_close(ours.image, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.text, text_of_open_clip("siclip-test-tiny", weights), rtol=1e-5, atol=1e-6)
    assert not any(p.requires_grad for p in teacher.model.parameters()) and not teacher.model.training


def test_the_students_pixels_are_resized_like_in_torchvision(weights: str) -> None:
    data, model = batch(side=64), open_clip.create_model("siclip-test-tiny", weights).eval()
    floats = pixels.to_dtype(images(data).permute(0, 3, 1, 2), torch.float32, scale=True)
    resized = pixels.resize(floats, [32, 32], InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
    inputs = pixels.normalize(resized, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    with torch.no_grad():
        expected = model.encode_image(inputs, normalize=True)
    ours = OpenClipTeacher("siclip-test-tiny", weights).embed(data, None)
    torch.testing.assert_close(ours.image, expected, rtol=1e-4, atol=1e-5)


def test_the_preprocessing_is_that_of_the_weights(tmp_path: Path) -> None:
    """Another normalisation and bilinear resizing, from a folder in open_clip's layout."""
    own = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7], "interpolation": "bilinear", "resize_mode": "squash"}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": own}))
    model = open_clip.CLIP(**TINY).eval()
    torch.save(model.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    data = batch(side=64)
    floats = pixels.to_dtype(images(data).permute(0, 3, 1, 2), torch.float32, scale=True)
    resized = pixels.resize(floats, [32, 32], InterpolationMode.BILINEAR, antialias=True)
    with torch.no_grad():
        expected = model.encode_image(pixels.normalize(resized, own["mean"], own["std"]), normalize=True)
    ours = OpenClipTeacher(f"local-dir:{tmp_path}", "").embed(data, None)
    torch.testing.assert_close(ours.image, expected, rtol=1e-4, atol=1e-5)


def test_another_tokenizer_gets_the_decoded_caption(tmp_path: Path) -> None:
    """A tokenizer that drops punctuation, so that its ids of these captions differ from ours."""
    name = "siclip-test-canonical"
    path = str(tiny(tmp_path, name, tokenizer_kwargs={"clean": "canonicalize"}))
    ids = open_clip.get_tokenizer(name)(list(CAPTIONS))
    assert not torch.equal(ids, tokenize(CAPTIONS, 16))
    ours = OpenClipTeacher(name, path).embed(batch(context=77), None)
    torch.testing.assert_close(ours.text, text_of_open_clip(name, path), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("stored", "given"), [(math.log(50), 50.0), (math.log(200), 100.0)])
def test_its_logit_scale_is_exponentiated_and_at_most_100(
    stored: float, given: float, weights: str, tmp_path: Path
) -> None:
    state = torch.load(weights, weights_only=True)
    torch.save(state | {"logit_scale": torch.tensor(stored)}, tmp_path / "scaled.pt")
    ours = OpenClipTeacher("siclip-test-tiny", str(tmp_path / "scaled.pt")).embed(batch(), None)
    assert float(ours.logit_scale) == pytest.approx(given)


def test_an_error_names_what_open_clip_cannot_load(weights: str, tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pt")
    (tmp_path / "garbage.pt").write_bytes(b"garbage")
    wrong = {
        ("siclip-test-tiney", weights): "no model 'siclip-test-tiney'; did you mean 'siclip-test-tiny'",
        ("ViT-B-32", "openia"): "'openia' is neither a file nor a tag of this model: openai, laion400m_e31",
        ("siclip-test-tiny", ""): "'' is neither a file nor a tag of this model: it has none",
        ("siclip-test-tiny", str(tmp_path / "other.pt")): r"does not contain weights of this model \(.*Missing key",
        ("siclip-test-tiny", str(tmp_path / "garbage.pt")): "does not contain weights of this model",
        (f"local-dir:{tmp_path}", ""): "cannot be loaded by open_clip: .*config",
    }
    for (name, pretrained), message in wrong.items():
        with pytest.raises(UserError, match=f"the teacher {name}.*{message}"):
            OpenClipTeacher(name, pretrained)


def test_stored_features_without_images_are_refused(weights: str) -> None:
    data = batch()
    with pytest.raises(UserError, match="no images, which an open_clip teacher needs"):
        OpenClipTeacher("siclip-test-tiny", weights).embed(
            Batch(None, data.tokens, data.image_ids, data.caption_ids), None
        )


# Token ids


@pytest.mark.parametrize(("length", "target"), [(77, 20), (77, 12), (20, 77), (20, 20)])
def test_fitted_ids_equal_the_tokenizers_at_that_length(length: int, target: int) -> None:
    """For captions that were not truncated before."""
    captions = [text for text in CAPTIONS if len(SimpleTokenizer().encode(text)) <= length - 2]
    assert len(captions) >= 3
    tokens = tokenize(captions, length)
    assert torch.equal(fit_context(tokens, target), SimpleTokenizer()(captions, context_length=target))
    assert torch.equal(tokens, tokenize(captions, length))


def test_ids_truncated_twice_keep_the_end_of_text() -> None:
    fitted = fit_context(tokenize(CAPTIONS[2], 12), 20)
    assert torch.equal(fitted, F.pad(SimpleTokenizer()([CAPTIONS[2]], context_length=12), (0, 8)))
    for length in (8, 12, 20, 77):
        assert fit_context(tokenize(CAPTIONS, 77), length).max(dim=1).values.tolist() == [49407] * 4


@pytest.mark.parametrize("text", ["", "a dog", "zwei große hunde", "犬と猫", CAPTIONS[2]])
def test_words_are_decoded_from_their_ids(text: str) -> None:
    assert decode(tokenize(text)[0].tolist()) == text


@pytest.mark.parametrize(
    "text", ["Two  RED cars, parked!", "it's 5% off (today)", "a 🐕 … – «dog»", "e.g. A.B.C.", "@#!--"]
)
def test_decoded_text_has_the_same_ids(text: str) -> None:
    ids = tokenize(text)
    assert torch.equal(tokenize(decode(ids[0].tolist())), ids)
