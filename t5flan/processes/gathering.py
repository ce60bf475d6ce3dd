"""Values of all processes of a job, gathered, and work that they divide: lists, numbers and texts, not arrays.

Work of which one process must decide has a leader, the first process, whom the others follow:

    leader:      lead([step, tasks]) -> load_together -> divide -> metrics, table, files      ... -> lead(None)
    follower:    order = follow()    -> load_together -> divide                               ... -> None: it ends
"""

import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

_LONGEST_WAIT = 7 * 24 * 3600
"""Seconds to wait for another process. One that ends is noticed by watch.py, so this is no limit on its work."""
_calls = itertools.count()

T = TypeVar('T')


def gather(value: Any) -> list[Any]:
    """The values of all processes, by their index, on each of them; all of them must call it.

    Args:
        value: anything that JSON can hold.
    """
    if jax.process_count() == 1:
        return [value]
    from jax.experimental import multihost_utils
    from orbax.checkpoint import multihost

    client: Any = multihost.get_jax_distributed_client()
    client.wait_at_barrier(f't5flan/gather/{next(_calls)}', _LONGEST_WAIT * 1000)  # a collective waits for less
    text = json.dumps(value).encode()
    sizes = multihost_utils.process_allgather(np.array(len(text), np.int32))
    width = 1 << int(sizes.max() - 1).bit_length()  # few shapes: each is compiled once
    padded = np.frombuffer(text.ljust(width, b' '), np.uint8)
    return [json.loads(bytes(row)) for row in multihost_utils.process_allgather(padded)]


def is_leader() -> bool:
    """Whether this is the first process, or the only one."""
    return jax.process_index() == 0


def lead(order: Any) -> None:
    """Tells the other processes, which `follow`, what to do next; None: nothing more.

    Args:
        order: anything that JSON can hold.
    """
    gather(order)


def follow() -> Any:
    """What the first process wants done; the others call this."""
    return gather(None)[0]


def load_together(load: Callable[[], T | None]) -> T | None:
    """What `load` returns; None on all processes if it returns None on one of them."""
    found = load()
    return found if all(gather(found is not None)) else None


def divide(answer: Callable[[list[int]], list[Any]], lengths: Sequence[int]) -> list[Any]:
    """Answers to all of some inputs, of which each process gives its share; all processes get all of them.

    Args:
        answer: the places of inputs -> their answers, which JSON can hold.
        lengths: of the inputs: each process gets as many long ones as the others.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    own = sorted(order[jax.process_index() :: jax.process_count()])
    found: dict[int, Any] = {}
    for places, answers in gather([own, answer(own) if own else []]):
        found |= zip(places, answers, strict=True)
    return [found[place] for place in range(len(lengths))]
