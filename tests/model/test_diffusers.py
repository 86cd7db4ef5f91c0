"""Models in diffusers layout through plan, run and verify; comfy/test_diffusers_layout.py holds the view to ComfyUI."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from samples import HIDDEN, load, same_bits, tiny_flux

from tpec.check.inspect import inspect
from tpec.check.verify import verify
from tpec.command.cli import main
from tpec.errors import TpecError
from tpec.files.checkpoint import open_checkpoint
from tpec.files.naming import default_output
from tpec.model.diffusers import in_comfyui_layout
from tpec.model.plan import make_plan
from tpec.run.pipeline import quantize
from tpec.settings import Settings

Tensors = dict[str, torch.Tensor]
OUTER = {
    "img_in": "x_embedder", "txt_in": "context_embedder", "final_layer.linear": "proj_out",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
BLOCK = {
    "img_attn.proj": "attn.to_out.0", "txt_attn.proj": "attn.to_add_out", "img_mod.lin": "norm1.linear",
    "txt_mod.lin": "norm1_context.linear", "img_mlp.0": "ff.net.0.proj", "img_mlp.2": "ff.net.2",
    "txt_mlp.0": "ff_context.net.0.proj", "txt_mlp.2": "ff_context.net.2",
    "img_attn.norm.query_norm": "attn.norm_q", "img_attn.norm.key_norm": "attn.norm_k",
    "txt_attn.norm.query_norm": "attn.norm_added_q", "txt_attn.norm.key_norm": "attn.norm_added_k",
}
SINGLE = {"linear2": "proj_out", "modulation.lin": "norm.linear", "norm.query_norm": "attn.norm_q",
          "norm.key_norm": "attn.norm_k"}
FUSED = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
}


def native() -> Tensors:
    """The tiny Flux, its norms with the name that ComfyUI's conversion gives them."""
    return {name.replace("_norm.scale", "_norm.weight"): tensor for name, tensor in tiny_flux().items()}


def in_diffusers(tensors: Tensors) -> Tensors:
    """The same model in diffusers layout."""
    out: Tensors = {}
    for name, tensor in tensors.items():
        module, _, end = name.rpartition(".")
        if module in OUTER:
            halves = tensor.chunk(2)
            out[f"{OUTER[module]}.{end}"] = torch.cat(halves[::-1]) if "adaLN" in module else tensor
            continue
        row, number, inner = module.split(".", 2)
        theirs = f"{'transformer_blocks' if row == 'double_blocks' else 'single_transformer_blocks'}.{number}"
        if inner in FUSED:
            sizes = [HIDDEN, HIDDEN, HIDDEN, len(tensor) - 3 * HIDDEN][:len(FUSED[inner])]
            out |= {f"{theirs}.{part}.{end}": rows for part, rows in
                    zip(FUSED[inner], tensor.split(sizes), strict=True)}
        else:
            out[f"{theirs}.{(BLOCK | SINGLE)[inner] if row == 'double_blocks' else SINGLE[inner]}.{end}"] = tensor
    return {name: tensor.contiguous() for name, tensor in sorted(out.items())}


def saved(folder: Path, tensors: Tensors | None = None) -> Path:
    path = folder / "diffusion_pytorch_model.safetensors"
    save_file(in_diffusers(native()) if tensors is None else tensors, path)
    return path


