"""Weights of the open_clip models that have the structure of one of ours, by tag or by file.

The weights' own card says how images are prepared: open_clip's config of the tag, or ``open_clip_config.json`` beside
the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siclip.checkpoints.formats import load_checkpoint
from siclip.checkpoints.open_clip_config import CONFIG_FILE, architecture, card_beside
from siclip.config import ModelConfig
from siclip.data.transforms import check_preprocessing
from siclip.errors import UserError
from siclip.models.clip import Clip
from siclip.models.registry import model_config
from siclip.open_clip_models import OPEN_CLIP, OURS


@dataclass(frozen=True)
class OpenClipWeights:
    """Weights named ``open_clip:NAME:TAG``, where TAG is a pretrained tag or the path of a file.

    Attributes:
        name: open_clip's name of the model.
        tag: the tag or path.
        config: of our model with this structure.
        tag_config: open_clip's config of the tag; empty for a file.
    """

    name: str
    tag: str
    config: ModelConfig
    tag_config: Mapping[str, Any]

    @classmethod
    def of(cls, named: str) -> OpenClipWeights:
        """Read a name. Nothing is downloaded.

        Raises:
            UserError: it is not such a name; none of our models has this structure; or open_clip has no such tag and
                there is no such file.
        """
        import open_clip

        name, colon, tag = named.removeprefix(OPEN_CLIP).partition(":")
        if not named.startswith(OPEN_CLIP) or not colon or not tag:
            raise UserError(f"{named!r}: write open_clip:NAME:TAG, where TAG is a pretrained tag or a path")
        if name not in OURS:
            raise UserError(
                f"{named}: no model here has the structure of open_clip's {name!r}, so nothing can be inherited from "
                f"it: name {', '.join(OURS)}, or distil from it (distil_from)"
            )
        tag_config = open_clip.get_pretrained_cfg(name, tag)
        if not tag_config and not Path(tag).is_file():
            tags = ", ".join(open_clip.list_pretrained_tags_by_model(name))
            raise UserError(f"{named}: {tag!r} is neither a file nor a tag of this model: {tags}")
        weights = cls(name, tag, model_config(OURS[name]), tag_config)
        weights._check_architecture()
        return weights

    def load(self) -> Clip:
        """Our model with these weights; a tag's file is downloaded, unless it is in the cache of the hub.

        Raises:
            UserError: the download failed, the file does not hold this model, or its images are prepared in another
                way.
        """
        if self.tag_config:
            check_preprocessing(self.tag_config, self.card)
        model = Clip(self.config)
        load_checkpoint(model, self._downloaded() if self.tag_config else self.tag)
        return model

    @property
    def card(self) -> str:
        """Where it is written how images are prepared, for messages."""
        if self.tag_config:
            return f"open_clip's config of {self.name}:{self.tag}"
        beside = card_beside(Path(self.tag))
        return str(beside) if beside else f"assumed, as no {CONFIG_FILE} lies beside {self.tag}"

    def _downloaded(self) -> Path:
        import open_clip

        try:
            return Path(open_clip.download_pretrained(dict(self.tag_config)))
        # Hubs, networks and file systems raise exceptions of every type.
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(
                f"{OPEN_CLIP}{self.name}:{self.tag} cannot be downloaded: {reason[:200]}; download its file "
                f"elsewhere and name that: {OPEN_CLIP}{self.name}:FILE"
            ) from None

    def _check_architecture(self) -> None:
        """The number of heads, for example, shows neither in names nor in shapes of tensors."""
        import open_clip
        from open_clip.model import CLIPTextCfg, CLIPVisionCfg

        theirs, ours = open_clip.get_model_config(self.name) or {}, architecture(self.config)
        sections = (("vision_cfg", CLIPVisionCfg), ("text_cfg", CLIPTextCfg))
        same = all(kind(**theirs.get(section, {})) == kind(**ours[section]) for section, kind in sections)
        if not same or theirs.get("embed_dim") != ours["embed_dim"]:
            raise UserError(
                f"this version of open_clip has another {self.name} than {self.config.name!r}: use the version in "
                "this project's requirements"
            )
