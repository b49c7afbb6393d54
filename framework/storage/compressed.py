"""Saving of networks to compressed files, whose weights have Huffman codes; `load_model` reads them."""

from pathlib import Path

from torch import nn

from secateur.framework.compression.coded_file import encode_file
from secateur.framework.network.ordinary_tensors import ordinary_mode
from secateur.framework.storage.checkpoint import MASK, contents
from secateur.utils.files.atomic import replacing


@ordinary_mode()
def save_compressed(model: nn.Module, path: str | Path) -> Path:
    """Save a network to a compressed file, exactly: weights that share few values take few bits each.

    A weight tensor with few different values is saved as these values, Huffman codes and relative indices of the
    nonzero entries (Han, Mao and Dally, 2016, arXiv:1510.00149). All other tensors, the record of the cuts and the
    masks are deflated. `share_weights` makes weights share values. The format contains no pickle and has a
    checksum for every part; docs/compressed_format.md describes it.

    Args:
        model: network to save, dense, masked or cut.
        path: file to write; missing parent folders are created, and an existing file is replaced atomically.

    Returns:
        The path. `load_model` reads the file.

    Raises:
        UsageError: as for `save_model`, and if a tensor has a dtype that cannot be coded, such as a complex one.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> from secateur import build, load_model, prune, save_compressed, share_weights
        >>> model = build("models", "LeNet300", in_channels=1, num_classes=10, image_size=28)
        >>> report = prune(model, "Magnitude", 0.9, example_input=torch.zeros(1, 1, 28, 28))
        >>> shared = share_weights(model, bits=5)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = save_compressed(model, Path(folder) / "small.secateur")
        ...     loaded, size = load_model(file), file.stat().st_size
        >>> all(a.equal(b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
        True
        >>> 267410 * 4 // size > 25
        True
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors, text = contents(model)
    masks = {name: name.removeprefix(MASK) for name in tensors if name.startswith(MASK)}
    data = encode_file(tensors, text, {name: target for name, target in masks.items() if target in tensors})
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    return path
