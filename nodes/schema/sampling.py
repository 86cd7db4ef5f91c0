"""The KSampler's inputs, for nodes that sample."""

import comfy.samplers
from comfy_api.latest import io


def job_inputs() -> list[io.Input]:
    """All but the model, in the KSampler's order."""
    return [
        io.Conditioning.Input("positive"),
        io.Conditioning.Input("negative"),
        io.Latent.Input("latent_image", tooltip="Size and count as in real use; its content is replaced by noise."),
        *sampler_inputs(),
    ]


def sampler_inputs() -> list[io.Input]:
    """Those that are widgets."""
    return [
        io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True),
        io.Int.Input("steps", default=20, min=1, max=10000),
        io.Float.Input("cfg", default=1.0, min=0.0, max=100.0, step=0.1, round=0.01),
        io.Combo.Input("sampler_name", options=comfy.samplers.KSampler.SAMPLERS, default="euler"),
        io.Combo.Input("scheduler", options=comfy.samplers.KSampler.SCHEDULERS, default="simple"),
    ]
