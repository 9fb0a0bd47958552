"""``siclip-platform plan``: what a job will take, before it is started.

`work` counts what a step computes and holds, `storage` what lies on the disk, `cards` and `calibration` know how
fast that goes, and `plan` puts them together and says what to change.
"""

from siclip_platform.plan.job import Job
from siclip_platform.plan.plan import Plan, make_plan

__all__ = ["Job", "Plan", "make_plan"]
