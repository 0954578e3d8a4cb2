"""The next item is made on a thread while the one before is worked on."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


def prefetched(items: Iterable[T]) -> Iterator[T]:
    """The items in their order, each made one ahead on a thread.

    An error in making an item is raised where the item would have come. Nothing is made before the
    first item is asked for, and nothing goes on once the iterator is closed.

    Args:
      items: made as they are asked for.

    >>> list(prefetched(x * x for x in range(4)))
    [0, 1, 4, 9]
    """
    end: Any = object()
    iterator = iter(items)
    with ThreadPoolExecutor(1, "prefetch") as pool:
        coming = pool.submit(next, iterator, end)
        while (item := coming.result()) is not end:
            coming = pool.submit(next, iterator, end)
            yield item
