"""Text encoders whose FP8 scales ComfyUI applies."""

from .family import Blocks, Drop, Family, Keep, Key, keys

_T5_LISTS = "convert_to_quant, Learned-Rounding"
_EMBEDDING = "token embedding"

T5XXL = Family(
    "t5xxl", "T5-XXL text encoder", ("T5_XXL", "T5_XXL_OLD"),
    needs=(*keys("encoder.block.0.layer.0.SelfAttention.q.weight"),
           # T5 v1.1 XXL, or the XXL ("11b") of T5 1.0; all other sizes share the names but not these widths.
           (Key("encoder.block.23.layer.1.DenseReluDense.wi_1.weight", rows=(10240,)),
            Key("encoder.block.23.layer.1.DenseReluDense.wi.weight", rows=(65536,)))),
    linears=("encoder.block.#.layer.0.SelfAttention.{q,k,v,o}",
             "encoder.block.#.layer.1.DenseReluDense.{wi,wi_0,wi_1,wo}"),
    keep=(Keep("{shared,encoder.embed_tokens}", _EMBEDDING, _T5_LISTS),
          Keep("encoder.block.#.layer.0.SelfAttention.relative_attention_bias", "position table", _T5_LISTS)),
    drop=(Drop("{decoder,lm_head}.**", "decoder half, not used by ComfyUI"),),
    blocks=(Blocks("encoder.block", varies=("layer.0.SelfAttention.relative_attention_bias.weight",)),),
    outer=("{shared,encoder.embed_tokens}.weight", "encoder.final_layer_norm.weight"),
    kind="text_encoders",
    writes_input_scale=True,
)
