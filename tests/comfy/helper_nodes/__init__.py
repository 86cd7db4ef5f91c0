"""Nodes for the tests alone: stored conditioning instead of a text encoder of several gigabytes."""

import json
import logging
import zlib
from pathlib import Path

import comfy.model_management as management
import comfy.patcher_extension
import comfy.sd
import folder_paths
import torch
from comfy_api.latest import ComfyExtension, io
from safetensors import safe_open
from safetensors.torch import save_file

from . import new_model  # noqa: F401  # adds a model to ComfyUI's list

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
        management.get_free_memory = (lambda *_, **__: megabytes << 20) if megabytes else _get_free_memory
        return io.NodeOutput(model)


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


class Extension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [TestStoredConditioning, TestStoredClip, TestSmallTextEncoder, TestFreeMemory, TestLogEvaluations,
                TestSaveConditioning]


async def comfy_entrypoint() -> Extension:
    return Extension()
