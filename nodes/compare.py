"""TPECCompare: what quantizing a model changed in what it makes."""

from typing import TYPE_CHECKING

from comfy_api.latest import io, ui
from comfy_execution.graph_utils import ExecutionBlocker

from ..tpec.errors import TpecError
from ..tpec.page.theme import THEMES
from .schema.sampling import job_inputs
from .schema.sockets import CATEGORY

if TYPE_CHECKING:
    from .drawing.distance import Runs

_PICTURES = 4
_NO_VAE = "There are no pictures to show: connect a VAE to Compare Model Outputs."


class TPECCompare(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TPECCompare",
            display_name="Compare Model Outputs",
            category=CATEGORY,
            description="Samples with two models from the same noise and shows how far B ends up from A: as pictures "
                        "side by side, in numbers, and in words.",
            search_aliases=[
                "compare models", "psnr", "quantization error", "before and after", "a b test", "model difference",
                "fp8 quality", "tpec",
            ],
            inputs=[
                io.Model.Input("model_a", tooltip="The original."),
                io.Model.Input("model_b", tooltip="The quantized one."),
                *job_inputs(),
                # Later than the others, so optional and last: values of saved workflows go by position.
                io.Vae.Input("vae", optional=True, tooltip="Decodes both results: pictures side by side, judged in "
                                                           "pixels."),
                io.Model.Input("reference", optional=True,
                               tooltip="Another version of B, such as one quantized with method nearest: its distance "
                                       "from A is shown beside B's."),
                io.Int.Input("seeds", default=1, min=1, max=64, optional=True,
                             tooltip="Runs of each model, each with the next seed. One says little, four say more."),
                io.Combo.Input("theme", options=list(THEMES), default="dark", optional=True, advanced=True,
                               tooltip="The colours of plot and pictures."),
            ],
            outputs=[
                io.Float.Output("relative_error", tooltip="How far B's latents are from A's, as a share of A's."),
                io.Float.Output("psnr", tooltip="In dB, in latent space, against the range of A's latent."),
                io.Image.Output("plot", tooltip="The distance over the steps."),
                io.String.Output("summary"),
                io.Image.Output("pictures", tooltip="A, B and their difference side by side; needs a VAE."),
                io.Latent.Output("latent_a"),
                io.Latent.Output("latent_b"),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model_a, model_b, positive: list, negative: list, latent_image: dict, seed: int, steps: int,
                cfg: float, sampler_name: str, scheduler: str, vae=None, reference=None, seeds: int = 1,
                theme: str = "dark") -> io.NodeOutput:
        from .drawing.distance import Distance, join, run_model
        from .drawing.plot import line_plot
        from .host.links import linked_outputs
        from .host.progress import NodeProgress
        from .host.sampling import Job, Progress

        node = cls.hidden.unique_id
        if vae is None and _PICTURES in linked_outputs(cls.hidden.dynprompt, node):
            raise TpecError(_NO_VAE)
        job = Job(positive, negative, latent_image, steps, cfg, sampler_name, scheduler)
        models = {"A": model_a, "B": model_b} | ({"the reference": reference} if reference is not None else {})
        bar, text = Progress(model_a, node, len(models) * seeds * steps), NodeProgress(node).text
        # One model after the other: changing between them for every seed would load them again and again.
        runs = {name: run_model(model, job, [(seed + index) % 2**64 for index in range(seeds)], bar.step,
                                lambda at, name=name: text(f"Sampling with {name}, run {at + 1} of {seeds}", True))
                for name, model in models.items()}
        a, b = runs["A"], runs["B"]
        distance = Distance.between(b, a)
        other = Distance.between(runs["the reference"], a) if reference is not None else None
        curves = {"B": distance.curve} | ({"reference": other.curve} if other else {})
        plot = line_plot("How far B is from A while sampling", curves, "step", "distance of the predicted result from "
                         "A's, % of A's", theme)
        shown, pixels = _pictures(a, b, vae, seed, theme, text)
        seeds_used = f"seed {seed}" + (f" and {seeds - 1} more" if seeds > 1 else "")
        summary = "\n".join([*distance.sentences(pixels, other), f"{steps} steps, cfg {cfg:g}, {seeds_used}."])
        return io.NodeOutput(distance.error, distance.psnr, plot, summary, shown, {"samples": join(a.latents)},
                             {"samples": join(b.latents)}, ui=ui.PreviewText(summary))


def _pictures(a: "Runs", b: "Runs", vae, seed: int, theme: str, text):
    """The pictures side by side and their PSNR in pixels; a blocker and nothing without a VAE."""
    if vae is None:
        return ExecutionBlocker(_NO_VAE), []
    from .drawing.pictures import decode, pixel_psnr, side_by_side

    text("Decoding", True)
    rows = [(f"seed {(seed + index) % 2**64}", one, other)
            for index, latents in enumerate(zip(a.latents, b.latents, strict=True))
            for one, other in zip(*(decode(vae, latent) for latent in latents), strict=True)]
    pixels = [pixel_psnr(other, one) for _, one, other in rows]
    return side_by_side(rows, pixels, theme), pixels
