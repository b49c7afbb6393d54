"""Show the results of an adversarial evaluation as tables."""

from typing import Any

from rich.table import Column, Table

from secateur.framework.settings.attacks import NORMS
from secateur.framework.studies.robustness.assess import networks_of


def robustness_tables(results: dict[str, Any]) -> list[str | Table]:
    """Return lines and tables for the report's dictionary, of one or two networks."""
    lines: list[str | Table] = []
    networks = networks_of(results)
    for network in networks:
        low, high = network["clean_interval"]
        lines.append(
            f"{network['network']}: clean accuracy {network['clean_accuracy']:.4f} ({low:.4f} to {high:.4f}) on "
            f"{network['samples']} images, {network['misclassified']} misclassified without any attack"
        )
    for norm in NORMS:
        if norm in results["worst_case"]:
            lines += [_table(norm, network) for network in networks]
    for network in networks:
        name, sanity = network["network"], network["sanity"]
        lines += [f"sign of masked gradients ({name}): {sign}" for sign in sanity["signs"]]
        if not sanity["signs"]:
            lines.append(f"no sign of masked gradients ({name}, {sanity['probed']} points probed)")
    return lines


def _table(norm: str, network: dict[str, Any]) -> Table:
    """Return a table of robust accuracy by attack and epsilon, for one norm and one network.

    On a narrow terminal, the names are folded but not the numbers.
    """
    worst = network["worst_case"][norm]
    names, median = Column(overflow="fold", min_width=8), Column("median", justify="right", min_width=6)
    epsilons = [Column(shown_epsilon(norm, value), justify="right", no_wrap=True) for value in worst["epsilons"]]
    title = f"robust accuracy in {norm}: {network['network']}"
    table = Table(names, *epsilons, median, title=title, title_justify="left")
    low, high = zip(*worst["interval"], strict=True)
    rows = {name: network["attacks"][name]["robust_accuracy"] for name in worst["attacks"]}
    rows |= {"worst case": worst["robust_accuracy"], "  95 % from": low, "  to": high}
    for name, shares in rows.items():
        table.add_row(name, *(f"{share:.4f}" for share in shares), _median(network["attacks"].get(name, {})))
    return table


def _median(attack: dict[str, Any]) -> str:
    if "median_perturbation" not in attack:
        return ""
    median = attack["median_perturbation"]
    return "none found" if median is None else f"{median:.4g}"


def shown_epsilon(norm: str, epsilon: float) -> str:
    """Format an epsilon: as 8/255 for multiples of 8-bit steps in Linf (in float32), else in 4 digits."""
    steps = 255 * epsilon
    if norm == "Linf" and round(steps) > 0 and abs(steps - round(steps)) < 1e-4:
        return f"{round(steps)}/255"
    return f"{epsilon:.4g}"
