"""Recipes say what becomes of every layer; they can be edited by hand, and must not be trusted."""

import json
from pathlib import Path

import pytest
import torch
from samples import load, run_cli, save_flux, write_shapes

from tpec.command.demo import flux_shapes
from tpec.errors import TpecError
from tpec.files.checkpoint import open_checkpoint
from tpec.model.plan import Plan, make_plan
from tpec.model.recipe import Choice, Recipe, follow, read_recipe, recipe_of, write_recipe
from tpec.run.pipeline import quantize
from tpec.settings import Settings

PROJ, QKV, IMG_IN = "double_blocks.0.img_attn.proj", "double_blocks.0.img_attn.qkv", "img_in"


def plan_of(folder: Path, prefix: str = "", **settings: object) -> Plan:
    shapes = {prefix + name: shape for name, shape in flux_shapes(128, 1, 1).items()}
    return make_plan(open_checkpoint(write_shapes(folder / f"{prefix}m.safetensors", shapes)), Settings(**settings))


def fates(plan: Plan) -> dict[str, tuple[str, str]]:
    return {layer.local: (layer.action, layer.matmul) for layer in plan.tensors}


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, exclude="img_mlp", include="final_layer.linear")
    recipe = recipe_of(plan)
    write_recipe(tmp_path / "r.json", recipe)
    again = read_recipe(tmp_path / "r.json")
    assert dict(again.layers) == dict(recipe.layers) and again.family == "flux"
    assert recipe.layers["double_blocks.0.img_mlp.0"] == Choice("keep", "", "excluded by you")
    assert recipe.layers["final_layer.linear"].format == "fp8"
    assert recipe.layers[IMG_IN].format == "keep" and recipe.layers[IMG_IN].why
    # Not what is no Linear.
    assert not any("norm" in name for name in recipe.layers)
    followed = follow(plan_of(tmp_path), again)
    assert {name: action for name, (action, _) in fates(followed).items()} == {
        name: action for name, (action, _) in fates(plan).items()}


def test_a_line_per_layer(tmp_path: Path) -> None:
    recipe = recipe_of(plan_of(tmp_path))
    write_recipe(tmp_path / "r.json", recipe)
    lines = (tmp_path / "r.json").read_text().splitlines()
    assert sum(line.strip().startswith('"double_blocks.0.img_attn.proj": {"format": "fp8"') for line in lines) == 1
    assert len(lines) == len(recipe.layers) + 3


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_names_carry_no_prefix(tmp_path: Path, prefix: str) -> None:
    plan = plan_of(tmp_path, prefix)
    followed = follow(plan, Recipe({PROJ: Choice("keep", why="because"), IMG_IN: Choice("fp8", "fp8")}))
    after = fates(followed)
    assert after[f"{PROJ}.weight"][0] == "keep" and after[f"{IMG_IN}.weight"] == ("quantize", "fp8")
    assert after[f"{QKV}.weight"][0] == "quantize"
    assert next(layer.reason for layer in followed.tensors if layer.linear_in_model == PROJ) == "because"
    assert "2 differ" in followed.summary()
    assert set(recipe_of(followed).layers) == set(recipe_of(plan_of(tmp_path)).layers)


def test_the_users_own_words_come_first(tmp_path: Path) -> None:
    recipe = Recipe({PROJ: Choice("keep"), QKV: Choice("fp8")})
    after = fates(follow(plan_of(tmp_path, include=r"img_attn\.proj", exclude="qkv"), recipe))
    assert after[f"{PROJ}.weight"][0] == "quantize" and after[f"{QKV}.weight"][0] == "keep"


