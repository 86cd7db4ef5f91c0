"""While a model is sampled, the inputs of its layers count by how far each step goes.

A schedule puts most of its steps where they are small, near pure noise for models with a large shift. What a rounding
error does to the picture grows with the step it is made in, so a plain mean over evaluations would fit the weights to
steps that hardly matter, and to one schedule.
"""

from collections.abc import Callable, Mapping

import comfy.model_sampling
import torch

from ...tpec.statistics.watching import Collector
from ..host.sampling import schedule_of, steps_at


def weighed(patcher, inputs: Collector):  # noqa: ANN201 - a ModelPatcher
    """A clone of the patcher that tells the collector the weight of every evaluation before it is made."""
    wrapped = patcher.model_options.get("model_function_wrapper")
    flow = isinstance(patcher.get_model_object("model_sampling"), comfy.model_sampling.CONST)

    def run(apply_model: Callable, arguments: dict) -> torch.Tensor:
        inputs.weight = _weight(arguments, flow)
        if wrapped is not None:
            return wrapped(apply_model, arguments)
        return apply_model(arguments["input"], arguments["timestep"], **arguments["c"])

    observed = patcher.clone()
    observed.set_model_unet_function_wrapper(run)
    return observed


def _weight(arguments: Mapping, flow: bool) -> float:
    """Of this evaluation beside the mean one of the schedule; 1 where there is no schedule."""
    schedule = schedule_of(arguments["c"].get("transformer_options", {}))
    if schedule is None:
        return 1.0
    sigmas = schedule.double().cpu()
    at = steps_at(sigmas, arguments["timestep"].flatten()[:1].to(sigmas))
    return step_weights(sigmas, flow)[at].item()


def step_weights(sigmas: torch.Tensor, flow: bool) -> torch.Tensor:
    """What each step of a schedule [steps + 1] counts [steps]: the square of how far it goes, 1 on average.

    In a flow the latent moves by the change of sigma times the velocity that the model predicts, so the square is what
    an error of the velocity adds to the error of the picture. Elsewhere sigma has no bound, and the way is measured as
    the angle between picture and noise, arctan sigma.
    """
    way = sigmas if flow else sigmas.atan()
    squares = way.diff().square()
    return squares / squares.mean() if squares.sum() > 0 else torch.ones_like(squares)
