"""How well one list of numbers tells another."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from scipy import stats
from torch import Tensor

#: name -> Pearson's r, Spearman's rho, Kendall's tau-b
MEASURES: dict[str, Any] = {
    "pearson": stats.pearsonr,
    "spearman": stats.spearmanr,
    "kendall": stats.kendalltau,
}
Correlation = dict[str, float | None]


def correlation(scores: Tensor, reference: Tensor) -> Correlation:
    """Pearson, Spearman and Kendall (tau-b, ties counted) of two `(n,)` tensors, in float64.

    Entries that are infinite in either are left out. None where it is not defined: fewer than two entries, or
    all of them equal on one side.
    """
    x, y = (one.detach().cpu().double().flatten().numpy() for one in (scores, reference))
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return dict.fromkeys(MEASURES)
    return {name: _value(measure, x, y) for name, measure in MEASURES.items()}


def _value(measure: Any, x: Any, y: Any) -> float | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nearly constant numbers
        found = float(measure(x, y).statistic)
    return found if np.isfinite(found) else None


def mean(found: list[Correlation]) -> Correlation:
    """The mean of each measure over those where it is defined; None where it never is."""
    means: Correlation = {}
    for name in MEASURES:
        values = [value for one in found if (value := one[name]) is not None]
        means[name] = sum(values) / len(values) if values else None
    return means
