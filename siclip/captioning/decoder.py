"""The text decoders of open_clip's CoCa (arXiv 2205.01917), one token per row and step, with caches.

open_clip's forward computes every earlier token again at each step, and the keys and values of the image in every
layer of the multimodal decoder. Here both are kept. The weights are open_clip's modules.

Shapes: S slots, one image in each; C captions of an image; R rows in use, each of them one caption; T tokens of a
caption; I tokens of an image; D width, H heads, L layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from siclip.errors import UserError


def check_decoders(model: Any, name: str) -> None:
    """Refuse a CoCa whose tokens depend on later ones or whose blocks are of another kind than CoCa's.

    Args:
        model: a CoCa of open_clip.
        name: of the model, for the message.

    Raises:
        UserError: says what cannot be kept from step to step.
    """
    from open_clip.transformer import ResidualAttentionBlock, TextTransformer

    text = model.text
    # Without a class token open_clip's own forward takes texts of the whole context only.
    if not isinstance(text, TextTransformer) or text.attn_mask is None or text.cls_emb is None:
        raise UserError(f"{name}: its text tower is not causal or has no class token: name another CoCa")
    blocks = [*text.transformer.resblocks, *model.text_decoder.resblocks]
    if not all(isinstance(block, ResidualAttentionBlock) for block in blocks):
        raise UserError(f"{name}: its text tower has blocks of type 'custom', which no CoCa has: name another one")


class CachedDecoders:
    """The unimodal and the multimodal decoder of a CoCa, and the caches of their rows.

    Rows 0 … R-1 are in use. Every step extends each of them by the token at its own position, so that rows can start
    and end at different times. A row belongs to a cell, slot · C + caption number: the queries of an image's captions
    are laid beside each other and share its keys and values without a copy.

    Args:
        model: a CoCa of open_clip that `check_decoders` passes, in eval mode.
        slots: S.
        per_image: C.
        length: T, including the start token.
        dtype: of the caches and of the matrix products: that of the model's linear weights.
    """

    def __init__(self, model: Any, slots: int, per_image: int, length: int, dtype: torch.dtype) -> None:
        self.text, self.decoder = model.text, model.text_decoder
        device = self.decoder.ln_final.weight.device
        self.slots, self.per_image, self.dtype = slots, per_image, dtype
        self.image: Tensor | None = None
        rows = slots * per_image

        def cache(blocks: nn.ModuleList) -> Tensor:
            first: Any = blocks[0]
            # Zeros, because a masked value is multiplied by 0 and must be finite.
            return torch.zeros(len(blocks), 2, rows, length, first.attn.embed_dim, dtype=dtype, device=device)

        self.unimodal, self.multimodal = cache(self.text.transformer.resblocks), cache(self.decoder.resblocks)
        self.seen = torch.ones(rows, length, dtype=torch.bool, device=device)
        self.times = torch.arange(length, device=device)

    def admit(self, image_embeddings: Tensor, slots: Tensor) -> None:
        """Compute the keys and values of images (n, I, D) and keep them in ``slots`` (n,)."""
        blocks = self.decoder.cross_attn
        count, tokens, _ = image_embeddings.shape
        width = blocks[0].attn.embed_dim
        if self.image is None:
            shape = (len(blocks), 2, self.slots, tokens, width)
            self.image = torch.zeros(shape, dtype=self.dtype, device=image_embeddings.device)
        for layer, block in enumerate(blocks):
            weight, bias = block.attn.in_proj_weight[width:], block.attn.in_proj_bias[width:]
            both = F.linear(block.ln_1_kv(image_embeddings).to(self.dtype), weight, bias)
            self.image[layer][:, slots] = both.view(count, tokens, 2, width).permute(2, 0, 1, 3)

    def move(self, sources: Tensor, targets: Tensor) -> None:
        """Copy the caches of rows ``sources`` to rows ``targets``."""
        for cache in (self.unimodal, self.multimodal):
            cache[:, :, targets] = cache[:, :, sources]
        self.seen[targets] = self.seen[sources]

    def step(
        self, tokens: Tensor, positions: Tensor, cells: Tensor, seen: Tensor, longest: int, slots: int
    ) -> Tensor:
        """Return the logits (R, V) of the tokens that follow.

        Args:
            tokens: (R,) ids, each at its row's position.
            positions: (R,) from 0.
            cells: (R,) to which the rows belong.
            seen: (R,) whether later tokens of the row attend to this one in the unimodal decoder.
            longest: the largest position.
            slots: cells of the first ``slots`` slots only.
        """
        rows = len(tokens)
        index = torch.arange(rows, device=tokens.device)
        self.seen[index, positions] = seen
        causal = self.times[: longest + 1] <= positions[:, None]
        visible = (causal & self.seen[:rows, : longest + 1])[:, None, None]
        causal = causal[:, None, None]
        x = self.text.token_embedding(tokens) + self.text.positional_embedding[positions]
        for block, cache in zip(self.text.transformer.resblocks, self.unimodal, strict=True):
            x = self._self_attention(block, x, cache, index, positions, visible)
        assert self.image is not None
        layers = zip(
            self.decoder.resblocks, self.multimodal, self.decoder.cross_attn, self.image[:, :, :slots], strict=True
        )
        for block, cache, cross, image in layers:
            x = self._self_attention(block, x, cache, index, positions, causal)
            x = self._cross_attention(cross, x, image, cells)
        logits = self.decoder.ln_final(x).to(self.dtype) @ self.decoder.text_projection
        result: Tensor = logits.float()
        return result

    def _self_attention(
        self, block: Any, x: Tensor, cache: Tensor, index: Tensor, positions: Tensor, visible: Tensor
    ) -> Tensor:
        attention, rows = block.attn, len(x)
        query, key, value = F.linear(
            block.ln_1(x).to(self.dtype), attention.in_proj_weight, attention.in_proj_bias
        ).chunk(3, dim=-1)
        cache[0, index, positions], cache[1, index, positions] = key, value
        heads = (attention.num_heads, attention.head_dim)
        key, value = cache[:, :rows, : visible.shape[-1]].view(2, rows, -1, *heads).transpose(2, 3)
        out = F.scaled_dot_product_attention(query.view(rows, heads[0], 1, heads[1]), key, value, attn_mask=visible)
        return self._rest(block, x, out.reshape(rows, -1))

    def _cross_attention(self, block: Any, x: Tensor, image: Tensor, cells: Tensor) -> Tensor:
        attention, width = block.attn, block.attn.embed_dim
        weight, bias = attention.in_proj_weight[:width], attention.in_proj_bias[:width]
        query = F.linear(block.ln_1(x).to(self.dtype), weight, bias)
        slots, heads = image.shape[1], (attention.num_heads, attention.head_dim)
        # Cells without a row keep zeros; their results are dropped.
        spread = query.new_zeros(slots * self.per_image, width)
        spread[cells] = query
        folded = spread.view(slots, self.per_image, *heads).transpose(1, 2)
        key, value = image.view(*image.shape[:3], *heads).transpose(2, 3)
        out = F.scaled_dot_product_attention(folded, key, value)
        return self._rest(block, x, out.transpose(1, 2).reshape(-1, width)[cells])

    def _rest(self, block: Any, x: Tensor, attended: Tensor) -> Tensor:
        """The block after its attention: projection, residual and feed-forward network."""
        x = x + block.ls_1(block.attn.out_proj(attended))
        result: Tensor = x + block.ls_2(block.mlp(block.ln_2(x).to(self.dtype)))
        return result
