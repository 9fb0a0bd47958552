"""Any image-to-text model of transformers as a captioner: BLIP, GIT, Florence-2, SmolVLM and others.

Code of a hub repository or of a folder is never run. The draws are those of `siclip.captioning.sampling`; the caches
are those of transformers. An image is encoded once for all its captions.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from siclip.captioning.captioner import Pixels, Prepare, whole
from siclip.captioning.coca import CaptionPrecision
from siclip.captioning.sampling import Draws, Sampling, draws, pick
from siclip.captioning.shared_images import encode_once
from siclip.errors import UserError
from siclip.models.hashing import weights_hash

REQUEST = "Describe the image in one sentence."
CPU_BATCH, GPU_BATCH = 8, 64
"""Images at a time where none is named: on a GPU the largest tried, halved until it fits."""
log = logging.getLogger(__name__)


class TransformersCaptioner:
    """A model that ``AutoModelForImageTextToText`` opens. See `siclip.captioning.captioner.Captioner`.

    Args:
        source: a folder, or a name on the Hugging Face hub.
        sampling: how tokens are drawn.
        prompt: what the model is told. Empty: nothing, or `REQUEST` for a model with a chat template.
        precision: of the model; TF32 is for a GPU.
        batch_size: images at a time; 0: 8 on the CPU, on a GPU the largest power of two up to 64 that fits. Out of
            memory on a GPU halves it.
        gpu: compute on a GPU.

    Raises:
        UserError: the model needs code of its own, or cannot be opened as one that writes texts for images.
    """

    def __init__(
        self,
        source: str,
        sampling: Sampling,
        *,
        prompt: str = "",
        precision: CaptionPrecision = "fp32",
        batch_size: int = 0,
        gpu: bool = False,
    ) -> None:
        check_folder(source)
        self.device = torch.device("cuda" if gpu else "cpu")
        if gpu:
            # torch allows TF32 in convolutions by default.
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        model, self.processor = _opened(source, dtype)
        self.model = model.eval().requires_grad_(False)
        encode_once(self.model)
        self.hash = weights_hash(self.model)
        self.model.to(self.device)
        self.name = f"{Path(source).absolute().name}@{self.hash}" if Path(source).is_dir() else source
        self.sampling = sampling
        self.prepare: Prepare = whole
        self.batch_size = batch_size or (GPU_BATCH if gpu else CPU_BATCH)
        self.text = self._instruction(prompt)

    def captions(self, images: Sequence[Pixels], ids: Sequence[str], per_image: int) -> list[list[str]]:
        """Prepared images and their ids → ``per_image`` generated texts for each image.

        Raises:
            UserError: the model cannot use the images or the prompt, or not even one image fits into the memory.
        """
        texts: list[list[str]] = []
        while len(texts) < len(images):
            first, stop = len(texts), len(texts) + self.batch_size
            try:
                texts += self._batch(images[first:stop], ids[first:stop], per_image)
                continue
            except torch.OutOfMemoryError:
                pass
            # After the except block: inside it the traceback keeps the tensors alive, and nothing would be freed.
            torch.cuda.empty_cache()
            if self.batch_size == 1:
                raise UserError(
                    f"captioning of one image with {self.name} does not fit into the memory of {self.device}: end "
                    "other processes on it, lower --per-image, or name a smaller model"
                )
            self.batch_size //= 2
            log.warning("captioning does not fit into the memory of the GPU: %d images at a time", self.batch_size)
        return texts

    @torch.no_grad()
    def _batch(self, images: Sequence[Pixels], ids: Sequence[str], per_image: int) -> list[list[str]]:
        inputs = self._inputs(images)
        drawn = _Drawn(draws(self.sampling, ids, per_image), self.sampling, self.device)
        out = self.model.generate(
            **inputs,
            logits_processor=[drawn],
            # Row r is a caption of image r // per_image. Several sequences of an input are returned only where
            # transformers samples; the processor leaves it the drawn token only.
            num_return_sequences=per_image,
            do_sample=True,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            max_length=None,
            min_length=None,
            min_new_tokens=self.sampling.min_tokens,
            max_new_tokens=self.sampling.max_tokens,
        )
        # Some models return the prompt too, so the new tokens are counted from the end.
        texts = self.processor.batch_decode(out[:, out.shape[1] - drawn.steps :], skip_special_tokens=True)
        texts = [text.strip() for text in texts]
        return [texts[first : first + per_image] for first in range(0, len(texts), per_image)]

    def _instruction(self, prompt: str) -> str | None:
        if not getattr(self.processor, "chat_template", None):
            return prompt or None
        content = [{"type": "image"}, {"type": "text", "text": prompt or REQUEST}]
        text: str = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        return text

    def _inputs(self, images: Sequence[Pixels]) -> dict[str, Any]:
        # Processors of dialogues expect a list of images for each text.
        nested = getattr(self.processor, "chat_template", None)
        arguments: dict[str, Any] = {"images": [[image] for image in images] if nested else list(images)}
        if self.text is not None:
            arguments["text"] = [self.text] * len(images)
        try:
            inputs = self.processor(**arguments, return_tensors="pt", **({"padding": True} if self.text else {}))
        except (TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
            raise UserError(
                f"{self.name}: its processor does not take these images with the prompt {self.text!r} "
                f"({str(error)[:200]}): name the model's own task or instruction with --prompt"
            ) from None
        dtype = self.model.dtype
        return {
            key: value.to(self.device, dtype if value.is_floating_point() else value.dtype)
            for key, value in inputs.items()
            if isinstance(value, Tensor)
        }


class _Drawn:
    """A logits processor that leaves one token per row: the one that the row's draw determines."""

    def __init__(self, uniforms: Draws, sampling: Sampling, device: torch.device) -> None:
        self.uniforms = torch.from_numpy(uniforms).to(device, torch.float32)
        self.sampling, self.steps = sampling, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        chosen = pick(scores.float(), self.uniforms[:, self.steps], self.sampling)
        self.steps += 1
        return torch.full_like(scores, -torch.inf).scatter(1, chosen[:, None], 0)


def check_folder(source: str) -> None:
    """Refuse a local folder whose configs name code, before anything of it is opened.

    Raises:
        UserError: names the file.
    """
    if not Path(source).is_dir():
        return
    for file in sorted(Path(source).glob("*.json")):
        if not file.name.endswith("config.json"):
            continue
        try:
            named = "auto_map" in json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{file} is not JSON that can be read: {str(error)[:200]}; correct it") from None
        if named:
            raise UserError(
                f"{file} names code of its own (auto_map), which is never run: use a model that transformers has"
            )


def _opened(source: str, dtype: torch.dtype) -> tuple[Any, Any]:
    import transformers

    auto: Any = transformers
    try:
        processor: Any = auto.AutoProcessor.from_pretrained(source, trust_remote_code=False)
        model: Any = auto.AutoModelForImageTextToText.from_pretrained(
            source, dtype=dtype, trust_remote_code=False, weights_only=True
        )
    except Exception as error:
        # Parsers, downloads and transformers itself raise errors of many unrelated classes.
        raise UserError(
            f"{source} cannot be opened by transformers as a model that writes texts for images, without code of its "
            f"own: {' '.join(str(error).split())[:300]}"
        ) from None
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None:
        raise UserError(f"{source} has no processor of images and texts: save it with its processor")
    # New tokens follow the prompt directly.
    tokenizer.padding_side = "left"
    return model, processor
