"""A task in steps: its parts pass through stages of Ray Data, and what comes out is joined to the task's files.

While one part is on the GPU, the next ones are read and earlier ones cleaned. Ray Data bounds what waits between two
steps by the memory of its object store. Parts do not depend on each other or on their order, so the files are the
same however many workers there are.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siclip.errors import UserError
from siclip_platform.datasets.derived.stage import Record, Task, TaskOutput, completed

ACTOR_SHARE = 0.8
"""Of a CPU that an actor reserves: the rest is for the steps beside it, also where every CPU has an actor."""
MOST_BLOCKS = 20_000
"""Of parts that wait for the first step: Ray holds an object in this process for each."""


@dataclass(frozen=True)
class Step:
    """Part of a pipeline.

    Attributes:
        make: builds the function that is applied to a part's value; a picklable callable.
        arguments: of ``make``.
        actors: processes that call ``make`` once and stay; 0: Ray tasks, as many as there are CPUs.
        gpus: of one actor.
    """

    make: Callable[..., Callable[[Any], Any]]
    arguments: tuple[Any, ...] = ()
    actors: int = 0
    gpus: float = 0.0


@dataclass(frozen=True)
class Pipeline:
    """Work of a stage that is done in steps.

    Attributes:
        parts: a task → the values of its parts.
        steps: applied to every part in this order.
        join: writes the task's files in this process, from what the last step returned for each part, in order.
    """

    parts: Callable[[Task], Sequence[Any]]
    steps: Sequence[Step]
    join: Callable[[Path, Task, Sequence[Any]], TaskOutput]

    def here(self, folder: Path, tasks: Sequence[Task]) -> Iterator[Record]:
        """Run the tasks in this process, one part after the other."""
        functions = [step.make(*step.arguments) for step in self.steps] if tasks else []
        for task in tasks:
            values = []
            for value in self.parts(task):
                for function in functions:
                    value = function(value)  # noqa: PLW2901
                values.append(value)
            yield completed(folder, task, self.join(folder, task, values))

    def on_ray(self, folder: Path, tasks: Sequence[Task]) -> Iterator[Record]:
        """Run the tasks on Ray Data; a part whose process is killed is repeated."""
        if not tasks:
            return
        import ray
        import ray.data

        parts = {task.name: list(self.parts(task)) for task in tasks}
        items = [
            {"task": name, "part": part, "value": pickle.dumps(value), "error": ""}
            for name, values in parts.items()
            for part, value in enumerate(values)
        ]
        waiting = {task.name: task for task in tasks}
        found: dict[str, dict[int, Any]] = {task.name: {} for task in tasks}
        # A task without parts has nothing to wait for.
        for name in [name for name, values in parts.items() if not values]:
            task = waiting.pop(name)
            yield completed(folder, task, self.join(folder, task, []))
        if not items:
            return
        # One block per part: Ray schedules, retries and balances blocks.
        rows = ray.data.from_items(items, override_num_blocks=min(len(items), MOST_BLOCKS))
        at_once = max(1, int(ray.cluster_resources().get("CPU", 1)))
        for step in self.steps:
            arguments = (step.make, step.arguments)
            if step.actors:
                rows = rows.map(
                    _Worker,
                    fn_constructor_args=arguments,
                    compute=ray.data.ActorPoolStrategy(size=min(step.actors, len(items))),
                    num_cpus=ACTOR_SHARE,
                    num_gpus=step.gpus,
                )
            else:
                rows = rows.map(_Worker(*arguments).__call__, num_cpus=1 - ACTOR_SHARE, concurrency=at_once)
        for row in rows.iter_rows():
            if row["error"]:
                raise UserError(row["error"])
            name = row["task"]
            found[name][row["part"]] = pickle.loads(row["value"])
            if len(found[name]) == len(parts[name]):
                values = [value for _, value in sorted(found.pop(name).items())]
                task = waiting.pop(name)
                yield completed(folder, task, self.join(folder, task, values))


class _Worker:
    """A step on Ray: maps a row with a pickled value to one with the next value, or with an error."""

    def __init__(self, make: Callable[..., Callable[[Any], Any]], arguments: tuple[Any, ...]) -> None:
        self.function = make(*arguments)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        if row["error"]:
            return row
        try:
            return row | {"value": pickle.dumps(self.function(pickle.loads(row["value"])))}
        except UserError as error:
            return row | {"value": b"", "error": str(error)}
