from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip.timm_model import TimmModel
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import load_file

import siclip
from siclip.data.transforms import fit_image
from siclip.errors import UserError
from siclip.export import export_open_clip, load_open_clip, to_open_clip_model
from siclip.models import Clip, count_parameters, create_model

TEXTS = ["a photo of a dog", "two red 7s above a blue 1", ""]


@pytest.fixture(scope="module")
def model() -> Clip:
    """A model whose gains, queries and BatchNorm statistics differ from the initial ones."""
    torch.manual_seed(0)
    model = create_model("siclip-nano")
    for key, value in model.state_dict().items():
        if key.endswith(("running_mean", "running_var", "alpha", "beta", "gamma")):
            value.uniform_(0.3, 1.2)
        elif key.endswith("qk.query.weight"):
            value.normal_(0, 0.3)
    return model.eval()


@pytest.fixture(scope="module")
def folder(model: Clip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "open_clip"
    exported = export_open_clip(model, folder)
    assert exported.files == (folder / "open_clip_config.json", folder / "open_clip_model.safetensors")
    assert exported.largest_difference <= 1e-4
    return folder


@torch.no_grad()
def test_the_folder_reads_back_as_an_open_clip_model(model: Clip, folder: Path) -> None:
    theirs = load_open_clip(folder)
    assert isinstance(theirs, open_clip.CustomTextCLIP) and isinstance(theirs.visual, TimmModel)
    images, tokens = torch.rand(3, 3, 64, 64), siclip.tokenize(TEXTS, 20)
    assert torch.equal(theirs.encode_image(images), model.encode_image(images))
    assert torch.equal(theirs.encode_text(tokens), model.encode_text(tokens))
    image, text, scale = theirs(images, tokens)
    ours = model(images, tokens)
    assert torch.allclose(image, ours[0], atol=1e-6) and torch.allclose(text, ours[1], atol=1e-6)
    assert scale == pytest.approx(float(model.scale()))
    logits, _ = theirs.get_logits(images, tokens)
    assert torch.allclose(logits, model.scale() * ours[0] @ ours[1].T, atol=1e-4)


def test_the_state_dict_has_open_clips_names_and_no_aliases(model: Clip, folder: Path) -> None:
    state = load_file(folder / "open_clip_model.safetensors")
    theirs = to_open_clip_model(model)
    assert set(state) == set(theirs.state_dict())
    assert {key.split(".")[0] for key in state} == {"visual", "text", "logit_scale"}
    assert not state["visual.trunk.head.fc.bias"].any()
    one, two = (state[f"text.transformer.{block}.qk.key.weight"] for block in (1, 2))
    assert torch.equal(one, two) and one.data_ptr() != two.data_ptr()
    # 128 for the projection's bias; shared weights count once.
    assert count_parameters(theirs) == count_parameters(model) + 128


def test_open_clips_own_function_loads_the_weights_strictly(model: Clip, folder: Path) -> None:
    torch.manual_seed(1)
    theirs = to_open_clip_model(create_model("siclip-nano"))
    open_clip.load_checkpoint(theirs, str(folder / "open_clip_model.safetensors"), strict=True)
    expected = to_open_clip_model(model).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in theirs.state_dict().items())


def test_open_clips_tokenizer_and_transform_are_ours(folder: Path) -> None:
    theirs = load_open_clip(folder)
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    assert torch.equal(tokenizer(TEXTS), siclip.tokenize(TEXTS, theirs.context_length))
    assert open_clip.get_model_tokenize_cfg(theirs) == {"context_length": 20, "vocab_size": 49408}
    transform = image_transform_v2(PreprocessCfg(**open_clip.get_model_preprocess_cfg(theirs)), is_train=False)
    pixels = np.random.default_rng(0).integers(0, 256, (96, 192, 3), dtype=np.uint8)
    ours = torch.tensor(fit_image(pixels, 64)).permute(2, 0, 1) / 255
    assert torch.equal(transform(Image.fromarray(pixels)), ours)


@torch.no_grad()
def test_open_clip_builds_a_zero_shot_classifier(model: Clip, folder: Path) -> None:
    names, templates = ["dog", "cat", "seven"], ["a photo of a {}", "a drawing of a {}."]
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    weights = open_clip.build_zero_shot_classifier(load_open_clip(folder), tokenizer, names, templates)
    for column, name in enumerate(names):
        tokens = siclip.tokenize([template.format(name) for template in templates], 20)
        mean = model.encode_text(tokens, normalize=True).mean(dim=0)
        assert torch.allclose(weights[:, column], mean / mean.norm(), atol=1e-6)


