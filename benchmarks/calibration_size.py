"""What a calibration file's form costs: bytes for Flux-dev, and how much of the gain it keeps on small real models.

    python -m benchmarks.calibration_size --shared ../shared --models tinyflux tinysd3 minilm --cache DIR

Statistics are collected exactly, once, and then brought into the forms of version 1 and version 2 of the file, at the
small models' scale: inputs wider than 4/3 of the hidden width are summarised with an eighth of their width, gradients
kept in runs of 2/3 of the hidden width, as for Flux-dev. Gain: 1 - error / error of round to nearest; of the predicted
velocity for tinyflux and tinysd3 (8 prompts x 8 steps), of layers' outputs on held-out text for MiniLM.
"""

import argparse
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from tpec.files.checkpoint import open_checkpoint
from tpec.model.families import QUANTIZE
from tpec.model.plan import make_plan
from tpec.model.roles import modulates
from tpec.rounding.grid import decode
from tpec.rounding.method import Policy, Rounder
from tpec.settings import Settings
from tpec.statistics.gradients import HeldGradients, run_shape
from tpec.statistics.inputs import Gram, HeldInputs, Summary, eigenpairs, summary_of
from tpec.statistics.packing.forms import (
    input_shapes,
    output_shapes,
    pack_inputs,
    pack_outputs,
    rank_of,
    unpack_inputs,
    unpack_outputs,
)
from tpec.statistics.sums import SKETCH_SHARE, WIDTH_LIMIT
from tpec.statistics.watching import plan_collection

from .common import environment, geometric_mean, markdown_table
from .errors import read_tensors, round_to_nearest
from .make_model import model_shapes
from .minilm import MiniLM
from .small_models import SmallModel, Statistics, collect, collect_text
from .tinyflux import velocity_error

_CPU = torch.device("cpu")
HEADER = ("model", "form", "error", "x nearest", "gain", "lost, % of version 1's")


@dataclass(frozen=True)
class Form:
    """How the statistics are kept: the exact ones, those of file version 1, or those of version 2."""

    title: str
    version: int
    sensitivity: bool
    #: Of noise of 1e-4 in the gradients' statistics, to see how far figures move for no reason; 0 is none.
    noise: int = 0

    @property
    def name(self) -> str:
        return self.title + (", sensitivity" if self.sensitivity else "")


FORMS = tuple(Form(title, version, felt) for felt in (False, True)
              for title, version in (("exact", 0), ("version 1", 1), ("version 2", 2)))


