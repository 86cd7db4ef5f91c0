"""Nodes for the tests alone: stored conditioning instead of a text encoder of several gigabytes."""

import json
import logging
import threading
import zlib
from functools import partial
from pathlib import Path

import comfy.model_management as management
import comfy.patcher_extension
import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import ComfyExtension, io, ui
from safetensors import safe_open
from safetensors.torch import save_file

from . import (
    new_model,  # noqa: F401  # adds a model to ComfyUI's list
    smaller_card,  # noqa: F401  # changes ComfyUI where a variable asks for it
)
from .efforts import TestEffort
from .facts import TestServerFacts

_get_free_memory = management.get_free_memory


class TestStoredConditioning(io.ComfyNode):
    """Rows [first, first + count) of a file in ComfyUI's input folder with `context` and `pooled` tensors."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TestStoredConditioning",
            category="tests",
            inputs=[
                io.String.Input("filename"),
                io.Int.Input("first", default=0, min=0),
                io.Int.Input("count", default=1, min=1),
                io.Boolean.Input("empty", default=False, tooltip="Zeros of the same shape: the negative."),
                io.Int.Input("tokens", default=0, optional=True, tooltip="Only so many tokens; 0 for all."),
            ],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(cls, filename: str, first: int, count: int, empty: bool, tokens: int = 0) -> io.NodeOutput:
        path = Path(folder_paths.get_input_directory(), Path(filename).name)
        with safe_open(path, "pt") as file:
            context = file.get_slice("context")[first : first + count].float()
            context = context[:, : tokens or None]
            pooled = file.get_slice("pooled")[first : first + count].float()
        if empty:
            context, pooled = context * 0, pooled * 0
        return io.NodeOutput([[context, {"pooled_output": pooled}]])


class StoredClip:
    """A text encoder to those who use one: its prompts are the captions of a file of conditionings, any other text is
    taken for one of them, and no text is zeros."""

    def __init__(self, path: Path) -> None:
        with safe_open(path, "pt") as file:
            self._captions = json.loads(file.metadata()["captions"])
            self._context, self._pooled = file.get_tensor("context").float(), file.get_tensor("pooled").float()

    def tokenize(self, text: str, **_: object) -> str:
        return text

    def encode_from_tokens_scheduled(self, tokens: str) -> list:
        logging.info("TEST encoded '%s'", tokens)
        known = tokens in self._captions
        row = self._captions.index(tokens) if known else zlib.crc32(tokens.encode()) % len(self._captions)
        context, pooled = self._context[row : row + 1], self._pooled[row : row + 1]
        if not tokens:
            context, pooled = context * 0, pooled * 0
        return [[context, {"pooled_output": pooled}]]


class TestStoredClip(io.ComfyNode):
    """A CLIP made of a file in ComfyUI's input folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(node_id="TestStoredClip", category="tests", inputs=[io.String.Input("filename")],
                         outputs=[io.Clip.Output()])

    @classmethod
    def execute(cls, filename: str) -> io.NodeOutput:
        return io.NodeOutput(StoredClip(Path(folder_paths.get_input_directory(), Path(filename).name)))


class TestSmallTextEncoder(io.ComfyNode):
    """The stock CLIPLoader with ComfyUI's own option for the text encoder's sizes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TestSmallTextEncoder",
            category="tests",
            inputs=[
                io.Combo.Input("clip_name", options=folder_paths.get_filename_list("text_encoders")),
                io.Combo.Input("type", options=["chroma", "stable_diffusion"]),
                io.Combo.Input("part", options=["t5xxl", "clip_l"]),
                io.String.Input("sizes", tooltip="JSON"),
            ],
            outputs=[io.Clip.Output()],
        )

    @classmethod
    def execute(cls, clip_name: str, type: str, part: str, sizes: str) -> io.NodeOutput:
        path = folder_paths.get_full_path_or_raise("text_encoders", clip_name)
        # CLIP-L's entry is made anew from the general one.
        options = {"model_config": json.loads(sizes), f"{part}_model_config": json.loads(sizes)}
        kind = getattr(comfy.sd.CLIPType, type.upper())
        return io.NodeOutput(comfy.sd.load_clip([path], clip_type=kind, model_options=options))


class _LinearDecoder:
    """What nodes ask of a VAE: the small model's latents are linear codes of 2 x 2 pixels."""

    def __init__(self, to_rgb: torch.Tensor) -> None:
        self._to_rgb = to_rgb

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """[count, 16, height, width] to pictures [count, 2 height, 2 width, 3] in 0 .. 1."""
        pixels = torch.einsum("bchw,cp->bphw", (latent.float() - 0.1159) * 0.3611, self._to_rgb)
        return (torch.nn.functional.pixel_shuffle(pixels, 2) * 0.31 + 0.5).clamp(0, 1).movedim(1, -1)


