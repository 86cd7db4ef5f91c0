"""The UNets of Stable Diffusion in diffusers layout: all names follow from the number of layers in each block."""

import re
from collections.abc import Collection

from .layout import Place

TITLE = "Stable Diffusion 1, 2 or XL"
_NEEDS = ("conv_in.weight", "conv_out.weight", "time_embedding.linear_1.weight")
_BASIC = {
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "class_embedding.linear_1": "label_emb.0.0", "class_embedding.linear_2": "label_emb.0.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
}
_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}
_MODULE = re.compile(r"(down|up|mid)_block(?:s\.(\d+))?\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
_TRANSFORMER = re.compile(r"(proj_in|proj_out|norm)|transformer_blocks\.\d+\."
                          r"(norm[123]|attn[12]\.to_([qkv]|out\.0)|ff\.net\.(0\.proj|2))")


def fits(names: Collection[str]) -> bool:
    """Whether the tensors are those of such a UNet."""
    return all(need in names for need in _NEEDS) and any(name.startswith("down_blocks.0.resnets.0.") for name in names)


def places(names: Collection[str]) -> dict[str, Place | None]:
    """Every tensor's place in ComfyUI's layout, None where there is none."""
    unet = _UNet(names)
    return {name: unet.place(name) for name in names}


class _UNet:
    """The numbers of ComfyUI's input and output blocks, from how many layers each block of diffusers has."""

    def __init__(self, names: Collection[str]) -> None:
        found = [match for match in map(_MODULE.fullmatch, names) if match]
        resnets: dict[tuple[str, int], int] = {}
        for side, block, kind, number, _ in (match.groups() for match in found):
            if kind == "resnets":
                key = side, int(block or 0)
                resnets[key] = max(resnets.get(key, 0), int(number) + 1)
        self._resnets = resnets
        self._attended = {(match[1], int(match[2] or 0), int(match[4])) for match in found if match[3] == "attentions"}

    def place(self, name: str) -> Place | None:
        module, _, end = name.rpartition(".")
        if end not in ("weight", "bias"):
            return None
        ours = _BASIC.get(module) or self._layer(module)
        return Place(f"{ours}.{end}") if ours else None

    def _layer(self, module: str) -> str:
        match = _MODULE.fullmatch(module)
        if match is None:
            return ""
        side, block, kind, number, inner = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
        if kind == "resnets":
            inner = _RESNET.get(inner, "")
        elif kind == "attentions" and _TRANSFORMER.fullmatch(inner) is None:
            inner = ""
        if not inner:
            return ""
        if side == "mid":
            return {"resnets": f"middle_block.{2 * number}", "attentions": f"middle_block.{2 * number + 1}"}[
                kind] + f".{inner}" if kind in ("resnets", "attentions") else ""
        return self._numbered(side, block, kind, number, inner)

    def _numbered(self, side: str, block: int, kind: str, number: int, inner: str) -> str:
        """A layer of the blocks on the way down, each followed by its downsampler, or up, where that shares a block."""
        before = sum(count for (where, at), count in self._resnets.items() if where == side and at < block)
        own = self._resnets.get((side, block), 0)
        if kind in ("resnets", "attentions"):
            at = before + number + (1 + block if side == "down" else 0)
            return f"{'input' if side == 'down' else 'output'}_blocks.{at}.{int(kind == 'attentions')}.{inner}"
        if side == "down" and kind == "downsamplers" and inner == "conv":
            return f"input_blocks.{before + own + 1 + block}.0.op"
        if side == "up" and kind == "upsamplers" and inner == "conv":
            last = 2 if (side, block, own - 1) in self._attended else 1
            return f"output_blocks.{before + own - 1}.{last}.conv"
        return ""
