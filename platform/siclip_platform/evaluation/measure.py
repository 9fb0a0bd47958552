"""One model on one set: which metrics, as functions of the samples, so that intervals can be drawn from them."""

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
from siclip_platform.evaluation.sets import (
    ClassificationData,
    CompositionData,
    CueData,
    Data,
    Encoded,
    RetrievalData,
    caption_index,
    check_finite,
    decode_as_the_field,
    encode_samples,
)

HEAD = "pair_matching_"
"""Prefix of the metrics in which the pair-matching head judges."""


@dataclass(frozen=True)
class Subject:
    """A model under measurement. ``head``: its pair-matching head, which re-ranks the first ``top`` and judges."""

    encoder: Encoder
    classes: ClassEmbeddings
    head: PairMatchingHead | None = None
    top: int = 16


@dataclass(frozen=True)
class Measured:
    """Metrics of one model on one set, as functions of ``units`` samples. ``keys``: which samples, for pairing.
    ``captions``: how many captions a retrieval set has."""

    statistics: Mapping[str, Statistic]
    units: int
    keys: tuple[str, ...]
    unreadable: tuple[str, ...]
    prompts: str = ""
    captions: int = 0


def measure(subject: Subject, data: Data, known: SuiteSet | None) -> Measured:
    """
    Raises:
        UserError: no sample can be read, or what the samples say does not fit the set.
    """
    decode = data.decode if isinstance(data, RetrievalData | CompositionData) else decode_as_the_field
    encoded = encode_samples(subject.encoder, data.samples(), place=data.place, decode=decode)
    if isinstance(data, ClassificationData):
        return _classification(subject, data, encoded, known)
    if isinstance(data, RetrievalData):
        return _retrieval(subject, data, encoded)
    if isinstance(data, CompositionData):
        return _composition(subject, data, encoded)
    return _cues(subject, data, encoded)


def _classification(subject: Subject, data: ClassificationData, encoded: Encoded, known: SuiteSet | None) -> Measured:
    classes = subject.classes.of(data.classnames, data.templates)
    check_finite(classes, f"{subject.encoder.name} on the class names of {data.place}")
    if data.multilabel:
        targets = _stacked(encoded, data.place)
        if targets.shape[1] != len(classes):
            raise UserError(f"{data.place}: labels of {targets.shape[1]} classes and {len(classes)} class names")
        scores = (encoded.images @ classes.T).double().numpy()
        return _measured(multilabel_statistics(scores, targets), encoded, prompts=data.prompts)
    labels = np.array([sample.label for sample in encoded.samples])
    check_labels(labels, data.classnames, data.place)
    outcome = classify(encoded.images, classes, labels)
    statistics = outcome.statistics()
    if known and known.metric == "F1-macro_all":
        statistics |= outcome.macro_f1()
    if known and known.groups is not None:
        groups = _stacked(encoded, data.place)[:, known.groups].astype(np.int64)
        statistics |= outcome.worst_group(known.metric, groups, known.groups_at)
    return _measured(statistics, encoded, prompts=data.prompts)


def _retrieval(subject: Subject, data: RetrievalData, encoded: Encoded) -> Measured:
    texts, owner = caption_index(encoded.samples, data.place)
    text = _texts(subject, texts, data.place)
    device = subject.encoder.device  # where the search is fast
    statistics = retrieve(encoded.images.to(device), text.to(device), owner).statistics()
    if subject.head is not None:
        again = rerank_retrieval(encoded.images, text, owner, subject.head, subject.top)
        statistics |= again.statistics(HEAD)
    return _measured(statistics, encoded, captions=len(texts))


def _composition(subject: Subject, data: CompositionData, encoded: Encoded) -> Measured:
    place = {old: new for new, old in enumerate(encoded.places)}
    together = 2 if data.winoground else 1  # items that count or fall out together
    groups = [data.items[first : first + together] for first in range(0, len(data.items), together)]
    whole = [group for group in groups if all(item.image in place for item in group)]
    items = [CompositionItem(place[item.image], item.true, item.false) for group in whole for item in group]
    moved = list(zip(items[::2], items[1::2], strict=True)) if data.winoground else []
    text = _texts(subject, data.texts, data.place)
    statistics: dict[str, Statistic] = {}
    judges: dict[str, Score] = {"": cosine} if subject.head is None else {"": cosine, HEAD: _judged_by(subject.head)}
    for prefix, score in judges.items():
        if data.winoground:
            statistics |= winoground_statistics(moved, encoded.images, text, score, prefix)
        else:
            statistics |= composition_statistics(items, encoded.images, text, score, prefix)
    units = moved if data.winoground else items
    keys = tuple(f"{index}:{encoded.samples[item.image].key}" for index, item in enumerate(items))
    return Measured(statistics, len(units), keys, tuple(encoded.unreadable))


def _cues(subject: Subject, data: CueData, encoded: Encoded) -> Measured:
    place = {old: new for new, old in enumerate(encoded.places)}
    cues = [cue for cue in data.cues if all(candidate in place for candidate in cue[1])]
    text = _texts(subject, [prompt for prompt, _, _ in cues], data.place)
    given = [
        (text[index], encoded.images[[place[candidate] for candidate in candidates]], np.array(right, np.int64))
        for index, (_, candidates, right) in enumerate(cues)
    ]
    keys = tuple(f"{index}:{prompt}" for index, (prompt, _, _) in enumerate(cues))
    return Measured(jaccard_statistics(given), len(cues), keys, tuple(encoded.unreadable))


def _texts(subject: Subject, texts: list[str] | tuple[str, ...], place: str) -> Tensor:
    text = subject.encoder.encode_texts(texts)
    check_finite(text, f"{subject.encoder.name} on the captions of {place}")
    return text


def _judged_by(head: PairMatchingHead) -> Score:
    @torch.no_grad()
    def score(image: Tensor, text: Tensor) -> Tensor:
        logits: Tensor = head(image, text)
        return logits

    return score


def _stacked(encoded: Encoded, place: str) -> np.ndarray:
    """(N, M) of the samples' arrays."""
    without = [sample.key for sample in encoded.samples if sample.array is None]
    if without:
        raise UserError(f"{place}: {without[0]} has no .npy, which the metric of this set needs")
    return np.stack([np.asarray(sample.array).reshape(-1) for sample in encoded.samples])


def _measured(
    statistics: Mapping[str, Statistic], encoded: Encoded, prompts: str = "", captions: int = 0
) -> Measured:
    keys = tuple(sample.key for sample in encoded.samples)
    return Measured(statistics, len(keys), keys, tuple(encoded.unreadable), prompts, captions)
