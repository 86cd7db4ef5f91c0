"""What a token embedding in FP8 costs: MiniLM's real table, and what its encoder makes of it.

    python -m benchmarks.embeddings
"""

import sys
from collections.abc import Iterable

import torch

from tpec.rounding.grid import decode
from tpec.rounding.method import Policy, Rounder

from .minilm import BATCH, MiniLM

_TOKENS = 8192


def fp8(weight: torch.Tensor) -> torch.Tensor:
    """W rounded to nearest with the absmax scale, as the engine does it."""
    quantized = Rounder(Policy()).round_table("weight", weight).quantized
    return decode(quantized.codes, quantized.scale)


def main() -> None:
    bed = MiniLM(0, _TOKENS)
    table = bed.model.embeddings.word_embeddings
    linears = list(bed.linears().values())
    errors = (fp8(table.weight) - table.weight).norm(dim=1) / table.weight.norm(dim=1)
    wanted = _states(bed)
    found = [("embedding", [table]), ("all Linears, plain rounding", linears), ("both", [table, *linears])]
    lines = [f"table {list(table.weight.shape)}: relative error of a vector: median {errors.median():.4f}, 99 % below "
             f"{errors.quantile(0.99):.4f}, largest {errors.max():.4f}"]
    for title, modules in found:
        lines.append(f"last hidden state, {title} in FP8: relative error {_error(bed, modules, wanted):.4f}")
    sys.stdout.write("\n".join(lines) + "\n")


def _error(bed: MiniLM, modules: Iterable[torch.nn.Module], wanted: torch.Tensor) -> float:
    """Of the last hidden state, with the weights of `modules` in FP8 meanwhile."""
    before = {module: module.weight.detach().clone() for module in modules}
    for module, weight in before.items():
        module.weight.data = fp8(weight)
    got = _states(bed)
    for module, weight in before.items():
        module.weight.data = weight
    return ((got - wanted).norm() / wanted.norm()).item()


def _states(bed: MiniLM) -> torch.Tensor:
    return torch.cat([bed.model(input_ids=batch, attention_mask=torch.ones_like(batch)).last_hidden_state
                      for batch in bed.held_out.split(BATCH)])


if __name__ == "__main__":
    with torch.inference_mode():
        main()
