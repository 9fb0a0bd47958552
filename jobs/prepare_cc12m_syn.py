"""Prepare CC12M-SYN: import img2dataset shards, write synthetic captions beside them, embed both with the teacher.

python jobs/prepare_cc12m_syn.py cc12m/ data/cc12m-syn --teacher open_clip:MobileCLIP-S1:datacompdr
ray job submit -- python jobs/prepare_cc12m_syn.py /shared/cc12m /shared/cc12m-syn --teacher /shared/teacher.pt

Every part goes on where it was stopped, so the same command again is how it is resumed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from siclip_platform.captioning.caption import caption_dataset
from siclip_platform.captioning.config import CaptionConfig
from siclip_platform.cli.guard import guarded
from siclip_platform.cluster import Needs, ray_cluster
from siclip_platform.datasets.actors import actor_pool
from siclip_platform.datasets.ingest import import_dataset
from siclip_platform.datasets.parts import ImportConfig
from siclip_platform.datasets.sources.columns import Columns
from siclip_platform.datasets.sources.find import find_source
from siclip_platform.display import Display
from siclip_platform.embedding.config import EmbedConfig
from siclip_platform.embedding.embed import embed_dataset, plan_embedding
from siclip_platform.options import parse_bytes

Opt = typer.Option
NAME = "coca"


def prepare_cc12m_syn(
    source: Annotated[str, typer.Argument(help="img2dataset shards or another source of `data import`.")],
    dest: Annotated[Path, typer.Argument(help="The dataset's folder.")],
    captioner: Annotated[str, Opt(help="A CoCa of open_clip, or a JSON file with a config.")] = "coca_ViT-L-14",
    pretrained: Annotated[str, Opt(help="Its tag or checkpoint.")] = "mscoco_finetuned_laion2B-s13B-b90k",
    per_image: Annotated[int, Opt(min=1, help="Synthetic captions of an image.")] = 3,
    teacher: Annotated[str | None, Opt(help="A checkpoint or open_clip:NAME:TAG; default: no embeddings.")] = None,
    augmentations: Annotated[int, Opt(min=1, help="Crops of an image that the teacher embeds.")] = 10,
    disk_budget: Annotated[str, Opt(help="What the embeddings may take.")] = "1TB",
    size: Annotated[int, Opt(min=16, help="Shorter side of the stored images.")] = 256,
    max_bad_share: Annotated[float, Opt(min=0, max=1, help="Stop above this share of bad rows.")] = 0.01,
    shard_rows: Annotated[int, Opt(min=1)] = 10_000,
    address: Annotated[str | None, Opt(help="A Ray cluster; default: RAY_ADDRESS, else one of our own.")] = None,
    verbose: Annotated[bool, Opt(help="Show what Ray says.")] = False,
) -> None:
    """Images and captions of others → a dataset with synthetic captions and the teacher's embeddings."""
    importing = ImportConfig.model_validate({"images": {"size": size}, "shard_rows": shard_rows})
    captions = CaptionConfig(model=captioner, pretrained=pretrained, per_image=per_image)
    found = find_source(source, None, Columns(), shard_rows)
    display = Display()
    with ray_cluster(Needs(concurrent=0, worker_cpus=0), address, verbose), display.live():
        with display.task("import") as task:
            done = import_dataset(found, dest, importing, max_bad_share=max_bad_share, progress=task.progress)
        with display.task("captions") as task:
            written = caption_dataset(dest, NAME, captions, pool=actor_pool(0), progress=task.progress)
        if teacher:
            embedding = EmbedConfig(teacher=teacher, augmentations=augmentations, captions=(NAME,))
            plan = plan_embedding(dest, NAME, embedding, ())
            plan.check(parse_bytes(disk_budget))
            with display.task("embeddings") as task:
                embed_dataset(plan, pool=actor_pool(0), progress=task.progress)
    display.say(f"{done.read:,} rows read, {sum(done.rejected.values()):,} of them in {dest / 'ledger.parquet'}")
    display.say(f"{written.counts['kept']:,} synthetic captions; manifest {done.dataset.hash}")
    named = f"--set data.captions=[{NAME}]" + (f" --set data.teacher_embeddings={NAME}" if teacher else "")
    display.say(f"to train on it: --data {dest} {named}")


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command()(prepare_cc12m_syn)

if __name__ == "__main__":
    guarded(app)
