"""Image-to-text models of transformers as captioners, with tiny random weights; code of theirs never runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers

from siclip.captioning.captioner import whole
from siclip.captioning.sampling import Sampling
from siclip.captioning.shared_images import encode_once
from siclip.captioning.transformers_models import TransformersCaptioner
from siclip.errors import UserError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "cat", "on", "the", "red", "grass", "sits"]
SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


REQUEST = ["USER:", "Describe", "the", "image", "in", "one", "sentence."]
CHAT = (
    "USER: {% for part in messages[0]['content'] %}"
    "{{ '<image> ' if part['type'] == 'image' else part['text'] }}{% endfor %}"
)


def saved_dialogue(folder: Path) -> Path:
    """A tiny LLaVA with a chat template: the kind of SmolVLM and others."""
    auto: Any = transformers
    words = ["<pad>", "<unk>", "<s>", "</s>", "<image>", *REQUEST, *WORDS[5:]]
    rule = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    rule.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    processor = auto.LlavaProcessor(
        auto.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        auto.PreTrainedTokenizerFast(tokenizer_object=rule, **special, additional_special_tokens=["<image>"]),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    )
    text = {
        "num_key_value_heads": 2,
        "vocab_size": len(words),
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
    }
    config = auto.LlavaConfig(
        vision_config=auto.CLIPVisionConfig(**SIZES, image_size=16, patch_size=8),
        text_config=auto.LlamaConfig(**SIZES, **text),
        image_token_index=4,
        vision_feature_layer=-1,
    )
    torch.manual_seed(0)
    model = auto.LlavaForConditionalGeneration(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def saved(folder: Path, kind: str) -> Path:
    """A tiny BLIP or GIT with its processor, as ``save_pretrained`` writes it."""
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    auto: Any = transformers
    tokenizer = auto.BertTokenizer(str(folder / "vocab.txt"))
    images = {"size": {"height": 16, "width": 16}}
    vision = SIZES | {"image_size": 16, "patch_size": 8}
    special = {"vocab_size": len(WORDS), "bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    torch.manual_seed(0)
    if kind == "blip":
        processor = auto.BlipProcessor(auto.BlipImageProcessor(**images), tokenizer)
        text = SIZES | special | {"encoder_hidden_size": 16, "max_position_embeddings": 32}
        model = auto.BlipForConditionalGeneration(auto.BlipConfig(text_config=text, vision_config=vision))
    else:
        processor = auto.GitProcessor(
            auto.CLIPImageProcessor(crop_size=images["size"], size={"shortest_edge": 16}), tokenizer
        )
        model = auto.GitForCausalLM(
            auto.GitConfig(vision_config=vision, **SIZES, **special, max_position_embeddings=32)
        )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["blip", "git", "llava"])
def test_captions_follow_from_the_image_its_id_and_the_seed(tmp_path: Path, kind: str) -> None:
    folder = saved_dialogue(tmp_path / kind) if kind == "llava" else saved(tmp_path / kind, kind)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (20 + number, 24, 3), dtype=np.uint8) for number in range(5)]
    captioner = TransformersCaptioner(str(folder), Sampling(min_tokens=2, max_tokens=8), batch_size=2)
    together = captioner.captions(images, list("abcde"), 3)
    assert [len(texts) for texts in together] == [3] * 5
    assert len({text for texts in together for text in texts}) > 5
    words = {word for texts in together for text in texts for word in text.split()}
    # Special tokens and the prompt are not part of a caption.
    assert words <= {*WORDS[5:], *REQUEST, "[UNK]", "<unk>"}
    assert not any("Describe the image in one sentence." in text for texts in together for text in texts)
    order = [3, 0]
    assert captioner.captions([images[i] for i in order], ["d", "a"], 3) == [together[i] for i in order]
    # The number of captions does not change the first ones, which are drawn by their number.
    assert captioner.captions(images, list("abcde"), 1) == [texts[:1] for texts in together]
    assert captioner.name == f"{kind}@{captioner.hash}"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["blip", "git", "llava"])
def test_an_image_is_encoded_once_for_all_its_captions(tmp_path: Path, kind: str) -> None:
    folder = saved_dialogue(tmp_path / kind) if kind == "llava" else saved(tmp_path / kind, kind)
    captioner = TransformersCaptioner(str(folder), Sampling(min_tokens=2, max_tokens=4), batch_size=2)
    seen: list[int] = []
    (patches,) = (part for part in captioner.model.modules() if isinstance(part, torch.nn.Conv2d))
    patches.register_forward_hook(lambda part, arguments, out: seen.append(len(out)))
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (16, 16, 3), dtype=np.uint8) for _ in range(4)]
    # Equal images have captions of their own.
    captions = captioner.captions([*images, images[3]], list("abcde"), 3)
    assert [len(texts) for texts in captions] == [3] * 5 and captions[3] != captions[4]
    assert seen == [2, 2, 1]


def test_outputs_of_a_tower_are_those_of_every_row() -> None:
    class Tower(torch.nn.Module):
        rows = 0

        def forward(self, pixel_values: torch.Tensor, mask: torch.Tensor | None = None) -> Any:
            self.rows = len(pixel_values)
            flat = pixel_values.flatten(1)
            states = flat if mask is None else flat * mask[:, None]
            return transformers.modeling_outputs.BaseModelOutput(
                last_hidden_state=states, hidden_states=(states, 2 * states)
            )

    model = torch.nn.Sequential(Tower())
    plain, shared = Tower(), model[0]
    encode_once(model)
    images = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([1.0, 2.0, 3.0])
    order = torch.tensor([0, 0, 1, 2, 2, 0])
    for dtype in (torch.float32, torch.bfloat16):
        pixels = images[order].to(dtype)
        for arguments, rows in (((), 4), ((mask[order],), 4), ((torch.arange(6.0),), 6)):
            found, expected = shared(pixels, *arguments), plain(pixels, *arguments)
            assert shared.rows == rows
            assert torch.equal(found.last_hidden_state, expected.last_hidden_state)
            assert all(map(torch.equal, found.hidden_states, expected.hidden_states))
    # Patches of several images in one sequence, as Qwen packs them, are no rows of images.
    assert torch.equal(shared(pixels.flatten(2)).last_hidden_state, pixels.flatten(1)) and shared.rows == 6


def test_a_gpu_of_half_the_memory_takes_half_the_batch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    captioner = object.__new__(TransformersCaptioner)
    captioner.name, captioner.device, captioner.batch_size = "m", torch.device("cpu"), 8
    room = 2

    def limited(images: list[Any], ids: list[str], per_image: int) -> list[list[str]]:
        if len(images) > room:
            raise torch.OutOfMemoryError
        return [[name] * per_image for name in ids]

    monkeypatch.setattr(captioner, "_batch", limited)
    images: list[Any] = [None] * 5
    assert captioner.captions(images, list("abcde"), 2) == [[name] * 2 for name in "abcde"]
    assert captioner.batch_size == 2 and "2 images at a time" in caplog.text
    room = 0
    with pytest.raises(UserError, match="captioning of one image with m does not fit into the memory"):
        captioner.captions(images, list("abcde"), 2)


@pytest.mark.slow
def test_temperature_0_is_the_greedy_search_of_transformers(tmp_path: Path) -> None:
    folder = saved(tmp_path / "blip", "blip")
    pixels = np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    found = TransformersCaptioner(str(folder), Sampling(temperature=0, min_tokens=0, max_tokens=6)).captions(
        [pixels], ["a"], 1
    )
    auto: Any = transformers
    processor = auto.BlipProcessor.from_pretrained(folder)
    model = auto.BlipForConditionalGeneration.from_pretrained(folder).eval()
    out = model.generate(**processor(images=[pixels], return_tensors="pt"), do_sample=False, max_new_tokens=6)
    assert found == [[processor.batch_decode(out, skip_special_tokens=True)[0].strip()]]


def test_a_folder_that_names_code_is_refused_and_the_code_does_not_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    folder = tmp_path / "evil"
    folder.mkdir()
    (folder / "evil.py").write_text(
        f"open({str(canary)!r}, 'w').close()\nfrom transformers import BlipConfig as Evil\n"
    )
    config = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}}
    for file in ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json"):
        (folder / file).write_text(json.dumps(config))
        with pytest.raises(UserError, match=rf"{file} names code of its own \(auto_map\)"):
            TransformersCaptioner(str(folder), Sampling())
        (folder / file).unlink()
    assert not canary.exists()


def test_code_of_a_hub_repository_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def from_pretrained(name: str, **options: Any) -> None:
        asked.append(options)
        if len(asked) == 2:
            raise OSError("no network")

    auto: Any = transformers
    monkeypatch.setattr(auto.AutoProcessor, "from_pretrained", from_pretrained)
    monkeypatch.setattr(auto.AutoModelForImageTextToText, "from_pretrained", from_pretrained)
    with pytest.raises(UserError, match=r"someone/model cannot be opened by transformers .* no network"):
        TransformersCaptioner("someone/model", Sampling())
    assert [options["trust_remote_code"] for options in asked] == [False, False] and asked[1]["weights_only"] is True


def test_only_large_images_are_reduced_before_they_are_passed_on() -> None:
    small, large = np.zeros((300, 1024, 3), np.uint8), np.zeros((600, 2048, 3), np.uint8)
    assert whole(small) is small and whole(large).shape == (300, 1024, 3)
