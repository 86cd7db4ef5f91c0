"""docs/families.md and the README's list of models, made from the table of families and the inventory of ComfyUI's.

    python -m benchmarks.families_doc          writes both
"""

import textwrap
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from inventory import DATA, Model, read

from tpec.errors import TpecError
from tpec.files.checkpoint import Checkpoint
from tpec.files.header import TensorInfo
from tpec.model.diffusers import LAYOUTS
from tpec.model.families import DIFFUSION, TEXT, Family
from tpec.model.plan import make_plan
from tpec.settings import Settings

from .common import ROOT

TARGET = ROOT / "docs" / "families.md"
README = ROOT / "README.md"
#: Around the list in the README.
BEGIN, END = "<!-- models: python -m benchmarks.families_doc -->\n", "<!-- /models -->\n"

_HEAD = """# Models: what becomes FP8, what stays, and why

Made by `python -m benchmarks.families_doc` from the table in `tpec` and the inventory of ComfyUI v0.33.0 in
`tests/data`; do not edit by hand.

Names are of modules, without the file's prefix: `#` is a number, `{a,b}` one of several. What is not named stays as
it is; convolutions, norms, biases, embeddings and tables always do. *Share* is the part of the parameters of
ComfyUI's Linears that become FP8, over all members of the family. `--include` also quantizes Linears that stay by
default, `--exclude` keeps more. Where the installed ComfyUI and this table disagree about a layer, it stays.

Of ComfyUI's 101 classes four are no diffusion models and are refused by name: SAM 3, SAM 3.1, RT-DETR and Depth
Anything 3. Of the families that came with ComfyUI 0.38, Ming-Image has Z-Image's layout and is taken for it; Qwen-Image
2.1, SenseNova U1.5, Kandinsky 6 and YuE2 are known in part only and have no entry: in ComfyUI the installed version's
own classes say what their Linears are, the command line refuses them.
"""

_EMBEDDINGS = """
## Token embeddings

They stay in bf16 unless `--embeddings` (the node's *embeddings*) makes them FP8, with one scale and plain rounding;
that needs the format `comfy_quant`. ComfyUI multiplies the rows that it looks up by the scale: small encoders of
all kinds but MiniMax Music's compute in it exactly what their files mean
(`tests/comfy/test_encoder_embeddings.py`). Gemma 4's `embed_tokens_per_layer` is read only to write text, not to
encode it. Sizes are of the tensors, in GB (10^9 bytes), of a bf16 file, its result, and its result with the
embeddings in FP8. The real table of MiniLM is off by 2.6 % per looked-up vector (2.9 % for 99 of 100), as its
Linears are: see [measurements](measurements.md#token-embeddings-in-fp8).

| text encoder | embeddings, share of the bf16 file | bf16 | FP8 | with embeddings | saves |
|---|---|---|---|---|---|
"""

_PARTS = """
## Text encoders inside full checkpoints

They stay bit-exact unless `--part NAME` names them. Prefixes are those of ComfyUI's own files.

| model | part | its prefix | scales applied there |
|---|---|---|---|
"""


def shares(families: Iterable[Family], models: Iterable[Model]) -> dict[str, list[float]]:
    """Family name -> share of Linear parameters in FP8 of each of its models, percent."""
    found: dict[str, list[float]] = {family.name: [] for family in families}
    for model in models:
        try:
            plan = make_plan(_checkpoint(model), Settings())
        except TpecError:
            continue
        total = sum(_items(model.tensors[f"{module}.weight"][0]) for module in model.modules("linear"))
        part = sum(layer.info.items for layer in plan.of("quantize"))
        found[plan.family.name].append(100 * part / total)
    return found


def readme() -> str:
    """The README with its list of models made new."""
    before, _, rest = README.read_text("utf-8").partition(BEGIN)
    return before + BEGIN + works() + END + rest.partition(END)[2]


