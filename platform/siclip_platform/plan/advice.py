"""Changes with which a job fits or runs faster.

Every number is computed for the changed job with the same functions as the plan, so it has the plan's assumptions:
those of `siclip_platform.plan.work` about memory, and the sizes of rows in `siclip_platform.plan.storage`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from siclip_platform.plan.storage import GB, embedding_bytes
from siclip_platform.plan.work import Work

if TYPE_CHECKING:
    from siclip_platform.plan.job import Job

GIB = 2**30


def advice(
    job: Job, work: Work, storage: Mapping[str, float], memory: Mapping[str, float], batch: int, bottleneck: str
) -> tuple[str, ...]:
    """Sentences, the most urgent first; empty if the job fits and the device limits the speed.

    Args:
        job: the job.
        work: what a step of it computes and holds.
        storage: part → bytes on disk.
        memory: part → bytes on a card.
        batch: pairs per step on one card.
        bottleneck: what limits the speed.
    """
    found: list[str] = []
    over = sum(storage.values()) - job.disk_bytes
    if over > 0:
        found += _less_storage(job, work, over)
    if job.card is not None and sum(memory.values()) > job.card.memory_bytes:
        found.append(_less_memory(job, work, batch, job.card.memory_bytes))
    if bottleneck == "data":
        found.append(
            f"decoding limits the training to {job.decode_rate:,.0f} images/s: use more cores, or images stored at "
            "the training size"
            + (", or a trunk cache (data.trunk_cache)" if work.trunk_is_frozen and not job.trunk_cache else "")
        )
    return tuple(found)


def _less_storage(job: Job, work: Work, over: float) -> Iterator[str]:
    yield f"the disk is {over / GB:,.0f} GB short"
    if job.teacher != "stored":
        yield f"store at most {_most_pairs(job, work):,} pairs, or smaller images"
        return

    def saved(augmentations: int, numbers: str) -> float:
        now = embedding_bytes(job.augmentations, job.captions, work.embed_dim, job.numbers)
        return job.pairs * (now - embedding_bytes(augmentations, job.captions, work.embed_dim, numbers))

    if job.numbers == "bf16":
        enough = "enough" if saved(job.augmentations, "int8") >= over else "not enough alone"
        yield f"int8 embeddings (--numbers int8) save {saved(job.augmentations, 'int8') / GB:,.0f} GB: {enough}"
    fitting = [k for k in range(1, job.augmentations) if saved(k, job.numbers) >= over]
    if fitting:
        yield f"{max(fitting)} augmentations instead of {job.augmentations} fit"
    if work.trunk_is_frozen:
        yield "a teacher that shares the frozen trunk (--teacher shared) stores nothing"


def _most_pairs(job: Job, work: Work) -> int:
    rows = job.rows.image + job.rows.captions + job.rows.other
    return max(0, int(job.disk_bytes // rows))


def _less_memory(job: Job, work: Work, batch: int, memory_bytes: int) -> str:
    size = batch
    # Halves only: a micro-batch must divide the batch.
    while size % 2 == 0 and size > 1:
        size //= 2
        need = sum(work.memory(batch, size, job.cards).values())
        if need <= memory_bytes:
            return (
                f"training.micro_batch_size {size} with training.batch_norm eval fits: {need / GIB:.1f} of "
                f"{memory_bytes / GIB:.0f} GiB (gradient caching; the loss still sees {batch * job.cards:,} pairs)"
            )
    return (
        f"no micro-batch of {batch:,} fits in {memory_bytes / GIB:.0f} GiB: what does not depend on it needs "
        f"{sum(work.memory(batch, 1, job.cards).values()) / GIB:.1f} GiB; use a smaller batch or more cards"
    )
