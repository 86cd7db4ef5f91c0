"""A model calibrates itself before it is quantized: sampled without a prompt, from noise alone.

Text encoders encode the built-in texts. Whatever keeps a model from it is a sentence in the report, never an error.
"""

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import comfy.model_management as memory
import torch

from ...tpec.errors import TpecError, first_line, is_out_of_memory
from ...tpec.model.plan import Plan
from ...tpec.run.fit import check_calibration
from ...tpec.statistics.gradients import GradientStats
from ...tpec.statistics.storage import open_calibration
from ...tpec.statistics.watching import CollectionPlan, Collector
from ...tpec.version import __version__
from ..handles import CalibrationHandle, QuantizeRequest
from ..host.backward import NoBackward, with_gradients
from ..host.progress import NodeProgress, duration, time_left
from ..host.sampling import Job, sample
from ..saving.temp_files import Latest
from .calibrating import Layers, calibrate, linear_layers, plan_for, refuse_quantized
from .conditioning import prompt_lines
from .encoding import calibrate_encoder
from .latents import Size, empty_latent, modest, size_of
from .loading import loaded_encoder, loaded_model
from .prompt_free import NO_GUIDANCE, UNFIT, Embeddings, find_embeddings, spread_of
from .text_prompts import DEFAULT_PROMPTS
from .weighing import weighed

log = logging.getLogger(__name__)

#: Distinct tokens for each of a layer's inputs, as many as damping wants and some more.
_TOKENS_PER_INPUT = 128
#: What a CPU multiplies and adds in a second at best: to turn down what is hopeless before it is loaded.
_CPU_RATE = 2e11



@dataclass(frozen=True)
class Effort:
    """Samplings, by turns without text and with made-up embeddings; steps of each on average, whether the model is also
    run backwards, and how many seconds that may take: nobody waits longer for what they did not ask for."""

    runs: int
    steps: int
    sensitivity: bool
    patience: float

    def steps_of(self, number: int) -> int:
        """Steps of run `number`: not the same for all, so that the runs see different noise levels."""
        return self.steps - 2 + number % 5

    @property
    def evaluations(self) -> float:
        """Of the model, in all runs; a backward run at every fourth step takes about three."""
        return self.runs * self.steps * (1.75 if self.sensitivity else 1)


#: The first that a machine is fast enough for is taken; as good as it gets for that time (docs/measurements.md).
EFFORTS = (Effort(16, 20, True, 600), Effort(8, 20, True, 600), Effort(6, 20, True, 600), Effort(16, 20, False, 600),
           Effort(16, 10, False, 1800), Effort(16, 5, False, 1800))

#: The last calibrations by what they were made of: for other settings and formats of the same model.
_made: Latest[CalibrationHandle] = Latest(2, lambda handle: handle.temp)


def with_own_calibration(request: QuantizeRequest, plan: Plan, progress: NodeProgress) -> tuple[QuantizeRequest, str]:
    """`request` with a calibration that the model made itself, and a sentence on it for the report.

    Itself where it has one, or where rounding makes no use of one. Interrupts pass, what else goes wrong is said in the
    sentence.
    """
    if request.calibration is not None or request.settings.method != "tpec":
        return request, ""
    key = _key(request)
    handle = _made.get(key)
    if handle is None:
        try:
            handle = _calibrated(request, plan, progress)
            check_calibration(plan, open_calibration(handle.path))
        except (TpecError, MemoryError, *UNFIT) as error:
            return request, _sentence(error)
        _made.put(key, handle)
    return replace(request, calibration=handle), f"calibrated itself: {handle.summary}"


def _key(request: QuantizeRequest) -> str:
    source = request.source.checkpoint
    facts = [__version__, source.name, [str(path) for path in source.files], source.identity()]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _sentence(error: BaseException) -> str:
    if is_out_of_memory(error):
        reason = "the memory of this machine is not enough"
    else:
        reason = first_line(error)
    if not isinstance(error, TpecError):
        log.warning("TPEC: could not calibrate (%s)", reason, exc_info=error)
    return f"The model could not calibrate itself: {reason}. TPEC Calibrate gives a far smaller error where it can."


def _calibrated(request: QuantizeRequest, plan: Plan, progress: NodeProgress) -> CalibrationHandle:
    """Raises TpecError, or what ComfyUI's models raise."""
    if plan.kind == "text_encoders":
        progress.text("loading the text encoder", always=True)
        return calibrate_encoder(loaded_encoder(request.source), prompt_lines(DEFAULT_PROMPTS), progress)
    _refuse_hopeless(plan, request.source.patcher is not None)
    progress.text("loading the model, to see what its layers read", always=True)
    patcher = loaded_model(request.source, plan.kind)
    try:
        return sample_prompt_free(patcher, progress)
    finally:
        if request.source.patcher is None:
            patcher.detach()
            memory.soft_empty_cache()


def _refuse_hopeless(plan: Plan, loaded: bool) -> None:
    """Raises TpecError for what does not fit in memory, or takes hours, before it is loaded."""
    device, nbytes = memory.get_torch_device(), plan.checkpoint.nbytes
    on_cpu = memory.is_device_cpu(device)
    room = memory.get_free_memory(torch.device("cpu")) + (0 if on_cpu else memory.get_total_memory(device))
    if nbytes > room and not loaded:
        raise TpecError(f"loading the model takes {nbytes / 1e9:.1f} GB of memory, {room / 1e9:.1f} GB are free")
    weights = sum(layer.info.items for layer in plan.tensors)
    seconds = EFFORTS[-1].evaluations * 2 * weights * 256 / _CPU_RATE
    if on_cpu and seconds > EFFORTS[-1].patience:
        raise _slow(seconds)


