"""The command --eval: evaluation of a checkpoint, with --train_acc, --test_acc, --flops and --compression."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from secateur.framework.commands import assemble
from secateur.framework.commands.failures import opened
from secateur.framework.commands.prepare import compared_run
from secateur.framework.network.preserve import preserved_state
from secateur.framework.network.size import count_macs
from secateur.framework.plugins.registry import build
from secateur.framework.pruning.scoring.criterion import Batch
from secateur.framework.reporting.console import Console
from secateur.framework.reporting.measure import dense_twin, measure
from secateur.framework.reporting.report import report_head
from secateur.framework.settings.decisions import Decisions
from secateur.framework.settings.run_config import RunConfig
from secateur.framework.settings.unused_flags import unused_in_tests
from secateur.framework.storage.checkpoint import file_size
from secateur.framework.storage.run_folder import RunFolder
from secateur.framework.training.loss import Loss
from secateur.framework.training.tester import Network, TestContext, Tester
from secateur.utils.classification import correct_samples
from secateur.utils.errors import UsageError
from secateur.utils.files.atomic import write_json
from secateur.utils.loading.loaders import Loaders, normalization


def extras(config: RunConfig, model: nn.Module, loaders: Loaders, results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the results that the flags request, by the names of the flags; empty without any.

    `train_acc`, `test_acc`: share of correct samples of the split; training images exclude validation images and
    are not augmented. `flops`: multiply-adds of one sample, `dense` and `now`, and `effective` ones, scaled by the
    density of masked layers. `compression`: `ratio`, bytes of the file of the dense network / bytes of this one.
    `results`: results of the tester, which contain the test accuracy if it is Accuracy.
    """
    extra: dict[str, Any] = {}
    if config.train_acc:
        extra["train_acc"] = accuracy(model, plain_training(loaders))
    if config.test_acc:
        known = config.test_scheme == RunConfig.test_scheme
        extra["test_acc"] = results["accuracy"] if known else accuracy(model, loaders.test)
    if config.flops or config.compression:
        example = next(loaders.train.plain([torch.zeros(1, dtype=torch.int64)]))[0]
        extra |= _sizes(config, model, example)
    return extra


def _sizes(config: RunConfig, model: nn.Module, example: Tensor) -> dict[str, Any]:
    twin = dense_twin(model, example)
    now = measure(model, example, latency=False)
    results: dict[str, Any] = {}
    if config.flops:
        dense = count_macs(twin, example)[0]
        results["flops"] = {"dense": dense, "now": now["macs"], "effective": now["effective_macs"]}
    if config.compression:
        dense = file_size(twin)
        sizes = {"dense_bytes": dense, "bytes": now["bytes"], "csr_bytes": now["csr_bytes"]}
        results["compression"] = {"ratio": dense / now["bytes"], **sizes}
    return results


def plain_training(loaders: Loaders) -> Iterator[Batch]:
    """Return the batches of the training images in order, without augmentation, up to the limit of an epoch."""
    loader = loaders.train
    chunks = torch.arange(loader.num_samples).split(loader.batch_size)
    return loader.plain(chunks[: loader.limit])


def accuracy(model: nn.Module, batches: Iterable[Batch]) -> float:
    """Return the share of correct samples in eval mode."""
    with preserved_state(model), torch.inference_mode():
        counts = [(correct_samples(model(inputs), targets), len(targets)) for inputs, targets in batches]
    return int(sum(right for right, _ in counts)) / max(1, sum(samples for _, samples in counts))


def shown_extras(found: Mapping[str, Any]) -> list[str]:
    """Return one line for each result."""
    lines = []
    if "flops" in found:
        dense, now, effective = (found["flops"][part] for part in ("dense", "now", "effective"))
        masked = "" if effective == now else f", {effective:,} at the density of its weights"
        lines.append(f"  MACs of one sample: {now:,} (dense {dense:,}{masked})")
    if "compression" in found:
        sizes = found["compression"]
        rows = "" if sizes["csr_bytes"] is None else f", {sizes['csr_bytes']:,} as sparse rows"
        lines.append(f"  compression ratio: {sizes['ratio']:.2f} "
                     f"({sizes['dense_bytes']:,} bytes dense, {sizes['bytes']:,} now{rows})")  # fmt: skip
    for name, split in (("train_acc", "training"), ("test_acc", "test")):
        if name in found:
            lines.append(f"  accuracy on the {split} images: {found[name]:.4f}")
    return lines


def plan(config: RunConfig, decisions: Decisions) -> tuple[RunConfig, Tester, Loss]:
    """Build and check the parts that need neither data nor a network."""
    tester: Tester = build("testers", config.test_scheme, **config.options("tester"))
    if config.compare_with is not None and not tester.compares:
        raise UsageError(f"--compare_with: the tester {config.test_scheme} evaluates only one network")
    decisions.notes += unused_in_tests(decisions.flags)
    return config, tester, assemble.build_loss(config)


class Ready(NamedTuple):
    """The parts of an evaluation that has passed all checks."""

    config: RunConfig
    tester: Tester
    loss: Loss
    loaders: Loaders
    model: nn.Module
    compared: Network | None


def ready(config: RunConfig, decisions: Decisions) -> Ready:
    """Build and check data and networks; neither tests nor writes, but may download the data set."""
    config, tester, loss = plan(config, decisions)  # first, since it is quick
    loaders, config = assemble.build_loaders(config, decisions)
    model = assemble.build_model(config, loaders)
    compared = load_compared(config, loaders)
    models = [model] if compared is None else [model, compared.model]
    config = assemble.laid_out(config, decisions, loaders, *models)
    return Ready(config, tester, loss, loaders, model, compared)


def evaluate(config: RunConfig, decisions: Decisions, command: str, console: Console) -> RunFolder:
    """Evaluate a checkpoint and write the results of the tester to the report."""
    config, tester, loss, loaders, model, compared = ready(config, decisions)
    with opened(config, decisions, command, console) as folder:
        batches = console.track(loaders.test, "evaluate", len(loaders.test))
        head = report_head(config)
        checkpoint = head["checkpoint"]
        context = TestContext(
            name=checkpoint, mean=loaders.mean, std=loaders.std, class_names=loaders.class_names,
            plots=folder.plots, compared=compared, track=console.track,
        )  # fmt: skip
        results = tester.evaluate(model, batches, loss, seed=config.seed, context=context)
        more = extras(config, model, loaders, results)
        head |= {"tester": config.test_scheme} | ({"extras": more} if more else {})
        write_json(folder.report, head | results)
        console.say(f"{checkpoint} on {config.data_set}")
        for line in shown_extras(more):
            console.say(line)
        for part in tester.shown(results):
            console.say(part) if isinstance(part, str) else console.show(part)
    return folder


def load_compared(config: RunConfig, loaders: Loaders) -> Network | None:
    """Return the network of --compare_with, with the normalisation of its training."""
    if config.compare_with is None:
        return None
    file, saved = compared_run(config)
    mean, std = loaders.mean, loaders.std
    if saved.normalize != config.normalize:
        options = config.options("dataset") | {"download": False}
        mean, std = normalization(build("datasets", config.data_set, **options), saved.normalize)
    wanted = {"in_channels": loaders.in_channels, "num_classes": loaders.num_classes}
    model = assemble.load_network(file, saved.model, wanted | {"image_size": loaders.image_size}).to(config.device)
    return Network(f"{file.parent.parent.name}/{file.stem}", model, mean, std)
