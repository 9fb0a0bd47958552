"""Two workers with half of each batch equal one process with the whole batch.

The workers run this file as a script, so that they need no importable module.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import siclip
from siclip.config import LossConfig, TrainingConfig
from siclip.data.batch import Batch, Negatives, to_float_images
from siclip.errors import UserError
from siclip.losses import Embeddings, GeneratedTexts, Objective, PairIds
from siclip.models import Clip, create_model, model_config
from siclip.teachers import ModelTeacher
from siclip.training.saving import NOTICE_SECONDS, Saving
from siclip.training.setup import make_trainer
from siclip.training.step import Step
from siclip.training.trainer import Trainer

WORKERS, SIZE, STEPS = 2, 16, 3
EVERYTHING = LossConfig(pair_matching=0.5, pair_head="mlp", negatives="sampled", false_negative_similarity=1.0)
GENERATED = EVERYTHING.model_copy(
    update={"generated_columns": "batch", "generated_hinge": 0.5, "generated_share": 0.5, "teacher_mask": "on"}
)
State = dict[str, Tensor]

pytestmark = pytest.mark.slow


def batch(index: int) -> Batch:
    """A batch whose captions occur in the halves of both workers."""
    generator = torch.Generator().manual_seed(index)
    tokens = torch.randint(1, 400, (SIZE, 20), generator=generator)
    images = torch.randint(0, 256, (SIZE, 64, 64, 3), generator=generator, dtype=torch.uint8)
    ids = torch.arange(SIZE)
    return Batch(images, tokens, ids, ids % 6)


def part(whole: Batch, rank: int) -> Batch:
    size = SIZE // WORKERS
    return whole[slice(rank * size, (rank + 1) * size)]


def with_negatives(whole: Batch) -> Batch:
    """Two false captions of each sample, of which every third has one only."""
    tokens = torch.randint(1, 400, (SIZE, 2, 20), generator=torch.Generator().manual_seed(6))
    kinds = torch.arange(SIZE * 2).view(SIZE, 2) % 8
    kinds[::3, 1] = -1
    return replace(whole, negatives=Negatives(tokens, 1000 + kinds, kinds))


def models(loss: LossConfig = EVERYTHING) -> tuple[Clip, Clip, Objective]:
    """Student in eval mode with attention that is not uniform, teacher and objective."""
    torch.manual_seed(3)
    teacher, student = create_model("mobileclip-nano").eval(), create_model("siclip-nano")
    siclip.inherit(student, teacher)
    for name, parameter in student.named_parameters():
        if name.endswith("query.weight"):
            nn.init.normal_(parameter, std=0.2)
    return student.eval(), teacher, Objective(loss, 128, (128, 128))


def gradients(*modules: nn.Module) -> State:
    return {
        f"{i}.{name}": p.grad.clone()
        for i, module in enumerate(modules)
        for name, p in module.named_parameters()
        if p.grad is not None
    }


def of_one_forward_pass(data: Batch) -> State:
    """The plain computation, without `Step`: everything in one graph."""
    student, teacher, objective = models(EVERYTHING if data.negatives is None else GENERATED)
    assert data.images is not None
    images = to_float_images(data.images)
    image, text = student(images, data.tokens)
    with torch.no_grad():
        theirs = teacher(images, data.tokens)
    target = Embeddings(image=theirs[0], text=theirs[1], logit_scale=teacher.scale().detach())
    own = Embeddings(image=image, text=text, logit_scale=student.scale())
    ids = PairIds(data.image_ids, data.caption_ids)
    false = None
    if data.negatives is not None:
        encoded = student.encode_text(data.negatives.tokens.flatten(0, 1), normalize=True)
        false = GeneratedTexts(encoded.view(len(data), 2, -1), data.negatives.ids, data.negatives.kinds)
    loss = objective(own, target, ids, torch.Generator().manual_seed(9), generated=false)["loss"]
    loss.backward()
    return gradients(student, objective) | {"loss": loss.detach()}


def of_a_step(data: Batch, micro_batch_size: int) -> State:
    student, teacher, objective = models(EVERYTHING if data.negatives is None else GENERATED)
    step = Step(student, objective, ModelTeacher(teacher, student), micro_batch_size)
    loss = step.gradients(data, torch.Generator().manual_seed(9))["loss"].detach()
    return gradients(student, objective) | {"loss": loss}


def trainer(**changes: object) -> Trainer:
    """A trainer with fresh BatchNorms in the image blocks, whose statistics come from the first batch."""
    values = {"steps": STEPS, "batch_size": SIZE, "warmup_steps": 1, "precision": "fp32", "threads": 1}
    training = TrainingConfig.model_validate(values | {"batch_norm": "eval", "ema_decay": 0.5} | changes)
    torch.manual_seed(7)
    teacher = create_model("mobileclip-nano")
    options = {"teacher": teacher, "inherit_weights": True, "device": torch.device("cpu")}
    return make_trainer(model_config("siclip-nano"), EVERYTHING, training, **options)


def of_training(rank: int | None) -> State:
    """Weights, statistics and metrics after some steps; without a rank those of a single process."""
    run = trainer()
    metrics = {}
    for index in range(STEPS):
        whole = batch(index)
        metrics = run.train_step(whole if rank is None else part(whole, rank))
    numbers = {name: torch.as_tensor(metrics[name]) for name in ("loss", "gradient_norm", "pair_dropped")}
    average = {f"average.{name}": value for name, value in run.result.state_dict().items()}
    return dict(run.model.state_dict()) | average | numbers


class OnlyOnTheFirst(nn.Module):
    """A block with two scales: one that only the first worker uses, and an unused one."""

    def __init__(self, block: nn.Module, rank: int) -> None:
        super().__init__()
        self.block, self.rank = block, rank
        self.first, self.nobody = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, *rest: Tensor) -> Tensor:
        out: Tensor = self.block(x, *rest)
        return out * self.first if self.rank == 0 else out


def of_a_part_that_one_worker_uses(rank: int) -> State:
    student, teacher, objective = models()
    student.text_encoder.transformer[1] = OnlyOnTheFirst(student.text_encoder.transformer[1], rank)
    step = Step(student, objective, ModelTeacher(teacher, student))
    step.gradients(part(batch(0), rank), torch.Generator().manual_seed(9))
    return gradients(student, objective)


def refusal() -> str:
    try:
        trainer(batch_norm="train")
    except UserError as error:
        return str(error)
    return ""


def of_saving(rank: int) -> list[list[int]]:
    """The steps after which a worker saves, and those after which it asks for a notice; clocks differ."""
    step, asked, due = 0, list[int](), list[int]()
    training = TrainingConfig(steps=20, warmup_steps=1)
    saving = Saving(training, torch.device("cpu"), 0.0, notice=lambda: bool(asked.append(step)))
    for step in range(1, 13):
        if step == 5 and rank == 0:
            saving.asked_at -= 2 * NOTICE_SECONDS
        if saving.due(step, step * (250.0 if rank == 0 else 1000.0)):
            due.append(step)
    return [due, asked]


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    limit = timedelta(seconds=60)
    dist.init_process_group("gloo", f"file://{folder}/store", timeout=limit, rank=rank, world_size=WORKERS)
    found = {str(micro): of_a_step(part(batch(0), rank), micro) for micro in (0, 4)}
    found["generated"] = of_a_step(part(with_negatives(batch(0)), rank), 4)
    found["one"] = of_a_part_that_one_worker_uses(rank)
    plain = {"refusal": refusal(), "saving": of_saving(rank)}
    torch.save(found | {"training": of_training(rank)} | plain, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, State]]:
    """The results of each rank."""
    folder = tmp_path_factory.mktemp("workers")
    commands = [[sys.executable, __file__, str(rank), str(folder)] for rank in range(WORKERS)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=180)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORKERS)]


def test_the_first_workers_clock_decides_when_all_save_and_ask(found: list[dict[str, State]]) -> None:
    assert [rank["saving"] for rank in found] == [[[3, 6, 9, 12], [5]]] * WORKERS


def movement(state: State) -> State:
    """The change of the weights by training, including the average's."""
    start = dict(trainer().model.named_parameters(remove_duplicate=False))
    names = {name: name.removeprefix("average.") for name in state}
    return {name: state[name] - start[weight].detach() for name, weight in names.items() if weight in start}


