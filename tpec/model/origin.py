"""What a result's recipe tells of a model that was no file: the model in a ComfyUI graph that it was made from."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

#: The recipe's entry, in the header metadata "tpec".
ORIGIN_KEY = "origin"


@dataclass(frozen=True)
class GraphOrigin:
    """model: ComfyUI's class of it. changed: tensors with patches. loras, merges: their strengths, in order.

    A merge's strength is the factor of the other model's weights. No paths, and no names of files.
    """

    model: str
    changed: int = 0
    loras: tuple[float, ...] = ()
    merges: tuple[float, ...] = ()

    def text(self) -> str:
        """For people, to stand in a sentence."""
        if not self.changed:
            return f"the model in the graph ({self.model}, unchanged weights)"
        parts = [*([_counted(self.loras, "LoRA")] if self.loras else []),
                 *([_counted(self.merges, "merge")] if self.merges else [])]
        by = f" by {' and '.join(parts)}" if parts else ""
        return f"the model in the graph ({self.model}, {self.changed} tensors changed{by})"

    def recipe(self) -> dict[str, object]:
        """Plain data; `origin_of` reads it back."""
        return {"kind": "model in the graph", **{name: value for name, value in asdict(self).items() if value}}


def origin_of(metadata: Mapping[str, str]) -> GraphOrigin | None:
    """What the header metadata of a result tells, None for one that was made from a file."""
    try:
        told = json.loads(metadata["tpec"])[ORIGIN_KEY]
        return GraphOrigin(str(told["model"]), int(told.get("changed", 0)), *(
            tuple(float(value) for value in told.get(name, ())) for name in ("loras", "merges")))
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError):
        return None


def _counted(strengths: tuple[float, ...], noun: str) -> str:
    values = ", ".join(f"{value:g}" for value in strengths[:8]) + (", ..." if len(strengths) > 8 else "")
    return f"{len(strengths)} {noun}{'' if len(strengths) == 1 else 's'} of strength {values}"
