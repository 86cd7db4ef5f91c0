"""ComfyUI's modules built without memory and looked at: which tensors there are and what owns them."""

import comfy.ops
import inventory
import torch

META = torch.device("meta")
Shapes = dict[str, tuple[int, ...]]


class Noting(comfy.ops.manual_cast):
    """ComfyUI's operations, as classes of our own: a module built from them can be told from any other."""

    class Linear(comfy.ops.manual_cast.Linear):
        pass

    class Embedding(comfy.ops.manual_cast.Embedding):
        pass

    class MoEExperts(torch.nn.Module):
        """What ComfyUI's mixed operations call so, with its weight present."""

        def __init__(self, num_experts: int, in_features: int, out_features: int, bias: bool = True, device=None,
                     dtype=None):
            super().__init__()
            where = {"device": device, "dtype": dtype}
            self.weight = torch.nn.Parameter(torch.empty(num_experts, out_features, in_features, **where))
            self.bias = torch.nn.Parameter(torch.empty(num_experts, out_features, **where)) if bias else None


def kind_of(module: torch.nn.Module) -> str:
    """What a module's tensors are to a quantizer."""
    kinds = {"linear": Noting.Linear, "embedding": Noting.Embedding, "experts": Noting.MoEExperts,
             "torch_linear": torch.nn.Linear, "torch_embedding": torch.nn.Embedding,
             "conv": torch.nn.modules.conv._ConvNd}
    for kind, its in kinds.items():
        if isinstance(module, its):
            return kind
    return "norm" if "norm" in type(module).__name__.lower() else "parameter"


def tensors_of(root: torch.nn.Module) -> inventory.Tensors:
    """{name: (shape, kind)} of all that a file of this model holds."""
    found: inventory.Tensors = {}
    for prefix, module in root.named_modules():
        dot = f"{prefix}." if prefix else ""
        kind = kind_of(module)
        for name, parameter in module._parameters.items():
            if parameter is not None:
                bias = name == inventory.BIAS and kind not in ("parameter", "norm")
                found[dot + name] = (tuple(parameter.shape), inventory.BIAS if bias else kind)
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                found[dot + name] = (tuple(buffer.shape), "buffer")
    return found


def fake(shapes: Shapes) -> dict[str, torch.Tensor]:
    """Tensors of these shapes without memory: one zero each, seen many times over."""
    return {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}
