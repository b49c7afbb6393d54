"""Statistics of batch norms measured anew."""

import copy

import torch

from secateur.framework.network.batch_norm import measured_statistics, running_statistics
from tests.networks import ConvNet, images, randomise, same, seeded, snapshot


def test_statistics_are_those_of_the_batches_and_leave_no_trace() -> None:
    model = randomise(seeded(ConvNet)).double()
    batches = [images(5, seed=seed, dtype=torch.float64) for seed in range(3)]
    before = snapshot(model)
    found = measured_statistics(model, [*batches, batches[0][:1]])
    assert same(snapshot(model), before) and model.training
    twin = copy.deepcopy(model)
    for norm in (twin.na, twin.nb, twin.nc):
        norm.momentum = None
        norm.reset_running_stats()
    for batch in batches:
        twin.train()(batch)
    for one, other in zip(found, running_statistics(twin), strict=True):
        torch.testing.assert_close(one, other)