def _slow(seconds: float) -> TpecError:
    return TpecError(f"sampling it would take about {duration(seconds)} on this machine")


@dataclass(frozen=True)
class _Sampling:
    """A model, an empty latent of a modest size, the sizes of its embeddings, and the layers to watch."""

    patcher: object
    latent: dict
    embeddings: Embeddings
    layers: Layers

    def run(self, patcher, number: int, steps: int, on_step: Callable[[int], None]) -> None:
        """Run `number`: even ones without text."""
        text = self.embeddings.random(number, spread_of(number // 2)) if number % 2 else self.embeddings.null()
        sample(patcher, _job(text, self.latent, steps), number, lambda step, x0: on_step(step))

    def seconds(self, plan: CollectionPlan) -> float:
        """What one evaluation of the model takes while a pass of the plan collects; the first one makes its sums."""
        with Collector({name: self.layers[name] for name in plan.passes[0]}, plan.device):
            self.run(self.patcher, 1, 1, lambda step: None)
            begun = time.monotonic()
            self.run(self.patcher, 1, 2, lambda step: None)
            return (time.monotonic() - begun) / 2

    def collect(self, plan: CollectionPlan, effort: Effort, progress: NodeProgress) -> CalibrationHandle:
        """Statistics of all runs. Raises TpecError."""
        watch = _Watch(progress, len(plan.passes) * sum(map(effort.steps_of, range(effort.runs))))

        def sample_all(patcher) -> None:
            for number in range(effort.runs):
                self.run(patcher, number, effort.steps_of(number), watch.step)

        def run_all(inputs: Collector, watched: Layers) -> dict[str, GradientStats]:
            if effort.sensitivity:
                return with_gradients(weighed(self.patcher, inputs), watched, inputs, plan.device, sample_all)
            sample_all(weighed(self.patcher, inputs))
            return {}

        return calibrate(plan, self.layers, self.patcher, type(self.patcher.model).__name__, effort.runs, run_all,
                         None, progress)


def _job(text: list, latent: dict, steps: int) -> Job:
    return Job(text, text, latent, steps, NO_GUIDANCE, "euler", "simple")


def sample_prompt_free(patcher, progress: NodeProgress) -> CalibrationHandle:
    """Statistics of a ModelPatcher's layers from samplings without a prompt. Raises TpecError.

    What it takes is said before it starts; the model is as before afterwards. It is also run backwards now and then
    where it can be.
    """
    layers = linear_layers(patcher.model.diffusion_model)
    refuse_quantized(layers)
    size = modest(size_of(patcher), _tokens_wanted(layers), 32 if _is_unet(patcher) else 16)
    latent = empty_latent(patcher, size)
    plan = plan_for(layers, patcher)
    embeddings = find_embeddings(patcher, lambda text: sample(patcher, _job(text, latent, 1), 0, _interruptible))
    sampling = _Sampling(patcher, latent, embeddings, layers)
    seconds = sampling.seconds(plan)
    try:
        return _sampled(sampling, EFFORTS, size, seconds, progress)
    except NoBackward as error:
        log.info("TPEC: %s Going on without.", error)
    forward = [effort for effort in EFFORTS if not effort.sensitivity]
    return _sampled(sampling, forward, size, seconds, progress)


def _sampled(sampling: _Sampling, efforts: Sequence[Effort], size: Size, seconds: float,
             progress: NodeProgress) -> CalibrationHandle:
    """With the first effort for which evaluations of so many seconds are fast enough. Raises TpecError."""
    for effort in efforts:
        plan = plan_for(sampling.layers, sampling.patcher, effort.sensitivity)
        total = len(plan.passes) * effort.evaluations * seconds
        if total <= effort.patience:
            said = (f"calibrating first: {effort.runs} samplings of {size.text()}, about {duration(total)}; "
                    f"{plan.text()}")
            log.info("TPEC: %s", said)
            progress.text(said, always=True)
            return sampling.collect(plan, effort, progress)
    raise _slow(total)


def _interruptible(step: int, x0: torch.Tensor) -> None:
    memory.throw_exception_if_processing_interrupted()


class _Watch:
    """The node's bar over all steps of all samplings, with the time left."""

    def __init__(self, progress: NodeProgress, count: int) -> None:
        self._progress, self._count, self._done = progress, count, 0
        self._begun = time.monotonic()

    def step(self, step: int) -> None:
        """Raises ComfyUI's interrupt exception when the user cancelled."""
        memory.throw_exception_if_processing_interrupted()
        self._done += 1
        left = (time.monotonic() - self._begun) / self._done * (self._count - self._done)
        said = time_left(left, self._done / self._count)
        self._progress.part(self._done, self._count, f"calibrating, step {self._done} of {self._count}{said}")


def _tokens_wanted(layers: Layers) -> int:
    """Tokens of one evaluation that give most layers enough of them."""
    widths = sorted(module.in_features for module in layers.values())
    return math.ceil(_TOKENS_PER_INPUT * widths[len(widths) // 2] / (EFFORTS[0].runs * EFFORTS[0].steps))


def _is_unet(patcher) -> bool:
    """Whether the inner layers see a picture that is several times smaller."""
    return "model_channels" in patcher.model.model_config.unet_config
