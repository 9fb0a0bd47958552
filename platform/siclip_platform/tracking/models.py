"""A checkpoint as an MLflow logged model with a signature, and in the model registry if a name is given."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MODEL_KEY = "siclip.model_key"
FLAVOR = "siclip"
CHECKPOINT = "model.pt"


def model_payload(checkpoint: Path, name: str, register: str | None, metrics: Mapping[str, float]) -> dict[str, Any]:
    """What `log_model` needs to know, as JSON; reads the checkpoint's model config.

    Raises:
        UserError: the checkpoint cannot be read.
    """
    from siclip.checkpoints.formats import load_model

    config = load_model(checkpoint).config
    return {
        "checkpoint": str(checkpoint),
        "name": name,
        "register": register,
        "architecture": config.name,
        "image_size": config.image.image_size,
        "context_length": config.text.context_length,
        "embed_dim": config.embed_dim,
        "metrics": {key: value for key, value in metrics.items() if "/" in key},
    }


def log_model(client: Any, experiment_id: str, run_id: str, key: str, what: Mapping[str, Any]) -> None:
    """Log and, where ``what["register"]`` is a name, register it. Doing so again changes nothing."""
    from mlflow.entities import LoggedModelStatus

    tag = "/".join(part for part in (key, what["name"], what.get("of", "")) if part)
    found = client.search_logged_models([experiment_id], filter_string=f"tags.`{MODEL_KEY}` = '{tag}'")
    model = found[0] if found else client.create_logged_model(
        experiment_id, name=what["name"], source_run_id=run_id, model_type=FLAVOR,
        tags={MODEL_KEY: tag}, params={"architecture": what["architecture"]},
    )  # fmt: skip
    if model.status != LoggedModelStatus.READY:
        with tempfile.TemporaryDirectory() as folder:
            _write(Path(folder), run_id, model.model_id, what)
            client.log_model_artifacts(model.model_id, folder)
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    if what["register"]:
        _register(client, what["register"], model, run_id)


def _write(folder: Path, run_id: str, model_id: str, what: Mapping[str, Any]) -> None:
    import numpy as np
    from mlflow.models import Model
    from mlflow.models.signature import ModelSignature
    from mlflow.types import Schema, TensorSpec

    shutil.copyfile(what["checkpoint"], folder / CHECKPOINT)
    size, tokens, width = what["image_size"], what["context_length"], what["embed_dim"]
    float32, int64 = np.dtype(np.float32), np.dtype(np.int64)
    signature = ModelSignature(
        inputs=Schema([
            TensorSpec(float32, (-1, 3, size, size), name="images"), TensorSpec(int64, (-1, tokens), name="tokens"),
        ]),
        outputs=Schema([
            TensorSpec(float32, (-1, width), name="image_embeddings"),
            TensorSpec(float32, (-1, width), name="text_embeddings"),
        ]),
    )  # fmt: skip
    model = Model(artifact_path=what["name"], run_id=run_id, signature=signature, model_id=model_id)
    model.add_flavor(FLAVOR, checkpoint=CHECKPOINT, architecture=what["architecture"])
    model.save(str(folder / "MLmodel"))


def _register(client: Any, name: str, model: Any, run_id: str) -> None:
    from mlflow import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    versions = client.search_model_versions(f"name = '{name}'")
    if all(version.source != model.artifact_location for version in versions):
        client.create_model_version(name, source=model.artifact_location, run_id=run_id, model_id=model.model_id)
