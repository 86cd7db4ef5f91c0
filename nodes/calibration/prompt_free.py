"""Conditionings to sample a model without a prompt or text encoder: no text, and embeddings made up at random.

A model sampled with both by turns shows its layers nearly what prompts show them; either alone does less.
"""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from ...tpec.errors import TpecError, first_line, is_out_of_memory
from ..host.sampling import LATENT_OPTIONS, Job
from .conditioning import Conditionings

log = logging.getLogger(__name__)

#: What ComfyUI's models raise on embeddings that are not theirs.
UNFIT = (KeyError, IndexError, ValueError, TypeError, AttributeError, RuntimeError, AssertionError)

#: Linears that read text embeddings, tokens or pooled, in the models that ComfyUI knows.
_TOKENS = re.compile(
    r"(?:^|\.)(?:txt_in|context_embedder|cond_seq_linear|cap_embedder|caption_projection|caption_embedder|"
    r"text_embeddings?|text_embedder|text_proj|y_embedder\.y?_?proj|t5_yproj|mlp_t5|clip_txt_mapper|condition_proj|"
    r"to_cond_embed|block\.attn\.to_k|attn2\.to_k|cross_attn\.k(?:_proj)?)(?:\.|$)")
_POOLED = re.compile(
    r"(?:^|\.)(?:vector_in|y_embedder\.mlp|p_embedder|pooled_text_embeddings|clip_txt_pooled_mapper|"
    r"clip_text_pooled_proj|label_emb)(?:\.|$)")
#: What UNets read beside the pooled embedding in the same vector: sizes, crops and scores, 256 values each.
_SIZE_VALUES = (0, 6 * 256, 5 * 256)
_LENGTH = 77
#: The cfg of samplings in which positive and negative are the same.
NO_GUIDANCE = 1.0
#: Samplings without a prompt beside those with fewer prompts than `FEW`, which show too little of what pictures can be:
#: as many as these, within bounds.
BESIDE, FEW = (2, 8), 16
#: How many prompts they count as, all together.
_WORTH = 4
#: Their noise is nobody's choice of a seed.
_SEED = 2**40


@dataclass(frozen=True)
class Spread:
    """Standard deviations of text embeddings: of the tokens, and of the pooled one."""

    tokens: float
    pooled: float


#: Of one made-up text after another: real ones differ by model, and most models normalise what they read.
_SPREADS = (0.1, 0.3, 1.0)


def spread_of(number: int) -> Spread:
    """The spread of made-up text `number`."""
    several = len(_SPREADS)
    return Spread(_SPREADS[number % several], _SPREADS[number // several % several])


@dataclass(frozen=True)
class Embeddings:
    """The sizes of a model's text embeddings; `pooled` 0 where it reads none, `masked` where it wants a mask."""

    width: int
    pooled: int
    masked: bool = False

    def null(self) -> list:
        """CONDITIONING of no text."""
        return self._conditioning(torch.zeros(1, _LENGTH, self.width), torch.zeros(1, self.pooled))

    def random(self, seed: int, spread: Spread) -> list:
        """CONDITIONING of normal noise."""
        make = torch.Generator().manual_seed(seed)
        return self._conditioning(torch.randn(1, _LENGTH, self.width, generator=make) * spread.tokens,
                                  torch.randn(1, self.pooled, generator=make) * spread.pooled)

    def _conditioning(self, tokens: torch.Tensor, pooled: torch.Tensor) -> list:
        options = {"pooled_output": pooled} if self.pooled else {}
        if self.masked:
            options["attention_mask"] = torch.ones(1, _LENGTH, dtype=torch.long)
        return [[tokens, options]]


@dataclass(frozen=True)
class Beside:
    """Samplings without a prompt beside those with prompts: jobs with their seeds, and what each input there counts."""

    jobs: Sequence[tuple[Job, int]] = ()
    share: float = 1.0


def beside(given: Conditionings, runs: int, job: Job) -> Beside:
    """Those for so many runs of jobs like `job` with the given prompts; none where these are many.

    Inputs of all of them together count as those of _WORTH prompts.
    """
    samples = job.latent["samples"]
    if given.prompts >= FEW or getattr(samples, "is_nested", False):
        return Beside()
    rows = runs * len(samples)
    count = min(max(rows, BESIDE[0]), BESIDE[1])
    one = {"samples": samples[:1], **{name: job.latent[name] for name in LATENT_OPTIONS if name in job.latent}}
    texts = (_without_prompt(given.positives[0], number) for number in range(count))
    jobs = [(replace(job, positive=text, negative=text, latent=one, cfg=NO_GUIDANCE), _SEED + number)
            for number, text in enumerate(texts)]
    evaluated = rows * (1 if job.cfg == NO_GUIDANCE else 2)
    return Beside(jobs, _WORTH / given.prompts * evaluated / count)


@contextmanager
def fitting(unfit: list[str]) -> Iterator[None]:
    """Within, what models raise on made-up embeddings is added to `unfit`; being out of memory is another thing."""
    try:
        yield
    except UNFIT as error:
        if is_out_of_memory(error):
            raise
        unfit.append(first_line(error))
        log.warning("TPEC: the model takes no made-up text", exc_info=error)


def _without_prompt(conditioning: list, number: int) -> list:
    """Of one sample, shaped as this one: no text where `number` is even, else text made up."""
    make, spread = torch.Generator().manual_seed(number), spread_of(number // 2)

    def like(values: torch.Tensor, deviation: float) -> torch.Tensor:
        first = values[:1]
        noise = torch.randn(first.shape, generator=make) * deviation
        return noise.to(first) if number % 2 else torch.zeros_like(first)

    found = []
    for tokens, options in conditioning:
        pooled = options.get("pooled_output")
        plain = options if pooled is None else {**options, "pooled_output": like(pooled, spread.pooled)}
        found.append([like(tokens, spread.tokens), plain])
    return found


def find_embeddings(patcher, sample_once: Callable[[list], object]) -> Embeddings:
    """The sizes that the model takes: those that its layers suggest, the first with which `sample_once` succeeds.

    Raises TpecError when none does; running out of memory is none of its affairs.
    """
    first: BaseException | None = None
    for found in candidates(patcher):
        try:
            sample_once(found.null())
            return found
        except UNFIT as error:
            if is_out_of_memory(error):
                raise
            first = first or error
    said = f" ({first_line(first)})" if first else ""
    raise TpecError(f"{type(patcher.model).__name__} takes more than text embeddings{said}")


def candidates(patcher) -> Iterator[Embeddings]:
    """Sizes by the shapes of the layers that read text, the likeliest first."""
    layers = {name: module.in_features for name, module in patcher.model.diffusion_model.named_modules()
              if hasattr(module, "in_features")}
    widths = _widths(layers, _TOKENS)
    pooled = [width - extra for width in _widths(layers, _POOLED)[:1] for extra in _SIZE_VALUES if width > extra]
    if getattr(patcher.model, "adm_channels", 0) in (2816, 2560):
        pooled = [1280]
    for masked in (False, True):
        for width in widths:
            for one in pooled or [0]:
                yield Embeddings(width, one, masked)


def _widths(layers: dict[str, int], names: re.Pattern[str]) -> list[int]:
    """Different input widths of the layers so named: a family's own embedder stands before its blocks."""
    return list(dict.fromkeys(width for name, width in layers.items() if names.search(name)))[:3]
