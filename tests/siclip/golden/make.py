"""Create mobileclip_s0.npz with the reference implementation, which is not part of this project.

    git clone https://github.com/apple/ml-mobileclip REFERENCE
    python tests/siclip/golden/make.py REFERENCE

It builds the reference's ``mobileclip_s0``, fills it by the rule in rule.py, and stores its embeddings of the rule's
images and tokens, not normalised, in train form and reparameterized.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch


def main(reference: str) -> None:
    here = Path(__file__).resolve().parent
    sys.path[:0] = [reference, str(here)]
    import rule
    from mobileclip import create_model_and_transforms
    from mobileclip.modules.common.mobileone import reparameterize_model

    model, _, _ = create_model_and_transforms("mobileclip_s0", reparameterize=False)
    model.load_state_dict(rule.filled(model.state_dict()))
    fused = reparameterize_model(model)
    with torch.no_grad():
        embeddings = {
            f"{form}_{tower}": encode(given).numpy()
            for form, network in (("train", model.eval()), ("reparameterized", fused.eval()))
            for tower, encode, given in (
                ("image", network.encode_image, rule.images()),
                ("text", network.encode_text, rule.tokens()),
            )
        }
    np.savez_compressed(here / "mobileclip_s0.npz", **embeddings)


if __name__ == "__main__":
    main(sys.argv[1])
