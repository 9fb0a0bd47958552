"""Prepare CC12M-SYN: import img2dataset shards, write synthetic captions beside them, embed both with the teacher.

python jobs/prepare_cc12m_syn.py cc12m/ --validation-share 0.001 --data data/cc12m-syn --teacher teacher.pt
ray job submit -- python jobs/prepare_cc12m_syn.py /shared/cc12m --split train --recipe /shared/my.yaml

With a recipe it builds what the recipe reads: its dataset, its caption set and, if it names one, its embeddings. The
import takes the options of `siclip-platform data import`.

Run the same command again to resume: finished parts are reused.
"""

from __future__ import annotations

from typing import Annotated

from typer import Argument
from typer import Option as Opt

from siclip_platform.cli import experiments as cli
from siclip_platform.cli.data.import_options import ImportOptions, separate, show_imported, takes_import_options
from siclip_platform.cli.guard import as_app, guarded
from siclip_platform.cluster.connect import Needs, ray_cluster
from siclip_platform.datasets.derived.actors import actor_pool
from siclip_platform.datasets.derived.captions.caption import caption_dataset
from siclip_platform.datasets.derived.captions.captioners import check_captioner
from siclip_platform.datasets.derived.captions.config import CaptionConfig
from siclip_platform.datasets.derived.embeddings.config import EmbedConfig
from siclip_platform.datasets.derived.embeddings.embed import embed_dataset, plan_embedding
from siclip_platform.datasets.derived.preparation import Preparation
from siclip_platform.datasets.importing.ingest import import_dataset
from siclip_platform.display import Display
from siclip_platform.storage.sizes import parse_bytes


@takes_import_options
def prepare_cc12m_syn(
    sources: Annotated[list[str], Argument(help="img2dataset shards or other sources of `data import`.")],
    options: ImportOptions,
    recipe: cli.RecipeOption = None,
    data: cli.DataOption = None,
    teacher: cli.TeacherOption = None,
    changes: cli.SetOption = None,
    captioner: Annotated[str, Opt(help="A CoCa of open_clip, or a JSON file with a config.")] = "coca_ViT-L-14",
    pretrained: Annotated[str, Opt(help="Its tag or checkpoint.")] = "mscoco_finetuned_laion2B-s13B-b90k",
    per_image: Annotated[int, Opt(min=1, help="Synthetic captions per image.")] = 3,
    augmentations: Annotated[int, Opt(min=1, help="Crops per image that the teacher embeds.")] = 10,
    disk_budget: Annotated[str, Opt(help="Disk space for the embeddings.")] = "1TB",
    address: cli.AddressOption = None,
    verbose: cli.VerboseOption = False,
) -> None:
    """Images and captions → a dataset with synthetic captions and the teacher's embeddings."""
    makes = Preparation.of(cli.recipe_beside(recipe, data, teacher, changes), data, teacher)
    captions = CaptionConfig(model=captioner, pretrained=pretrained, per_image=per_image)
    check_captioner(captions)
    words, options = separate(sources, options)
    found, importing = options.find(words)
    display = Display()
    with ray_cluster(Needs(concurrent=0, worker_cpus=0), address, verbose), display.live():
        with display.task("import") as task:
            most = options.max_bad_share
            done = import_dataset(found, makes.folder, importing, max_bad_share=most, progress=task.progress)
        with display.task("captions") as task:
            pool = actor_pool(0)
            written = caption_dataset(makes.folder, makes.captions, captions, pool=pool, progress=task.progress)
        if makes.embeddings:
            embedding = EmbedConfig(teacher=makes.teacher, augmentations=augmentations, captions=makes.embedded)
            plan = plan_embedding(makes.folder, makes.embeddings, embedding, ())
            plan.check(parse_bytes(disk_budget))
            with display.task("embeddings") as task:
                embed_dataset(plan, pool=pool, progress=task.progress)
    show_imported(display, done, importing)
    display.say(f"{written.counts['kept']:,} synthetic captions\nto train on it: {makes.to_train}")


app = as_app(prepare_cc12m_syn)

if __name__ == "__main__":
    guarded(app)
