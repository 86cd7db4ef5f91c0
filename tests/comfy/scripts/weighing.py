"""What the steps of a schedule count while a model is sampled, and what a weighed model tells and returns."""

from types import SimpleNamespace

import comfy.model_sampling
import torch
from pack.nodes.calibration.weighing import step_weights, weighed


class Flow(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
    pass


class Patcher:
    """As much of a ModelPatcher as is asked for."""

    def __init__(self, sampling, wrapper=None) -> None:
        self.model_options = {"model_function_wrapper": wrapper} if wrapper else {}
        self._sampling = sampling

    def get_model_object(self, name: str):
        return self._sampling

    def clone(self) -> "Patcher":
        return Patcher(self._sampling, self.model_options.get("model_function_wrapper"))

    def set_model_unet_function_wrapper(self, wrapper) -> None:
        self.model_options["model_function_wrapper"] = wrapper


def said(patcher: Patcher, sigmas: torch.Tensor, sigma: float) -> tuple[float, float]:
    """Weight and result of an evaluation at a sigma."""
    inputs = SimpleNamespace(weight=None)
    options = {"transformer_options": {"sample_sigmas": sigmas}} if sigmas is not None else {}
    run = weighed(patcher, inputs).model_options["model_function_wrapper"]
    arguments = {"input": 1.0, "timestep": torch.tensor([sigma, sigma]), "c": options}
    result = run(lambda x, timestep, **given: x + 1, arguments)
    return round(inputs.weight, 4), result


flow = Flow()
print(step_weights(torch.tensor([1.0, 0.9, 0.6, 0.0]), True).mul(46 / 3).round().tolist())
print([round(weight, 2) for weight in step_weights(torch.tensor([14.6, 2.0, 0.5, 0.0]), False).tolist()])
print(step_weights(torch.tensor([0.5, 0.5]), True).tolist())
schedule = torch.tensor([1.0, 0.9, 0.6, 0.0])
print([said(Patcher(flow), schedule, sigma)[0] for sigma in (1.0, 0.9, 0.6)])
print(said(Patcher(flow), None, 0.3), said(Patcher(flow), schedule[:1], 0.3))
print(said(Patcher(flow, lambda apply, arguments: 10 * apply(arguments["input"], None)), schedule, 1.0)[1])
print("untouched", "model_function_wrapper" not in Patcher(flow).model_options)
