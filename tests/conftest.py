"""What holds for every test: what a run does to torch and to the registry, the next test does not see."""

from collections.abc import Iterator
from functools import partial

import pytest
import torch

from secateur.framework.network.latency import measure_latency
from secateur.framework.plugins.registry import registry
from tests.command_line import command, make, plugins, source

__all__ = ["command", "make", "plugins", "source"]


@pytest.fixture(autouse=True)
def one_thread(torch_as_it_was: None) -> None:
    """One thread: on tiny tensors threads mostly wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def torch_as_it_was() -> Iterator[None]:
    """Threads, determinism and denormal numbers as at the start of the process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    torch.set_flush_denormal(False)


@pytest.fixture(autouse=True)
def plugins_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget, after the test, the plug-ins it registered."""
    monkeypatch.setattr(registry, "_files", {kind: dict(files) for kind, files in registry._files.items()})
    monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    monkeypatch.setattr(registry, "folders", list(registry.folders))


@pytest.fixture(autouse=True)
def speed_at_a_glance(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run times each network once, and not thirty times: no test looks at how long it took."""
    monkeypatch.setattr(
        "secateur.framework.reporting.report.measure_latency", partial(measure_latency, repeats=1, warmup=0)
    )
    monkeypatch.setattr("secateur.framework.network.memory_format.REPEATS", 1)
