"""Show the results of an adversarial evaluation as tables."""

from typing import Any

from rich.table import Table

from secateur.framework.settings.attacks import NORMS


def robustness_tables(results: dict[str, Any]) -> list[str | Table]:
    """Return lines and tables for the report's dictionary, of one or two networks."""
    lines: list[str | Table] = []
    networks = [results, *([results["compared"]] if "compared" in results else [])]
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
        lines += [
            f"sign of masked gradients ({network['network']}): {sign}" for sign in network["sanity"]["signs"]
        ]
        if not network["sanity"]["signs"]:
            lines.append(
                f"no sign of masked gradients ({network['network']}, {network['sanity']['probed']} points probed)"
            )
    return lines


def _table(norm: str, network: dict[str, Any]) -> Table:
    """Return a table of robust accuracy by attack and epsilon, for one norm and one network.

    On a narrow terminal, the names are folded but not the numbers.
    """
    worst = network["worst_case"][norm]
    table = Table(title=f"robust accuracy in {norm}: {network['network']}", title_justify="left")
    table.add_column("", overflow="fold", min_width=8)
    for epsilon in worst["epsilons"]:
        table.add_column(shown_epsilon(norm, epsilon), justify="right", no_wrap=True)
    table.add_column("median", justify="right", min_width=6)
    for name in worst["attacks"]:
        attack = network["attacks"][name]
        table.add_row(name, *(f"{share:.4f}" for share in attack["robust_accuracy"]), _median(attack))
    table.add_row("worst case", *(f"{share:.4f}" for share in worst["robust_accuracy"]), "")
    table.add_row("  95 % from", *(f"{low:.4f}" for low, _ in worst["interval"]), "")
    table.add_row("  to", *(f"{high:.4f}" for _, high in worst["interval"]), "")
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
