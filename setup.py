"""The wheel: in a clone the folders lie beside `secateur/`, in an installed package inside it."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

FOLDERS = ("framework", "models", "criterions", "trainers", "testers", "losses", "utils")


def packages() -> dict[str, str]:
    """Every package of the wheel and the folder it comes from."""
    places = {"secateur": "secateur"}
    for top in FOLDERS:
        for folder in sorted({file.parent.as_posix() for file in Path(top).rglob("*.py")}):
            places[f"secateur.{folder.replace('/', '.')}"] = folder
    return places


class BuildWithMain(build_py):
    """Adds main.py, which lies beside the packages in a clone, as `secateur.main`."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        """The modules of a package; `secateur` has one more."""
        modules: list[tuple[str, str, str]] = super().find_package_modules(package, package_dir)
        return [*modules, ("secateur", "main", "main.py")] if package == "secateur" else modules


places = packages()
setup(packages=list(places), package_dir=places, cmdclass={"build_py": BuildWithMain})
