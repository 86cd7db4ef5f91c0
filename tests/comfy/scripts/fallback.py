"""Which errors of a GPU send the work to the CPU: prints `error: computed on` for each."""

import comfy.model_management as memory
import torch
from pack.nodes.host.memory import with_cpu_fallback

# No GPU is needed: ComfyUI is only to believe that it has room.
memory.get_free_memory = lambda *_, torch_free_too=False, **__: (1 << 40, 1 << 40) if torch_free_too else 1 << 40

ERRORS = [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR, when calling `cusolverDnCreate(handle)`"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("shapes cannot be multiplied"),
]

for error in ERRORS:
    def work(devices, error: Exception = error) -> str:
        if devices[0].type != "cpu":
            raise error
        return "cpu"

    try:
        result, note = with_cpu_fallback((torch.device("cuda"),), lambda device: 0, work)
        print(result, "too little memory" in note)
    except RuntimeError as raised:
        print("raised", raised is error)
