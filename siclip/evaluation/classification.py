"""Zero-shot classification as in CLIP_benchmark and DataComp.

Shapes: N images, C classes, D embed_dim. Ties are handled as in `siclip.evaluation.ranks`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from siclip.errors import UserError
from siclip.evaluation.bootstrap import Statistic
from siclip.evaluation.encoder import Encoder, fingerprint
from siclip.evaluation.ranks import Floats, Ints, Ranks, rank_candidates

Templates = Sequence[str] | Mapping[str, Sequence[str]]
"""Prompts with ``{c}`` for the class name, or whole prompts for each class name."""
PLACEHOLDER = "{c}"
SHOWN = 5


def prompts_of(classname: str, templates: Templates) -> list[str]:
    """The prompts of one class.

    Raises:
        UserError: there are no prompts for this class, or a template lacks ``{c}``.
    """
    if isinstance(templates, Mapping):
        if not templates.get(classname):
            raise UserError(f"there are no prompts for class {classname!r}: add them to the prompt file")
        return list(templates[classname])
    wrong = [template for template in templates if PLACEHOLDER not in template]
    if wrong or not templates:
        raise UserError(
            f"templates need {PLACEHOLDER} in place of the class name: {wrong[0] if wrong else 'there are none'!r}"
        )
    return [template.replace(PLACEHOLDER, classname) for template in templates]


def class_embeddings(
    encode_texts: Callable[[Sequence[str]], Tensor], classnames: Sequence[str], templates: Templates
) -> Tensor:
    """(C, D): per class the normalised mean of its prompts' unit embeddings (arXiv 2103.00020, section 3.1.4)."""
    prompts = [prompts_of(name, templates) for name in classnames]
    embedded = encode_texts([prompt for own in prompts for prompt in own])
    means = [part.mean(dim=0) for part in torch.split(embedded, [len(own) for own in prompts])]
    return F.normalize(torch.stack(means), dim=-1)


class ClassEmbeddings:
    """Cached `class_embeddings` of one model.

    Args:
        encoder: the model.
        folder: caches them across runs, in files named by a hash of the model's weights and a hash of the prompts;
            None: in memory only.
    """

    def __init__(self, encoder: Encoder, folder: Path | None = None) -> None:
        self.encoder = encoder
        self.folder = folder
        self._held: dict[str, Tensor] = {}
        self._model = fingerprint(encoder) if folder else ""

    def of(self, classnames: Sequence[str], templates: Templates) -> Tensor:
        """The embeddings (C, D) of a set of classes."""
        prompts = templates if isinstance(templates, Mapping) else list(templates)
        key = hashlib.sha256(json.dumps([list(classnames), prompts], default=list).encode()).hexdigest()[:16]
        if key not in self._held:
            self._held[key] = self._read_or_compute(key, classnames, templates)
        return self._held[key]

    def _read_or_compute(self, key: str, classnames: Sequence[str], templates: Templates) -> Tensor:
        if self.folder is None:
            return class_embeddings(self.encoder.encode_texts, classnames, templates)
        path = self.folder / f"classes-{self._model}-{key}.safetensors"
        if path.is_file():
            return load_file(path)["classes"]
        found = class_embeddings(self.encoder.encode_texts, classnames, templates)
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        save_file({"classes": found.contiguous()}, temporary)
        temporary.replace(path)
        return found


@dataclass(frozen=True)
class Classified:
    """The result on N images with one label each.

    Attributes:
        labels: (N,).
        predicted: (N,), the first of the classes with the highest score.
        ranks: of the labels.
        classes: C.
    """

    labels: Ints
    predicted: Ints
    ranks: Ranks
    classes: int

    def statistics(self) -> dict[str, Statistic]:
        """``acc1``, ``acc5`` (with at least 5 classes) and ``mean_per_class_recall`` over the labels that occur."""
        first = self.ranks.hits(1)
        found: dict[str, Statistic] = {"acc1": lambda units: float(first[units].mean())}
        if self.classes >= 5:
            fifth = self.ranks.hits(5)
            found["acc5"] = lambda units: float(fifth[units].mean())
        found["mean_per_class_recall"] = lambda units: float(_group_means(first, self.labels, units).mean())
        return found

    def macro_f1(self) -> dict[str, Statistic]:
        """WILDS' ``F1-macro_all`` (arXiv 2012.07421): F1 averaged over the classes that occur as labels."""
        return {"F1-macro_all": lambda units: macro_f1(self.labels[units], self.predicted[units])}

    def worst_group(self, name: str, groups: Ints, k: int = 1) -> dict[str, Statistic]:
        """Accuracy at k in the group where it is lowest.

        Args:
            name: of the metric.
            groups: (N,) integers from 0.
            k: of the accuracy.
        """
        hits = self.ranks.hits(k)
        return {name: lambda units: float(_group_means(hits, groups, units).min())}


