"""Second moments of a layer's inputs: what rounding asks of them, held in memory or computed on access."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import torch

from ..errors import TpecError

#: The tensors that statistics consist of: mean and gram, or all but gram.
PARTS = ("mean", "gram", "vectors", "values", "rest")
#: Shapes by the name of the part.
Form = Mapping[str, tuple[int, ...]]

#: Eigenvalues below this share of the largest are what float64 leaves of zero.
_NOTHING = 1e-13
_CPU = torch.device("cpu")


class Gram(NamedTuple):
    """E[x x^T] itself: gram [n, n] float32, symmetric."""

    gram: torch.Tensor

    def matrix(self, device: torch.device) -> torch.Tensor:
        """[n, n] on `device`; the tensor itself where it is there already."""
        return self.gram.to(device)

    def diagonal(self) -> torch.Tensor:
        return self.gram.diagonal()


class Summary(NamedTuple):
    """E[x x^T] of a wide input, nearly: V diag(values) V^T + diag(rest), all float32.

    vectors [n, k] and values [k] are the leading eigenpairs, rest [n] the diagonal of what they leave. Where the
    mean is kept apart, the last pair is it and the others are those of the covariance.
    """

    vectors: torch.Tensor
    values: torch.Tensor
    rest: torch.Tensor

    def matrix(self, device: torch.device) -> torch.Tensor:
        """[n, n] on `device`, a new tensor."""
        vectors = self.vectors.to(device)
        return (vectors * self.values.to(device)) @ vectors.mT + torch.diag(self.rest.to(device))

    def diagonal(self) -> torch.Tensor:
        return self.rest + self.vectors.square() @ self.values

    def factor(self) -> torch.Tensor:
        """F [n, k] with F F^T = V diag(values) V^T."""
        return self.vectors * self.values.sqrt()


Moment = Gram | Summary


class InputStats(Protocol):
    """Statistics of one input x of width n over `tokens` rows.

    mean [n] float32 on the CPU is E[x], absmax the largest |x|. `form` has the shapes of the parts by name, in the
    order of PARTS; nbytes are the bytes of all of them.
    """

    @property
    def mean(self) -> torch.Tensor: ...

    @property
    def absmax(self) -> float: ...

    @property
    def tokens(self) -> int: ...

    @property
    def width(self) -> int: ...

    @property
    def form(self) -> Form: ...

    @property
    def nbytes(self) -> int: ...

    def in_memory(self) -> "HeldInputs":
        """The same with every part in memory, on the CPU."""
        ...

    def parts(self) -> dict[str, torch.Tensor]:
        """The float32 tensors by name, in the order of PARTS; on the CPU."""
        ...

    def moment_on(self, device: torch.device) -> Moment:
        """The large parts on `device`, not to be changed."""
        ...

    def second_moment(self, device: torch.device | None = None) -> torch.Tensor:
        """E[x x^T] [n, n] float32 on `device`, the CPU by default; a tensor of the caller's own."""
        ...

    def energies(self) -> torch.Tensor:
        """The diagonal of E[x x^T], [n] float32 on the CPU."""
        ...


@dataclass(frozen=True, eq=False)
class HeldInputs:
    """InputStats in memory."""

    mean: torch.Tensor
    absmax: float
    tokens: int
    moment: Moment

    @property
    def width(self) -> int:
        return len(self.mean)

    @property
    def form(self) -> Form:
        return {name: tuple(part.shape) for name, part in self.parts().items()}

    @property
    def nbytes(self) -> int:
        return form_bytes(self.form)

    def in_memory(self) -> "HeldInputs":
        return self

    def parts(self) -> dict[str, torch.Tensor]:
        return {"mean": self.mean, **self.moment._asdict()}

    def moment_on(self, device: torch.device) -> Moment:
        return type(self.moment)(*(part.to(device) for part in self.moment))

    def second_moment(self, device: torch.device | None = None) -> torch.Tensor:
        matrix = self.moment.matrix(device or _CPU)
        return matrix.clone() if isinstance(self.moment, Gram) else matrix

    def energies(self) -> torch.Tensor:
        return self.moment.diagonal()


