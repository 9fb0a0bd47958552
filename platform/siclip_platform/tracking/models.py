"""A checkpoint as an MLflow logged model with a signature, optionally in the model registry."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from siclip_platform.tracking.mlflow_patches import http_limits

MODEL_KEY = "siclip.model_key"
FLAVOR = "siclip"
CHECKPOINT = "model.pt"


def model_payload(checkpoint: Path, name: str, register: str | None, metrics: Mapping[str, float]) -> dict[str, Any]:
    """The input of `log_model`, as JSON values; reads the checkpoint's model config.

    Args:
        checkpoint: the file to log.
        name: the logged model's name.
        register: its name in the model registry; None does not register it.
        metrics: metrics of the run; those with a ``/`` in their name are kept.

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


def log_model(client: Any, experiment_id: str, run_id: str, key: str, payload: Mapping[str, Any]) -> None:
    """Log a model and register it if ``payload["register"]`` is a name; a second call has no effect.

    Args:
        client: an ``MlflowClient``.
        experiment_id: the experiment of the run.
        run_id: MLflow's id of the run that trained the model.
        key: the run's key in the spool.
        payload: from `model_payload`; ``of`` distinguishes models of the same name within a run.
    """
    from mlflow.entities import LoggedModelStatus

    tag = _tag(key, payload)
    found = _with_tag(client, experiment_id, tag)
    if found:
        model = found[0]
    else:
        # Without repeats by MLflow's client: if only the answer was lost, the next call finds the model.
        with http_limits(repeats=0):
            model = client.create_logged_model(
                experiment_id,
                name=payload["name"],
                source_run_id=run_id,
                model_type=FLAVOR,
                tags={MODEL_KEY: tag},
                params={"architecture": payload["architecture"]},
            )
    # A kill between creation and upload leaves a model that is not ready: its files are written again.
    if model.status != LoggedModelStatus.READY:
        with tempfile.TemporaryDirectory() as folder:
            _write(Path(folder), run_id, model.model_id, payload)
            client.log_model_artifacts(model.model_id, folder)
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    if payload["register"]:
        _register(client, payload["register"], model, run_id)


def remove_doubles(client: Any, experiment_id: str, key: str, payload: Mapping[str, Any]) -> None:
    """Delete what MLflow made of requests for a model that it handled after we had asked again.

    Args:
        client: an ``MlflowClient``.
        experiment_id: the experiment of the run.
        key: the run's key in the spool.
        payload: of the model, which was logged.
    """
    found = _with_tag(client, experiment_id, _tag(key, payload))
    for double in found[1:]:
        client.delete_logged_model(double.model_id)
    if payload["register"] and found:
        for version in _versions(client, payload["register"], found[0])[1:]:
            client.delete_model_version(version.name, version.version)


def _tag(key: str, payload: Mapping[str, Any]) -> str:
    return "/".join(part for part in (key, payload["name"], payload.get("of", "")) if part)


def _with_tag(client: Any, experiment_id: str, tag: str) -> list[Any]:
    """The logged models of a tag: a complete one first, then the oldest."""
    from mlflow.entities import LoggedModelStatus

    found = client.search_logged_models([experiment_id], filter_string=f"tags.`{MODEL_KEY}` = '{tag}'")
    return sorted(found, key=lambda model: (model.status != LoggedModelStatus.READY, model.creation_timestamp))


def _write(folder: Path, run_id: str, model_id: str, payload: Mapping[str, Any]) -> None:
    import numpy as np
    from mlflow.models import Model
    from mlflow.models.signature import ModelSignature
    from mlflow.types import Schema, TensorSpec

    shutil.copyfile(payload["checkpoint"], folder / CHECKPOINT)
    size, tokens, width = payload["image_size"], payload["context_length"], payload["embed_dim"]
    float32, int64 = np.dtype(np.float32), np.dtype(np.int64)
    images = TensorSpec(float32, (-1, 3, size, size), name="images")
    texts = TensorSpec(int64, (-1, tokens), name="tokens")
    image_embeddings = TensorSpec(float32, (-1, width), name="image_embeddings")
    text_embeddings = TensorSpec(float32, (-1, width), name="text_embeddings")
    signature = ModelSignature(inputs=Schema([images, texts]), outputs=Schema([image_embeddings, text_embeddings]))
    model = Model(artifact_path=payload["name"], run_id=run_id, signature=signature, model_id=model_id)
    model.add_flavor(FLAVOR, checkpoint=CHECKPOINT, architecture=payload["architecture"])
    model.save(str(folder / "MLmodel"))


def _register(client: Any, name: str, model: Any, run_id: str) -> None:
    from mlflow import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    if not _versions(client, name, model):
        with http_limits(repeats=0):
            client.create_model_version(name, source=model.artifact_location, run_id=run_id, model_id=model.model_id)


def _versions(client: Any, name: str, model: Any) -> list[Any]:
    """The versions of a registered model that are this logged model, the oldest first."""
    found = client.search_model_versions(f"name = '{name}'")
    return sorted(
        (version for version in found if version.source == model.artifact_location),
        key=lambda version: int(version.version),
    )