def test_refusals(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    with pytest.raises(TpecError, match="no layer 'elsewhere'"):
        follow(plan, Recipe({"elsewhere": Choice("fp8")}))
    norm = next(layer.linear_in_model for layer in plan.tensors if layer.local.endswith("_norm.weight"
                ) or layer.local.endswith("norm.scale"))
    with pytest.raises(TpecError, match="no layer|which cannot be"):
        follow(plan, Recipe({norm: Choice("fp8")}))
    with pytest.raises(TpecError, match="leaves no layer"):
        follow(plan, Recipe({name: Choice("keep") for name in recipe_of(plan).layers}))


@pytest.mark.parametrize(("text", "words"), [
    ("{", "it is no JSON \\(line 1, column 2"),
    ("[1]", "is not a recipe"),
    ('{"a": 1}', "is not a recipe: write one"),
    ('{"tpec_recipe": 2, "layers": {"a": {"format": "fp8"}}}', "version 2"),
    ('{"tpec_recipe": 1}', "names no layers"),
    ('{"tpec_recipe": 1, "layers": {}}', "names no layers"),
    ('{"tpec_recipe": 1, "layers": {"a": "fp8"}}', "nothing useful of 'a'"),
    ('{"tpec_recipe": 1, "layers": {"a": {"matmul": "fp8"}}}', "nothing useful of 'a'"),
    ('{"tpec_recipe": 1, "layers": {"a": {"format": "int4"}}}', '"int4" as format of \'a\': it must be fp8 or keep'),
    ('{"tpec_recipe": 1, "layers": {"a": {"format": ["fp8"]}}}', "as format of 'a'"),
    ('{"tpec_recipe": 1, "layers": {"a": {"format": "fp8", "matmul": "fast"}}}', "full_precision or fp8"),
    ('{"tpec_recipe": 1, "layers": {"a": {"format": "fp8", "scale": 2}}}', "'scale' at 'a'"),
    ('{"tpec_recipe": 1, "layers": {"a": {"format": "fp8", "why": 2}}}', "it must be text"),
    ("[" * 100_000, "too deeply nested|no JSON"),
])
def test_broken_recipes(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(TpecError, match=words) as caught:
        read_recipe(tmp_path / "r.json")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TpecError, match="is no JSON"):
        read_recipe(tmp_path / "r.json")
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(TpecError, match="cannot be read"):
            read_recipe(path)
    with pytest.raises(TpecError, match="cannot be written"):
        write_recipe(tmp_path / "no" / "r.json", Recipe({PROJ: Choice("keep")}))
    with open(tmp_path / "r.json", "wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(TpecError, match="too large"):
        read_recipe(tmp_path / "r.json")


def test_matmul_of_single_layers(tmp_path: Path) -> None:
    """Each layer's own flag in the current form; the legacy marker, one for all, is the careful one."""
    plan = make_plan(open_checkpoint(save_flux(tmp_path)), Settings(method="nearest"))
    quantize(follow(plan, Recipe({PROJ: Choice("fp8", "fp8")})), tmp_path / "q.safetensors")
    result = load(tmp_path / "q.safetensors")
    flags = {name: json.loads(bytes(tensor.tolist())) for name, tensor in result.items() if "comfy_quant" in name}
    assert {name for name, flag in flags.items() if "full_precision_matrix_mult" not in flag} == {f"{PROJ}.comfy_quant"}
    assert result["scaled_fp8"].numel() == 2
    fast = make_plan(open_checkpoint(tmp_path / "model.safetensors"), Settings(method="nearest", matmul="fp8"))
    quantize(follow(fast, Recipe({PROJ: Choice("fp8", "full_precision")})), tmp_path / "q2.safetensors")
    result = load(tmp_path / "q2.safetensors")
    assert json.loads(bytes(result[f"{PROJ}.comfy_quant"].tolist()))["full_precision_matrix_mult"] is True
    assert "full_precision" not in bytes(result[f"{QKV}.comfy_quant"].tolist()).decode()
    assert result["scaled_fp8"].numel() == 2


def test_command_line(tmp_path: Path) -> None:
    """Write with keep_quality, edit, read back: the file follows the recipe."""
    source, recipe, output = save_flux(tmp_path), tmp_path / "r.json", tmp_path / "q.safetensors"
    done = run_cli("quantize", source, "--keep-quality", "5", "--write-recipe", recipe, "--dry-run", "--device", "cpu")
    assert done.returncode == 0 and "x the expected error" in done.stdout
    data = json.loads(recipe.read_text())
    assert data["layers"][PROJ]["format"] == "keep" and "quality" in data["layers"][PROJ]["why"]
    data["layers"][QKV]["format"] = "keep"
    recipe.write_text(json.dumps(data))
    done = run_cli("quantize", source, "-o", output, "--recipe", recipe, "--method", "nearest", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    kept = {name for name in (PROJ, QKV, "double_blocks.0.img_mlp.0")
            if load(output)[f"{name}.weight"].dtype == torch.bfloat16}
    assert kept == {PROJ, QKV}
    assert run_cli("verify", source, output).returncode == 0
    for flags, words in ((("--recipe", recipe, "--like", output), "give one of them"),
                         (("--recipe", source), "is not a recipe"),
                         (("--write-recipe", tmp_path / "no" / "r.json"), "no such folder"),
                         (("--write-recipe", output), "would replace a model")):
        done = run_cli("quantize", source, "-o", tmp_path / "other.safetensors", *flags)
        assert done.returncode == 1 and words in done.stderr and done.stderr.count("\n") == 1
