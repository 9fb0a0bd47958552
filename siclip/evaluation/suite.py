"""DataComp's 38 evaluation sets (arXiv 2304.14108): name, folder and the metric that is averaged.

From DataComp's ``tasklist.yml`` and its evaluators. FairFace and UTKFace, which are also in that list, are not part
of the average and are omitted here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from siclip.errors import UserError

Task = Literal["classification", "retrieval", "winogavil"]
DATACOMP = "datacomp"


@dataclass(frozen=True)
class SuiteSet:
    """One evaluation set.

    Attributes:
        key: DataComp's name of the task.
        title: for tables.
        metric: the metric that DataComp averages.
        classes: required number of class names; 0 if the task has none.
        task: how it is evaluated.
        groups: column of the metadata (a ``.npy`` file per image) that the worst-group metric groups by.
        groups_at: k of the worst-group accuracy.
        aliases: further folder names.
        images: number of images of a retrieval set.
    """

    key: str
    title: str
    metric: str = "acc1"
    classes: int = 0
    task: Task = "classification"
    groups: int | None = None
    groups_at: int = 1
    aliases: tuple[str, ...] = ()
    images: int = 0

    @property
    def name(self) -> str:
        """Our name in folders and metrics: the last part of the key, or a retrieval set's first alias."""
        return self.aliases[0] if self.task == "retrieval" else self.key.rpartition("/")[2]

    @property
    def folders(self) -> tuple[str, ...]:
        """Folder names to try, in order: DataComp's, CLIP_benchmark's, the plain name, the aliases."""
        dashed = self.key.removeprefix("fairness/").removeprefix("retrieval/").removeprefix("misc/").replace("/", "-")
        return tuple(dict.fromkeys((f"wds_{dashed}_test", f"wds_{dashed}", dashed, self.name, *self.aliases)))


_RECALL, _JACCARD, _BY_CLASS = "mean_recall@1", "jaccard_score_10-12", "mean_per_class_recall"

SETS: tuple[SuiteSet, ...] = (
    SuiteSet("imagenet1k", "ImageNet 1k", classes=1000),
    SuiteSet("imagenet_sketch", "ImageNet Sketch", classes=1000),
    SuiteSet("imagenetv2", "ImageNet v2", classes=1000),
    SuiteSet("imagenet-a", "ImageNet-A", classes=200),
    SuiteSet("imagenet-o", "ImageNet-O", classes=200),
    SuiteSet("imagenet-r", "ImageNet-R", classes=200),
    SuiteSet("objectnet", "ObjectNet", classes=113),
    SuiteSet("vtab/caltech101", "Caltech-101", _BY_CLASS, 102),
    SuiteSet("vtab/cifar100", "CIFAR-100", classes=100),
    SuiteSet("vtab/clevr_count_all", "CLEVR Counts", classes=8),
    SuiteSet("vtab/clevr_closest_object_distance", "CLEVR Distance", classes=6),
    SuiteSet("vtab/dtd", "Describable Textures", classes=47),
    SuiteSet("vtab/eurosat", "EuroSAT", classes=10),
    SuiteSet("vtab/flowers", "Oxford Flowers-102", _BY_CLASS, 102),
    SuiteSet("vtab/kitti_closest_vehicle_distance", "KITTI Vehicle Distance", classes=4),
    SuiteSet("vtab/pcam", "PatchCamelyon", classes=2),
    SuiteSet("vtab/pets", "Oxford-IIIT Pet", _BY_CLASS, 37),
    SuiteSet("vtab/resisc45", "RESISC45", classes=45),
    SuiteSet("vtab/svhn", "SVHN", classes=10),
    SuiteSet("sun397", "SUN397", classes=397),
    SuiteSet("cars", "Stanford Cars", classes=196),
    SuiteSet("cifar10", "CIFAR-10", classes=10),
    SuiteSet("country211", "Country211", classes=211),
    SuiteSet("fgvc_aircraft", "FGVC Aircraft", _BY_CLASS, 100),
    SuiteSet("food101", "Food-101", classes=101),
    SuiteSet("gtsrb", "GTSRB", classes=43),
    SuiteSet("mnist", "MNIST", classes=10),
    SuiteSet("renderedsst2", "Rendered SST2", classes=2),
    SuiteSet("stl10", "STL-10", classes=10),
    SuiteSet("voc2007", "Pascal VOC 2007", classes=20),
    SuiteSet(
        "retrieval/flickr_1k_test_image_text_retrieval",
        "Flickr30k",
        _RECALL,
        task="retrieval",
        aliases=("flickr30k", "wds_flickr30k", "wds_flickr30k_test"),
        images=1_000,
    ),
    SuiteSet(
        "retrieval/mscoco_2014_5k_test_image_text_retrieval",
        "MSCOCO",
        _RECALL,
        task="retrieval",
        aliases=("mscoco", "wds_mscoco_captions", "wds_mscoco_captions_test", "mscoco_captions"),
        images=5_000,
    ),
    SuiteSet("misc/winogavil", "WinoGAViL", _JACCARD, task="winogavil"),
    SuiteSet("wilds/iwildcam", "iWildCam", "F1-macro_all", 182),
    SuiteSet("wilds/camelyon17", "Camelyon17", classes=2),
    SuiteSet("wilds/fmow", "FMoW", "acc_worst_region", 62, groups=0),
    SuiteSet("fairness/dollar_street", "Dollar Street", "acc_top5_wg", 58, groups=0, groups_at=5),
    SuiteSet("fairness/geode", "GeoDE", "acc_wg", 40, groups=0),
)


@dataclass(frozen=True)
class Average:
    """The mean of the main metrics.

    Attributes:
        value: the mean.
        over: number of sets measured.
        of: number of sets in the suite.
        missing: names of the sets that were not measured.
    """

    value: float
    over: int
    of: int
    missing: tuple[str, ...]

    @property
    def title(self) -> str:
        """``38-set average`` if all 38 were measured, otherwise ``average over N of 38``."""
        whole = self.over == self.of
        return f"{self.of}-set average" if whole else f"average over {self.over} of {self.of}"


def suite_sets(names: str) -> tuple[SuiteSet, ...] | None:
    """The sets of a suite by name; None if there is no such suite."""
    return SETS if names in (DATACOMP, str(len(SETS))) else None


def find_set(name: str) -> SuiteSet | None:
    """One of the 38 sets by our name or DataComp's key; None if there is no such set."""
    return next((found for found in SETS if name in (found.name, found.key)), None)


def suggestion(name: str) -> str:
    """The closest known name as the end of an error message; empty if none is close."""
    close = get_close_matches(name, [found.name for found in SETS], n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def average(main_metrics: Mapping[str, float], sets: tuple[SuiteSet, ...] = SETS) -> Average:
    """The mean over the sets that were measured.

    Args:
        main_metrics: set name → the value of its ``metric``.
        sets: the suite.

    Raises:
        UserError: none of the sets was measured.
    """
    measured = [main_metrics[found.name] for found in sets if found.name in main_metrics]
    if not measured:
        raise UserError("no average: none of the suite's sets was measured")
    missing = tuple(found.name for found in sets if found.name not in main_metrics)
    return Average(sum(measured) / len(measured), len(measured), len(sets), missing)
