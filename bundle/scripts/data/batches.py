"""Data sets and loaders that read ahead in threads, and batches of same-size images."""

import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from monai.data import DataLoader, Dataset
from torch.utils.data import Sampler

from ..errors import BundleError
from ..files.foreign_files import open_image
from ..runs.plain_errors import plain_cause

UNREADABLE_PX = (32, 32)  # size of the black image in the place of one without a readable header


class ThreadedDataset(Dataset):
    """A MONAI data set whose batches are read by several threads, since decoding releases the GIL; errors are raised.

    (MONAI's ThreadDataLoader reads ahead too, but an unreadable image ends its data without an error.)

    Args:
        data, transform: as for ``Dataset``; the transform must not be random.
        threads: number of threads.
    """

    def __init__(self, data: Sequence[Any], transform: Callable[[Any], Any], threads: int = 4) -> None:
        super().__init__(data, transform)
        self.threads = threads

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """The items of a batch; PyTorch's DataLoader calls this."""
        with ThreadPoolExecutor(self.threads) as pool:
            return list(pool.map(self.__getitem__, indices))


class ReadableDataset(ThreadedDataset):
    """Like ``ThreadedDataset``, but an image that cannot be read becomes a black one whose ``error`` says why.

    So one bad file among thousands stops nothing. Items without the key ``error`` raise as usual.

    Args:
        data: items, for instance of ``image_folder.images_to_segment``.
        transform: as for ``ThreadedDataset``; makes ``image``, (3, H, W).
        dtype: of the images that ``transform`` makes.
        threads: as for ``ThreadedDataset``.
    """

    def __init__(
        self,
        data: Sequence[dict[str, Any]],
        transform: Callable[[Any], Any],
        dtype: torch.dtype = torch.float32,
        threads: int = 4,
    ) -> None:
        super().__init__(data, transform, threads)
        self.dtype = dtype

    def _transform(self, index: int) -> dict[str, Any]:
        item = self.data[index]
        if "error" not in item:
            return super()._transform(index)
        if not item["error"]:
            try:
                return super()._transform(index)
            except Exception as error:  # whatever a library raises for a damaged file
                item = item | {"error": str(plain_cause(error) or error)}
        width, height = item.get("size", UNREADABLE_PX)
        return item | {"image": torch.zeros(3, height, width, dtype=self.dtype), "size": (width, height)}


class ReadAheadDataLoader(DataLoader):
    """MONAI's DataLoader; with ``pin_memory``, as for GPUs, a thread prefetches its batches.

    Batches, their order and errors are the same. The sampler draws in the calling thread.

    Args:
        dataset, num_workers, kwargs: as for ``DataLoader``.
        ahead: number of batches to prefetch.
    """

    def __init__(self, dataset: Any, num_workers: int = 0, ahead: int = 2, **kwargs: Any) -> None:
        super().__init__(dataset, num_workers, **kwargs)
        self.ahead = ahead

    def __iter__(self) -> Iterator[Any]:
        batches = super().__iter__()
        return _made_ahead(batches, self.ahead) if self.pin_memory else batches


def _made_ahead(batches: Iterator[Any], ahead: int) -> Iterator[Any]:
    """``batches``, up to ``ahead`` of them prefetched by a thread."""
    made: queue.Queue[tuple[str, Any]] = queue.Queue(ahead)
    stopped = threading.Event()

    def put(kind: str, value: Any = None) -> None:
        while not stopped.is_set():
            try:
                return made.put((kind, value), timeout=0.1)
            except queue.Full:
                pass

    def make() -> None:
        try:
            for batch in batches:
                put("batch", batch)
                if stopped.is_set():
                    return
            put("end")
        except Exception as error:  # raised where the batch is requested
            put("error", error)

    try:
        first = next(batches)  # the sampler draws here, from this thread's random state
    except StopIteration:
        return
    threading.Thread(target=make, name="read ahead", daemon=True).start()
    try:
        yield first
        while True:
            kind, value = made.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        stopped.set()


class SameSizeBatches(Sampler[list[int]]):
    """Batches of indices of same-size images, so that images of any size can be stacked.

    The batches depend only on the items, never on earlier progress: the same images always share a batch.

    Args:
        items: with the path of an image under ``"image"``, or from ``image_folder.images_to_segment``.
        batch_size: largest number of images in a batch.
    """

    def __init__(self, items: Sequence[Mapping[str, Any]], batch_size: int) -> None:
        sizes = []
        for item in items:
            if "error" in item:  # its header was read before
                sizes.append(item.get("size", UNREADABLE_PX))
                continue
            with open_image(item["image"]) as image:
                sizes.append(image.size)
        self.batches = batches_of_one_size(sizes, batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def batches_of_one_size(sizes: Sequence[tuple[int, ...]], batch_size: int) -> list[list[int]]:
    """The indices of ``sizes`` in batches of up to ``batch_size`` equal sizes, in order of first occurrence."""
    if batch_size < 1:
        raise BundleError(f"`batch_size` must be at least 1, got {batch_size}.")
    by_size: dict[tuple[int, ...], list[int]] = {}
    for index, size in enumerate(sizes):
        by_size.setdefault(size, []).append(index)
    return [
        indices[start : start + batch_size]
        for indices in by_size.values()
        for start in range(0, len(indices), batch_size)
    ]


def same_size_loader(dataset: Dataset, batch_size: int, **settings: Any) -> ReadAheadDataLoader:
    """A loader for images of any size: the images of each batch have the same size.

    Args:
        dataset: items with an ``image``.
        batch_size: largest number of images in a batch.
        settings: further arguments of the loader.
    """
    return ReadAheadDataLoader(dataset, batch_sampler=SameSizeBatches(dataset.data, batch_size), **settings)
