"""The planner compared with real models and files, and its advice compared with new plans."""

from __future__ import annotations

import copy
import json
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from typer.testing import CliRunner

from siclip.config import LossConfig, ModelConfig, TrainingConfig
from siclip.data.batch import to_float_images
from siclip.errors import UserError
from siclip.models.clip import Clip
from siclip.models.fused_trunk import fused_trunk
from siclip.models.registry import model_config
from siclip_platform.cli import app
from siclip_platform.datasets.digits.composition import DigitScenesConfig, compose_shard, shard_specs
from siclip_platform.datasets.manifest import Manifest, write_manifest, write_shard
from siclip_platform.plan import Job, calibration, make_plan
from siclip_platform.plan.calibration import Calibration, calibrate, calibration_trainer, random_batch
from siclip_platform.plan.cards import CARDS, find_card
from siclip_platform.plan.storage import GB, RowBytes, embedding_bytes, measure_rows
from siclip_platform.plan.work import count_work, feature_bytes, forward_flops, trunk_bytes
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
    """Per pair, from the shapes that each convolution and linear layer sees: independent of torch's counter."""
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


def test_operations_of_a_forward_pass_are_those_of_its_layers() -> None:
    model = model_of(nano())
    # The rest, which is little: the products of attention, and layers that are called without their module.
    assert 2 * dense_multiply_adds(model) == pytest.approx(sum(forward_flops(model)), rel=0.2)


def test_operations_of_a_step_depend_on_what_trains_and_on_the_teacher() -> None:
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


def test_fixed_memory_is_weights_gradients_and_optimizer_state() -> None:
    recipe = nano()
    trainer = calibration_trainer(recipe, 16, "stored")
    trainer.train_step(random_batch(trainer, 16))
    tensors = [*trainer.model.parameters()]
    tensors += [p.grad for p in trainer.model.parameters() if p.grad is not None]
    tensors += [value for state in trainer.optimizer.state.values() for value in state.values() if value.numel() > 1]
    held = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert count_work(recipe, model_of(recipe), "stored").fixed_bytes == pytest.approx(held, rel=0.01)


@pytest.mark.parametrize(
    "config",
    [
        model_config("siclip-nano"),
        model_config("mobileclip-nano"),
        model_config("siclip-nano", image={"image_size": 72}),  # not a multiple of 16, so sides are rounded up
        model_config("siclip-nano", image={"widths": (32, 64, 192)}, text={"context_length": 12, "width": 48}),
        model_config("siclip-s0"),
    ],
    ids=lambda config: f"{config.name}-{config.image.image_size}-{config.image.widths[-1]}",
)
def test_feature_bytes_are_those_of_a_real_forward_pass(config: ModelConfig) -> None:
    images = torch.zeros(1, 3, config.image.image_size, config.image.image_size)
    tokens = torch.zeros(1, config.text.context_length, dtype=torch.long)
    with torch.no_grad():
        features = Clip(config).eval().trunk(images, tokens)
    found = sum(part.to(torch.bfloat16).nbytes for part in (features.image, features.text))
    assert feature_bytes(config) == found


def test_a_plan_uses_the_features_of_its_own_model() -> None:
    config = model_config("siclip-nano")
    plan = make_plan(job(trunk_cache=True), model_of(nano()))
    assert plan.storage["trunk features"] == 1_000_000 * feature_bytes(config)
    pixels = 64 * 64 * 3
    assert plan.memory["images and features"] == 16 * (pixels + feature_bytes(config))
    assert plan.memory["frozen trunk at work"] == 16 * trunk_bytes(config)


class LiveBytes(TorchDispatchMode):
    """Inside the block, ``peak`` is the most bytes that tensors created in it held at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.live:
                    self.live[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self.live.pop, storage._cdata, None)
        self.peak = max(self.peak, sum(self.live.values()))
        return result


@pytest.mark.parametrize("name", ["siclip-nano", "siclip-s0"])
def test_working_memory_of_the_trunk_bounds_what_a_real_one_holds(name: str) -> None:
    config = model_config(name)
    tower = Clip(config).eval().requires_grad_(False).image_encoder
    size = config.image.image_size
    pixels = torch.zeros(4, size, size, 3, dtype=torch.uint8)
    fused_trunk(tower, to_float_images(pixels))  # builds the folded copy
    with torch.no_grad(), LiveBytes() as live, torch.autocast("cpu", dtype=torch.bfloat16):
        fused_trunk(tower, to_float_images(pixels))
    assert live.peak / 4 < trunk_bytes(config) < 1.5 * live.peak / 4


def test_counting_does_not_change_the_model() -> None:
    model = model_of(nano())
    before = copy.deepcopy(model.state_dict())
    count_work(nano(), model, "stored")
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two datasets of 300 and 1,500 digit scenes."""
    folders = []
    for scenes in (300, 1500):
        folder = tmp_path_factory.mktemp(f"scenes{scenes}")
        config = DigitScenesConfig(train_scenes=scenes, validation_scenes=1, test_scenes=1, shard_rows=500)
        specs = [spec for spec in shard_specs(config) if spec.split == "train"]
        entries = [write_shard(compose_shard(spec), folder / spec.file_name, 250) for spec in specs]
        write_manifest(folder, Manifest(name="scenes", version="1", recipe={}, splits={"train": entries}))
        folders.append(folder)
    return folders[0], folders[1]


