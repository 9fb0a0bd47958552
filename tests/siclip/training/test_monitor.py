from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

import pytest
import torch

from siclip.config import LossConfig, TrainingConfig
from siclip.data.batch import Batch, to_float_images
from siclip.diagnostics import attention_divergence
from siclip.models import Clip, create_model
from siclip.training.loop import Save, train
from siclip.training.monitor import divergences, gains
from siclip.training.trainer import Trainer


def student(**sharing: str) -> Clip:
    torch.manual_seed(0)
    model = create_model("siclip-nano", **sharing)
    for name, parameter in model.named_parameters():
        if name.endswith("query.weight"):
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def batch(size: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (size, 64, 64, 3), generator=generator, dtype=torch.uint8)
    ids = torch.arange(size)
    return Batch(images, torch.randint(1, 400, (size, 20), generator=generator), ids, ids)


def test_gains_are_means_over_heads() -> None:
    model = student()
    torch.nn.init.normal_(model.text_encoder.blocks[2].beta)
    found = gains(model)
    assert found["gain/text/2/beta"] == pytest.approx(float(model.text_encoder.blocks[2].beta.detach().mean()))
    assert found["gain/image/1/beta_ff"] == pytest.approx(0.1)
    assert len(found) == 5 * (2 + 4)
    assert gains(create_model("mobileclip-nano")) == {}


@pytest.mark.parametrize(
    ("sharing", "pairs"),
    [("qk:0-0-1-1", {"0-1", "1-2", "2-3"}), ("qk:0-1-0-0", {"0-1", "1-2", "2-3", "0-2", "0-3"}), ("none", None)],
)
def test_adjacent_and_sharing_pairs_are_reported(sharing: str, pairs: set[str] | None) -> None:
    model, data = student(text_sharing=sharing), batch()
    images = to_float_images(data.images)
    found = divergences(model, model.trunk(images, data.tokens))
    text = {name.rpartition("/")[2]: value for name, value in found.items() if name.startswith("divergence/text")}
    assert set(text) == (pairs or {"0-1", "1-2", "2-3"}) and "divergence/image/0-1" in found
    probe = attention_divergence(model, [(images, data.tokens)])["text"]
    for name, value in text.items():
        i, j = map(int, name.split("-"))
        assert value == pytest.approx(probe.pairs[i][j], rel=1e-4) and value > 0


class Record:
    def __init__(self) -> None:
        self.logged: list[Mapping[str, float]] = []

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.logged.append(metrics)

    def milestone(self, step: int, metrics: Mapping[str, float], save: Save | None) -> None: ...


def test_a_diagnosis_changes_nothing_even_if_the_trunk_trains() -> None:
    loss = LossConfig(feature_distillation=0, contrastive_relational=0, interactive_contrastive=0)
    training = TrainingConfig(steps=2, batch_size=8, warmup_steps=1, precision="fp32", threads=1)
    trainer = Trainer(student(), None, loss, training, torch.device("cpu"))
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.diagnose(batch())
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())


def test_a_run_logs_gains_divergences_waiting_and_memory() -> None:
    config = TrainingConfig(steps=2, batch_size=8, warmup_steps=1, precision="fp32", log_every=1, threads=1)
    loss = LossConfig(feature_distillation=0, contrastive_relational=0, interactive_contrastive=0)
    trainer, record = Trainer(student(), None, loss, config, torch.device("cpu")), Record()

    def slow(start: int, stop: int) -> Iterator[Batch]:
        for _ in range(start, stop, 8):
            time.sleep(0.3)
            yield batch()

    train(trainer, slow, record)
    # Reported separately, because it is not a wait between steps.
    assert record.logged[0]["cost/first_batch_seconds"] > 0
    assert 0 < record.logged[1]["train/data_wait_share"] <= 1
    for metrics in record.logged:
        assert metrics["cost/peak_memory_mib"] > 100
        assert {"train/gain/text/0/alpha", "train/divergence/text/1-2", "train/gradient_norm/image"} <= set(metrics)
    assert trainer.model.training