def test_open_clips_model_can_be_trained(model: Clip) -> None:
    theirs = to_open_clip_model(model).train()
    image, text, scale = theirs(torch.rand(4, 3, 64, 64), siclip.tokenize(["a", "b", "c", "d"], 20))
    open_clip.ClipLoss()(image, text, scale).backward()
    assert all(p.grad is not None for name, p in theirs.named_parameters())
    theirs.lock_image_tower()
    assert not any(p.requires_grad for p in theirs.visual.trunk.parameters())
    assert all(p.requires_grad for p in model.parameters()), "the copy is another model"


def test_open_clip_itself_refuses_the_folder(folder: Path) -> None:
    with pytest.raises(TypeError, match="siclip"):
        open_clip.create_model(f"local-dir:{folder}")


@pytest.mark.parametrize("name", ["mobileclip2-nano", "siclip2-nano"])
@torch.no_grad()
def test_a_model_with_a_plain_text_tower_reads_back(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name).eval()
    torch.nn.init.normal_(model.image_encoder.model.head.fc.bias)
    export_open_clip(model, tmp_path / "export")
    theirs = load_open_clip(tmp_path / "export")
    images, tokens = torch.rand(3, 3, 64, 64), siclip.tokenize(TEXTS, 20)
    assert torch.equal(theirs.encode_image(images), model.encode_image(images))
    assert torch.equal(theirs.encode_text(tokens), model.encode_text(tokens))
    assert count_parameters(theirs) == count_parameters(model)
    with pytest.raises(TypeError, match="siclip"):
        open_clip.create_model(f"local-dir:{tmp_path / 'export'}")


@pytest.mark.slow
@torch.no_grad()
def test_open_clip_builds_mobileclip2_s0_from_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The export's own comparison is tested with small models.
    monkeypatch.setattr("siclip.export.check.BATCHES", (1,))
    torch.manual_seed(0)
    model = create_model("mobileclip2-s0").eval()
    for key, value in model.state_dict().items():
        if key.endswith(("running_mean", "running_var", "gamma", "fc.bias")):
            value.uniform_(0.3, 1.2)
    export_open_clip(model, tmp_path / "s0")
    theirs = open_clip.create_model(f"local-dir:{tmp_path / 's0'}").eval()
    images, tokens = torch.rand(1, 3, 256, 256), siclip.tokenize(TEXTS)
    for found, expected in (
        (theirs.encode_image(images), model.encode_image(images)),
        (theirs.encode_text(tokens), model.encode_text(tokens)),
    ):
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    pixels = np.random.default_rng(0).integers(0, 256, (300, 500, 3), dtype=np.uint8)
    ours = torch.tensor(fit_image(pixels, 256)).permute(2, 0, 1) / 255
    transform = image_transform_v2(PreprocessCfg(**theirs.visual.preprocess_cfg), is_train=False)
    assert torch.equal(transform(Image.fromarray(pixels)), ours)


@pytest.mark.slow
@torch.no_grad()
def test_open_clip_builds_s0s_image_tower_from_the_config(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_model("mobileclip-s0").eval()
    for key, value in model.state_dict().items():
        if key.endswith(("running_mean", "running_var", "gamma", "layer_scale")):
            value.uniform_(0.3, 1.2)
    config_file, weights_file = export_open_clip(model, tmp_path / "s0").files
    config = json.loads(config_file.read_text())["model_cfg"]
    vision = config["vision_cfg"]
    tower = TimmModel(
        vision["timm_model_name"], config["embed_dim"], vision["image_size"], vision["timm_pool"], vision["timm_proj"]
    ).eval()
    state = load_file(weights_file)
    tower.load_state_dict({k.removeprefix("visual."): v for k, v in state.items() if k.startswith("visual.")})
    images = torch.rand(2, 3, 256, 256)
    expected = model.encode_image(images)
    assert (tower(images) - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_a_folder_that_is_not_ours_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UserError, match=r"open_clip_config\.json cannot be read .*name a folder"):
        load_open_clip(tmp_path)
    config = tmp_path / "open_clip_config.json"
    for content in ("{", "[]", '{"model_cfg": {}}', '{"model_cfg": {"siclip": {"name": "x", "colour": 1}}}'):
        config.write_text(content)
        with pytest.raises(UserError, match="does not describe a siclip model"):
            load_open_clip(tmp_path)
    config.write_text((folder / "open_clip_config.json").read_text())
    with pytest.raises(UserError, match=r"open_clip_model\.safetensors does not exist"):
        load_open_clip(tmp_path)
    whole = (folder / "open_clip_model.safetensors").read_bytes()
    (tmp_path / "open_clip_model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"open_clip_model\.safetensors"):
        load_open_clip(tmp_path)


def test_weights_that_read_back_differently_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from siclip.export import open_clip as module

    right = module.to_open_clip
    monkeypatch.setattr(module, "to_open_clip", lambda model: {k: v * 1.01 for k, v in right(model).items()})
    with pytest.raises(UserError, match="the open_clip export is refused, nothing was written"):
        export_open_clip(create_model("siclip-nano"), tmp_path / "export")
    assert not list(tmp_path.iterdir())
