"""Measure one model on one set: metrics as functions of the samples, so that intervals can be drawn from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from siclip.errors import UserError
from siclip.evaluation.bootstrap import Statistic
from siclip.evaluation.classification import ClassEmbeddings, check_labels, classify, multilabel_statistics
from siclip.evaluation.composition import (
    CompositionItem,
    Score,
    composition_statistics,
    cosine,
    jaccard_statistics,
    winoground_statistics,
)
from siclip.evaluation.encoder import Encoder
from siclip.evaluation.reranking import rerank_retrieval
from siclip.evaluation.retrieval import retrieve
from siclip.evaluation.suite import SuiteSet
from siclip.losses.pair_matching import PairMatchingHead
from siclip.models.finite import finite, unit
from siclip_platform.evaluation.sets import (
    ClassificationData,
    CompositionData,
    CueData,
    Data,
    Encoded,
    RetrievalData,
    caption_index,
    decode_as_benchmarks,
    encode_samples,
)

HEAD = "pair_matching_"
"""Prefix of the metrics that the pair-matching head decides."""


@dataclass(frozen=True)
class Subject:
    """A model to measure.

    Attributes:
        encoder: the model.
        classes: its embeddings of class names.
        head: its pair-matching head, which re-ranks retrieval and decides composition.
        top: how many candidates the head re-ranks.
    """

    encoder: Encoder
    classes: ClassEmbeddings
    head: PairMatchingHead | None = None
    top: int = 16


@dataclass(frozen=True)
class Measured:
    """Metrics of one model on one set.

    Attributes:
        statistics: metric → a function of the samples.
        units: how many images, items, pairs or cues the bootstrap resamples.
        keys: names the samples, to pair the results of two models.
        unreadable: keys of the images that could not be read.
        prompts: the source of class names and templates.
        captions: the number of captions of a retrieval set.
    """

    statistics: Mapping[str, Statistic]
    units: int
    keys: tuple[str, ...]
    unreadable: tuple[str, ...]
    prompts: str = ""
    captions: int = 0


def measure(subject: Subject, data: Data, known: SuiteSet | None) -> Measured:
    """Measure a model on one part of a set.

    Args:
        subject: the model.
        data: the part.
        known: the set's entry among DataComp's 38, which may need further metrics.

    Raises:
        UserError: no sample can be read, or labels, captions or arrays do not fit the set.
    """
    decode = data.decode if isinstance(data, RetrievalData | CompositionData) else decode_as_benchmarks
    encoded = encode_samples(subject.encoder, data.samples(), where=data.where, decode=decode)
    if isinstance(data, ClassificationData):
        return _classification(subject, data, encoded, known)
    if isinstance(data, RetrievalData):
        return _retrieval(subject, data, encoded)
    if isinstance(data, CompositionData):
        return _composition(subject, data, encoded)
    return _cues(subject, data, encoded)


def _classification(subject: Subject, data: ClassificationData, encoded: Encoded, known: SuiteSet | None) -> Measured:
    classes = subject.classes.of(data.classnames, data.templates)
    # they may be from a cache
    unit(classes, subject.encoder.name)
    if data.multilabel:
        targets = _stacked(encoded, data.where)
        if targets.shape[1] != len(classes):
            raise UserError(f"{data.where}: labels of {targets.shape[1]} classes and {len(classes)} class names")
        scores = (encoded.images @ classes.T).double().numpy()
        return _measured(multilabel_statistics(scores, targets), encoded, prompts=data.prompts)
    labels = np.array([sample.label for sample in encoded.samples])
    check_labels(labels, data.classnames, data.where)
    outcome = classify(encoded.images, classes, labels)
    statistics = outcome.statistics()
    # three of the 38 sets are compared by metrics that others do not have
    if known and known.metric == "F1-macro_all":
        statistics |= outcome.macro_f1()
    if known and known.groups is not None:
        groups = _stacked(encoded, data.where)[:, known.groups].astype(np.int64)
        statistics |= outcome.worst_group(known.metric, groups, known.groups_at)
    return _measured(statistics, encoded, prompts=data.prompts)


def _retrieval(subject: Subject, data: RetrievalData, encoded: Encoded) -> Measured:
    texts, owner = caption_index(encoded.samples, data.where)
    text = subject.encoder.encode_texts(texts)
    # ranking all pairs is fast on a GPU
    device = subject.encoder.device
    statistics = retrieve(encoded.images.to(device), text.to(device), owner).statistics()
    if subject.head is not None:
        reranked = rerank_retrieval(encoded.images, text, owner, subject.head, subject.top)
        statistics |= reranked.statistics(HEAD)
    return _measured(statistics, encoded, captions=len(texts))


def _composition(subject: Subject, data: CompositionData, encoded: Encoded) -> Measured:
    index_of = {position: index for index, position in enumerate(encoded.positions)}
    # a pair of Winoground counts only if both of its images can be read
    together = 2 if data.winoground else 1
    groups = [data.items[first : first + together] for first in range(0, len(data.items), together)]
    readable = [group for group in groups if all(item.image in index_of for item in group)]
    items = [CompositionItem(index_of[item.image], item.true, item.false) for group in readable for item in group]
    pairs = list(zip(items[::2], items[1::2], strict=True)) if data.winoground else []
    text = subject.encoder.encode_texts(data.texts)
    statistics: dict[str, Statistic] = {}
    judges: dict[str, Score] = {"": cosine}
    if subject.head is not None:
        judges[HEAD] = _judged_by(subject.head, subject.encoder.name)
    for prefix, score in judges.items():
        if data.winoground:
            statistics |= winoground_statistics(pairs, encoded.images, text, score, prefix)
        else:
            statistics |= composition_statistics(items, encoded.images, text, score, prefix)
    units = pairs if data.winoground else items
    keys = tuple(f"{index}:{encoded.samples[item.image].key}" for index, item in enumerate(items))
    return Measured(statistics, len(units), keys, tuple(encoded.unreadable))


def _cues(subject: Subject, data: CueData, encoded: Encoded) -> Measured:
    index_of = {position: index for index, position in enumerate(encoded.positions)}
    cues = [cue for cue in data.cues if all(candidate in index_of for candidate in cue[1])]
    text = subject.encoder.encode_texts([prompt for prompt, _, _ in cues])
    measured = [
        (text[index], encoded.images[[index_of[candidate] for candidate in candidates]], np.array(right, np.int64))
        for index, (_, candidates, right) in enumerate(cues)
    ]
    keys = tuple(f"{index}:{prompt}" for index, (prompt, _, _) in enumerate(cues))
    return Measured(jaccard_statistics(measured), len(cues), keys, tuple(encoded.unreadable))


def _judged_by(head: PairMatchingHead, name: str) -> Score:
    @torch.no_grad()
    def score(image: Tensor, text: Tensor) -> Tensor:
        return finite(head(image, text), f"the pair-matching head of {name}")

    return score


def _stacked(encoded: Encoded, where: str) -> np.ndarray:
    """The samples' arrays as one: (N, M)."""
    without = [sample.key for sample in encoded.samples if sample.array is None]
    if without:
        raise UserError(f"{where}: {without[0]} has no .npy, which the metric of this set needs")
    return np.stack([np.asarray(sample.array).reshape(-1) for sample in encoded.samples])


def _measured(
    statistics: Mapping[str, Statistic], encoded: Encoded, prompts: str = "", captions: int = 0
) -> Measured:
    keys = tuple(sample.key for sample in encoded.samples)
    return Measured(statistics, len(keys), keys, tuple(encoded.unreadable), prompts, captions)
