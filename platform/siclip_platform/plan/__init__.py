"""``siclip-platform plan``: what a job will need, before it is started.

`work` counts the operations and the memory of a step, `storage` the bytes on disk. `cards` and `calibration` give the
speed of a device, `decoding` that of the data. `plan` combines them, and `advice` suggests changes.
"""

from siclip_platform.plan.job import Job
from siclip_platform.plan.plan import Plan, make_plan

__all__ = ["Job", "Plan", "make_plan"]
