"""The processes of a torchrun, or the only one: who am I, wait for the others, share small objects and failures."""

import math
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from ..errors import TpecError, sentence
from .progress import Halt

if TYPE_CHECKING:
    from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]

Shared = TypeVar("Shared")

_TIMEOUT = timedelta(hours=12)
#: Seconds between looks at whether another rank has failed.
_LOOK = 0.5


class PeersLost(TpecError):
    """Another process of the run is gone, so that nothing more can be done together."""


class _PeerFailed(TpecError):
    """Stops this rank's work because another rank's has failed; what that was is exchanged afterwards."""


@dataclass(frozen=True)
class _Failure:
    """What a rank tells the others: a sentence, and its place in the order of failures."""

    order: float
    text: str
    interrupted: bool

    def error(self) -> BaseException:
        return KeyboardInterrupt() if self.interrupted else TpecError(self.text)


@contextmanager
def _peers_alive() -> Iterator[None]:
    """Another rank's death breaks the connection: that is its failure to explain, not a fault of this one."""
    try:
        yield
    except RuntimeError:
        raise PeersLost("Another process of this run failed; see its message.") from None


@dataclass
class World:
    """Rank and number of processes; a single process needs no process group.

    `store` holds small values that all ranks see at once; without it a failure is noticed at the step's end only.
    """

    rank: int = 0
    size: int = 1
    store: "Store | None" = field(default=None, compare=False, repr=False)
    _step: int = field(default=0, init=False, compare=False, repr=False)

    def share(self, value: Shared) -> Shared:
        """Rank 0's value, on every rank; also a barrier."""
        if self.size == 1:
            return value
        box = [value]
        with _peers_alive():
            torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Shared) -> list[Shared]:
        """Every rank's value, on every rank; also a barrier."""
        if self.size == 1:
            return [value]
        box: list[Any] = [None] * self.size
        with _peers_alive():
            torch.distributed.all_gather_object(box, value)
        return box

    def agree(self, work: Callable[[], Shared]) -> Shared:
        """This rank's `work()`, once every rank has done its own; also a barrier.

        When ranks fail, every rank raises what failed first: that rank its exception, the others a TpecError with the
        same sentence (KeyboardInterrupt for an interrupt). So all ranks take the same way, and the next step, of the
        same file or of the next, finds them together. All that can fail on one rank alone must be in such a step.
        """
        if self.size == 1:
            return work()
        self._step += 1
        error, failure = None, None
        done: list[Shared] = []
        try:
            done.append(work())
        except BaseException as caught:  # noqa: BLE001 - raised below, when the others know of it
            error, failure = caught, self._announced(caught)
        failures = [one for one in self.gather(failure) if one is not None]
        if not failures:
            return done[0]
        first = min(failures, key=lambda one: one.order)
        try:
            raise error if error is not None and failure == first else first.error()
        finally:
            # Or it would hold this frame, and this frame it, with all that the run has in memory.
            del error

    @contextmanager
    def watching(self, halt: Halt) -> Iterator[None]:
        """Within a step: set `halt` soon after another rank has failed in it."""
        if self.store is None:
            yield
            return
        done = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(self.store, halt, done), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()

    def _watch(self, store: "Store", halt: Halt, done: threading.Event) -> None:
        key = self._key()
        while not done.wait(_LOOK):
            try:
                failed = store.check([key])
            except RuntimeError:
                # The process that serves the store is gone; the next exchange says so.
                failed = True
            if failed:
                return halt.fail(_PeerFailed("Another process of this run failed; see its message."))

    def _key(self) -> str:
        return f"failed in step {self._step}"

    def _announced(self, error: BaseException) -> _Failure:
        """Tell the other ranks at once that this one has failed; ranks without news of their own come last."""
        if isinstance(error, _PeerFailed):
            order = math.inf
        else:
            order = float(self.rank)
            if self.store is not None:
                # Where the store is gone with its process, the exchange says so.
                with suppress(RuntimeError):
                    order = float(self.store.add(self._key(), 1))
        return _Failure(order, sentence(error), isinstance(error, KeyboardInterrupt))


def join_world() -> World:
    """The world that torchrun describes in the environment (over gloo, so that no GPU is needed), else a single one."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or "RANK" not in os.environ:
        return World()
    if torch.distributed.is_initialized():
        return World(torch.distributed.get_rank(), size)
    # Named in PyTorch's documentation, but not in what its modules export. Not every build of PyTorch has them.
    from torch.distributed import PrefixStore, rendezvous  # pyright: ignore[reportPrivateImportUsage]

    store, rank, size = next(rendezvous("env://", timeout=_TIMEOUT))
    torch.distributed.init_process_group("gloo", store=PrefixStore("group", store), rank=rank, world_size=size,
                                         timeout=_TIMEOUT)
    return World(rank, size, PrefixStore("tpec", store))


def leave_world(world: World) -> None:
    """Close the process group, if there is one.

    PyTorch before 2.5 can wait there for ever when all work is done; its connections end with the process.
    """
    if world.size > 1 and _version() >= (2, 5):
        torch.distributed.destroy_process_group()


def _version() -> tuple[int, ...]:
    return tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