def works() -> str:
    """What works, in a few lines, with the share of the Linears' parameters that become FP8."""
    lines = []
    for words, families, data in (("diffusion models", DIFFUSION, "diffusion"), ("text encoders", TEXT, "encoders")):
        found = shares(families, read(DATA / f"{data}.txt").values())
        known = sorted(share for its in found.values() for share in its)
        titles = ", ".join(_titles(family).removesuffix(" text encoder") for family in sorted(families, key=_title))
        lines.append(f"- **{len(known)} {words} of ComfyUI v0.33** ({known[0]:.0f} to {known[-1]:.0f} % of their Linear"
                     f" weights become FP8, in the median {known[len(known) // 2]:.0f} %): {titles}.")
    lines.append(f"- **In diffusers layout as well**: {', '.join(LAYOUTS)}.")
    return "\n".join(textwrap.fill(line, 118, subsequent_indent="  ", break_on_hyphens=False) for line in lines) + "\n"


def document() -> str:
    """The whole file's text."""
    diffusion = shares(DIFFUSION, read(DATA / "diffusion.txt").values())
    text = shares(TEXT, read(DATA / "encoders.txt").values())
    return "".join((
        _HEAD,
        "\n## Diffusion models\n\n", _table(sorted(DIFFUSION, key=_title), diffusion),
        "\n## Text encoders\n\nComfyUI applies no FP8 scales in CLIP-L, CLIP-G, CLIP-H, T5 of other sizes (base, "
        "pile-T5-XL, mT5, ByT5), T5-Gemma, jina-clip and the Qwen3 0.6B of ACE-Step 1.5; these are refused.\n\n",
        _table(sorted(TEXT, key=_title), text),
        _EMBEDDINGS, *_embeddings(read(DATA / "encoders.txt").values()), _PARTS, *_parts()))


def _table(families: Sequence[Family], found: dict[str, list[float]]) -> str:
    lines = ["| family (`--family`) | ComfyUI's classes | becomes FP8 | stays, why (who says so) | share |",
             "|---|---|---|---|---|"]
    for family in families:
        kept = "; ".join(_kept(family))
        quantized = " ".join(f"`{text}`" for text in family.linears)
        note = f"; {family.notes}" if family.notes else ""
        lines.append(f"| {_titles(family)} (`{family.name}`) | {', '.join(family.classes)} | {quantized} | {kept} "
                     f"| {_range(found[family.name])}{note} |")
    return "\n".join(lines) + "\n"


def _kept(family: Family) -> Iterable[str]:
    """The rules in order, neighbours with the same source together."""
    for source, rules in groupby(family.keep, lambda rule: rule.source):
        text = ", ".join(f"`{rule.modules}` {rule.reason.removesuffix(', sensitive')}" for rule in rules)
        yield f"{text} ({source})" if source else text


def _titles(family: Family) -> str:
    return ", ".join((family.title, *(title for title, _ in family.variants)))


def _range(found: list[float]) -> str:
    low, high = min(found), max(found)
    return f"{low:.1f} %" if f"{low:.1f}" == f"{high:.1f}" else f"{low:.1f} - {high:.1f} %"


def _embeddings(models: Iterable[Model]) -> Iterable[str]:
    for model in sorted(models, key=lambda model: model.name):
        try:
            plain = make_plan(_checkpoint(model), Settings())
        except TpecError:
            continue
        plan = make_plan(_checkpoint(model), Settings(format="comfy_quant", embeddings=True))
        before, after, less = (size / 1e9 for size in (plan.checkpoint.nbytes, plain.output_nbytes, plan.output_nbytes))
        share = sum(layer.info.nbytes for layer in plan.tensors if layer.embedding) / plan.checkpoint.nbytes
        yield (f"| {model.name} | {100 * share:.1f} % | {before:.2f} | {after:.2f} | {less:.2f} "
               f"| {100 * (1 - less / after):.1f} % |\n")


def _parts() -> Iterable[str]:
    for family in sorted(DIFFUSION, key=_title):
        for encoder in family.encoders:
            yield (f"| {family.title} | `{encoder.name}` | `{encoder.prefix}` "
                   f"| {'no: ' + encoder.ignored if encoder.ignored else 'yes'} |\n")


def _title(family: Family) -> str:
    return family.title.lower()


def _checkpoint(model: Model) -> Checkpoint:
    infos = {name: TensorInfo(name, "BF16", shape, 0, 2 * _items(shape)) for name, (shape, _) in model.tensors.items()}
    return Checkpoint(Path(model.name), (), infos, {}, "")


def _items(shape: Sequence[int]) -> int:
    items = 1
    for size in shape:
        items *= size
    return items


if __name__ == "__main__":
    TARGET.write_text(document(), "utf-8")
    README.write_text(readme(), "utf-8")
