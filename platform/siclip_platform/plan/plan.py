"""A job and a machine in, a plan out: storage, memory, speed, hours, energy, what holds it back, what to change."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from siclip.models.clip import Clip
from siclip_platform.plan.advice import advice
from siclip_platform.plan.job import Job
from siclip_platform.plan.storage import embedding_bytes, storage
from siclip_platform.plan.work import FEATURE_BYTES, Work, count_work

EFFICIENCY = (0.25, 0.5)
"""The share of a card's peak that a training step is assumed to reach, at least and at most: an assumption, not a
measurement. What is measured on the machine itself takes its place (`Calibration`)."""
CHECKPOINTS = 3


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Pairs a second and what limits them; least and most differ where the speed is assumed, not measured."""

    least: float
    most: float
    limits: Mapping[str, tuple[float, float]]
    bottleneck: str

    def hours(self, pairs: float) -> tuple[float, float]:
        """Least and most hours for so many pairs."""
        return pairs / self.most / 3600, pairs / self.least / 3600


@dataclass(frozen=True, kw_only=True)
class Plan:
    """``storage`` and ``memory``: part → bytes. ``kilowatt_hours``: of the cards alone, at full power."""

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
        card = self.job.card
        return self.storage_bytes <= self.job.disk_bytes and (card is None or self.memory_bytes <= card.memory_bytes)


def make_plan(job: Job, model: Clip) -> Plan:
    """Plan a job; ``model`` is a freshly built model of its recipe."""
    work = count_work(job.recipe, model, job.teacher)
    training = job.recipe.training
    batch = math.ceil(training.batch_size / job.cards)
    micro = training.micro_batch_size
    memory = work.memory(batch, min(batch, micro) if isinstance(micro, int) and micro else batch, job.cards)
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
        steps=math.ceil(job.pairs * job.epochs / training.batch_size),
        kilowatt_hours=energy,
        advice=advice(job, work, parts, memory, batch, speed.bottleneck),
    )


def job_storage(job: Job, work: Work) -> Mapping[str, float]:
    """Part → bytes on the disk."""
    embeddings = 0.0
    if job.teacher == "stored":
        embeddings = embedding_bytes(job.augmentations, job.captions, work.embed_dim, job.numbers)
    return storage(
        job.pairs,
        job.rows,
        checkpoint_bytes=int(work.fixed_bytes),
        checkpoints=CHECKPOINTS,
        embeddings=embeddings,
        trunk_features=FEATURE_BYTES if job.trunk_cache else 0.0,
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
