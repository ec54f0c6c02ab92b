"""Runs a function over a stream in threads, a bounded stretch ahead, and gives results in order.

Called by plan (scanning containers, reading shard files) and read (files, members of remote containers).
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    threads: int,
    weigh: Callable[[Item], int] = lambda item: 1,
    budget: int | None = None,
) -> Iterator[Result]:
    """`function` of each item, in the items' order, with at most `2 * threads` of them begun and not yet taken.

    Args:
        function: called in a thread; what it raises is raised here, at its item's turn.
        items: consumed as needed.
        threads: how many at once, at least 1.
        weigh: what an item costs while it is begun and not taken, such as its bytes.
        budget: most that all of them together may cost; one item always runs. None: no bound but their number.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="facescale-ahead")
    begun: deque[tuple[Future[Result], int]] = deque()
    cost = 0
    try:
        for item in items:
            weight = weigh(item)
            while begun and (len(begun) >= 2 * threads or (budget is not None and cost + weight > budget)):
                future, paid = begun.popleft()
                yield future.result()
                cost -= paid
            begun.append((pool.submit(function, item), weight))
            cost += weight
        while begun:
            yield begun.popleft()[0].result()
    finally:  # also when the consumer stops early
        pool.shutdown(wait=True, cancel_futures=True)


class _Failed:
    """What the producing thread raised, on its way to the consumer."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


_END = object()


def iterate_ahead(items: Iterable[Item], *, weigh: Callable[[Item], int], budget: int) -> Iterator[Item]:
    """The same items, produced by one thread that runs ahead of the consumer.

    Args:
        items: iterated in the thread, closed there.
        weigh: what an item costs while it waits, such as its bytes.
        budget: most that the waiting ones together may cost; one always may wait.
    """
    waiting: queue.SimpleQueue[object] = queue.SimpleQueue()
    room = threading.Condition()
    cost, stopped = 0, False

    def produce() -> None:
        nonlocal cost
        try:
            for item in items:
                weight = weigh(item)
                with room:
                    while cost and cost + weight > budget and not stopped:
                        room.wait()
                    if stopped:
                        return
                    cost += max(weight, 1)
                waiting.put(item)
            waiting.put(_END)
        except BaseException as error:
            waiting.put(_Failed(error))

    thread = threading.Thread(target=produce, name="facescale-ahead", daemon=True)
    thread.start()
    try:
        while (item := waiting.get()) is not _END:
            if isinstance(item, _Failed):
                raise item.error
            with room:
                cost -= max(weigh(item), 1)  # type: ignore[arg-type]
                room.notify()
            yield item  # type: ignore[misc]
    finally:
        with room:
            stopped = True
            room.notify()
        thread.join()
