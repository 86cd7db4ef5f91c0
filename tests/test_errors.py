"""Messages stay one readable line whatever names they quote."""

import pickle

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from tpec.errors import TpecError, first_line, is_out_of_memory, one_line, sentence


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


def test_errors_travel_between_processes() -> None:
    error = pickle.loads(pickle.dumps(TpecError("stopped\n")))
    assert isinstance(error, TpecError) and str(error) == r"stopped\n"


@pytest.mark.parametrize("error", [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), MemoryError(),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR, when calling `cusolverDnCreate(handle)`"),
    RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnSpotrf(...)`"),
    RuntimeError("Triton Error [CUDA]: out of memory"), RuntimeError("HIP error: out of memory"),
    RuntimeError("CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried "
                 "to allocate 4503599627370496 bytes. Error code 12 (Cannot allocate memory)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried to "
                 "allocate 8 bytes.")], ids=lambda error: str(error)[:40])
def test_memory_that_ran_out_in_all_its_forms(error: Exception) -> None:
    assert is_out_of_memory(error)
    assert sentence(error).startswith("Memory ran out (") and "\n" not in sentence(error)


@pytest.mark.parametrize(("error", "said"), [
    (RuntimeError("\nshapes do not fit.\nCompile with TORCH_USE_CUDA_DSA."), "shapes do not fit"),
    (ValueError(), "ValueError"), (ValueError(" \n"), "ValueError"), (ValueError("..."), "ValueError"),
    (KeyError("memory"), "'memory'")])
def test_what_an_error_says_first(error: Exception, said: str) -> None:
    assert first_line(error) == said


def test_memory_that_this_pytorch_cannot_get() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 55, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize("error", [
    RuntimeError("CUDA error: an illegal memory access was encountered"), RuntimeError(),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"), OSError(12, "Cannot allocate memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`"),
    RuntimeError("cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR, when calling `cusolverDnSpotrf(...)`"),
    torch.linalg.LinAlgError("not positive-definite"), TpecError("The disk is out of memory."), KeyError("memory")])
def test_other_errors_are_no_lack_of_memory(error: Exception) -> None:
    assert not is_out_of_memory(error)
    assert sentence(error) and "\n" not in sentence(error)
