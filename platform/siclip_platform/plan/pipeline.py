"""Every stage from the source shards to the evaluation: hours, memory of a card, disk at its peak, energy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from siclip_platform.plan.plan import CHECKPOINTS, EFFICIENCY, Plan
from siclip_platform.plan.work import FP32_BYTES, FRAMEWORK_BYTES

CAPTION_FLOPS = 170.86e9
"""Operations of CoCa ViT-L/14 per image: 163.64 G of its image tower with its pooler, 7.22 G for the keys and values
of the image in all layers. Counted by torch on the model of open_clip, as a test does again; so are the two below."""
TOKEN_FLOPS = 567e6
"""Of its two decoders per generated token; the few for attention to earlier tokens are those of ten."""
CAPTION_TOKENS = 20
"""Of a generated caption. An assumption."""
CAPTIONER_PARAMETERS = 638_450_177
"""Of CoCa ViT-L/14, in fp32 at most."""
WORKING_BYTES = 2 * 2**30
"""What a forward pass without a graph holds for the default batches of captioning and embedding. An assumption."""
IMPORT_SHARE = 0.5
"""Speed of an import as a share of decoding: it decodes each image once and may encode it again. An assumption."""
EVALUATION_PAIRS = 56_000
"""Images of ImageNet-1k's validation, COCO's and Flickr30k's test sets: 50,000 + 5,000 + 1,000."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of the pipeline.

    Attributes:
        name: of the stage.
        hours: at least and at most.
        memory_bytes: of one card; 0: it uses none.
        disk_bytes: everything that is on disk when the stage ends, its source included.
        kilowatt_hours: of the cards, at least and at most.
    """

    name: str
    hours: tuple[float, float]
    memory_bytes: float
    disk_bytes: float
    kilowatt_hours: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """The stages of a job in order.

    Attributes:
        plan: of its training.
        stages: in order.
    """

    plan: Plan
    stages: tuple[Stage, ...]

    @property
    def hours(self) -> tuple[float, float]:
        return _sum(stage.hours for stage in self.stages)

    @property
    def kilowatt_hours(self) -> tuple[float, float]:
        return _sum(stage.kilowatt_hours for stage in self.stages)

    @property
    def disk_bytes(self) -> float:
        return max(stage.disk_bytes for stage in self.stages)

    @property
    def memory_bytes(self) -> float:
        return max(stage.memory_bytes for stage in self.stages)

    @property
    def fits(self) -> bool:
        """Whether every stage fits on the card and on the disk."""
        card, disk = self.plan.job.card, self.plan.job.disk_bytes
        return self.disk_bytes <= disk and (card is None or self.memory_bytes <= card.memory_bytes)

    @property
    def advice(self) -> tuple[str, ...]:
        """What to change, the most urgent first."""
        found = list(self.plan.advice)
        job = self.plan.job
        for stage in self.stages:
            if stage.disk_bytes > job.disk_bytes and self.plan.storage_bytes <= job.disk_bytes:
                found.insert(
                    0,
                    f"{stage.name}: {(stage.disk_bytes - job.disk_bytes) / 1e9:,.0f} GB too much while the source "
                    "shards and the dataset are on the disk together; import from another disk or from a URI",
                )
            if job.card and stage.memory_bytes > job.card.memory_bytes and stage.name != "training":
                found.append(f"{stage.name} does not fit on {job.card.name}: use a smaller model for it")
        return tuple(found)


def make_pipeline(plan: Plan, *, captions: int, trials: int, trial_share: float) -> Pipeline:
    """Plan every stage around a training.

    Args:
        plan: of the training.
        captions: synthetic captions that are generated per image; 0: none.
        trials: of a search before the training; 0: none.
        trial_share: steps of a trial as a share of the training's; trials that are stopped early need less.
    """
    return Pipeline(plan=plan, stages=tuple(_stages(plan, captions, trials, trial_share)))


def _stages(plan: Plan, captions: int, trials: int, trial_share: float) -> Iterator[Stage]:
    job, work = plan.job, plan.work
    parts = dict(plan.storage)
    records = parts["records"]
    own = job.pairs * job.rows.captions / (1 + captions)
    dataset = parts["images"] + own + parts["rows and index"]
    # img2dataset's shards hold the same images and captions.
    import_hours = job.pairs / (job.decode_rate * IMPORT_SHARE) / 3600
    yield Stage(
        name="import",
        hours=(import_hours, import_hours),
        memory_bytes=0.0,
        disk_bytes=2 * dataset,
        kilowatt_hours=(0.0, 0.0),
    )
    disk = dataset
    if captions:
        disk = dataset + parts["captions"] - own
        flops = CAPTION_FLOPS + captions * CAPTION_TOKENS * TOKEN_FLOPS
        yield _computed(plan, "captioning", job.pairs, flops, CAPTIONER_PARAMETERS * FP32_BYTES, disk)
    if job.teacher == "stored":
        disk += parts["teacher embeddings"]
        # At most: a text takes less than an image.
        flops = max(job.augmentations, job.captions) * work.teacher_flops
        yield _computed(plan, "embedding", job.pairs, flops, work.fixed_bytes, disk)
    if job.trunk_cache:
        disk += parts["trunk features"]
        yield _computed(plan, "trunk cache", job.pairs, work.trunk_flops, work.fixed_bytes, disk)
    share = trials * trial_share
    if trials:
        yield Stage(
            name=f"search of {trials} trials",
            hours=_scaled(plan.hours, share),
            memory_bytes=plan.memory_bytes,
            disk_bytes=disk + trials * parts["checkpoints"] / CHECKPOINTS + records,
            kilowatt_hours=_scaled(plan.kilowatt_hours or (0.0, 0.0), share),
        )
    disk += parts["checkpoints"] + records
    yield Stage(
        name="training",
        hours=plan.hours,
        memory_bytes=plan.memory_bytes,
        disk_bytes=disk,
        kilowatt_hours=plan.kilowatt_hours or (0.0, 0.0),
    )
    disk += EVALUATION_PAIRS * job.rows.image
    yield _computed(plan, "evaluation", EVALUATION_PAIRS, work.forward_flops, work.fixed_bytes, disk)


def _computed(plan: Plan, name: str, pairs: int, flops: float, weights: float, disk: float) -> Stage:
    """A stage of forward passes, as fast as the card or the decoding allows."""
    job = plan.job
    rates = [job.decode_rate, job.decode_rate]
    if job.card is not None:
        peak = job.cards * job.card.flops / flops
        rates = [min(job.decode_rate, peak * share) for share in EFFICIENCY]
    elif job.measured is not None:
        # The machine's own speed, from the operations of the steps that were timed.
        batch = job.recipe.training.batch_size
        speed = plan.work.flops * batch / job.measured.step_seconds(batch)
        rates = [min(job.decode_rate, speed / flops)] * 2
    least, most = rates
    hours = (pairs / most / 3600, pairs / least / 3600)
    watts = job.cards * job.card.watts if job.card else 0.0
    return Stage(
        name=name,
        hours=hours,
        memory_bytes=weights + WORKING_BYTES + FRAMEWORK_BYTES,
        disk_bytes=disk,
        kilowatt_hours=_scaled(hours, watts / 1000),
    )


def _scaled(pair: tuple[float, float], factor: float) -> tuple[float, float]:
    return pair[0] * factor, pair[1] * factor


def _sum(pairs: Iterator[tuple[float, float]]) -> tuple[float, float]:
    values = list(pairs)
    return sum(low for low, _ in values), sum(high for _, high in values)