def test_storage_of_a_larger_dataset_is_planned_within_5_percent(datasets: tuple[Path, Path]) -> None:
    small, large = datasets
    rows = measure_rows(small, "train")
    planned = 1500 * (rows.image + rows.captions + rows.other)
    written = sum(path.stat().st_size for path in large.glob("*.parquet"))
    assert planned == pytest.approx(written, rel=0.05)


def test_embedding_bytes_are_those_that_the_method_states() -> None:
    # 10 M samples, K = 10, C = 6, D = 512 in bf16 are 164 GB; the boxes of the crops are extra.
    assert 10_000_000 * (embedding_bytes(10, 6, 512, "bf16") - 10 * 16) == pytest.approx(164e9, rel=0.001)
    assert embedding_bytes(10, 6, 512, "int8") == 16 * 512 + 16 * 4 + 160


def job(**changes: Any) -> Job:
    values: dict[str, Any] = {
        "recipe": nano(),
        "pairs": 1_000_000,
        "epochs": 2,
        "teacher": "stored",
        "rows": RowBytes(image=30_000, captions=100, other=50),
        "disk_bytes": 10**12,
        "card": find_card("rtx-3090"),
        "decode_rate": 1e9,
    }
    return Job(**values | changes)


def test_advice_for_a_disk_that_is_too_small_names_changes_that_fit() -> None:
    too_large = job(disk_bytes=int(31.5 * GB), augmentations=10, captions=2)
    plan = make_plan(too_large, model_of(too_large.recipe))
    assert not plan.fits
    most = next(int(s.split()[0]) for s in plan.advice if "fit" in s and "augmentations" in s)
    smaller = make_plan(
        job(disk_bytes=too_large.disk_bytes, augmentations=most, captions=2), model_of(too_large.recipe)
    )
    assert smaller.fits
    larger = make_plan(
        job(disk_bytes=too_large.disk_bytes, augmentations=most + 1, captions=2), model_of(too_large.recipe)
    )
    assert not larger.fits
    int8 = next(s for s in plan.advice if "int8" in s)
    with_int8 = make_plan(
        job(disk_bytes=too_large.disk_bytes, captions=2, numbers="int8"), model_of(too_large.recipe)
    )
    assert ("not enough" not in int8) == with_int8.fits


def test_advice_for_a_card_that_is_too_small_names_the_largest_micro_batch_that_fits() -> None:
    recipe = nano("none").updated({"training.batch_size": 8192})
    card = find_card("rtx-3070")
    plan = make_plan(job(recipe=recipe, card=card), model_of(recipe))
    assert not plan.fits
    advised = int(next(s for s in plan.advice if "micro_batch_size" in s).split()[1])
    smaller = {"training.micro_batch_size": advised, "training.batch_norm": "eval"}
    larger = smaller | {"training.micro_batch_size": 2 * advised}
    fits = [make_plan(job(recipe=recipe.updated(c), card=card), model_of(recipe)).fits for c in (smaller, larger)]
    assert fits == [True, False]


def test_advice_where_no_micro_batch_fits_is_a_smaller_batch() -> None:
    recipe = nano().updated({"training.batch_size": 16384})
    plan = make_plan(job(recipe=recipe, card=find_card("rtx-3070")), model_of(recipe))
    assert not plan.fits and plan.memory["similarities"] > CARDS["rtx-3070"].memory_bytes
    assert any("no micro-batch of 16,384 fits" in sentence for sentence in plan.advice)


def test_the_slowest_limit_is_the_speed_and_gives_the_hours() -> None:
    measured = Calibration("a machine", seconds_fixed=0.1, seconds_each=0.01, spread=0.0, batches=(8, 16))
    plan = make_plan(job(card=None, measured=measured, decode_rate=1e6), model_of(nano()))
    rate = 16 / (0.1 + 0.01 * 16)
    assert plan.hours == (pytest.approx(2_000_000 / rate / 3600),) * 2
    assert plan.speed.bottleneck == "measured steps"
    slow = make_plan(job(card=None, measured=measured, decode_rate=5.0), model_of(nano()))
    assert slow.speed.bottleneck == "data"
    assert slow.hours[0] == pytest.approx(2_000_000 / 5 / 3600)
    assert any("decoding limits" in sentence for sentence in slow.advice)
    two = make_plan(job(cards=2), model_of(nano()))
    one = make_plan(job(), model_of(nano()))
    assert two.speed.most == pytest.approx(2 * one.speed.most)
    assert one.kilowatt_hours is not None
    assert one.kilowatt_hours[0] == pytest.approx(one.hours[0] * 0.35)


def test_calibration_fits_the_line_that_the_steps_are_on(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_the_reference_job_is_the_default_and_json_has_every_part() -> None:
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
    ("arguments", "message"),
    [
        (["--card", "gtx-1"], "no card 'gtx-1'"),
        (["--disk", "much"], "not a size"),
        (["--sample", "nowhere"], "does not exist"),
        (["--recipe", "nowhere.yaml"], "does not exist"),
    ],
)
def test_bad_input_is_refused(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["plan", *arguments])
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)


def test_the_exit_code_is_1_if_the_job_does_not_fit() -> None:
    result = CliRunner().invoke(app, ["plan", "--disk", "100GB"])
    assert result.exit_code == 1
    assert "It does not fit." in result.output
    assert "GB short" in result.output
