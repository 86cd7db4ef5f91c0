"""What lies between the stages: bounded memory, buffers in turn, and results that reach the host as they are."""

import threading
from functools import partial

import pytest
import torch

from tpec.run.progress import Halt, Stopped
from tpec.run.transfers import ALIGNMENT, Budget, Buffers, Download

CPU = torch.device("cpu")


def test_one_request_larger_than_the_budget_passes_alone() -> None:
    halt, budget = Halt(), Budget(10)
    budget.take(100, halt)
    waiter = threading.Thread(target=partial(budget.take, 5, halt))
    waiter.start()
    assert waiter.is_alive()
    budget.give(100)
    waiter.join()
    halt.fail(KeyError())
    with pytest.raises(Stopped):
        budget.take(6, halt)


def test_buffers_are_used_in_turn() -> None:
    halt, buffers = Halt(), Buffers(2, 16)
    first, second = buffers.take(halt), buffers.take(halt)
    assert first.numel() == 16 and first.data_ptr() != second.data_ptr()
    buffers.give(first)
    assert buffers.take(halt).data_ptr() == first.data_ptr()


def test_no_buffer_is_waited_for_when_the_run_has_failed() -> None:
    halt, buffers = Halt(), Buffers(0, 16)
    threading.Timer(0.05, partial(halt.fail, KeyError())).start()
    with pytest.raises(Stopped):
        buffers.take(halt)


TENSORS = (torch.arange(6.0).view(2, 3), torch.arange(5, dtype=torch.uint8).view(torch.float8_e4m3fn),
           torch.tensor([3.5, -2.0]).bfloat16())


def test_results_of_a_cpu_need_no_buffer() -> None:
    tensors, ready, buffer = Download(CPU, None).fetch(TENSORS, None, Halt())
    assert ready is None and buffer is None
    assert all(torch.equal(found, tensor.view(-1).view(torch.uint8))
               for found, tensor in zip(tensors, TENSORS, strict=True))


def test_a_tensor_that_would_be_copied_on_a_strange_stream_is_no_result() -> None:
    with pytest.raises(RuntimeError, match="view"):
        Download(CPU, None).fetch([torch.arange(6.0).view(2, 3).mT], None, Halt())


def test_tensors_lie_where_any_dtype_can_be_viewed() -> None:
    assert all(ALIGNMENT % dtype.itemsize == 0 for dtype in (torch.float64, torch.complex128))