def relative_distance(ours: State, theirs: State) -> float:
    """The relative distance of all tensors as one vector."""
    assert ours.keys() == theirs.keys()
    vectors = [torch.cat([state[name].double().flatten() for name in theirs]) for state in (ours, theirs)]
    return float((vectors[0] - vectors[1]).norm() / vectors[1].norm())


@pytest.mark.parametrize("micro_batch_size", ["0", "4", "generated"])
def test_every_worker_has_the_gradients_of_the_joined_batch(
    found: list[dict[str, State]], micro_batch_size: str
) -> None:
    whole = batch(0)
    expected = of_one_forward_pass(with_negatives(whole) if micro_batch_size == "generated" else whole)
    loss = expected.pop("loss")
    for rank in range(WORKERS):
        ours = found[rank][micro_batch_size]
        torch.testing.assert_close(ours.pop("loss"), loss, rtol=1e-5, atol=0)
        assert relative_distance(ours, expected) < 1e-5
        # Each tensor separately, so that those with small gradients are checked too.
        for name, value in ours.items():
            assert (value - expected[name]).norm() < 1e-4 * expected[name].norm() + 1e-6, name


def test_one_worker_alone_has_different_gradients() -> None:
    """Shows that the tests above can fail: half of the batch has other negatives."""
    expected = of_one_forward_pass(batch(0))
    assert relative_distance(of_one_forward_pass(part(batch(0), 0)), expected) > 0.05


