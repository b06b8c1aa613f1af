"""Data sets and loaders that read ahead in threads, and batches of images of one size."""

import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from monai.data import DataLoader, Dataset
from torch.utils.data import Sampler

from ..errors import BundleError
from ..files.foreign_files import open_image


class ThreadedDataset(Dataset):
    """A MONAI data set whose batches are read by several threads: decoding holds no lock. Errors are raised as ever.

    (MONAI's ThreadDataLoader reads ahead, but an image that cannot be read ends its data without an error.)

    Args:
        data, transform: as for ``Dataset``; the transform must not be random.
        threads: number of threads.
    """

    def __init__(self, data: Sequence[Any], transform: Callable[[Any], Any], threads: int = 4) -> None:
        super().__init__(data, transform)
        self.threads = threads

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """The items of a batch; PyTorch's DataLoader asks for them so."""
        with ThreadPoolExecutor(self.threads) as pool:
            return list(pool.map(self.__getitem__, indices))


class ReadAheadDataLoader(DataLoader):
    """MONAI's DataLoader; with ``pin_memory``, as for GPUs, a thread makes its batches before they are asked for.

    Batches and their order are the same, and so are errors. The sampler draws in the thread that asks.

    Args:
        dataset, num_workers, kwargs: as for ``DataLoader``.
        ahead: how many batches are made before they are asked for.
    """

    def __init__(self, dataset: Any, num_workers: int = 0, ahead: int = 2, **kwargs: Any) -> None:
        super().__init__(dataset, num_workers, **kwargs)
        self.ahead = ahead

    def __iter__(self) -> Iterator[Any]:
        batches = super().__iter__()
        return _made_ahead(batches, self.ahead) if self.pin_memory else batches


def _made_ahead(batches: Iterator[Any], ahead: int) -> Iterator[Any]:
    """``batches``, up to ``ahead`` of them made by a thread before they are asked for."""
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
        except Exception as error:  # it belongs where the batch was wanted
            put("error", error)

    try:
        first = next(batches)  # here the sampler draws, from this thread's random numbers
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
    """Batches of indices of images of one size each, so that images of any size can be stacked.

    The batches depend on the items alone, never on what is done already: the same images always share a batch.

    Args:
        items: have the path of an image under ``"image"``.
        batch_size: largest number of images in a batch.
    """

    def __init__(self, items: Sequence[Mapping[str, Any]], batch_size: int) -> None:
        sizes = []
        for item in items:
            with open_image(item["image"]) as image:
                sizes.append(image.size)
        self.batches = batches_of_one_size(sizes, batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def batches_of_one_size(sizes: Sequence[tuple[int, ...]], batch_size: int) -> list[list[int]]:
    """The indices of ``sizes`` in batches of up to ``batch_size`` equal ones, sizes in the order they first come in."""
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
    """A loader of images of any size: each batch has images of one.

    Args:
        dataset: of items with an ``image``.
        batch_size: most images in a batch.
        settings: of the loader.
    """
    return ReadAheadDataLoader(dataset, batch_sampler=SameSizeBatches(dataset.data, batch_size), **settings)
