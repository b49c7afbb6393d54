"""Show a study on the console."""

from rich.box import SIMPLE
from rich.table import Column, Table

from secateur.framework.studies.oracle.correlation import MEASURES
from secateur.framework.studies.oracle.study import Study

#: column -> reference, part and measure of its numbers
STUDY_COLUMNS: dict[str, tuple[str, str, str]] = {
    **{measure.capitalize(): ("squared", "all", measure) for measure in MEASURES},
    **{f"layers: {measure.capitalize()}": ("squared", "layer_mean", measure) for measure in MEASURES},
    **{f"total: {measure.capitalize()}": ("total", "all", measure) for measure in ("pearson", "spearman")},
}


def table(study: Study, title: str) -> Table:
    """Return a table of the correlations of every criterion with the squared change of the loss, best first."""
    columns = [Column(name.replace(": ", ":\n"), justify="right") for name in (*STUDY_COLUMNS, "seconds")]
    title += ": correlation with the squared change of the loss"
    result = Table(Column(no_wrap=True), *columns, title=title, title_justify="left", box=SIMPLE)
    for name in study.ranked():
        judged = study.judged[name]
        places = STUDY_COLUMNS.values()
        cells = [shown(judged.correlation[reference][part][measure]) for reference, part, measure in places]
        result.add_row(name, *cells, f"{judged.seconds:.2f}")
    return result


def head(study: Study) -> list[str]:
    """Return lines that describe the measurement."""
    oracle = study.oracle
    return [
        f"{study.units:,} units in {len(oracle.changes['signed'])} layers, loss {oracle.loss:.4f} over "
        f"{oracle.samples:,} training images; the oracle took {oracle.seconds:.1f} s",
        "the change of each batch is squared and averaged, as the scores are; total: that of all images",
        "over the raw scores of all layers; layers: mean over the layers; -: not defined",
    ]


def left_out_lines(study: Study) -> list[str]:
    """Return a line with the excluded criterions for each reason."""
    names: dict[str, list[str]] = {}
    for name, reason in study.left_out.items():
        names.setdefault(reason, []).append(name)
    return [f"left out: {', '.join(those)} ({reason})" for reason, those in names.items()]


def shown(value: float | None) -> str:
    """Format with three decimals; "-" if the value is not defined."""
    return "-" if value is None else f"{value:.3f}"
