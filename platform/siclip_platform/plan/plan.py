"""The plan of a job: storage, memory, speed, hours, energy, the bottleneck, and what to change."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from siclip.config import TrainingConfig
from siclip_platform.plan.advice import advice
from siclip_platform.plan.job import Job
from siclip_platform.plan.saving import unsaved
from siclip_platform.plan.storage import embedding_bytes, storage
from siclip_platform.plan.work import FRAMEWORK_BYTES, Work, count_work

EFFICIENCY = (0.25, 0.5)
"""The share of a card's peak that a training step reaches, at least and at most.

An assumption, not a measurement; a `Calibration` on the machine itself replaces it.
"""
CHECKPOINTS = 3  # an assumption: how many a training has on disk at a time


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Pairs per second and their limits.

    Attributes:
        least: lower bound; equal to ``most`` if the speed is measured.
        most: upper bound.
        limits: limit → (least, most) pairs per second.
        bottleneck: the limit with the smallest lower bound.
    """

    least: float
    most: float
    limits: Mapping[str, tuple[float, float]]
    bottleneck: str

    def hours(self, pairs: float) -> tuple[float, float]:
        """Least and most hours for this number of pairs."""
        return pairs / self.most / 3600, pairs / self.least / 3600


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a job needs.

    Attributes:
        job: the job.
        work: what a step computes and holds.
        storage: part → bytes on disk.
        memory: part → bytes on a card.
        speed: pairs per second.
        steps: optimizer steps of the whole training.
        kilowatt_hours: least and most, of the cards alone at full power; None without a card.
        advice: what to change.
    """

    job: Job
    work: Work
    storage: Mapping[str, float]
    memory: Mapping[str, float]
    speed: Speed
    steps: int
    kilowatt_hours: tuple[float, float] | None
    advice: tuple[str, ...]

    @property
    def storage_bytes(self) -> float:
        return sum(self.storage.values())

    @property
    def memory_bytes(self) -> float:
        return sum(self.memory.values())

    @property
    def hours(self) -> tuple[float, float]:
        return self.speed.hours(self.job.pairs * self.job.epochs)

    @property
    def fits(self) -> bool:
        """Whether disk and card are large enough."""
        card = self.job.card
        return self.storage_bytes <= self.job.disk_bytes and (card is None or self.memory_bytes <= card.memory_bytes)


def make_plan(job: Job) -> Plan:
    """Plan a job."""
    work = count_work(job.recipe, job.teacher)
    training = job.recipe.training
    # Rounded up: the card with the most pairs decides.
    batch = math.ceil(training.batch_size / job.cards)
    micro = training.micro_batch_size
    memory = work.memory(batch, min(batch, micro) if isinstance(micro, int) and micro else batch, job.cards)
    if job.exact is not None:
        memory = {**job.exact.parts, "framework": float(FRAMEWORK_BYTES)}
    parts = job_storage(job, work)
    speed = _speed(job, work)
    hours = speed.hours(job.pairs * job.epochs)
    energy = None
    if job.card is not None:
        kilowatts = job.cards * job.card.watts / 1000
        energy = (hours[0] * kilowatts, hours[1] * kilowatts)
    return Plan(
        job=job,
        work=work,
        storage=parts,
        memory=memory,
        speed=speed,
        # Rounded first: the epochs of a recipe that names steps are a fraction.
        steps=math.ceil(round(job.pairs * job.epochs / training.batch_size, 6)),
        kilowatt_hours=energy,
        advice=(*advice(job, work, parts, memory, batch, speed.bottleneck), *_lost(training, speed)),
    )


def _lost(training: TrainingConfig, speed: Speed) -> tuple[str, ...]:
    # By the slowest speed that the plan expects: then most is lost.
    sentence = unsaved(training, training.batch_size / speed.least)
    return (sentence,) if sentence else ()


def job_storage(job: Job, work: Work) -> Mapping[str, float]:
    """Part → bytes on disk."""
    embeddings = 0.0
    if job.teacher == "stored":
        embeddings = embedding_bytes(job.augmentations, job.captions, work.embed_dim, job.numbers)
    return storage(
        job.pairs,
        job.rows,
        checkpoint_bytes=int(work.fixed_bytes),
        checkpoints=CHECKPOINTS,
        embeddings=embeddings,
        trunk_features=work.feature_bytes if job.trunk_cache else 0.0,
    )


def _speed(job: Job, work: Work) -> Speed:
    limits: dict[str, tuple[float, float]] = {"data": (job.decode_rate, job.decode_rate)}
    if job.measured is not None:
        batch = math.ceil(job.recipe.training.batch_size / job.cards)
        rate = job.cards * batch / job.measured.step_seconds(batch)
        limits["measured steps"] = (rate, rate)
    elif job.card is not None:
        least, most = EFFICIENCY
        peaks = {"arithmetic": job.card.flops / work.flops, "memory traffic": job.card.bandwidth / work.traffic_bytes}
        limits |= {name: (job.cards * peak * least, job.cards * peak * most) for name, peak in peaks.items()}
    bottleneck = min(limits, key=lambda name: limits[name][0])
    return Speed(
        least=min(low for low, _ in limits.values()),
        most=min(high for _, high in limits.values()),
        limits=limits,
        bottleneck=bottleneck,
    )
