"""Files that are known and must not be quantized, each with the sentence that says why."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ...files.header import TensorInfo
from .family import Key


@dataclass(frozen=True)
class Refusal:
    """A layout by tensors that it has; `sentence` completes "FILE cannot be quantized: "."""

    needs: tuple[str | Key, ...]
    sentence: str

    def fits(self, tensors: Mapping[str, TensorInfo]) -> bool:
        """Whether a file with these tensors has the layout."""
        return all((need if isinstance(need, Key) else Key(need)).among(tensors) for need in self.needs)


#: Tensors of adapters: PEFT, kohya, LyCORIS, XLabs, OFT, and layers that a training program has wrapped.
_ADAPTER = re.compile(
    r"(^|[._])(lora_(A|B|up|down|mid|embedding_[AB]|magnitude_vector)|lokr_w[12](_[ab])?|lokr_t2|hada_[wt][12](_[ab])?"
    r"|oft_(blocks|diag|R)|dora_scale|base_layer)(\.|$)|[._]\w*lora\d*\.(up|down)\.")

_ALONE = ("it is a LoRA, not a model: load the model, apply the LoRA, and quantize the result (in ComfyUI "
          "with Load LoRA and Model To Quantize)")
_MERGE = ("it holds an unmerged LoRA beside the model ('{name}'), which ComfyUI does not apply: merge the LoRA into "
          "the model first (for example with ComfyUI's ModelSave node), or use the file without it")

_CONTROLNET = "it is a ControlNet, and ComfyUI does not apply FP8 scales there: keep it in bf16"
_CLIP = ("it is a CLIP text encoder, and ComfyUI ignores the FP8 scales of CLIP-L, CLIP-G and CLIP-H (the result would "
         "be garbage): keep it in fp16, it is small")

_DIFFUSERS = ("it is in a diffusers layout that is not known here, or only a part of a model in one, and ComfyUI would "
              "lose the scales where it renames layers: use the model's file in ComfyUI's layout")

_NO_DIFFUSION = "this looks like {}, not a diffusion model or a text encoder: keep it as it is"
_ENCODER = ("it is the text encoder {}, and ComfyUI ignores its FP8 scales (the result would be garbage): keep it in "
            "bf16")

#: The embedding model of ACE-Step 1.5. It has the names and widths of Qwen3 0.6B, but fewer words; the one loader whose
#: encoder has room for so many builds it without scales.
ACE_WORDS = Key("{,**.}model.embed_tokens.weight", rows=(151669,), columns=(1024,))

REFUSALS = (
    Refusal(("control_model.**",), _CONTROLNET),
    Refusal(("detector.backbone.vision_backbone.trunk.blocks.0.attn.qkv.weight",), _NO_DIFFUSION.format("SAM 3")),
    Refusal(("{,model.diffusion_model.}encoder.pan_blocks.1.cv4.conv.weight",), _NO_DIFFUSION.format("RT-DETR")),
    Refusal(("{,model.diffusion_model.}backbone.embeddings.patch_embeddings.projection.weight",),
            _NO_DIFFUSION.format("Depth Anything 3")),
    Refusal(("{,**.}{image_proj,ip_adapter}.**",), _NO_DIFFUSION.format("an IP-Adapter")),
    Refusal(("vision_model.encoder.layers.0.mlp.fc1.weight", "vision_model.embeddings.class_embedding"),
            _NO_DIFFUSION.format("a CLIP vision encoder")),
    Refusal(("model.encoder.layers.0.mixer.Wqkv.weight",), _ENCODER.format("jina-clip")),
    Refusal(("model.encoder.layers.0.pre_self_attn_layernorm.weight",), _ENCODER.format("T5-Gemma")),
    Refusal((ACE_WORDS,), _ENCODER.format("Qwen3 0.6B of ACE-Step 1.5")),
    Refusal(("text_embedding_projection.**",),
            "it is the text projection of LTX-2 without its text encoder, a single layer: keep it as it is"),
    Refusal(("text_model.encoder.layers.0.mlp.fc1.weight",), _CLIP),
    Refusal(("{,**.}{single_transformer_blocks,transformer_blocks,joint_transformer_blocks}.0.attn.to_q.weight",),
            _DIFFUSERS),
    Refusal(("noise_refiner.0.attention.norm_k.weight",), _DIFFUSERS),
    Refusal(("adaln_single.emb.timestep_embedder.linear_1.bias", "pos_embed.proj.bias"), _DIFFUSERS),
    Refusal(("conv_in.weight", "down_blocks.0.**"), _DIFFUSERS),
    Refusal(("condition_embedder.time_embedder.linear_1.weight", "blocks.0.attn1.to_q.weight"), _DIFFUSERS),
    Refusal(("decoder.{conv_in,conv_in.conv,conv1,middle.0.residual.0,layers.0}.{weight,gamma}",),
            "it is a VAE, and ComfyUI does not apply FP8 scales there: keep it as it is"),
    Refusal(("encoder.block.#.layer.#.SelfAttention.q.weight",),
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


def controlnet(names: Iterable[str]) -> str:
    """Why a file with the tensors of a ControlNet is refused, or ''."""
    found = any("controlnet_" in name for name in names)
    return _CONTROLNET if found else ""


def foreign(names: Iterable[str]) -> bool:
    """Whether the tensors are no model's own: those of an adapter or a ControlNet."""
    names = list(names)
    return bool(adapters(names) or controlnet(names))


def refusal(tensors: Mapping[str, TensorInfo]) -> str:
    """The sentence for a layout that is known and refused, or ''."""
    return next((rule.sentence for rule in REFUSALS if rule.fits(tensors)), "")
