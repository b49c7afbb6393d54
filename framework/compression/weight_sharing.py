"""Weight sharing: k-means of the nonzero weights of each layer, and centroids that are fine-tuned by training.

Han, Mao and Dally, 2016, arXiv:1510.00149.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from secateur.framework.network.layers import check_network, prunable_layers, prunable_weights
from secateur.utils.errors import UsageError
from secateur.utils.suggest import unknown

INITIAL = ("linear", "density", "random")
LARGEST_BITS = 16
#: weights beyond this number are clustered as the means of so many intervals, with the weights of each counted
POINTS = 2**16
#: centroids that are refined together; with more, neighbours are refined apart from those far away
TOGETHER = 2**8

Array = NDArray[Any]


class SharedWeights(Mapping[str, Tensor]):
    """Weights that share values: parameter name -> centroids, ascending at the time of clustering, (k,).

    `attach` lets an optimizer fine-tune the centroids: before each step the gradient of every weight is replaced
    by the sum over its cluster, which is the gradient of the centroid, and after it the weights of a cluster are
    made equal again and zeros are zero. Optimizers that treat all entries of a tensor alike, such as SGD and Adam,
    then train each centroid as one parameter.

    Args:
        model: The network.
        clusters: Parameter name -> cluster of each entry, int64 of the parameter's shape; -1 for zeros, which
            belong to no cluster.

    Example:
        >>> import torch
        >>> from secateur import share_weights
        >>> layer = torch.nn.Linear(64, 8)
        >>> shared = share_weights(layer, bits=2)
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
        >>> detach = shared.attach(optimizer)
        >>> layer(torch.ones(2, 64)).sum().backward()
        >>> optimizer.step()
        >>> shared["weight"].shape, len(layer.weight.unique())
        (torch.Size([4]), 4)
    """

    def __init__(self, model: nn.Module, clusters: Mapping[str, Tensor]) -> None:
        self._model = model
        #: entries of each weight by cluster, and the number of entries of each cluster
        self._members: dict[str, tuple[Tensor, Tensor]] = {}
        for name, cluster in clusters.items():
            flat = cluster.reshape(-1)
            order = torch.argsort(flat, stable=True)
            order = order[int((flat < 0).sum()) :]
            self._members[name] = order, torch.unique_consecutive(flat[order], return_counts=True)[1]

    def __getitem__(self, name: str) -> Tensor:
        order, counts = self._members[name]
        firsts = (counts.cumsum(0) - counts).to(order.device)
        return self._parameters()[name].detach().reshape(-1)[order[firsts]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    @torch.no_grad()
    def tie(self) -> None:
        """Set the weights of each cluster to the value of its first weight, and all others to +0.0."""
        parameters = self._parameters()
        for name in self._members:
            parameters[name].copy_(self._spread(name, self[name], parameters[name]))

    @torch.no_grad()
    def sum_gradients(self) -> None:
        """Replace each gradient by the sum over the cluster of the weight; those of zeros become zero."""
        parameters = self._parameters()
        for name, (order, counts) in self._members.items():
            gradient = parameters[name].grad
            if gradient is not None and len(counts):
                sums = torch.segment_reduce(gradient.reshape(-1)[order], "sum", lengths=counts)
                gradient.copy_(self._spread(name, sums, gradient))
            elif gradient is not None:
                gradient.zero_()

    def attach(self, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
        """Sum the gradients before every step of an optimizer, and tie the weights after it.

        Attach it after masks, whose products may have negative zeros.

        Args:
            optimizer: The optimizer of the shared parameters.

        Returns:
            A function without arguments that removes the hooks.
        """
        before = optimizer.register_step_pre_hook(lambda *_: self.sum_gradients())
        after = optimizer.register_step_post_hook(lambda *_: self.tie())

        def detach() -> None:
            before.remove()
            after.remove()

        return detach

    def _parameters(self) -> dict[str, nn.Parameter]:
        return dict(self._model.named_parameters())

    def _spread(self, name: str, values: Tensor, like: Tensor) -> Tensor:
        """Return a tensor of the shape of `like` with the value of its cluster at each entry, and zeros."""
        order, counts = self._members[name]
        flat = torch.zeros(like.numel(), dtype=like.dtype, device=like.device)
        flat[order] = values.repeat_interleave(counts)
        return flat.view(like.shape)


def share_weights(
    model: nn.Module, bits: int = 5, bits_conv: int | None = None, *, initial: str = "linear", seed: int = 0
) -> SharedWeights:
    """Replace the nonzero weights of each convolution and linear layer by 2^bits centroids of k-means.

    Zeros remain zero and have no centroid, so that the network may be masked as well as cut; biases and norms are
    not changed. A layer with no more than 2^bits different weights keeps them.

    Han, Mao and Dally, 2016, "Deep Compression", arXiv:1510.00149, section 3. The paper uses 8 bits for
    convolutions and 5 for linear layers, and finds linear initialisation best, since it keeps large weights.

    Args:
        model: Network, changed in place.
        bits: Logarithm to base 2 of the number of centroids of a layer, from 1 to 16.
        bits_conv: The same for convolutions. Default: `bits`.
        initial: First centroids: "linear", evenly spaced between the smallest and the largest weight; "density",
            evenly spaced quantiles of the weights; "random", weights drawn at random.
        seed: Seed of k-means, and of the random initialisation.

    Returns:
        The clusters, whose `attach` fine-tunes the centroids.

    Raises:
        UsageError: If `model` is not a network, has no convolution or linear layer or weights that are not finite,
            or for an argument outside its range.

    Example:
        >>> from torch import nn
        >>> from secateur import share_weights
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 6 * 6, 2))
        >>> shared = share_weights(model, bits=3, bits_conv=4)
        >>> {name: len(centroids) for name, centroids in shared.items()}
        {'0.weight': 16, '3.weight': 8}
    """
    check_network(model)
    _check_bits("bits", bits)
    if bits_conv is not None:
        _check_bits("bits_conv", bits_conv)
    if initial not in INITIAL:
        raise UsageError(unknown("initialisation", str(initial), INITIAL), argument="initial")
    weights = prunable_weights(model)
    if not weights:
        raise UsageError(
            f"{type(model).__name__} has no convolution or linear layer whose weights could be shared"
        )
    linear = {id(layer.weight) for layer in prunable_layers(model).values() if isinstance(layer, nn.Linear)}
    found, clusters = {}, {}
    for name, weight in weights.items():
        values = weight.detach().double().cpu().numpy().reshape(-1)
        if not numpy.isfinite(values).all():
            raise UsageError(f"'{name}' contains NaN or infinity, which have no centroid")
        count = 2 ** (bits if id(weight) in linear or bits_conv is None else bits_conv)
        centroids, cluster = cluster_nonzero(values, count, initial, seed)
        found[name] = torch.from_numpy(centroids[cluster] * (cluster >= 0)).view(weight.shape)
        clusters[name] = torch.from_numpy(cluster).to(weight.device).view(weight.shape)
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(found[name])
    shared = SharedWeights(model, clusters)
    shared.tie()
    return shared


def _check_bits(name: str, bits: object) -> None:
    if not isinstance(bits, int) or isinstance(bits, bool) or not 1 <= bits <= LARGEST_BITS:
        raise UsageError(f"{name} must be a whole number from 1 to {LARGEST_BITS}, got {bits!r}", argument=name)


def cluster_nonzero(values: Array, count: int, initial: str = "linear", seed: int = 0) -> tuple[Array, Array]:
    """Return centroids of the nonzero values, ascending, and the cluster of each value; -1 for zeros.

    Args:
        values: float64 (n,), finite.
        count: number of centroids; fewer if there are fewer different values.
        initial: first centroids, see `share_weights`.
        seed: seed of k-means.
    """
    cluster = numpy.full(len(values), -1, numpy.int64)
    entries = values[values != 0]
    if len(entries) == 0:
        return numpy.zeros(1), cluster
    distinct = numpy.unique(entries)
    centroids = distinct if len(distinct) <= count else _centroids(entries, distinct, count, initial, seed)
    nearest = numpy.searchsorted((centroids[1:] + centroids[:-1]) / 2, entries)
    used, cluster[values != 0] = numpy.unique(nearest, return_inverse=True)
    return centroids[used], cluster


def _centroids(entries: Array, distinct: Array, count: int, initial: str, seed: int) -> Array:
    """Return the centroids of k-means, refined in runs of neighbours if there are many."""
    points, frequency = _points(entries, distinct)
    if initial == "linear":
        start = numpy.linspace(distinct[0], distinct[-1], count)
    elif initial == "density":
        start = numpy.quantile(entries, (numpy.arange(count) + 0.5) / count)
    else:
        start = numpy.sort(numpy.random.default_rng(seed).choice(distinct, count, replace=False))
    edges = numpy.searchsorted((start[1:] + start[:-1]) / 2, points)
    parts = []
    for begin in range(0, count, TOGETHER):
        near = (edges >= begin) & (edges < begin + TOGETHER)
        parts.append(_refined(points[near], frequency[near], start[begin : begin + TOGETHER], seed))
    return numpy.unique(numpy.concatenate(parts))


def _points(entries: Array, distinct: Array) -> tuple[Array, Array]:
    """Return the values to cluster and their frequencies: means of intervals if there are many values."""
    if len(distinct) <= POINTS:
        points, frequency = numpy.unique(entries, return_counts=True)
        return points, frequency.astype(numpy.float64)
    edges = numpy.linspace(distinct[0], distinct[-1], POINTS + 1)[1:-1]
    interval = numpy.searchsorted(edges, entries)
    frequency = numpy.bincount(interval, minlength=POINTS).astype(numpy.float64)
    sums = numpy.bincount(interval, weights=entries, minlength=POINTS)
    filled = frequency > 0
    return sums[filled] / frequency[filled], frequency[filled]


def _refined(points: Array, frequency: Array, start: Array, seed: int) -> Array:
    from sklearn.cluster import KMeans  # takes a second to import, and nothing else needs it

    if len(points) <= len(start):
        return points
    means = KMeans(len(start), init=start[:, None], n_init=1, random_state=seed)
    return numpy.sort(means.fit(points[:, None], sample_weight=frequency).cluster_centers_[:, 0])
