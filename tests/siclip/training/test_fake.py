"""A step on fake CUDA tensors, each on the right device; the memory of a step, counted on fake and real tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from siclip.config import LossConfig, MiningStrategy, TrainingConfig
from siclip.data.batch import Batch
from siclip.diagnostics.memory import LiveStorages, step_memory
from siclip.losses import Embeddings, Objective, PairIds, pair_matching
from siclip.models.clip import Clip
from siclip.models.fused_trunk import fused_trunk
from siclip.models.registry import model_config
from siclip.teachers import StoredTeacher
from siclip.training.fake import FakeTensors, ToldTeacher, fake_batch, fake_clip, fake_trainer
from siclip.training.setup import make_trainer
from siclip.training.trainer import Trainer

CUDA = torch.device("cuda", 0)
CPU = torch.device("cpu")
# Narrow: a trunk of fake tensors is folded element by element.
SMALL = {"image_size": 32, "widths": (8, 16, 32), "layers": (1, 1, 1), "sharing": "none"}
STUDENT = model_config("siclip-nano", image=SMALL)
TEACHER = model_config("mobileclip-nano", image=SMALL)


class OnlyOn(TorchDispatchMode):
    """Inside the block, an operation whose result has elements on another device than this one is an error."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            # Numbers of no dimension may be on the CPU: an operation takes them as arguments, nothing is copied.
            if isinstance(tensor, Tensor) and tensor.dim() and tensor.numel() and tensor.device != self.device:
                raise AssertionError(f"{function} made {tuple(tensor.shape)} on {tensor.device}")
        return result


def config(**changes: Any) -> TrainingConfig:
    return TrainingConfig(**{"steps": 10, "batch_size": 8, "warmup_steps": 1} | changes)


def trainer(
    device: torch.device, freeze: Any = "inherited", loss: LossConfig | None = None, **training: Any
) -> Trainer:
    teacher = ToldTeacher(fake_clip(TEACHER, device), same_trunk=True)
    loss = loss or LossConfig(pair_matching=0.3)
    return fake_trainer(STUDENT, loss, config(**training), teacher=teacher, freeze=freeze, device=device)


def with_stored_inputs() -> tuple[Trainer, Batch]:
    """A trainer on a GPU that reads trunk features and a teacher's embeddings, and a batch for it."""
    stored, loss = StoredTeacher((24, 24), 100.0), LossConfig(pair_matching=0.3)
    there = fake_trainer(STUDENT, loss, config(), teacher=stored, freeze="inherited", device=CUDA)
    return there, fake_batch(STUDENT, 8, CUDA, features=True, teacher=24)


@pytest.fixture
def fakes() -> Iterator[None]:
    with FakeTensors():
        yield


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize("freeze", ["inherited", "none"])
def test_a_step_on_a_gpu_stays_there(freeze: str) -> None:
    """The forward half of a step under AMP; a backward pass on a CUDA device needs its driver."""
    there = trainer(CUDA, freeze)
    batch = fake_batch(STUDENT, 8, CUDA)
    there._step.forward(batch, None)  # folds the trunk, which timm does with convolutions that it moves
    with OnlyOn(CUDA):
        forward = there._step.forward(batch, None, progress=0.5)
    assert {part.device for part in forward.parts.values()} == {CUDA}
    assert forward.image.dtype == torch.float32 and forward.image.device == CUDA
    parameters = [*there.model.parameters(), *there.objective.parameters()]
    assert {parameter.device for parameter in parameters} == {CUDA}


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize("left", ["image_ids", "caption_ids", "tokens", "teacher_text"])
def test_a_tensor_left_on_the_cpu_is_found(left: str) -> None:
    there, batch = with_stored_inputs()
    stray = torch.empty_like(getattr(batch, left), device=CPU)
    with pytest.raises((AssertionError, RuntimeError), match="cpu"), OnlyOn(CUDA):
        there._step.forward(replace(batch, **{left: stray}), None)


def embeddings(device: torch.device, width: int) -> Embeddings:
    def unit() -> Tensor:
        return torch.empty(8, width, device=device, requires_grad=True)

    return Embeddings(unit(), unit(), torch.empty((), device=device))


