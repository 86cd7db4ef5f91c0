"""A text encoder of full size in a real ComfyUI: calibrated, quantized, loaded by the stock loader, and compared.

    python -m benchmarks.text_encoders --encoder t5-xxl --folder /data/scratch --output t5.json
    python -m benchmarks.text_encoders --encoder qwen3-4b --card 8

The file is synthetic (encoder_files). Every way to quantize it gives a file that stock nodes load and encode prompts
with, none of which calibration has seen; their error is that of the conditioning against the bf16 file's, relative to
its norm, over all tokens of all prompts. The weights were never trained, so seconds, memory and that it works are what
this says; how much calibration gains in a real encoder, `embeddings` says.
"""

import argparse
import json
from pathlib import Path

import models
import prompts as p
import torch
from comfy_server import link
from encoder_variants import ENCODERS
from safetensors.torch import load_file

from .comfy_jobs import (
    Bench,
    Job,
    Nodes,
    add_arguments,
    card_bytes,
    facts,
    only,
    run_all,
    table,
    warm,
)
from .common import markdown_table, times
from .encoder_files import encoder_names, write_encoder
from .in_comfy import shown
from .pack import of_pack
from .server import all_threads, comfy

MODEL = "encoder.safetensors"
PROMPTS = (
    "a lighthouse in fog, long exposure, muted blue tones",
    "two children fly a paper kite above wheat fields; the kite has a painted eye",
    "close-up of a watchmaker's bench, brass gears, a magnifying glass, warm lamp light, shallow depth of field",
    "poster with the words NIGHT MARKET, lanterns, bold red lettering",
    "low poly owl",
    "An engraving of a ship caught in sea ice, sailors haul a sledge over a pressure ridge, aurora in the sky",
    "elderly jazz drummer, black and white, grain, smoke in a spotlight",
    "ein altes Fahrrad lehnt an einer gelben Hauswand, Mittagssonne",
)
_TEXTS = of_pack("nodes.calibration.text_prompts").DEFAULT_PROMPTS
#: How the file is quantized: settings by title, and whether TPEC Calibrate Text Encoder comes before.
WAYS = {"plain rounding": ({"method": "nearest"}, False), "calibrate never": ({}, False),
        "calibrate auto": ({"calibrate": "auto"}, False), "TPEC Calibrate Text Encoder": ({}, True)}
_NONE, _MADE = "bf16", ("results", "calibrations")


def loader(file: str, args: argparse.Namespace) -> Nodes:
    """Node `clip`: the stock loader, or for the small stand-in that of the tests, which knows its sizes."""
    if args.small:
        return {"clip": p.node("TestSmallTextEncoder", clip_name=file, type="chroma", part="t5xxl",
                               sizes=json.dumps(models.SMALL_T5))}
    kinds = {encoder.name: encoder.clip_type.lower() for encoder in ENCODERS}
    return {"clip": p.node("CLIPLoader", clip_name=file, type=kinds[args.encoder])}


def encoding(file: str, name: str, args: argparse.Namespace) -> Nodes:
    """Nodes that encode each prompt and write it to `conditioning_file(name, number)` of the output folder."""
    nodes = loader(file, args)
    for number, prompt in enumerate(PROMPTS):
        nodes |= {f"encode{number}": p.node("CLIPTextEncode", clip=["clip", 0], text=prompt),
                  f"cond{number}": p.node("TestSaveConditioning", conditioning=[f"encode{number}", 0],
                                          filename=conditioning_file(name, number))}
    return nodes


def conditioning_file(name: str, number: int) -> str:
    return f"{name} {number}.safetensors"


def jobs(args: argparse.Namespace) -> list[Job]:
    found = [Job(_NONE, "encode, bf16", encoding(MODEL, _NONE, args), args.limit)]
    for title in args.ways:
        settings, calibrated = WAYS[title]
        nodes: Nodes = {}
        if calibrated:
            nodes = {**loader(MODEL, args),
                     "calibrate": p.node("TPECCalibrateText", clip=["clip", 0], prompts=_TEXTS)}
            found.append(Job(f"{title} alone", title, {**nodes, **shown("calibrate")}, args.limit))
            settings = settings | {"calibration": ["calibrate", 0]}
        quantize = {**nodes, **p.quantizing(f"text_encoders/{MODEL}", **settings)}
        found += [
            Job(title, f"TPEC Quantize FP8, {title}", {**quantize, **shown("quantize")}, args.limit),
            Job(f"{title} saved", "Save Scaled FP8", {**quantize, **p.saving(title)}, args.limit, needs=title),
            Job(f"{title} encoded", f"encode, {title}", encoding(f"{title}.safetensors", title, args), args.limit,
                needs=f"{title} saved", clean=_MADE, unlink=f"{title}.safetensors")]
    return found


def error(output: Path, name: str) -> float:
    """Of a way's conditionings, relative to the bf16 file's; nan when a file is missing."""
    wrong = norm = 0.0
    for number in range(len(PROMPTS)):
        files = [output / conditioning_file(which, number) for which in (name, _NONE)]
        if not all(file.is_file() for file in files):
            return float("nan")
        got, wanted = (load_file(file)["cond"].double() for file in files)
        wrong, norm = wrong + (got - wanted).square().sum().item(), norm + wanted.square().sum().item()
    return (wrong / norm) ** 0.5


def describe(output: Path) -> str:
    """What the bf16 file gave, so that nobody trusts errors of values that are not there."""
    cond = torch.cat([load_file(file)["cond"].flatten() for file in sorted(output.glob(f"{_NONE} *.safetensors"))])
    return f"bf16: {len(cond)} values, standard deviation {cond.std():.3g}, all finite: {bool(cond.isfinite().all())}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    add = parser.add_argument
    add("--encoder", default="t5-xxl", choices=encoder_names(), help="what the file is (default t5-xxl)")
    add("--model", type=Path, help="such a file that is there; else it is written into --folder")
    add("--small", action="store_true", help="T5-XXL 32 wide instead, to try this program out")
    add("--card", type=float, default=0, help="leave what a card sold as so many GB has (default 0: all VRAM)")
    add("--limit", type=float, default=240, help="seconds after which a prompt is interrupted (default 240)")
    add("--ways", nargs="+", default=list(WAYS), choices=WAYS, help="only these")
    return parser.parse_args()


def model_of(args: argparse.Namespace) -> Path:
    args.folder.mkdir(parents=True, exist_ok=True)
    path = args.model or args.folder / f"{'small' if args.small else args.encoder}.safetensors"
    if not path.is_file():
        if args.small:
            models.save(models.t5xxl(), path)
        else:
            write_encoder(path, args.encoder)
    return path


def main() -> None:
    args = arguments()
    model = model_of(args)
    warm(model)
    about = facts(f"{args.card:g} GB" if args.card else "all", model)
    with only(card_bytes(args.card)) as taken, comfy(args.cpu, args.folder, all_threads()) as server:
        link(model.resolve(), server.models / "text_encoders" / MODEL)
        print(*about.values(), *(line for line in server.log().splitlines() if "VRAM" in line), sep="\n", flush=True)
        bench = Bench(server, taken, about, args.output, args.within)
        run_all(bench, jobs(args))
        errors = {title: error(server.output, title) for title in args.ways}
        print("", describe(server.output), sep="\n")
    print("", table(bench.rows), "", sep="\n")
    print(markdown_table(("quantized", "error of the conditioning", "x plain rounding"),
                         [(title, f"{value:.4%}", times(value, errors.get("plain rounding", 0), 3))
                          for title, value in errors.items()]))


if __name__ == "__main__":
    main()
