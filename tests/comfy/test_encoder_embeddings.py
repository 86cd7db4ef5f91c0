"""Text encoders with their token embeddings in FP8: ComfyUI's own loader applies the scale of every table it reads.
Where it applies none the file is refused: tests/model/test_table.py."""

import json
import os
import subprocess
from pathlib import Path

import inventory
import prompts as p
import pytest
import torch
from comfy_server import ComfyServer
from safetensors.torch import load_file, save_file
from test_main_job import dequantized
from tiny_encoders import TINY_ENCODERS

HERE = Path(__file__).parent
A_FEW = ["llama-3.1-8b", "gpt-oss-20b", "qwen2.5-vl-7b", "qwen3-0.6b", "qwen3.5-2b", "gemma-2-2b", "gemma-4-e2b"]
SMALL = [tiny.name for tiny in TINY_ENCODERS]
ROUNDS = [SMALL[at:at + 6] for at in range(0, len(SMALL), 6)]
#: Read only when ComfyUI has the encoder write text: its encoding is given vectors instead of words.
ONLY_WRITING = {("gemma-4-e2b", "model.embed_tokens_per_layer"), ("gemma-4-e4b", "model.embed_tokens_per_layer")}
#: Encoders without a small one here.
NONE = {
    "minimax-music-3": "its 9 billion parameters are constants of ComfyUI",
    "minimax-music-3-pruned": "its 8 billion parameters are constants of ComfyUI",
    "llava-llama-3-8b": "the same class as llama-3.1-8b, in another loader",
    "ace-1.5-lm-qwen3-2b": "test_of_two_language_models_only_the_first_has_its_scales_applied",
    "ace-1.5-lm-qwen3-4b": "the same class as ace-1.5-lm-qwen3-2b, larger",
    "ace-1.5-qwen3-0.6b": "refused",
}


def answers(install: tuple[Path, str], script: str, *arguments: object) -> list[dict]:
    """The lines of JSON that a script of this folder prints in ComfyUI's Python."""
    path, python = install
    done = subprocess.run([python, "-W", "ignore", HERE / script, path, *map(str, arguments)], capture_output=True,
                          text=True, timeout=1800, env={"OMP_NUM_THREADS": "1", **os.environ})
    assert done.returncode == 0, f"after {done.stdout.splitlines()[-1:]}: {done.stderr[-2000:]}"
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def run(install: tuple[Path, str], folder: Path, names: list[str]) -> None:
    found = {answer["encoder"]: answer for answer in answers(install, "run_encoders.py", folder, *names)}
    assert set(found) == set(names)
    for name, facts in found.items():
        assert facts["linears"] and facts["finite"] and facts["unscaled"], facts
        for use, difference in facts["difference"].items():
            assert facts["spread"][use] > 0.01, facts
            assert difference < 1e-5, facts
            assert facts["rounding"][use] > 1e-3, facts    # FP8 was in effect
        for table, uses in facts["unscaled"].items():
            read = {use for use, error in uses.items() if error > 0.5}
            assert read == ({"written"} if (name, table) in ONLY_WRITING else set(facts["difference"])), facts


def test_a_few_encoders_compute_what_their_tables_mean(comfy_install: tuple[Path, str], tmp_path: Path) -> None:
    run(comfy_install, tmp_path, A_FEW)


@pytest.mark.slow
@pytest.mark.parametrize("names", ROUNDS, ids=lambda names: f"{names[0]}-{names[-1]}")
def test_encoders_compute_what_their_tables_mean(comfy_install: tuple[Path, str], tmp_path: Path,
                                                 names: list[str]) -> None:
    run(comfy_install, tmp_path, names)


def test_every_encoder_with_a_table_has_a_small_one_or_a_reason() -> None:
    refused = {"CLIP_L", "CLIP_H", "CLIP_G", "JINA_CLIP_2", "BYT5_SMALL_GLYPH", "T5_XL", "T5_BASE", "T5_GEMMA", "none"}
    known = inventory.read(inventory.DATA / "encoders.txt").items()
    assert {name for name, model in known if model.facts["te"] not in refused} == {*SMALL, *NONE}


def test_of_two_language_models_only_the_first_has_its_scales_applied(comfy_install: tuple[Path, str],
                                                                      tmp_path: Path) -> None:
    """ACE-Step 1.5 has two: what we say of its language model, and why its small one is refused."""
    (pairs,) = answers(comfy_install, "run_ace.py", tmp_path)
    assert max(pairs["language model first"].values()) < 1e-5
    for wrong in ("language model second", "language model without its table's scale"):
        assert pairs[wrong]["small"] < 1e-5
        assert min(pairs[wrong]["language"], pairs[wrong]["scores"]) > 0.5
    for wrong in ("both", "the small one alone"):
        assert pairs[wrong]["small"] > 0.5
        assert max(pairs[wrong]["language"], pairs[wrong]["scores"]) < 1e-5


def encoding(name: object, keep: str) -> dict[str, dict]:
    """The stock loader as it is, without options."""
    return {"clip": p.node("CLIPLoader", clip_name=name, type="stable_diffusion", device="default"),
            "encode": p.node("CLIPTextEncode", clip=["clip", 0], text="a red square beside a blue circle"),
            "cond": p.node("TestSaveConditioning", conditioning=["encode", 0], filename=keep)}


@pytest.mark.slow
def test_an_encoder_of_full_size_goes_through_the_stock_nodes(server: ComfyServer, figures: list[str]) -> None:
    """Qwen3 0.6B, random: quantized by the nodes, read by CLIPLoader and CLIPTextEncode, as a user would."""
    folder = server.models / "text_encoders"
    make = torch.Generator().manual_seed(0)
    known = inventory.read(inventory.DATA / "encoders.txt")["qwen3-0.6b"]
    tensors = {}
    for name, (shape, kind) in known.tensors.items():
        drawn = torch.randn(shape, generator=make)
        drawn = 1 + 0.1 * drawn if kind == "norm" else drawn * (0.2 if kind == "embedding" else shape[-1] ** -0.5)
        tensors[name] = drawn.bfloat16()
    save_file(tensors, folder / "full.safetensors")
    server.succeed({**p.quantizing("text_encoders/full.safetensors", format="comfy_quant", method="nearest",
                                   embeddings=True),
                    **p.saving("full_fp8"), **encoding(["save", 0], "full_fp8.safetensors")})
    raw = load_file(folder / "full_fp8.safetensors")
    assert raw["model.embed_tokens.weight"].dtype == torch.float8_e4m3fn
    exact = {name: tensor.bfloat16() if tensor.ndim == 1 else tensor for name, tensor in dequantized(
        folder / "full_fp8.safetensors").items()}
    save_file(exact, folder / "full_exact.safetensors")
    raw["model.embed_tokens.weight_scale"] = torch.ones_like(raw["model.embed_tokens.weight_scale"])
    save_file(raw, folder / "full_unscaled.safetensors")
    for name in ("exact", "unscaled"):
        server.succeed(encoding(f"full_{name}.safetensors", f"full_{name}.safetensors"))
    got, wanted, wrong = (load_file(server.output / f"full_{name}.safetensors")["cond"].float()
                          for name in ("fp8", "exact", "unscaled"))
    error, without = (((its - wanted).norm() / wanted.norm()).item() for its in (got, wrong))
    figures.append(f"Qwen3 0.6B with embeddings: {error:.1e} off its weights in bf16, {without:.2f} without the scale")
    assert wanted.std() > 0.01
    assert error < 0.02 and without > 0.5
