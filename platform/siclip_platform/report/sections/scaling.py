"""How quality scales with the number of training pairs: a power law with its uncertainty."""

from __future__ import annotations

from siclip_platform.report.draw.blocks import Block, Text
from siclip_platform.report.draw.looks import BEST, CONTROL
from siclip_platform.report.draw.plots import Plot, Series
from siclip_platform.report.draw.values import is_share, metric_label, plural, short
from siclip_platform.report.judge.power_law import PowerLaw, fit_power_law
from siclip_platform.report.read.runs import Study
from siclip_platform.report.sections.varied import against_number, positions, varied_number

SIZES = ("data.pairs", "data.samples", "data.limit", "data.max_samples", "data.train_samples", "data.first")
FURTHER = 10  # how far beyond the largest size the law is drawn, as a factor


def scaling(study: Study) -> list[Block]:
    """A fitted power law, if the study's settings allow one, and the measured values."""
    path = varied_number(study, SIZES)
    if path is None:
        return [Text("The settings do not differ in exactly one number, so there is no scaling curve.")]
    by_size: dict[float, list[float]] = {}
    for size, setting in positions(study, path):
        # A limit of 0 means all pairs, whose number is not in the recipe.
        if size > 0:
            by_size.setdefault(size, []).extend(setting.values(study.metric).values())
    if not by_size:
        return [Text(f"No setting has {path} above 0, so there is no scaling curve.")]
    share = is_share(study.metric)
    # A law of the form N^−b falls to 0, so it is fitted to an error, or to 1 − share.
    if study.higher_is_better and not share:
        return [
            against_number(study, path, "scaling"),
            Text(f"{study.metric} is neither an error nor a share, so no law is fitted."),
        ]
    errors = {
        x: [1 - value if share and study.higher_is_better else value for value in values]
        for x, values in by_size.items()
    }
    law = fit_power_law({x: values for x, values in errors.items() if values})
    if law is None:
        few = f"A power law needs three sizes with a value; there are {sum(bool(v) for v in errors.values())}."
        return [against_number(study, path, "scaling"), Text(few)]
    return [
        Text(_law_text(law, errors, path, share)),
        _law_plot(study, law, errors, path, share),
        against_number(study, path, "sizes"),
    ]


def _law_text(law: PowerLaw, errors: dict[float, list[float]], path: str, share: bool) -> str:
    further = FURTHER * max(errors)
    low, high = law.interval(further)
    fitted = "1 − share" if share else "error"
    claim = (
        "Its interval excludes 0: more data helps." if law.low > 0 else "Its interval includes 0: no gain is shown."
    )
    return (
        f"{fitted} = {law.scale:.3g} · N^−{law.exponent:.3f}, N = {path}; 95 % bootstrap interval of the exponent "
        f"{law.low:.3f} to {law.high:.3f}. {claim} If the law holds beyond the measured sizes, {short(further)} "
        f"would give {law.at(further):.3g} ({low:.3g} to {high:.3g}); {law.sizes} sizes cannot show whether it does."
    )


def _law_plot(study: Study, law: PowerLaw, errors: dict[float, list[float]], path: str, share: bool) -> Plot:
    sizes = sorted(errors)
    grid = [sizes[0] * (FURTHER * sizes[-1] / sizes[0]) ** (index / 64) for index in range(65)]
    edges = [law.interval(size) for size in grid]
    label = f"1 − {metric_label(study.metric)}" if share and study.higher_is_better else metric_label(study.metric)
    measured = [(size, error) for size in sizes for error in errors[size]]
    fitted = Series(
        name="power law, 95 % interval",
        x=grid,
        y=[law.at(size) for size in grid],
        low=[low for low, _ in edges],
        high=[high for _, high in edges],
        look=CONTROL,
        group="law",
    )
    runs = Series(name="runs", x=[x for x, _ in measured], y=[y for _, y in measured], style="points", look=BEST)
    return Plot(
        key="scaling",
        title=f"{label} against {path}",
        description=f"{plural(len(measured), 'measured run')} and the fitted power law with exponent "
        f"{law.exponent:.3f}, extended to {FURTHER} times the largest size.",
        x_label=path,
        y_label=label,
        x_log=True,
        y_log=True,
        series=[fitted, runs],
    )
