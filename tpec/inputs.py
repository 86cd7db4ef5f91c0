"""Second moments of a layer's inputs, in memory or made when somebody looks at them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from .errors import TpecError

#: The tensors that statistics consist of: mean and gram, or all but gram.
PARTS = ("mean", "gram", "vectors", "values", "rest")

#: Eigenvalues below this share of the largest are what float64 leaves of zero.
_NOTHING = 1e-13


@dataclass(frozen=True)
class InputStats:
    """Statistics of one input of width n over `tokens` rows x; all tensors float32 on the CPU.

    gram [n, n] is E[x x^T]; above the width limit it is None and `vectors` [n, k], `values` [k] are its leading
    eigenpairs and `rest` [n] the diagonal of what they leave. mean [n] is E[x], absmax the largest |x|.
    """

    mean: torch.Tensor
    absmax: float
    tokens: int
    gram: torch.Tensor | None = None
    vectors: torch.Tensor | None = None
    values: torch.Tensor | None = None
    rest: torch.Tensor | None = None

    @property
    def width(self) -> int:
        return len(self.mean)

    @property
    def form(self) -> Mapping[str, tuple[int, ...]]:
        """The shapes of the parts that are kept."""
        return {name: tuple(part.shape) for name, part in self.parts().items()}

    @property
    def nbytes(self) -> int:
        return sum(4 * math.prod(shape) for shape in self.form.values())

    def parts(self) -> dict[str, torch.Tensor]:
        """The tensors by name, in the order of PARTS."""
        found = {name: getattr(self, name) for name in PARTS}
        return {name: part for name, part in found.items() if part is not None}

    def whole(self) -> "InputStats":
        """The same in memory."""
        return self

    def second_moment(self, device: torch.device | None = None) -> torch.Tensor:
        """E[x x^T] [n, n] float32 on `device`, as exact as what was kept."""
        if self.gram is not None:
            return self.gram.to(device).clone()
        vectors = self.vectors.to(device)
        return (vectors * self.values.to(device)) @ vectors.mT + torch.diag(self.rest.to(device))

    def energies(self) -> torch.Tensor:
        """The diagonal of E[x x^T] [n]."""
        return self.gram.diagonal() if self.gram is not None else self.rest + self.vectors.square() @ self.values


def _made(name: str) -> property:
    return property(lambda stats: getattr(stats.whole(), name) if name in stats.form else None)


class LazyStats(InputStats):
    """As InputStats, but `make` makes them at every look, so that memory holds only those in use. `form` is known."""

    gram, vectors, values, rest = map(_made, PARTS[1:])
    form: Mapping[str, tuple[int, ...]] = {}

    def __init__(self, mean: torch.Tensor, absmax: float, tokens: int, form: Mapping[str, tuple[int, ...]],
                 make: Callable[[], InputStats]) -> None:
        # The base class is a frozen dataclass.
        for name, value in (("mean", mean), ("absmax", absmax), ("tokens", tokens), ("form", form), ("_make", make)):
            object.__setattr__(self, name, value)

    def whole(self) -> InputStats:
        return self._make()

    def parts(self) -> dict[str, torch.Tensor]:
        return self.whole().parts()

    def second_moment(self, device: torch.device | None = None) -> torch.Tensor:
        return self.whole().second_moment(device)

    def energies(self) -> torch.Tensor:
        return self.whole().energies()


def merge_inputs(name: str, a: InputStats, b: InputStats) -> InputStats:
    """Token-weighted mean of two statistics of the same input. Raises TpecError when they are of different forms."""
    if a.width != b.width or a.form.keys() != b.form.keys():
        raise TpecError(f"The two calibrations keep input '{name}' in different forms: collect them anew.")
    mean = _mean(a, b, "mean")
    return LazyStats(mean, max(a.absmax, b.absmax), a.tokens + b.tokens, a.form, partial(_merged, a, b, mean))


def _merged(a: InputStats, b: InputStats, mean: torch.Tensor) -> InputStats:
    a, b = a.whole(), b.whole()
    both = {"mean": mean, "absmax": max(a.absmax, b.absmax), "tokens": a.tokens + b.tokens}
    if a.gram is not None:
        return InputStats(gram=_mean(a, b, "gram"), **both)
    share = a.tokens / (a.tokens + b.tokens)
    vectors = torch.cat([a.vectors * (a.values * share).sqrt(), b.vectors * (b.values * (1 - share)).sqrt()], 1)
    return InputStats(**both, **_summary(vectors, _mean(a, b, "rest"), a.values.numel()))


def _mean(a: InputStats, b: InputStats, part: str) -> torch.Tensor:
    share = a.tokens / (a.tokens + b.tokens)
    return getattr(a, part) * share + getattr(b, part) * (1 - share)


def _summary(factor: torch.Tensor, rest: torch.Tensor, k: int) -> dict[str, torch.Tensor]:
    """The k leading eigenpairs of F F^T [n, n] from F [n, m], and `rest` plus the diagonal of what they leave."""
    vectors, values = eigenpairs(factor)
    dropped = (vectors[:, k:].square() * values[k:]).sum(1)
    return {"vectors": vectors[:, :k].contiguous(), "values": values[:k].contiguous(), "rest": rest + dropped}


def eigenpairs(factor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvectors [n, m] and falling eigenvalues [m] of F F^T [n, n] from F [n, m] float32, m <= n.

    They come from F^T F, in float64 because that squares the range of values: several times faster than an SVD.
    Vectors of values that are nothing beside the largest may be zero.
    """
    wide = factor.double()
    values, rotation = torch.linalg.eigh(wide.mT @ wide)
    values, rotation = values.flip(0).clamp(min=0), rotation.flip(1)
    lengths = values.sqrt()
    vectors = (wide @ rotation) * torch.where(values > _NOTHING * values[:1], 1 / lengths, 0)
    return vectors.float(), values.float()