def classify(image: Tensor, classes: Tensor, labels: Ints) -> Classified:
    """Classify images by their most similar class.

    Args:
        image: unit embeddings (N, D).
        classes: unit embeddings (C, D).
        labels: (N,).
    """
    # In parts, to bound the memory of the scores.
    predicted = torch.cat([(part @ classes.T).argmax(dim=1) for part in torch.split(image, 4096)])
    ranks = rank_candidates(image, classes, torch.from_numpy(labels).unsqueeze(1).to(image.device))
    return Classified(labels, predicted.cpu().numpy(), ranks, len(classes))


def check_labels(labels: Ints, classnames: Sequence[str], where: str) -> None:
    """Check that every label is the index of a class name.

    Raises:
        UserError: a label is not; the message starts with ``where``.
    """
    wrong = np.unique(labels[(labels < 0) | (labels >= len(classnames))])
    if len(wrong):
        shown = ", ".join(map(str, wrong[:SHOWN])) + (", …" if len(wrong) > SHOWN else "")
        raise UserError(
            f"{where}: labels {shown} have no class name, there are {len(classnames)} (labels 0 to "
            f"{len(classnames) - 1}): write one name per line in the order of the labels"
        )


def macro_f1(labels: Ints, predicted: Ints) -> float:
    """The mean F1 over the classes that occur as labels."""
    size = int(max(labels.max(), predicted.max())) + 1
    right = np.bincount(labels[labels == predicted], minlength=size)
    both = np.bincount(labels, minlength=size) + np.bincount(predicted, minlength=size)
    seen = np.bincount(labels, minlength=size) > 0
    return float((2 * right[seen] / both[seen]).mean())


def multilabel_statistics(scores: Floats, targets: Ints) -> dict[str, Statistic]:
    """``mean_average_precision`` as in CLIP_benchmark, and the 11-point version of VOC 2007.

    A class without a positive counts as 0. Equal scores have one threshold.

    Args:
        scores: (N, C).
        targets: (N, C), 0 or 1.
    """

    def mean(precision: Callable[[Floats, Floats], float]) -> Statistic:
        def over_classes(units: Ints) -> float:
            pairs = (_precision_recall(scores[units, c], targets[units, c]) for c in range(scores.shape[1]))
            return float(np.mean([precision(*pair) for pair in pairs]))

        return over_classes

    return {
        "mean_average_precision": mean(_average_precision),
        "mean_average_precision_11_point": mean(_eleven_points),
    }


def _precision_recall(scores: Floats, targets: Ints) -> tuple[Floats, Floats]:
    """Precision and recall at each distinct score in descending order; empty without a positive."""
    positives = int(targets.sum())
    if not positives:
        return np.zeros(0), np.zeros(0)
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    right = np.cumsum(targets[order])[ends]
    return right / (ends + 1), right / positives


def _average_precision(precision: Floats, recall: Floats) -> float:
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def _eleven_points(precision: Floats, recall: Floats) -> float:
    points = np.linspace(0, 1, 11)
    # The tolerance is for recalls that equal a point except for rounding.
    return float(np.mean([precision[recall >= point - 1e-12].max(initial=0.0) for point in points]))


def _group_means(per_image: Floats, groups: Ints, units: Ints) -> Floats:
    """Means over the groups that occur among ``units``."""
    sums = np.bincount(groups[units], weights=per_image[units])
    counts = np.bincount(groups[units])
    means: Floats = sums[counts > 0] / counts[counts > 0]
    return means