def sketched(gram: torch.Tensor, mean: torch.Tensor, centred: bool) -> Summary:
    """What the engine's sums make of an input: version 2 keeps the mean apart."""
    taken = mean if centred else torch.zeros_like(mean)
    target = gram - torch.outer(taken, taken)
    test = torch.randn(len(gram), len(gram) // SKETCH_SHARE, generator=torch.Generator().manual_seed(20250815))
    image = target @ test
    image += 1e-6 * image.norm() * test
    core = test.mT @ image
    lower, _ = torch.linalg.cholesky_ex((core + core.mT) / 2)
    vectors, values = eigenpairs(torch.linalg.solve_triangular(lower, image.mT, upper=False).mT)
    rest = (target.diagonal() - vectors.square() @ values).clamp(min=0)
    return summary_of(vectors * values.sqrt(), rest, mean) if centred else Summary(vectors, values, rest)


def inputs_in(form: Form, exact: HeldInputs, hidden: int) -> HeldInputs:
    moment = exact.moment
    assert isinstance(moment, Gram)
    if form.version and exact.width > hidden * WIDTH_LIMIT / 3072:
        moment = sketched(moment.gram, exact.mean, form.version > 1)
    found = replace(exact, moment=moment)
    if form.version < 2:
        return found
    rank = rank_of(found)
    parts = dict(zip(input_shapes(exact.width, rank), pack_inputs(found), strict=True))
    return replace(exact, moment=unpack_inputs(parts, rank))


def gradients_in(form: Form, exact: HeldGradients, hidden: int) -> HeldGradients:
    if not form.version:
        return exact
    runs, size = run_shape(exact.rows, hidden * 2048 // 3072)
    whole = torch.zeros(runs * size, runs * size)
    whole[: exact.rows, : exact.rows] = exact.gram[0]
    blocks = [whole[at * size:(at + 1) * size, at * size:(at + 1) * size] for at in range(runs)]
    found = HeldGradients(_noisy(torch.stack(blocks), form.noise), exact.rows, exact.tokens)
    if form.version < 2:
        return found
    parts = dict(zip(output_shapes(exact.rows, runs), pack_outputs(found), strict=True))
    return replace(found, gram=unpack_outputs(parts))


def _noisy(gram: torch.Tensor, seed: int) -> torch.Tensor:
    if not seed:
        return gram
    noise = 1e-4 * torch.randn(gram.shape, generator=torch.Generator().manual_seed(seed))
    sizes = gram.diagonal(dim1=1, dim2=2).clamp(min=1e-30).sqrt()
    return gram + (noise + noise.mT) * sizes[:, :, None] * sizes[:, None]


def rounded(tensors: Mapping[str, torch.Tensor], names: Iterable[str], exact: Statistics,
            form: Form, hidden: int) -> Iterator[tuple[str, torch.Tensor, torch.Tensor | None]]:
    """(layer, codes as float32 values, corrected bias) of each layer."""
    rounder = Rounder(Policy())
    group, stats = "", None
    for name in sorted((name for name in names if name in exact.layers), key=lambda name: exact.layers[name]):
        if exact.layers[name] != group or stats is None:
            group = exact.layers[name]
            stats = inputs_in(form, exact.groups[group], hidden)
        felt = exact.outputs.get(name) if form.sensitivity else None
        bias = tensors.get(f"{name}.bias")
        found = rounder.round_linear(name, tensors[f"{name}.weight"], bias, stats,
                                     gradients_in(form, felt, hidden) if felt else None)
        yield name, decode(found.quantized.codes, found.quantized.scale), found.bias


def velocity(model: SmallModel, script: Path, exact: Statistics, form: Form | None, folder: Path) -> float:
    """The error of the predicted velocity, of round to nearest without a form."""
    tensors = dict(read_tensors(model.path))
    plan = make_plan(open_checkpoint(model.path), Settings())
    names = [layer.linear_in_model for layer in plan.of(QUANTIZE)]
    if form is None:
        tensors |= {f"{name}.weight": round_to_nearest(tensors[f"{name}.weight"]).float() for name in names}
    else:
        for name, weight, bias in rounded(tensors, names, exact, form, model.hidden):
            tensors[f"{name}.weight"] = weight
            if bias is not None:
                tensors[f"{name}.bias"] = bias
    save_file(tensors, folder / "rounded.safetensors")
    return velocity_error(script, folder / "rounded.safetensors")[0]


def output_error(tensors: Mapping[str, torch.Tensor], exact: Statistics, held_out: Statistics,
                 form: Form | None) -> float:
    """The error of layers' outputs on held-out text, geometric mean; of round to nearest without a form."""
    names = list(exact.layers)
    found = ([(name, round_to_nearest(tensors[f"{name}.weight"]).float(), None) for name in names] if form is None
             else rounded(tensors, names, exact, form, 384))
    errors = []
    for name, weight, bias in found:
        original, stats = tensors[f"{name}.weight"], held_out.groups[held_out.layers[name]]
        moment = stats.second_moment()
        error, change = weight - original, torch.zeros(len(weight))
        if bias is not None:
            change = bias - tensors[f"{name}.bias"]
        wrong = ((error @ moment) * error).sum() + 2 * change @ (error @ stats.mean) + change.square().sum()
        errors.append((wrong / ((original @ moment) * original).sum()).sqrt().item())
    return geometric_mean(errors)


def flux_dev() -> list[list[str]]:
    """Bytes of a calibration file of Flux-dev, computed from its layers, and of collecting it."""
    shapes = {name.removesuffix(".weight"): shape for name, shape in model_shapes("flux", 3072, 19, 38).items()
              if name.endswith(".weight") and len(shape) == 2}
    vectors = {name for name in shapes if modulates(name)}
    # Modulation layers share their input in the files of version 2.
    own = [width for name, (_, width) in shapes.items() if name not in vectors]
    shared = sorted({shapes[name][1] for name in vectors})
    felt = [rows for name, (rows, _) in shapes.items() if name not in vectors]
    inputs = [sum(map(_bytes_1, (width for _, width in shapes.values()))), sum(map(_bytes_2, own + shared))]
    outputs = [sum(4 * runs * size * (size + 1) // 2 for runs, size in map(run_shape, felt)),
               sum(_nbytes(output_shapes(rows, run_shape(rows)[0])) for rows in felt)]
    widths, rows = ({name: shape[at] for name, shape in shapes.items()} for at in (1, 0))
    plans = [plan_collection(widths, _CPU, 0, 1 << 50, given, vectors) for given in (None, rows)]
    yes = [[f"version {at + 1}", f"{inputs[at] / 1e9:.2f}", f"{(inputs[at] + outputs[at]) / 1e9:.2f}"]
           for at in range(2)]
    return [*yes, ["sums of one pass", *(f"{plan.nbytes / 1e9:.2f} ({len(plan.passes)} passes)" for plan in plans)]]


def _bytes_1(width: int) -> int:
    rank = width // SKETCH_SHARE
    return 4 * (width * (width + 1) // 2 + width if width <= WIDTH_LIMIT else width * rank + rank + 2 * width)


def _bytes_2(width: int) -> int:
    return _nbytes(input_shapes(width, 0 if width <= WIDTH_LIMIT else width // SKETCH_SHARE))


def _nbytes(shapes: Mapping[str, tuple[str, tuple[int, ...]]]) -> int:
    sizes = {"F32": 4, "BF16": 2, "I8": 1, "U8": 1}
    return sum(sizes[code] * math.prod(shape) for code, shape in shapes.values())


def rows_of(title: str, error: Callable[[Form | None], float], forms: Iterable[Form]) -> Iterator[list[str]]:
    nearest = error(None)
    before: dict[bool, float] = {}
    for form in forms:
        found = error(form)
        gain = 1 - found / nearest
        if form.version == 1:
            before[form.sensitivity] = gain
        base = before.get(form.sensitivity)
        lost = f"{100 * (1 - gain / base):.2f}" if base and form.version == 2 else ""
        yield [title, form.name, f"{found:.5f}", f"{found / nearest:.4f}", f"{gain:.4f}", lost]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="folder of the small models and velocity_error.py")
    parser.add_argument("--models", nargs="*", default=["tinyflux", "tinysd3", "minilm"])
    parser.add_argument("--forms", help="only forms whose name matches, a regular expression")
    parser.add_argument("--noise", type=int, default=0, help="seed of noise of 1e-4 in the gradients' statistics")
    parser.add_argument("--cache", type=Path, required=True, help="folder for the collected statistics")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    args.cache.mkdir(parents=True, exist_ok=True)
    print(environment(), flush=True)
    print(markdown_table(("Flux-dev, GB", "inputs alone", "with sensitivity"), flux_dev()), flush=True)
    script, lines = args.shared / "fidelity" / "velocity_error.py", []
    for name in args.models:
        forms = [replace(form, noise=args.noise) for form in FORMS if re.search(args.forms or "", form.name)]
        if name == "minilm":
            bed = MiniLM(24576, 8192)
            exact, held_out = (collect_text(bed, part, args.cache / f"minilm_{title}.pt")
                               for part, title in ((bed.calibration, "calibration"), (bed.held_out, "held_out")))
            tensors = {f"{layer}.{part}": getattr(module, part).detach() for layer, module in bed.linears().items()
                       for part in ("weight", "bias")}
            forms = [form for form in forms if not form.sensitivity]
            found = rows_of(name, lambda form, e=exact, h=held_out, t=tensors: output_error(t, e, h, form), forms)
        else:
            model = SmallModel.of(name, args.shared)
            exact = collect(model, args.cache / f"{name}.pt")
            found = rows_of(name, lambda form, m=model, e=exact: velocity(m, script, e, form, args.cache), forms)
        for line in found:
            print(line, flush=True)
            lines.append(line)
    print(markdown_table(HEADER, lines))


if __name__ == "__main__":
    main()
