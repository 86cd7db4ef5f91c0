"""Messages stay one readable line whatever names they quote."""

import pickle

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from tpec.errors import Interrupted, TpecError, is_out_of_memory, one_line


def test_unprintable_characters_are_spelled_out() -> None:
    assert str(TpecError("Tensor '\n' of \x1b[31m\u2028 is damaged.")) == r"Tensor '\n' of \x1b[31m\u2028 is damaged."


def test_sentences_in_any_script_stay_as_they_are() -> None:
    sentence = "Model '\u6a21\u578b' of Gr\u00f6\u00dfe 1 is damaged."
    assert str(TpecError(sentence)) == sentence


@given(text=st.text(st.characters(exclude_categories=())))
@example(text="\ud800")
def test_any_text_becomes_one_line_that_can_be_printed(text: str) -> None:
    line = one_line(text)
    assert len(line.splitlines()) <= 1
    line.encode()
    assert one_line(line) == line


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR, when calling `cusolverDnCreate(handle)`"),
    RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried "
                 "to allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4000000000000 bytes."),
    MemoryError(),
])
def test_memory_errors_of_every_form_are_known(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"), RuntimeError(), ValueError("out of memory"),
    torch.linalg.LinAlgError("linalg.cholesky: the factorization could not be completed: not positive-definite"),
    RuntimeError("CUDA error: an illegal memory access was encountered"), TpecError("The disk is full.")])
def test_other_errors_are_no_memory_errors(error: Exception) -> None:
    assert not is_out_of_memory(error)


def test_what_this_machine_raises_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert is_out_of_memory(caught.value)


def test_errors_travel_between_processes() -> None:
    error = pickle.loads(pickle.dumps(Interrupted("stopped\n")))
    assert isinstance(error, Interrupted) and str(error) == r"stopped\n"
