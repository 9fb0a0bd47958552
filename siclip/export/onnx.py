"""ONNX: one reparameterized graph per tower, for any batch size.

``image.onnx``: ``images`` (B, 3, S, S) float32 in [0, 1] → ``embeddings`` (B, D), not normalised.
``text.onnx``: ``tokens`` (B, T) int64 → ``embeddings`` (B, D), not normalised.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from siclip.errors import UserError
from siclip.export.check import Encode, Exported, largest_difference, new_output, sample_images, sample_tokens
from siclip.models.clip import Clip

# Protobuf's limit of 2 GiB, minus 1 MiB for the graph.
_LARGEST_BYTES = 2**31 - 2**20


def export_onnx(model: Clip, folder: Path | str) -> Exported:
    """Write ``image.onnx`` and ``text.onnx``, each with its weights inside, into a new ``folder``.

    They are verified with onnxruntime at batch sizes 1, 2 and 7 before the folder appears. Their metadata
    (``siclip.…``) contain the model's config, preprocessing, tokenization and logit scale.

    Raises:
        UserError: the folder exists, a tower is above 2 GiB, or its outputs differ from the model's in eval mode by
            more than 1e-4 of the largest value. Nothing is left behind then.
    """
    folder = Path(folder)
    reference = copy.deepcopy(model).cpu().eval()
    deployable = reference.reparameterize()
    names = ("image.onnx", "text.onnx")
    with new_output(folder) as temporary:
        temporary.mkdir()
        image, text = (temporary / name for name in names)
        # A batch of 2, because torch.export specialises a dimension of size 1.
        _write_graph(image, deployable.image_encoder, "images", sample_images(model.config, 2), _metadata(model))
        _write_graph(text, deployable.text_encoder, "tokens", sample_tokens(model.config, 2), _metadata(model))
        difference = largest_difference(reference, _runner(image), _runner(text), "the ONNX export")
    return Exported(tuple(folder / name for name in names), difference)


def _write_graph(path: Path, tower: nn.Module, input_name: str, example: Tensor, metadata: dict[str, str]) -> None:
    import onnx

    # By storage, so that shared weights count once, as they do in the file.
    tensors = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tower.state_dict().values()}
    if sum(tensors.values()) > _LARGEST_BYTES:
        raise UserError(f"{path.name}: the tower's weights do not fit the 2 GiB of an ONNX file")
    program = torch.onnx.export(
        tower,
        (example,),
        input_names=[input_name],
        output_names=["embeddings"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    graph = program.model_proto
    _clear_notes(graph)
    onnx.helper.set_model_props(graph, metadata)
    onnx.checker.check_model(graph, full_check=True)
    onnx.save(graph, path)


def _clear_notes(model: Any) -> None:
    """Remove the exporter's notes, which contain stack traces with local paths."""
    graph = model.graph
    for noted in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        noted.ClearField("metadata_props")
        noted.ClearField("doc_string")


def _metadata(model: Clip) -> dict[str, str]:
    config = model.config
    return {
        "siclip.model": config.name,
        "siclip.config": config.model_dump_json(),
        "siclip.preprocessing": json.dumps(
            {
                "size": config.image.image_size,
                "resize_mode": "shortest",
                "interpolation": "bilinear",
                "crop": "centre",
                "range": [0, 1],
                "mean": [0.0, 0.0, 0.0],
                "std": [1.0, 1.0, 1.0],
            }
        ),
        "siclip.tokenizer": json.dumps(
            {
                "name": "CLIP byte-pair encoding, lower case, cut to fit",
                "context_length": config.text.context_length,
                "start": 49406,
                "end": 49407,
                "padding": 0,
                "pooling": "the first position of the highest id",
            }
        ),
        "siclip.logit_scale": repr(model.scale().item()),
    }


def _runner(path: Path) -> Encode:
    """A function that runs the graph with onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda inputs: torch.from_numpy(session.run(["embeddings"], {name: inputs.numpy()})[0])
