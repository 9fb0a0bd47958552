"""The planner against what really happens: operations, memory, bytes on the disk; and its advice against itself."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import torch
from typer.testing import CliRunner

from siclip.config import LossConfig, TrainingConfig
from siclip.errors import UserError
from siclip.models.clip import Clip
from siclip.models.registry import model_config
from siclip_platform.cli import app
from siclip_platform.datasets.digits.composition import DigitScenesConfig, compose_shard, shard_specs
from siclip_platform.datasets.manifest import Manifest, write_manifest, write_shard
from siclip_platform.plan import Job, calibration, make_plan
from siclip_platform.plan.calibration import Calibration, calibrate, calibration_trainer, random_batch
from siclip_platform.plan.cards import CARDS, find_card
from siclip_platform.plan.storage import GB, RowBytes, captions_a_row, embedding_bytes, measure_rows
from siclip_platform.plan.work import count_work, forward_flops
from siclip_platform.recipes.recipe import DataConfig, Recipe, StudentConfig


def nano(freeze: str = "inherited", **training: Any) -> Recipe:
    return Recipe(
        data=DataConfig(path="x"),
        model=StudentConfig(name="siclip-nano", freeze=freeze),  # type: ignore[arg-type]
        loss=LossConfig(pair_matching=0.3),
        training=TrainingConfig(steps=10, batch_size=16, warmup_steps=1, precision="fp32", **training),
    )


def model_of(recipe: Recipe) -> Clip:
    return Clip(model_config(recipe.model.name))


def dense_multiply_adds(model: Clip) -> float:
    """Of one pair, from the shapes that every convolution and linear layer sees: independent of torch's counter."""
    total = 0.0

    def count(layer: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
        nonlocal total
        weight = layer.weight
        assert isinstance(weight, torch.Tensor)
        total += output.numel() * weight[0].numel()

    layers = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        model.eval().encode_image(torch.zeros(1, 3, *2 * (model.config.image.image_size,)))
        model.encode_text(torch.zeros(1, model.config.text.context_length, dtype=torch.long))
    for hook in hooks:
        hook.remove()
    return total


def test_forward_operations_are_those_of_its_layers() -> None:
    model = model_of(nano())
    # Attention's own products and layers called without their module are what is left: little.
    assert 2 * dense_multiply_adds(model) == pytest.approx(sum(forward_flops(model)), rel=0.2)


def test_operations_of_a_step_by_what_trains_and_where_the_teacher_comes_from() -> None:
    student, teacher = model_of(nano()), Clip(model_config("mobileclip-nano"))
    (trunk, head), (_, teacher_head) = forward_flops(student), forward_flops(teacher)
    assert min(trunk, head, teacher_head) > 0

    def counted(freeze: str, source: Any, **training: Any) -> float:
        return count_work(nano(freeze, **training), student, source).flops

    assert counted("none", "none") == pytest.approx(3 * (trunk + head))
    assert counted("none", "online") == pytest.approx(3 * (trunk + head) + trunk + teacher_head, rel=1e-3)
    assert counted("inherited", "stored") == pytest.approx(trunk + 3 * head)
    assert counted("inherited", "shared trunk") == pytest.approx(trunk + 3 * head + teacher_head)
    cached = counted("inherited", "stored", micro_batch_size=8, batch_norm="eval")
    assert cached == pytest.approx(trunk + 4 * head)


def test_fixed_memory_is_that_of_weights_gradients_and_optimizer() -> None:
    recipe = nano()
    trainer = calibration_trainer(recipe, 16, "stored")
    trainer.train_step(random_batch(trainer, 16))
    tensors = [*trainer.model.parameters()]
    tensors += [p.grad for p in trainer.model.parameters() if p.grad is not None]
    tensors += [value for state in trainer.optimizer.state.values() for value in state.values() if value.numel() > 1]
    held = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert count_work(recipe, model_of(recipe), "stored").fixed_bytes == pytest.approx(held, rel=0.01)


def test_counting_leaves_the_model_as_it_is() -> None:
    model = model_of(nano())
    before = copy.deepcopy(model.state_dict())
    count_work(nano(), model, "stored")
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Digit scenes, 300 and 1,500 of them, each with its manifest."""
    folders = []
    for scenes in (300, 1500):
        folder = tmp_path_factory.mktemp(f"scenes{scenes}")
        config = DigitScenesConfig(train_scenes=scenes, validation_scenes=1, test_scenes=1, shard_rows=500)
        specs = [spec for spec in shard_specs(config) if spec.split == "train"]
        entries = [write_shard(compose_shard(spec), folder / spec.file_name, 250) for spec in specs]
        write_manifest(folder, Manifest(name="scenes", version="1", recipe={}, splits={"train": entries}))
        folders.append(folder)
    return folders[0], folders[1]


def test_storage_of_a_larger_dataset_is_foretold_within_5_percent(datasets: tuple[Path, Path]) -> None:
    small, large = datasets
    rows = measure_rows(small, "train")
    foretold = 1500 * (rows.image + rows.captions + rows.other)
    written = sum(path.stat().st_size for path in large.glob("*.parquet"))
    assert foretold == pytest.approx(written, rel=0.05)
    assert captions_a_row(small, "train") == pytest.approx(
        sum(len(row) for row in _captions(small)) / len(_captions(small))
    )


def _captions(folder: Path) -> list[Any]:
    import pyarrow.parquet as pq

    tables = [pq.read_table(path) for path in sorted(folder.glob("*.parquet"))]
    return list(pa.concat_tables(tables)["captions"].to_pylist())


def test_embeddings_of_the_method_take_what_the_method_says() -> None:
    # 10 M samples, K = 10, C = 6, D = 512 in bf16 are 164 GB; the boxes of the crops come on top.
    assert 10_000_000 * (embedding_bytes(10, 6, 512, "bf16") - 10 * 16) == pytest.approx(164e9, rel=0.001)
    assert embedding_bytes(10, 6, 512, "int8") == 16 * 512 + 16 * 4 + 160


def job(**changes: Any) -> Job:
    values: dict[str, Any] = {
        "recipe": nano(), "pairs": 1_000_000, "epochs": 2, "teacher": "stored",
        "rows": RowBytes(image=30_000, captions=100, other=50), "disk_bytes": 10**12, "card": find_card("rtx-3090"),
        "decode_rate": 1e9,
    }  # fmt: skip
    return Job(**values | changes)


def test_a_disk_too_small_is_told_with_changes_that_do_fit() -> None:
    asked = job(disk_bytes=int(31.5 * GB), augmentations=10, captions=2)
    plan = make_plan(asked, model_of(asked.recipe))
    assert not plan.fits
    most = next(int(s.split()[0]) for s in plan.advice if "augmentations fit" in s)
    smaller = make_plan(job(disk_bytes=asked.disk_bytes, augmentations=most, captions=2), model_of(asked.recipe))
    assert smaller.fits
    larger = make_plan(job(disk_bytes=asked.disk_bytes, augmentations=most + 1, captions=2), model_of(asked.recipe))
    assert not larger.fits
    int8 = next(s for s in plan.advice if "int8" in s)
    with_int8 = make_plan(job(disk_bytes=asked.disk_bytes, captions=2, numbers="int8"), model_of(asked.recipe))
    assert ("not enough" not in int8) == with_int8.fits


def test_a_card_too_small_is_told_the_largest_micro_batch_that_fits() -> None:
    recipe = nano().updated({"training.batch_size": 16384})
    asked = job(recipe=recipe, card=find_card("rtx-3070"))
    plan = make_plan(asked, model_of(recipe))
    assert not plan.fits
    assert "similarities" in plan.memory
    recipe = nano().updated({"training.batch_size": 8192})
    plan = make_plan(job(recipe=recipe), model_of(recipe))
    size = 8192
    card = CARDS["rtx-3090"].memory_bytes
    if not plan.fits:
        told = int(next(s for s in plan.advice if "micro_batch_size" in s).split()[1])
        while sum(plan.work.memory(8192, size).values()) > card:
            size //= 2
        assert told == size


def test_speed_is_the_slowest_of_its_limits_and_hours_follow() -> None:
    measured = Calibration("a machine", seconds_fixed=0.1, seconds_each=0.01, spread=0.0, batches=(8, 16))
    plan = make_plan(job(card=None, measured=measured, decode_rate=1e6), model_of(nano()))
    rate = 16 / (0.1 + 0.01 * 16)
    assert plan.hours == (pytest.approx(2_000_000 / rate / 3600),) * 2
    assert plan.speed.bottleneck == "measured steps"
    slow = make_plan(job(card=None, measured=measured, decode_rate=5.0), model_of(nano()))
    assert slow.speed.bottleneck == "data"
    assert slow.hours[0] == pytest.approx(2_000_000 / 5 / 3600)
    assert any("decoding holds" in sentence for sentence in slow.advice)
    two = make_plan(job(cards=2), model_of(nano()))
    one = make_plan(job(), model_of(nano()))
    assert two.speed.most == pytest.approx(2 * one.speed.most)
    assert one.kilowatt_hours is not None
    assert one.kilowatt_hours[0] == pytest.approx(one.hours[0] * 0.35)


def test_calibration_finds_the_line_that_steps_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    class Clocked:
        device = torch.device("cpu")

        def __init__(self, size: int) -> None:
            self.size = size

        def train_step(self, batch: object) -> None:
            nonlocal now
            now += 0.5 + 0.03 * self.size

    monkeypatch.setattr(calibration, "time", SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setattr(calibration, "random_batch", lambda trainer, size: size)
    found = calibrate(Clocked, (8, 32), seconds=20)  # type: ignore[arg-type]
    assert found.seconds_fixed == pytest.approx(0.5)
    assert found.step_seconds(64) == pytest.approx(0.5 + 0.03 * 64)
    assert found.spread == pytest.approx(0, abs=1e-9)


def test_reference_job_is_the_default_and_json_holds_every_part() -> None:
    result = CliRunner().invoke(app, ["plan", "--json", "--cores", "16"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["pairs"], found["epochs"], found["steps"]) == (12_000_000, 32, 250_000)
    assert found["machine"] == "rtx-3090"
    assert found["storage_total_bytes"] == pytest.approx(sum(found["storage_bytes"].values()))
    assert found["disk_bytes"] == 10**12
    assert found["fits"]
    assert found["hours"][0] < found["hours"][1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--card", "gtx-1"], "no card 'gtx-1'"),
        (["--disk", "much"], "not a size"),
        (["--sample", "nowhere"], "does not exist"),
        (["--recipe", "nowhere.yaml"], "does not exist"),
    ],
)
def test_bad_input_is_named(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["plan", *arguments])
    assert isinstance(result.exception, UserError)
    assert said in str(result.exception)


def test_what_does_not_fit_exits_with_1() -> None:
    result = CliRunner().invoke(app, ["plan", "--disk", "100GB"])
    assert result.exit_code == 1
    assert "It does not fit." in result.output
    assert "GB short" in result.output