def objective_on_cuda(**loss: Any) -> dict[str, Tensor]:
    """The loss of fake embeddings on a GPU, student's 16 wide and teacher's 24."""
    with CUDA:
        objective = Objective(LossConfig(**{"pair_matching": 0.3} | loss), 16, (24, 24))
    ids = torch.empty(8, dtype=torch.int64, device=CUDA)
    with OnlyOn(CUDA):
        return objective(embeddings(CUDA, 16), embeddings(CUDA, 24), PairIds(ids, ids), None, progress=0.5)


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize("negatives", get_args(MiningStrategy))
def test_every_miner_stays_on_its_gpu(negatives: str) -> None:
    assert {part.device for part in objective_on_cuda(negatives=negatives).values()} == {CUDA}


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize("loss", [{"base": "siglip"}, {"pair_head": "mlp"}, {"pair_matching_warmup": 0.5}])
def test_every_loss_stays_on_its_gpu(loss: dict[str, Any]) -> None:
    assert {part.device for part in objective_on_cuda(**loss).values()} == {CUDA}


@pytest.mark.usefixtures("fakes")
def test_noise_that_a_miner_leaves_on_the_cpu_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_matching, "_gumbel", lambda like, generator: torch.empty(like.shape))
    with pytest.raises((AssertionError, RuntimeError), match="cpu"):
        objective_on_cuda(negatives="sampled")


@pytest.mark.usefixtures("fakes")
def test_stored_embeddings_and_trunk_features_stay_on_their_gpu() -> None:
    there, batch = with_stored_inputs()
    with OnlyOn(CUDA):
        forward = there._step.forward(batch, None)
    assert forward.parts["loss"].device == CUDA


@pytest.mark.usefixtures("fakes")
def test_a_trunk_in_fp32_is_folded_without_onednn_on_request() -> None:
    """oneDNN's fused convolutions exist on a CPU only, and not for fake tensors."""
    tower = fake_clip(TEACHER, CPU).eval().requires_grad_(False).image_encoder
    with torch.backends.mkldnn.flags(enabled=False):
        found = fused_trunk(tower, torch.empty(2, 3, 32, 32))
    with torch.no_grad():
        assert found.shape == tower.trunk(torch.empty(2, 3, 32, 32)).shape


def test_live_storages_count_views_once_and_freed_ones_no_more() -> None:
    with LiveStorages() as live:
        first = torch.zeros(1000)
        view = first[:10].view(2, 5)
        second = first + 1  # 8,000 bytes are alive: the peak
        del first, view
        third = torch.zeros(900)
        del second, third
        last = torch.zeros(50)
    assert live.peak == 8000
    assert "aten.add" in live.at_peak.operation
    del last


def real_trainer(**training: Any) -> Trainer:
    torch.manual_seed(0)
    options: dict[str, Any] = {"teacher": Clip(TEACHER), "inherit_weights": True, "device": CPU}
    return make_trainer(STUDENT, LossConfig(pair_matching=0.3), config(batch_size=64, **training), **options)


def real_batch() -> Batch:
    # Captions that fill the context: the fake step computes every token too.
    tokens = torch.randint(1, 400, (64, STUDENT.text.context_length))
    tokens[:, -1] = STUDENT.text.vocab_size - 1
    images = torch.randint(0, 256, (64, STUDENT.image.image_size, STUDENT.image.image_size, 3), dtype=torch.uint8)
    return Batch(images, tokens, torch.arange(64), torch.arange(64))


@pytest.mark.parametrize(
    "training",
    [{}, {"micro_batch_size": 16, "batch_norm": "eval", "ema_decay": 0.9, "thaw_step": 2}],
    ids=["whole", "gradient caching, thawed, averaged"],
)
def test_the_memory_counted_on_fake_tensors_is_that_of_a_real_step(training: dict[str, Any]) -> None:
    real = step_memory(real_trainer(**training), real_batch)
    with FakeTensors():
        there = trainer(CPU, batch_size=64, **training)
        fake = step_memory(there, lambda: fake_batch(STUDENT, 64, CPU))
    assert fake.peak_bytes == pytest.approx(real.peak_bytes, rel=0.01)
    assert sum(fake.parts.values()) == fake.peak_bytes
    for part in ("weights", "optimizer state", "batch", "teacher"):
        assert fake.parts[part] == pytest.approx(real.parts[part], rel=0.01), part
    trained = [p for group in there.optimizer.param_groups for p in group["params"]]
    # Two moments in fp32, and a counter of steps.
    assert fake.parts["optimizer state"] == sum(2 * 4 * p.numel() + 4 for p in trained)
