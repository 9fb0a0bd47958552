from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from siclip.data.quantize import dequantize, quantize


@pytest.fixture(scope="module")
def vectors() -> torch.Tensor:
    return F.normalize(torch.randn(200, 64, generator=torch.Generator().manual_seed(0)), dim=-1)


def test_bf16_equals_ml_dtypes_and_keeps_eight_bits(vectors: torch.Tensor) -> None:
    data, scales = quantize(vectors, "bf16")
    assert scales is None and data.shape == (200, 128)
    expected = vectors.numpy().astype(ml_dtypes.bfloat16)
    assert data.tobytes() == expected.tobytes()
    back = dequantize(data, None)
    assert torch.equal(back, torch.from_numpy(expected.astype(np.float32)))
    assert ((back - vectors).abs() <= 2**-8 * vectors.abs()).all()


def test_int8_rounds_to_steps_of_the_largest_number(vectors: torch.Tensor) -> None:
    data, scales = quantize(vectors, "int8")
    assert scales is not None and data.shape == (200, 64)
    array = vectors.numpy().astype(np.float64)
    step = np.abs(array).max(axis=1, keepdims=True) / 127
    assert np.allclose(scales[:, None], step)
    assert np.abs(data.view(np.int8) - array / step).max() <= 0.5 + 1e-4
    assert (np.abs(dequantize(data, scales).numpy() - array) <= 1.001 * step / 2).all()


def test_a_zero_vector_stays_zero() -> None:
    data, scales = quantize(torch.zeros(2, 4), "int8")
    assert torch.equal(dequantize(data, scales), torch.zeros(2, 4))


@pytest.mark.parametrize("numbers", ["bf16", "int8"])
def test_an_empty_input_is_quantized(numbers: str) -> None:
    data, scales = quantize(torch.zeros(0, 4), numbers)  # type: ignore[arg-type]
    assert dequantize(data, scales).shape == (0, 4)
