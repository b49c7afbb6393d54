"""Correlation coefficients of two tensors."""

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
    """Compute Pearson's r, Spearman's rho and Kendall's tau-b of two `(n,)` tensors, in float64.

    Entries that are infinite in either tensor are excluded. A coefficient that is not defined is None: with fewer
    than two entries, or if all entries of a tensor are equal.
    """
    x, y = (tensor.detach().cpu().double().flatten().numpy() for tensor in (scores, reference))
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return dict.fromkeys(MEASURES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nearly constant numbers
        values = {name: float(measure(x, y).statistic) for name, measure in MEASURES.items()}
    return {name: value if np.isfinite(value) else None for name, value in values.items()}


def mean(correlations: list[Correlation]) -> Correlation:
    """Average each coefficient over the correlations in which it is defined; None if it never is."""
    means: Correlation = {}
    for name in MEASURES:
        values = [value for correlation in correlations if (value := correlation[name]) is not None]
        means[name] = sum(values) / len(values) if values else None
    return means
