"""The planner compared with real models and files, and its advice compared with new plans."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import open_clip
import pytest
import torch
from open_clip.coca_model import CoCa
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from siclip.captioning.decoder import CachedDecoders
from siclip.config import LossConfig, ModelConfig, TrainingConfig
from siclip.data.batch import to_float_images
from siclip.diagnostics.memory import LiveStorages, StepMemory
from siclip.errors import UserError
from siclip.models.clip import Clip
from siclip.models.fused_trunk import fused_trunk
from siclip.models.registry import list_models, model_config
from siclip.training import step
from siclip_platform.cli import app
from siclip_platform.datasets.derived.captions.config import COCA
from siclip_platform.datasets.digits.composition import DigitScenesConfig, compose_shard, shard_specs
from siclip_platform.datasets.manifest import Manifest, write_manifest, write_shard
from siclip_platform.plan import Job, calibration, make_plan
from siclip_platform.plan.calibration import calibrate, calibration_trainer, random_batch
from siclip_platform.plan.cards import CARDS, find_card
from siclip_platform.plan.counted import COUNTED
from siclip_platform.plan.counting import count_model
from siclip_platform.plan.exact import exact_memory
from siclip_platform.plan.measured import Calibration
from siclip_platform.plan.pipeline import (
    CAPTION_FLOPS,
    CAPTION_TOKENS,
    CAPTIONER_PARAMETERS,
    TOKEN_FLOPS,
    make_pipeline,
)
from siclip_platform.plan.reference import AVAILABLE_PAIRS, RECIPE
from siclip_platform.plan.storage import GB, RowBytes, embedding_bytes, measure_rows
from siclip_platform.plan.work import (
    FRAMEWORK_BYTES,
    TRUNK_CHUNK,
    count_work,
    feature_bytes,
    model_work,
    trunk_bytes,
)
from siclip_platform.recipes.load import load_recipe
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
    counted = COUNTED["siclip-nano"]
    # The rest, which is little: the products of attention, and layers that are called without their module.
    assert 2 * dense_multiply_adds(model) == pytest.approx(counted.trunk_flops + counted.head_flops, rel=0.2)


def recount(name: str) -> None:
    assert count_model(model_config(name)) == COUNTED[name], "put the count on the left into plan/counted.py"


def test_the_stored_count_of_a_small_model_is_that_of_the_model() -> None:
    recount("siclip-nano")


@pytest.mark.slow
def test_the_stored_count_of_the_papers_model_is_that_of_the_model() -> None:
    recount("siclip-s0")


@pytest.mark.long
@pytest.mark.parametrize("name", list_models())
def test_every_model_has_its_count(name: str) -> None:
    recount(name)


def test_a_model_with_other_options_is_counted() -> None:
    image = {"image_size": 32, "widths": (8, 16, 32), "layers": (1, 1, 1), "sharing": "none"}
    config = model_config("siclip-nano", image=image, text={"layers": 1, "sharing": "none"})
    found = model_work(config)
    assert found.parameters == sum(p.numel() for p in Clip(config).parameters()) != COUNTED["siclip-nano"].parameters


def test_operations_of_a_step_depend_on_what_trains_and_on_the_teacher() -> None:
    student, teacher = COUNTED["siclip-nano"], COUNTED["mobileclip-nano"]
    trunk, head, teacher_head = student.trunk_flops, student.head_flops, teacher.head_flops
    assert min(trunk, head, teacher_head) > 0

    def counted(freeze: str, source: Any, **training: Any) -> float:
        return count_work(nano(freeze, **training), source).flops

    assert counted("none", "none") == pytest.approx(3 * (trunk + head))
    assert counted("none", "online") == pytest.approx(3 * (trunk + head) + trunk + teacher_head, rel=1e-3)
    assert counted("inherited", "stored") == pytest.approx(trunk + 3 * head)
    assert counted("inherited", "shared trunk") == pytest.approx(trunk + 3 * head + teacher_head)
    # One of ten steps is frozen, nine train everything and run the teacher as a whole.
    thawed = counted("inherited", "shared trunk", thaw_step=1)
    whole = counted("none", "online")
    assert thawed == pytest.approx(0.1 * counted("inherited", "shared trunk") + 0.9 * whole)
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
    assert count_work(recipe, "stored").fixed_bytes == pytest.approx(held, rel=0.01)


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
    plan = make_plan(job(trunk_cache=True))
    assert plan.storage["trunk features"] == 1_000_000 * feature_bytes(config)
    pixels = 64 * 64 * 3
    assert plan.memory["images and features"] == 16 * (pixels + feature_bytes(config))
    assert plan.memory["activations kept"] == 16 * COUNTED["siclip-nano"].frozen["inherited"].activation_bytes
    caching = nano(micro_batch_size=1, batch_norm="eval")
    # The trunk has ended before the activations of one pair are kept.
    assert make_plan(job(recipe=caching)).memory["frozen trunk at work"] == 16 * trunk_bytes(config)


@pytest.mark.parametrize("name", ["siclip-nano", "siclip-s0"])
def test_working_memory_of_the_trunk_bounds_what_a_real_one_holds(name: str) -> None:
    config = model_config(name)
    tower = Clip(config).eval().requires_grad_(False).image_encoder
    size = config.image.image_size
    pixels = torch.zeros(4, size, size, 3, dtype=torch.uint8)
    fused_trunk(tower, to_float_images(pixels))  # builds the folded copy
    with torch.no_grad(), LiveStorages() as live, torch.autocast("cpu", dtype=torch.bfloat16):
        fused_trunk(tower, to_float_images(pixels))
    assert live.peak / 4 < trunk_bytes(config) < 1.5 * live.peak / 4


def test_the_chunk_of_the_trunk_is_that_of_a_step() -> None:
    assert TRUNK_CHUNK == step.TRUNK_CHUNK


def planned_and_exact(recipe: Recipe) -> tuple[float, StepMemory]:
    """The bytes that the plan's constants give, without the framework's, and those of a counted step."""
    planned = dict(make_plan(job(recipe=recipe, teacher="shared trunk")).memory)
    framework = planned.pop("framework")
    assert framework == FRAMEWORK_BYTES
    return sum(planned.values()), exact_memory(job(recipe=recipe, teacher="shared trunk"))


@pytest.mark.long
@pytest.mark.parametrize(("batch", "micro"), [(1536, 0), (1536, 192), (8192, 256)])
def test_the_constants_give_the_memory_of_the_papers_step(batch: int, micro: int) -> None:
    size = {"training.batch_size": batch, "training.micro_batch_size": micro, "training.batch_norm": "eval"}
    training = load_recipe(RECIPE).training.model_copy(update={"steps": 10, "epochs": 0})
    recipe = load_recipe(RECIPE).model_copy(update={"training": training}).updated(size)
    planned, exact = planned_and_exact(recipe)
    assert planned == pytest.approx(exact.peak_bytes, rel=0.07)
    assert exact.peak_bytes < 24 * 2**30


def test_exact_counts_one_card() -> None:
    with pytest.raises(UserError, match="--exact counts a step on one card, this job has 2"):
        exact_memory(job(cards=2))


def test_exact_names_its_peak_and_the_constants_give_the_same(tmp_path: Path) -> None:
    recipe = nano().updated({"training.batch_size": 512, "training.precision": "bf16"})
    file = tmp_path / "recipe.json"
    file.write_text(recipe.model_dump_json())
    command = ["plan", "--json", "--pairs", "10000", "--recipe", str(file)]
    planned, exact = (json.loads(CliRunner().invoke(app, [*command, *more]).stdout) for more in ([], ["--exact"]))
    assert planned["memory_peak_operation"] is None
    assert exact["memory_peak_operation"].startswith("aten.")
    counted = exact["memory_total_bytes"] - FRAMEWORK_BYTES
    assert planned["memory_total_bytes"] - FRAMEWORK_BYTES == pytest.approx(counted, rel=0.1)


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
        "cores": 1,
        "core_rate": 1e9,
    }
    return Job(**values | changes)


def test_advice_for_a_disk_that_is_too_small_names_changes_that_fit() -> None:
    too_large = job(disk_bytes=int(31.5 * GB), augmentations=10, captions=2)
    plan = make_plan(too_large)
    assert not plan.fits
    most = next(int(s.split()[0]) for s in plan.advice if "fit" in s and "augmentations" in s)
    smaller = make_plan(job(disk_bytes=too_large.disk_bytes, augmentations=most, captions=2))
    assert smaller.fits
    larger = make_plan(job(disk_bytes=too_large.disk_bytes, augmentations=most + 1, captions=2))
    assert not larger.fits
    int8 = next(s for s in plan.advice if "int8" in s)
    with_int8 = make_plan(job(disk_bytes=too_large.disk_bytes, captions=2, numbers="int8"))
    assert ("not enough" not in int8) == with_int8.fits


def test_advice_for_a_card_that_is_too_small_names_the_largest_micro_batch_that_fits() -> None:
    recipe = nano("none").updated({"training.batch_size": 8192})
    card = find_card("rtx-3070")
    plan = make_plan(job(recipe=recipe, card=card))
    assert not plan.fits
    advised = int(next(s for s in plan.advice if "micro_batch_size" in s).split()[1])
    smaller = {"training.micro_batch_size": advised, "training.batch_norm": "eval"}
    larger = smaller | {"training.micro_batch_size": 2 * advised}
    fits = [make_plan(job(recipe=recipe.updated(c), card=card)).fits for c in (smaller, larger)]
    assert fits == [True, False]


def test_advice_where_no_micro_batch_fits_is_a_smaller_batch() -> None:
    recipe = nano().updated({"training.batch_size": 16384})
    plan = make_plan(job(recipe=recipe, card=find_card("rtx-3070")))
    assert not plan.fits and plan.memory["similarities"] > CARDS["rtx-3070"].memory_bytes
    assert any("no micro-batch of 16,384 fits" in sentence for sentence in plan.advice)


def test_the_slowest_limit_is_the_speed_and_gives_the_hours() -> None:
    measured = Calibration("a machine", seconds_fixed=0.1, seconds_each=0.01, spread=0.0, batches=(8, 16))
    plan = make_plan(job(card=None, measured=measured, core_rate=1e6))
    rate = 16 / (0.1 + 0.01 * 16)
    assert plan.hours == (pytest.approx(2_000_000 / rate / 3600),) * 2
    assert plan.speed.bottleneck == "measured steps"
    slow = make_plan(job(card=None, measured=measured, core_rate=5.0))
    assert slow.speed.bottleneck == "data"
    assert slow.hours[0] == pytest.approx(2_000_000 / 5 / 3600)
    assert any("decoding limits" in sentence for sentence in slow.advice)
    two = make_plan(job(cards=2))
    one = make_plan(job())
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
    # 32 · 7,740,121 / 1536, rounded up
    assert (found["pairs"], found["epochs"], found["steps"]) == (AVAILABLE_PAIRS, 32, 161_253)
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


def test_the_pairs_are_those_of_the_dataset_that_is_here(datasets: tuple[Path, Path], tmp_path: Path) -> None:
    recipe = tmp_path / "my recipe.yaml"
    recipe.write_text(f"extends: siclip-s0-cc12m-syn\ndata: {{path: {datasets[0]}}}\ntraining: {{epochs: 64}}\n")

    def planned(*options: str) -> tuple[int, float, int]:
        found = json.loads(CliRunner().invoke(app, ["plan", "--json", "--recipe", str(recipe), *options]).stdout)
        return found["pairs"], found["epochs"], found["steps"]

    assert planned() == (300, 64, 13)  # 300 · 64 / 1536 = 12.5
    assert planned("--pairs", "9000", "--epochs", "100") == (9000, 100, 586)
    recipe.write_text(f"{recipe.read_text()}  \n".replace("path:", "limit: 150, path:"))
    assert planned() == (300, 32, 7)  # 150 · 64 / 1536 = 6.25
    recipe.write_text(f"extends: siclip-nano\ndata: {{path: {datasets[0]}}}\n")
    pairs, epochs, steps = planned()
    assert (pairs, steps) == (300, 500) and epochs == pytest.approx(500 * 128 / 300)
    shown = CliRunner().invoke(app, ["plan", "--recipe", str(recipe)]).output
    assert f"Pairs: the split train of {datasets[0]}." in " ".join(shown.split())


@pytest.mark.parametrize("mode", [[], ["--pipeline"]])
def test_a_plan_that_fits_names_the_next_command(tmp_path: Path, mode: list[str]) -> None:
    own = tmp_path / "my recipe.yaml"
    own.write_text("extends: siclip-s0-cc12m-syn\n")
    following = {
        "siclip-s0-wikd": "recipe init siclip-s0-wikd my.yaml",
        str(own): f"rehearse '{own}' SHARDS",
    }
    for recipe, command in following.items():
        shown = CliRunner().invoke(app, ["plan", "--recipe", recipe, *mode]).output
        assert shown.splitlines()[-1] == f"next: siclip-platform {command}"
    assert "next:" not in CliRunner().invoke(app, ["plan", "--recipe", str(own), "--disk", "1GB", *mode]).output


def test_plan_answers_without_torch_and_alike_on_every_machine() -> None:
    """In a process of its own: torch alone would take longer than the plan may."""
    code = (
        "import os, sys; os.cpu_count = lambda: int(sys.argv[1])\n"
        "from siclip_platform.cli import app\n"
        "try: app(['plan', '--pipeline', '--json'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code, cores], capture_output=True, text=True, check=True).stdout
        for cores in ("2", "64")
    ]
    assert runs[0] == runs[1]
    assert json.loads(runs[0])["pipeline"]["fits"]


def test_a_pipeline_has_the_stages_that_the_job_needs() -> None:
    def names(captions: int, trials: int, **changes: Any) -> list[str]:
        stages = make_pipeline(make_plan(job(**changes)), captions=captions, trials=trials, trial_share=0.1)
        return [stage.name for stage in stages.stages]

    assert names(0, 0, teacher="none") == ["import", "training", "evaluation"]
    assert names(3, 4) == ["import", "captioning", "embedding", "search of 4 trials", "training", "evaluation"]
    assert "trunk cache" in names(0, 0, trunk_cache=True)


def test_a_pipeline_sums_hours_and_takes_the_largest_disk() -> None:
    plan = make_plan(job(disk_bytes=50 * GB))
    found = make_pipeline(plan, captions=0, trials=10, trial_share=0.1)
    by_name = {stage.name: stage for stage in found.stages}
    assert by_name["search of 10 trials"].hours == pytest.approx(plan.hours)
    assert found.hours[1] == pytest.approx(sum(stage.hours[1] for stage in found.stages))
    # The source shards lie beside the dataset: 2 · 10**6 · (30,000 + 100 + 50) bytes.
    assert by_name["import"].disk_bytes == pytest.approx(2e6 * 30_150)
    assert plan.fits and not found.fits
    assert "source shards" in found.advice[0]
    # Ten crops, at 25 to 50 % of the card's peak.
    flops = 10 * sum((COUNTED["mobileclip-nano"].trunk_flops, COUNTED["mobileclip-nano"].head_flops))
    seconds = 10**6 * flops / find_card("rtx-3090").flops
    assert by_name["embedding"].hours == pytest.approx((seconds / 0.5 / 3600, seconds / 0.25 / 3600))


def test_the_captioner_is_counted_on_open_clips_model() -> None:
    """coca_ViT-L-14 on the meta device, and what the decoders that are used here compute for it."""
    settings = open_clip.get_model_config(COCA)
    assert settings is not None
    settings.pop("custom_text")
    per_image, position = 3, CAPTION_TOKENS // 2
    with torch.device("meta"), torch.no_grad():
        coca = CoCa(**settings).eval()
        with FlopCounterMode(display=False) as per_picture:
            image = coca(torch.empty(1, 3, 224, 224))["image_embs"]
            decoders = CachedDecoders(coca, 1, per_image, CAPTION_TOKENS, torch.float32)
            decoders.admit(image, torch.zeros(1, dtype=torch.long))
        rows = torch.zeros(per_image, dtype=torch.long)
        with FlopCounterMode(display=False) as per_step:
            decoders.step(rows, rows, rows, rows.bool(), position, 1)
    assert sum(parameter.numel() for parameter in coca.parameters()) == CAPTIONER_PARAMETERS
    assert per_picture.get_total_flops() == pytest.approx(CAPTION_FLOPS, rel=1e-3)
    assert per_step.get_total_flops() / per_image == pytest.approx(TOKEN_FLOPS, rel=1e-3)


def test_the_exit_code_is_1_if_the_job_does_not_fit() -> None:
    result = CliRunner().invoke(app, ["plan", "--disk", "100GB"])
    assert result.exit_code == 1
    assert "It does not fit:" in result.output
    assert "GB short" in result.output