@dataclass(frozen=True, eq=False)
class InputsOnDemand:
    """InputStats whose large parts are computed at every access, so that memory holds only those in use.

    `make(device)` computes the second moment there, in new tensors each time; `form` is known before. `packed` gives
    the tensors of the calibration file that they are read from, if they are, for another file.
    """

    mean: torch.Tensor
    absmax: float
    tokens: int
    form: Form
    make: Callable[[torch.device], Moment]
    packed: Callable[[], Iterator[torch.Tensor]] | None = None

    @property
    def width(self) -> int:
        return len(self.mean)

    @property
    def nbytes(self) -> int:
        return form_bytes(self.form)

    def in_memory(self) -> HeldInputs:
        return HeldInputs(self.mean, self.absmax, self.tokens, self.make(_CPU))

    def parts(self) -> dict[str, torch.Tensor]:
        return self.in_memory().parts()

    def moment_on(self, device: torch.device) -> Moment:
        return self.make(device)

    def second_moment(self, device: torch.device | None = None) -> torch.Tensor:
        device = device or _CPU
        return self.make(device).matrix(device)

    def energies(self) -> torch.Tensor:
        return self.make(_CPU).diagonal()


def gram_form(width: int) -> Form:
    """The form of statistics that keep the whole matrix."""
    return {"mean": (width,), "gram": (width, width)}


def summary_form(width: int, rank: int) -> Form:
    """The form of statistics that keep `rank` eigenpairs."""
    return {"mean": (width,), "vectors": (width, rank), "values": (rank,), "rest": (width,)}


def form_bytes(form: Form) -> int:
    """Bytes of the float32 tensors of such shapes."""
    return sum(4 * math.prod(shape) for shape in form.values())


def merge_inputs(name: str, a: InputStats, b: InputStats) -> InputStats:
    """Token-weighted mean of two statistics of the same input, its large parts computed on access.

    `name` is the input's, for the error. Raises TpecError when they are of different forms.
    """
    if a.width != b.width or a.form.keys() != b.form.keys():
        raise TpecError(f"The two calibrations keep input '{name}' in different forms: collect them anew.")
    tokens = a.tokens + b.tokens
    mean = _mean(a.mean, b.mean, a.tokens / tokens)
    return InputsOnDemand(mean, max(a.absmax, b.absmax), tokens, a.form, partial(_merged, a, b))


def _merged(a: InputStats, b: InputStats, device: torch.device) -> Moment:
    share = a.tokens / (a.tokens + b.tokens)
    one, other = a.in_memory().moment, b.in_memory().moment
    if isinstance(one, Gram):
        return Gram(_mean(one.gram, other.matrix(_CPU), share).to(device))
    if isinstance(other, Gram):
        raise TypeError("merge_inputs has compared the forms")
    factors = [one.factor() * share**0.5, other.factor() * (1 - share) ** 0.5]
    return _summary(torch.cat(factors, 1), _mean(one.rest, other.rest, share), one.values.numel(), device)


def _mean(a: torch.Tensor, b: torch.Tensor, share: float) -> torch.Tensor:
    return a * share + b * (1 - share)


def _summary(factor: torch.Tensor, rest: torch.Tensor, k: int, device: torch.device) -> Summary:
    """The k leading eigenpairs of F F^T [n, n] from F [n, m], and `rest` plus the diagonal of what they leave."""
    vectors, values = eigenpairs(factor)
    dropped = (vectors[:, k:].square() * values[k:]).sum(1)
    found = vectors[:, :k].contiguous(), values[:k].contiguous(), rest + dropped
    return Summary(*(part.to(device) for part in found))


def summary_of(factor: torch.Tensor, rest: torch.Tensor, mean: torch.Tensor) -> Summary:
    """F F^T + diag(rest) + m m^T for F [n, k]: columns of F by their lengths, and the mean m [n] as the last."""
    columns = torch.cat([factor, mean[:, None]], 1)
    lengths = columns.norm(dim=0)
    return Summary(columns / lengths.clamp(min=torch.finfo(torch.float32).tiny), lengths.square(), rest)


def with_mean(covariance: Summary, mean: torch.Tensor, device: torch.device) -> Summary:
    """The second moment with a covariance and a mean m [n]; the mean is the last pair. On `device`."""
    return Summary(*(part.to(device) for part in summary_of(covariance.factor(), covariance.rest, mean)))


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
