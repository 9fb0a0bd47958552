"""Teachers: where the embeddings to distil from come from. One interface, two sources so far.

Shapes: B batch, T context length, D the teacher's embed_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from siclip.losses import Embeddings
from siclip.models.clip import Clip, TrunkFeatures


class Teacher:
    """A frozen model, run on the student's batch.

    When the student inherited this teacher's trunk and keeps it frozen, the trunk is the same network: its
    output is taken from the student and the teacher pays only for its own attention blocks and head.
    """

    def __init__(self, model: Clip, student: Clip) -> None:
        self.model = model.eval()
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        self.compare(student)

    def compare(self, student: Clip) -> None:
        """Find out whether the trunk is shared: at the start, and whenever the student freezes or thaws."""
        self.shares_trunk = student.trunk_is_frozen() and _same_trunk(self.model, student)

    @torch.no_grad()
    def embed(self, images: Tensor, tokens: Tensor, features: TrunkFeatures) -> Embeddings:
        """Unit embeddings of a batch; ``features`` are the student's trunk outputs for the same batch."""
        if not self.shares_trunk:
            features = self.model.trunk(images, tokens)
        image, text = self.model.head(features, tokens)
        return Embeddings(image=image, text=text, logit_scale=self.model.scale().detach())


def _same_trunk(teacher: Clip, student: Clip) -> bool:
    towers = ((teacher.image_encoder, student.image_encoder), (teacher.text_encoder, student.text_encoder))
    for ours, theirs in towers:
        for module, other in zip(ours.trunk_modules(), theirs.trunk_modules(), strict=False):
            state, other_state = module.state_dict(), other.state_dict()
            if state.keys() != other_state.keys():
                return False
            if not all(torch.equal(state[key].cpu(), other_state[key].cpu()) for key in state):
                return False
    return True