class TestLinearVAE(io.ComfyNode):
    """The small model's own decoder, from the file in ComfyUI's input folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(node_id="TestLinearVAE", category="tests", inputs=[io.String.Input("filename")],
                         outputs=[io.Vae.Output()])

    @classmethod
    def execute(cls, filename: str) -> io.NodeOutput:
        with safe_open(Path(folder_paths.get_input_directory(), Path(filename).name), "pt") as file:
            return io.NodeOutput(_LinearDecoder(file.get_tensor("latent_to_rgb").float()))


class TestFreeMemory(io.ComfyNode):
    """The model as it is; from here on ComfyUI reports so many megabytes of free memory, 0 for what there is."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TestFreeMemory",
            category="tests",
            inputs=[io.Model.Input("model"), io.Int.Input("megabytes", default=0, min=0)],
            outputs=[io.Model.Output()],
            not_idempotent=True,
        )

    @classmethod
    def execute(cls, model, megabytes: int) -> io.NodeOutput:
        management.get_free_memory = partial(_little_memory, megabytes << 20) if megabytes else _get_free_memory
        return io.NodeOutput(model)


def _little_memory(nbytes: int, device=None, torch_free_too: bool = False):
    return (nbytes, nbytes) if torch_free_too else nbytes


class TestLogEvaluations(io.ComfyNode):
    """The model, which from here on logs each evaluation of its network: which sides of the guidance, and how."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(node_id="TestLogEvaluations", category="tests", inputs=[io.Model.Input("model")],
                         outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model) -> io.NodeOutput:
        def log(executor, *arguments, **named):
            found = [value for value in (*arguments, *named.values()) if isinstance(value, dict)]
            sides = next(options["cond_or_uncond"] for options in found if "cond_or_uncond" in options)
            way = "backward" if torch.is_grad_enabled() else "forward"
            logging.info("TEST evaluation %s of %s", way, "+".join(map(str, sorted(sides))))
            return executor(*arguments, **named)

        watched = model.clone()
        watched.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, "test", log)
        return io.NodeOutput(watched)


class TestSaveConditioning(io.ComfyNode):
    """Write a conditioning's tensor `cond` to a file in ComfyUI's output folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TestSaveConditioning",
            category="tests",
            inputs=[io.Conditioning.Input("conditioning"), io.String.Input("filename")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, conditioning: list, filename: str) -> io.NodeOutput:
        path = Path(folder_paths.get_output_directory(), Path(filename).name)
        save_file({"cond": conditioning[0][0].float().contiguous()}, path)
        return io.NodeOutput()


class TestBakedWeights(io.ComfyNode):
    """What quantizing reads of a MODEL's weights now: how many equal ComfyUI's own patched ones, computed afterwards.

    `after` may be anything that had to run before.
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TestBakedWeights",
            category="tests",
            inputs=[io.Model.Input("model"), io.Custom("TPEC_CHECKPOINT").Input("checkpoint"),
                    io.AnyType.Input("after", optional=True)],
            outputs=[io.String.Output()],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model, checkpoint, after=None) -> io.NodeOutput:
        read: dict[str, bytes] = {}
        # As the engine does it: in a thread of its own, which is not in inference mode.
        thread = threading.Thread(target=lambda: read.update(_bytes_of(checkpoint.checkpoint)))
        thread.start()
        thread.join()
        patched = sum(getattr(module, "comfy_patched_weights", False) for module in model.model.modules())
        # ComfyUI's function starts from the weights that are there, which must be those without patches.
        management.unload_all_models()
        equal = changed = 0
        for name, data in read.items():
            key = f"diffusion_model.{name.removeprefix('model.diffusion_model.')}"
            own = model.patch_weight_to_device(key, device_to=model.load_device, return_weight=True)
            equal += data == _raw(own)
            changed += data != _raw(comfy.utils.get_attr(model.model, key))
        facts = {"tensors": len(read), "equal": equal, "changed": changed, "loaded": patched}
        return io.NodeOutput(json.dumps(facts), ui=ui.PreviewText(json.dumps(facts)))


def _bytes_of(source) -> dict[str, bytes]:
    reader, read = source.reader(), {}
    for info in source.tensors.values():
        buffer = bytearray(info.nbytes)
        reader.read_into(info, memoryview(buffer))
        read[info.name] = bytes(buffer)
    reader.close()
    return read


def _raw(tensor: torch.Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


class TestUnbakedChanges(io.ComfyNode):
    """The model with changes that are in no weight: a weight function, an object patch and a transformer patch."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(node_id="TestUnbakedChanges", category="tests", inputs=[io.Model.Input("model")],
                         outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model) -> io.NodeOutput:
        model = model.clone()
        model.add_weight_wrapper("diffusion_model.img_in.weight", lambda weight: weight)
        model.add_object_patch("model_sampling", model.get_model_object("model_sampling"))
        model.set_model_patch(lambda *arguments: arguments, "attn1_patch")
        return io.NodeOutput(model)


class Extension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [TestEffort, TestStoredConditioning, TestStoredClip, TestSmallTextEncoder, TestLinearVAE, TestFreeMemory,
                TestLogEvaluations, TestSaveConditioning, TestBakedWeights, TestUnbakedChanges, TestServerFacts]


async def comfy_entrypoint() -> Extension:
    return Extension()
