"""A checkpoint as an MLflow model that ``mlflow models serve`` can serve.

The rows of a request have a column ``text``, or a column ``image`` with base64-encoded JPEG, PNG or WebP. The
response has one embedding per row, a list of D numbers with unit length.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

import mlflow.pyfunc

from siclip.errors import UserError

CHECKPOINT = "checkpoint"
LARGEST_REQUEST = 1024
"""Rows per request, to bound the memory of the server."""


class SiclipModel(mlflow.pyfunc.PythonModel):
    """Embeds texts and images."""

    def load_context(self, context: Any) -> None:
        """Load the checkpoint; MLflow calls this once per process."""
        from siclip_platform.inference.encoder import Encoder

        self.encoder = Encoder.load(Path(context.artifacts[CHECKPOINT]))

    # No types on model_input: MLflow would read them as a schema.
    def predict(self, context: Any, model_input, params=None):  # type: ignore[no-untyped-def]
        """A pandas DataFrame with a column ``text`` or ``image`` → embeddings.

        Raises:
            UserError: neither or both columns, too many rows, a value that is not a string, or an image that cannot
                be decoded.
        """
        columns = [name for name in ("text", "image") if name in model_input.columns]
        if len(columns) != 1 or len(model_input) > LARGEST_REQUEST:
            raise UserError(
                f"a request requires one column, text or image, and at most {LARGEST_REQUEST} rows; this one has "
                f"{', '.join(map(str, model_input.columns))} and {len(model_input)} rows"
            )
        values = list(model_input[columns[0]])
        # pandas has three kinds of null, each of which str() would turn into a word
        wrong = [row for row, value in enumerate(values) if not isinstance(value, str)]
        if wrong:
            raise UserError(
                f"the {columns[0]} of row {wrong[0]} is {values[wrong[0]]!r}, not a string: send a string in each row"
            )
        if columns == ["text"]:
            found = self.encoder.texts(values)
        else:
            found = self.encoder.images([self._pixels(value, row) for row, value in enumerate(values)])
        embeddings: list[list[float]] = found.tolist()
        return embeddings

    def _pixels(self, text: str, row: int) -> Any:
        try:
            file = base64.b64decode(text, validate=True)
        except binascii.Error as error:
            raise UserError(f"the image of row {row} is not base64: {error}") from None
        return self.encoder.pixels(file, f"row {row}")


def export_mlflow(checkpoint: Path, out: Path) -> None:
    """Write an MLflow model folder: the checkpoint, its signature and the requirements.

    Raises:
        UserError: ``out`` exists, the checkpoint cannot be read, or its model is not finite.
    """
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Array, ColSpec, DataType, Schema

    from siclip.checkpoints.formats import load_model
    from siclip.models.finite import check_finite

    # a checkpoint that is damaged or not finite is refused here, not by the server
    check_finite(load_model(checkpoint), str(checkpoint))
    if out.exists():
        raise UserError(f"{out} exists and is not overwritten: remove it or choose another name")
    inputs = Schema([ColSpec("string", "text", required=False), ColSpec("string", "image", required=False)])
    mlflow.pyfunc.save_model(
        str(out),
        python_model=SiclipModel(),
        artifacts={CHECKPOINT: str(checkpoint.resolve())},
        signature=ModelSignature(inputs=inputs, outputs=Schema([ColSpec(Array(DataType.double))])),
        pip_requirements=["siclip-platform"],
    )
