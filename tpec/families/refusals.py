"""Files that are known and must not be quantized, each with the sentence that says why."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from .family import pattern


@dataclass(frozen=True)
class Refusal:
    """A layout by tensors that it has; `sentence` completes "FILE cannot be quantized: "."""

    needs: tuple[str, ...]
    sentence: str

    def fits(self, names: Iterable[str]) -> bool:
        names = list(names)
        return all(any(pattern(need).fullmatch(name) for name in names) for need in self.needs)


#: Tensors of adapters: PEFT, kohya, LyCORIS, XLabs, OFT, and layers that a training program has wrapped.
_ADAPTER = re.compile(
    r"(^|[._])(lora_(A|B|up|down|mid|embedding_[AB]|magnitude_vector)|lokr_w[12](_[ab])?|lokr_t2|hada_[wt][12](_[ab])?"
    r"|oft_(blocks|diag|R)|dora_scale|base_layer)(\.|$)|[._]\w*lora\d*\.(up|down)\.")

_ALONE = "it is a LoRA, not a model: load the model, apply the LoRA, and quantize the result"
_MERGE = ("it holds an unmerged LoRA beside the model ('{name}'), which ComfyUI does not apply: merge the LoRA into "
          "the model first (for example with ComfyUI's ModelSave node), or use the file without it")

_CLIP = ("it is a CLIP text encoder, and ComfyUI ignores the FP8 scales of CLIP-L, CLIP-G and CLIP-H (the result would "
         "be garbage): keep it in fp16, it is small")

REFUSALS = (
    Refusal(("**controlnet_**",), "it is a ControlNet, and ComfyUI does not apply FP8 scales there: keep it in bf16"),
    Refusal(("control_model.**",), "it is a ControlNet, and ComfyUI does not apply FP8 scales there: keep it in bf16"),
    Refusal(("text_model.encoder.layers.0.mlp.fc1.weight",), _CLIP),
    Refusal(("{,**.}{single_transformer_blocks,transformer_blocks}.0.attn.to_q.weight",),
            "it is in diffusers layout, whose layers ComfyUI renames and fuses on load, so their scales would be lost: "
            "convert it to ComfyUI's layout first (load it and use ModelSave)"),
    Refusal(("decoder.conv_in.weight",), "it is a VAE, and ComfyUI does not apply FP8 scales there: keep it as it is"),
    Refusal(("{,**.}encoder.block.#.layer.#.SelfAttention.q.weight",),
            "it is a T5 text encoder but not T5-XXL, and ComfyUI ignores the FP8 scales of the others (the result "
            "would be garbage), or it is only a part of one: keep it in bf16, or get the whole file"),
)


def adapters(names: Iterable[str]) -> str:
    """Why a file with these tensors is refused for an adapter (LoRA and the like) in it, or ''."""
    names = list(names)
    found = [name for name in names if _ADAPTER.search(name)]
    if not found:
        return ""
    # Adapters are small networks beside layers; a file that holds little else is one, not a model.
    others = [name for name in names if not _ADAPTER.search(name) and not name.endswith((".alpha", ".diff", ".diff_b"))]
    return _MERGE.format(name=found[0]) if len(others) > len(found) / 4 else _ALONE


def refusal(names: Iterable[str]) -> str:
    """The sentence for a layout that is known and refused, or ''."""
    names = list(names)
    return next((rule.sentence for rule in REFUSALS if rule.fits(names)), "")
