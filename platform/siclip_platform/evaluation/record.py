"""Write a suite's result as JSON, and as metrics of MLflow runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from siclip.errors import UserError
from siclip.evaluation.bootstrap import Interval
from siclip.evaluation.cost import Cost
from siclip_platform.evaluation.results import SetResult, SuiteResult
from siclip_platform.metrics import evaluation_key
from siclip_platform.storage import AnyPath
from siclip_platform.tracking import Tracker
from siclip_platform.tracking.address import without_password


def as_dict(result: SuiteResult, costs: Mapping[str, Cost]) -> dict[str, Any]:
    """Return a result as JSON values; every metric has its interval."""
    return {
        "models": result.models,
        "metrics": {model: flat_metrics(result, model) for model in result.models},
        "sets": {each.name: _set(each) for each in result.sets},
        "averages": {
            model: {
                "title": mean.title,
                "value": mean.value,
                "over": mean.over,
                "of": mean.of,
                "missing": mean.missing,
            }
            for model, mean in result.averages.items()
        },
        "cost": {model: _cost(cost) for model, cost in costs.items()},
    }


def flat_metrics(result: SuiteResult, model: str) -> dict[str, float]:
    """Return one model's metrics as ``eval/SET/METRIC``, without those that are undefined (NaN).

    If all 38 sets were measured, ``eval/average_38_sets`` is one of them.
    """
    flat = {
        evaluation_key(each.name, metric): interval.value
        for each in result.sets
        for metric, interval in each.metrics.get(model, {}).items()
        if not math.isnan(interval.value)
    }
    mean = result.averages.get(model)
    # an average over fewer sets is not comparable with published ones
    if mean and mean.over == mean.of:
        flat[f"eval/average_{mean.of}_sets"] = mean.value
    return flat


def cost_metrics(cost: Cost) -> dict[str, float]:
    """Return a model's costs under the ``cost/…`` keys."""
    return {
        "cost/parameters": cost.parameters,
        "cost/multiply_adds": cost.multiply_adds,
        "cost/peak_memory_mib": cost.peak_bytes / 2**20,
        **{f"cost/latency_ms_batch_{batch}": value for batch, value in cost.milliseconds.items()},
        **{f"cost/latency_times_s0_batch_{batch}": value[0] for batch, value in cost.times_reference.items()},
    }


def record(
    uri: str, result: SuiteResult, costs: Mapping[str, Cost], *, data: AnyPath, split: str, suite: str
) -> None:
    """Log a run of kind ``evaluation`` per model.

    Args:
        uri: the MLflow store.
        result: what was measured.
        costs: by model, where they were measured.
        data: the sets' folder, logged as a parameter.
        split: the split that was measured, logged as a parameter.
        suite: the requested sets, logged as a parameter.

    Raises:
        UserError: the store cannot be used, or some records did not reach it.
    """
    tracker = Tracker(uri)
    states = {"measured": 0, "missing": 0, "failed": 0}
    for each in result.sets:
        states[each.state] += 1
    for model in result.models:
        params = {"model": model, "suite": suite, "data": str(data), "split": split}
        tags = {f"sets_{state}": str(count) for state, count in states.items()}
        run = tracker.start(f"evaluation of {Path(model).name}", "evaluation", params=params, tags=tags)
        extra = cost_metrics(costs[model]) if model in costs else {}
        run.finish("completed", flat_metrics(result, model) | extra)
    left = tracker.flush()
    reason = tracker.sender.reason
    refused = tracker.spool.problems()
    tracker.close(0)
    if left or refused:
        why = refused[0] if refused else reason or "it does not answer"
        count = left + len(refused)
        raise UserError(f"{count} records did not reach the MLflow store {without_password(uri)}: {why}")


def _set(each: SetResult) -> dict[str, Any]:
    return {
        "title": each.title,
        "state": each.state,
        "reason": each.reason,
        "main_metric": each.main,
        "samples": each.units,
        "captions": each.captions,
        "note": each.note,
        "kept": each.kept,
        "unreadable": list(each.unreadable),
        "prompts": each.prompts,
        "seconds": round(each.seconds, 2),
        "metrics": {model: _intervals(found) for model, found in each.metrics.items()},
        "differences": {model: _intervals(found) for model, found in each.differences.items()},
    }


def _intervals(found: Mapping[str, Interval]) -> dict[str, Any]:
    def number(value: float) -> float | None:
        return None if math.isnan(value) else value

    return {
        name: {"value": number(each.value), "low": number(each.low), "high": number(each.high)}
        for name, each in found.items()
    }


def _cost(cost: Cost) -> dict[str, Any]:
    return {
        "parameters": cost.parameters,
        "multiply_adds": cost.multiply_adds,
        "peak_bytes": cost.peak_bytes,
        "milliseconds": {str(batch): value for batch, value in cost.milliseconds.items()},
        "times_mobileclip_s0": {
            str(batch): dict(zip(("median", "low", "high"), value, strict=True))
            for batch, value in cost.times_reference.items()
        },
    }
