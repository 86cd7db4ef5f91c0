"""Which part a Linear plays, told by names of many layouts."""

import pytest

from tpec.model.roles import density, modulates, of_text

OUT = density("double_blocks.0.img_attn.proj")
IN = density("double_blocks.0.img_attn.qkv")
MLP = density("double_blocks.0.img_mlp.0")
MODULATION = density("double_blocks.0.img_mod.lin")


@pytest.mark.parametrize(("layer", "part"), [
    ("joint_blocks.3.x_block.attn.proj", OUT), ("blocks.7.self_attn.o", OUT), ("blocks.7.cross_attn.o", OUT),
    ("transformer_blocks.1.attn.to_out.0", OUT), ("layers.2.attention.out", OUT), ("blocks.0.attn.proj_out.vid", OUT),
    ("encoder.block.0.layer.0.SelfAttention.o", OUT), ("model.layers.0.self_attn.o_proj", OUT),
    ("input_blocks.4.1.transformer_blocks.0.attn2.to_out.0", OUT), ("double_layers.0.attn.w1o", OUT),
    ("joint_blocks.3.x_block.attn.qkv", IN), ("blocks.7.self_attn.q", IN), ("blocks.1.cross_attn.k_img", IN),
    ("transformer_blocks.1.attn.to_q", IN), ("transformer_blocks.1.attn.add_k_proj", IN), ("blocks.0.attn.Wqkv", IN),
    ("model.layers.0.self_attn.k_proj", IN), ("double_layers.0.attn.w2q", IN), ("blocks.0.attn.proj_qkv.all", IN),
    ("joint_blocks.3.x_block.mlp.fc1", MLP), ("blocks.7.ffn.2", MLP), ("transformer_blocks.1.img_mlp.net.0.proj", MLP),
    ("layers.0.feed_forward.w2", MLP), ("encoder.block.0.layer.1.DenseReluDense.wi_0", MLP),
    ("input_blocks.4.1.transformer_blocks.0.ff.net.2", MLP), ("blocks.0.moe.experts.3.net.2", MLP),
    ("joint_blocks.3.x_block.adaLN_modulation.1", MODULATION), ("transformer_blocks.1.img_mod.1", MODULATION),
    ("single_blocks.2.modulation.lin", MODULATION), ("double_stream_layers.0.img_norm1.linear", MODULATION),
])
def test_parts(layer: str, part: float) -> None:
    assert density(layer) == part
    assert modulates(layer) is (part == MODULATION)


def test_order_of_parts() -> None:
    """What attention writes weighs most for its bytes; fused layers lie between their parts."""
    assert OUT > density("single_blocks.0.linear2") > IN > density("single_blocks.0.linear1") > MLP > MODULATION
    assert MLP < density("somewhere.else") < IN


def test_a_model_is_no_modulation() -> None:
    assert not modulates("model.layers.0.mlp.down_proj")
    assert density("model.layers.0.mlp.down_proj") == MLP


@pytest.mark.parametrize(("layer", "text"), [
    ("double_blocks.0.txt_attn.proj", True), ("joint_blocks.0.context_block.mlp.fc1", True),
    ("transformer_blocks.0.attn.to_add_out", True), ("transformer_blocks.0.attn.add_q_proj", True),
    ("double_blocks.0.img_attn.proj", False), ("transformer_blocks.0.attn.to_q", False), ("blocks.0.ffn.0", False),
])
def test_text_streams(layer: str, text: bool) -> None:
    assert (of_text(layer) < 1) is text