def test_workers_stay_equal_and_train_like_one_process(found: list[dict[str, State]]) -> None:
    first, second = (found[rank]["training"] for rank in range(WORKERS))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    expected = of_training(None)
    for name in ("loss", "gradient_norm", "pair_dropped"):
        torch.testing.assert_close(first.pop(name), expected.pop(name), rtol=1e-4, atol=0)
    assert relative_distance(movement(first), movement(expected)) < 1e-3
    statistics = [name for name in expected if "running" in name]
    assert statistics
    for name in statistics:
        torch.testing.assert_close(first[name], expected[name], rtol=1e-5, atol=1e-5)


def test_a_parameter_without_a_gradient_on_one_worker_gets_the_others_and_without_any_none(
    found: list[dict[str, State]],
) -> None:
    """Compared with a plain backward pass of the first half of the batch."""
    student, teacher, objective = models()
    scales = torch.ones(SIZE, 1, 1, requires_grad=True)
    student.text_encoder.transformer[1].register_forward_hook(lambda block, inputs, out: out * scales)
    data = batch(0)
    assert data.images is not None
    images = to_float_images(data.images)
    image, text = student(images, data.tokens)
    with torch.no_grad():
        theirs = teacher(images, data.tokens)
    target = Embeddings(image=theirs[0], text=theirs[1], logit_scale=teacher.scale().detach())
    own = Embeddings(image=image, text=text, logit_scale=student.scale())
    ids = PairIds(data.image_ids, data.caption_ids)
    objective(own, target, ids, torch.Generator().manual_seed(9))["loss"].backward()
    assert scales.grad is not None
    expected = scales.grad[: SIZE // WORKERS].sum()
    for rank in range(WORKERS):
        names = {name.rpartition(".")[2]: value for name, value in found[rank]["one"].items()}
        torch.testing.assert_close(names["first"], expected, rtol=1e-4, atol=1e-6)
        assert "nobody" not in names


def test_workers_with_batch_norms_in_train_mode_are_refused(found: list[dict[str, State]]) -> None:
    for rank in range(WORKERS):
        assert str(found[rank]["refusal"]).startswith("2 workers: ")
        assert "Set training.batch_norm=eval, or training.inexact_batch_norm=true" in str(found[rank]["refusal"])


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
