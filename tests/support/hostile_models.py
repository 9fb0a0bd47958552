"""Models whose config or pickle would run code: a canary file appears where it did."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1}
TINY_COCA: dict[str, Any] = {
    "embed_dim": 8,
    "vision_cfg": {
        **{"image_size": 16, "patch_size": 8, "layers": 1, "width": 8, "head_width": 4, "output_tokens": True},
        **{"attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 4},
    },
    "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
    "multimodal_cfg": {**TEXT, "attn_pooler_heads": 2},
    "custom_text": True,
}
CODE = """\
from pathlib import Path
Path({canary!r}).touch()
from transformers import CLIPTokenizer
class EvilTokenizer(CLIPTokenizer):
    pass
"""


@dataclass(frozen=True)
class HostileModels:
    """A folder with a CoCa whose tokenizer has Python code beside it.

    Attributes:
        canary: the file that the code creates.
        config: an open_clip config that names the tokenizer and trusts its code.
        weights: honest weights of the config's architecture.
        pickle: a checkpoint that runs code where it is unpickled without care.
        folder: the same model as a folder in open_clip's layout.
    """

    canary: Path
    config: Path
    weights: Path
    pickle: Path
    folder: Path


class _RunsCode:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


def hostile_models(folder: Path) -> HostileModels:
    """Write the models; their code has not run."""
    models = HostileModels(
        folder / "canary", folder / "evil.json", folder / "evil.pt", folder / "code.pt", folder / "local"
    )
    models.folder.mkdir(parents=True)
    torch.manual_seed(0)
    architecture = {key: value for key, value in TINY_COCA.items() if key != "custom_text"}
    state = open_clip.CoCa(**architecture).state_dict()
    torch.save(state, models.weights)
    torch.save(state, models.folder / "open_clip_pytorch_model.bin")
    torch.save({"state_dict": state, "extra": _RunsCode(models.canary)}, models.pickle)
    (models.folder / "evil.py").write_text(CODE.format(canary=str(models.canary)))
    tokenizer = {"tokenizer_class": "EvilTokenizer", "auto_map": {"AutoTokenizer": ["evil.EvilTokenizer", None]}}
    (models.folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    # transformers reads the class of a model from its config, also for a tokenizer.
    (models.folder / "config.json").write_text(json.dumps({"model_type": "clip"}))
    trusting = {"hf_tokenizer_name": str(models.folder), "tokenizer_kwargs": {"trust_remote_code": True}}
    config = TINY_COCA | {"text_cfg": TINY_COCA["text_cfg"] | trusting}
    models.config.write_text(json.dumps(config))
    (models.folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    return models
