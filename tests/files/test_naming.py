"""What names say, and what a result is called."""

import sys
from pathlib import Path

import pytest

from tpec.errors import TpecError
from tpec.files.naming import (
    default_output,
    is_model_name,
    model_stem,
    named_output,
    names_folder,
    refuse_shared_outputs,
    shard_name,
)

ENDING = "_float8_e4m3fn_scaled_learned_svd.safetensors"


@pytest.mark.parametrize(("name", "stem"), [
    ("model.safetensors", "model"), ("MODEL_v1.5.SAFETENSORS", "MODEL_v1.5"), ("model_v1.5", "model_v1.5"),
    ("flux1-dev.sft", "flux1-dev"), ("m.safetensors.index.json", "m"), ("m.safetensors.index.fp16.json", "m.fp16"),
    ("m_1.5.fp16.index.json", "m_1.5.fp16"), ("index.json", "index"), ("m-00002-of-00003.safetensors", "m"),
    ("m-00002-of-00003.fp16.safetensors", "m.fp16"), ("m-00001-of-00001.sft", "m-00001-of-00001")])
def test_default_name_keeps_the_models_own(tmp_path: Path, name: str, stem: str) -> None:
    assert model_stem(name) == stem
    assert default_output(tmp_path / name, keep_distillation=False) == tmp_path / (stem + ENDING)
    kept = default_output(tmp_path / name, keep_distillation=True)
    assert kept == tmp_path / (stem + ENDING.replace("_svd", "_nodistill_svd"))


def test_default_name_of_a_folder_is_the_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "FLUX.1-dev"
    folder.mkdir()
    assert default_output(folder, False) == folder / ("FLUX.1-dev" + ENDING)
    monkeypatch.chdir(folder)
    assert default_output(Path("."), False) == Path("FLUX.1-dev" + ENDING)


def test_parts_of_a_shards_name() -> None:
    shard = shard_name("m-00002-of-00012.fp16.SafeTensors")
    assert (shard.stem, shard.number, shard.total) == ("m", 2, 12)
    assert shard.sibling(11) == "m-00011-of-00012.fp16.SafeTensors"
    for name in ("m.safetensors", "m-00001-of-00001.safetensors", "m-1-of-2.safetensors", "m-00001-of-00002.bin",
                 "-00001-of-00002.safetensors", "m-00001-of-00002.safetensors.index.json"):
        assert shard_name(name) is None


@pytest.mark.parametrize(("given", "name"), [("out", "out.safetensors"), ("a/v1.5", "a/v1.5.safetensors"),
                                             ("out.sft", "out.sft"), ("out.SAFETENSORS", "out.SAFETENSORS")])
def test_result_gets_a_suffix_that_readers_know(given: str, name: str) -> None:
    assert named_output(given) == Path(name)
    assert is_model_name(str(named_output(given)))


@pytest.mark.parametrize("given", ["q.ckpt", "q.PT", "a.b/q.pth", "q.bin", "q.gguf", "q.onnx", "q.safetensors.json",
                                   "q-00001-of-00002.safetensors"])
def test_names_of_other_formats_and_of_shards_are_refused(given: str) -> None:
    with pytest.raises(TpecError, match="name of another format|name of one shard"):
        named_output(given)


def test_folder_is_one_that_is_there_or_ends_in_a_slash(tmp_path: Path) -> None:
    assert names_folder(str(tmp_path))
    assert names_folder("none/")
    assert not names_folder("none")
    assert names_folder("none\\") == (sys.platform == "win32")


def test_results_of_a_batch_share_no_name_whatever_they_are_called(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    inputs = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    refuse_shared_outputs(inputs, [tmp_path / "1", tmp_path / "2"])
    refuse_shared_outputs(inputs[:1], inputs[:1])  # said with more detail where the input is known
    for outputs in ([tmp_path / "1", tmp_path / "1"], [tmp_path / "1", tmp_path / "link" / "1"]):
        with pytest.raises(TpecError, match="a.safetensors and .*b.safetensors would have the same name"):
            refuse_shared_outputs(inputs, outputs)
    with pytest.raises(TpecError, match="b.safetensors, which is an input itself"):
        refuse_shared_outputs(inputs, [tmp_path / "link" / "b.safetensors", tmp_path / "2"])