def sharded(folder: Path) -> Path:
    """A whole pipeline: its transformer in two shards, as q, k and v are apart; its VAE, which is another model."""
    part = folder / "transformer"
    part.mkdir(parents=True)
    (folder / "vae").mkdir()
    (folder / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    save_file({"decoder.conv_in.weight": torch.zeros(2, 2, 3, 3)}, folder / "vae" / saved(folder / "vae", {
        "decoder.conv_in.weight": torch.zeros(2, 2, 3, 3)}).name)
    tensors = in_diffusers(native())
    names = [f"diffusion_pytorch_model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for number, name in enumerate(names):
        save_file({key: tensors[key] for key in sorted(tensors)[number::2]}, part / name)
    weight_map = {key: names[at % 2] for at, key in enumerate(sorted(tensors))}
    (part / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_the_view_is_the_model_in_comfyuis_layout(tmp_path: Path) -> None:
    view, wanted = in_comfyui_layout(open_checkpoint(saved(tmp_path))), native()
    assert view.tensors.keys() == wanted.keys()
    assert view.nbytes == sum(tensor.nbytes for tensor in wanted.values())
    reader = view.reader()
    for name, tensor in wanted.items():
        assert same_bits(reader.tensor(name), tensor), name
        raw = tensor.view(-1).view(torch.uint8)
        for start, size in ((0, 1), (raw.numel() // 3 - 3, 7), (raw.numel() - 5, 5), (1, raw.numel() - 2)):
            buffer = bytearray(size)
            reader.read_into(view.tensors[name], memoryview(buffer), start)
            assert bytes(buffer) == bytes(raw[start:start + size].tolist()), (name, start)
        reader.will_need(view.tensors[name])
        reader.drop_cache(view.tensors[name])
    reader.close()


@pytest.mark.parametrize("method", ["tpec", "nearest"])
def test_the_result_is_that_of_comfyuis_layout(tmp_path: Path, method: str) -> None:
    save_file(native(), tmp_path / "native.safetensors")
    source = saved(tmp_path)
    for path, out in ((tmp_path / "native.safetensors", "a.safetensors"), (source, "b.safetensors")):
        quantize(make_plan(open_checkpoint(path), Settings(method=method)), tmp_path / out)
    a, b = load(tmp_path / "a.safetensors"), load(tmp_path / "b.safetensors")
    assert a.keys() == b.keys() and all(same_bits(a[name], b[name]) for name in a)
    result = verify(source, tmp_path / "b.safetensors")
    assert result.ok and result.errors and result.kept


def test_verify_against_the_diffusers_original_finds_faults(tmp_path: Path) -> None:
    source = saved(tmp_path)
    quantize(make_plan(open_checkpoint(source), Settings()), tmp_path / "b.safetensors")
    tensors = in_diffusers(native())
    tensors["transformer_blocks.0.attn.to_k.weight"] = tensors["transformer_blocks.0.attn.to_k.weight"] * 2
    assert not verify(saved(tmp_path, tensors), tmp_path / "b.safetensors").ok


def test_a_pipeline_s_folder_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = sharded(tmp_path / "FLUX.1-dev")
    for _ in range(2):  # the second time a result lies beside
        assert main(["quantize", str(folder), "--overwrite", "--device", "cpu"]) == 0
        text = capsys.readouterr().out
        assert "of the pipeline its transformer was taken" in text and "Flux in diffusers layout" in text
    output = folder / "FLUX.1-dev_float8_e4m3fn_scaled_learned_svd.safetensors"
    assert main(["verify", str(folder), str(output)]) == 0
    assert main(["verify", str(folder / "transformer"), str(output)]) == 0
    assert "double_blocks.0.img_attn.qkv.weight" in load(output)
    assert inspect(folder).to_json()["family"] == "flux"


@pytest.mark.parametrize(("source", "stem"), [
    ("FLUX.1-dev/transformer/diffusion_pytorch_model.safetensors.index.json", "FLUX.1-dev"),
    ("sdxl/unet/diffusion_pytorch_model.fp16.safetensors", "sdxl.fp16"),
    ("Z-Image/diffusion_pytorch_model-00001-of-00002.safetensors", "Z-Image")])
def test_a_result_is_called_by_the_pipeline_not_by_what_all_files_are_called(tmp_path: Path, source: str,
                                                                           stem: str) -> None:
    output = default_output(tmp_path / source, False)
    assert output == (tmp_path / source).parent / f"{stem}_float8_e4m3fn_scaled_learned_svd.safetensors"


def lacking(gone: str) -> Tensors:
    return {name: tensor for name, tensor in in_diffusers(native()).items() if name != gone}


@pytest.mark.parametrize(("change", "words"), [
    ({"encoder_hid_proj.weight": torch.zeros(2, 2)}, "Flux in diffusers layout, but it holds .encoder_hid_proj"),
    ({"controlnet_blocks.0.weight": torch.zeros(2, 2)}, "it is a ControlNet"),
    ({"transformer_blocks.0.attn.to_q.weight_scale": torch.ones(1)}, "quantized already"),
    ({"transformer_blocks.0.attn.to_q.lora_A.weight": torch.zeros(2, 2),
      "transformer_blocks.0.attn.to_q.lora_B.weight": torch.zeros(2, 2)}, "an unmerged LoRA"),
    ({"transformer_blocks.0.attn.to_q.weight": torch.zeros(HIDDEN, HIDDEN)}, "different dtypes or widths"),
    ({"norm_out.linear.bias": torch.zeros(7)}, "no scale and shift")])
def test_what_is_no_such_model_is_refused(tmp_path: Path, change: Tensors, words: str) -> None:
    with pytest.raises(TpecError, match=words):
        make_plan(open_checkpoint(saved(tmp_path, in_diffusers(native()) | change)), Settings())


@pytest.mark.parametrize(("gone", "words"), [
    ("transformer_blocks.0.attn.to_k.weight", "what becomes double_blocks.0.img_attn.qkv.weight it holds"),
    ("single_transformer_blocks.0.attn.to_v.weight", "what becomes single_blocks.0.linear1.weight it holds"),
    ("proj_out.weight", "final_layer.linear.weight is missing")])
def test_a_part_of_a_model_is_refused(tmp_path: Path, gone: str, words: str) -> None:
    with pytest.raises(TpecError, match=words):
        make_plan(open_checkpoint(saved(tmp_path, lacking(gone))), Settings())


def test_other_sources_stay_as_they_are(tmp_path: Path) -> None:
    save_file(native(), tmp_path / "native.safetensors")
    source = open_checkpoint(tmp_path / "native.safetensors")
    assert in_comfyui_layout(source) is source
    view = in_comfyui_layout(open_checkpoint(saved(tmp_path)))
    assert in_comfyui_layout(view) is view
