"""TPEC FP8: quantize diffusion models and text encoders to ComfyUI's native scaled FP8. Never imports ComfyUI.

    from tpec import Settings, make_plan, open_calibration, open_checkpoint, quantize, verify

    plan = make_plan(open_checkpoint("model_bf16.safetensors"), Settings())
    print(plan.summary())                      # what was recognised, what becomes FP8, how large the result is
    report = quantize(plan, "model_fp8.safetensors", devices=["cuda"],
                      calibration=open_calibration("statistics.safetensors"))
    print(report.text())                       # the error beside plain rounding's, layer by layer in report.layers
    assert verify("model_bf16.safetensors", "model_fp8.safetensors").ok

Every failure that a caller can do something about is a TpecError with one sentence. PyTorch is imported with the first
of these names that is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .errors import TpecError
from .version import __version__

if TYPE_CHECKING:
    from .check.verify import verify
    from .files.checkpoint import open_checkpoint
    from .model.plan import make_plan
    from .run.pipeline import quantize
    from .settings import Settings
    from .statistics.storage import open_calibration

_WHERE = {
    "Settings": ".settings",
    "make_plan": ".model.plan",
    "open_calibration": ".statistics.storage",
    "open_checkpoint": ".files.checkpoint",
    "quantize": ".run.pipeline",
    "verify": ".check.verify",
}

__all__ = ["Settings", "TpecError", "__version__", "make_plan", "open_calibration", "open_checkpoint", "quantize",
           "verify"]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WHERE[name], __name__), name)
