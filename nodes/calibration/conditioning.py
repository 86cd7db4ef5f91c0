"""Conditionings for sampling: those that are connected, or made from prompts with a text encoder."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import comfy.model_management as memory
import torch

from ...tpec.errors import TpecError

OnPrompt = Callable[[int, int], None]


@dataclass(frozen=True)
class Conditionings:
    """Positives, taken in turns by one run after another, and one negative, all as ComfyUI's CONDITIONING."""

    positives: Sequence[list]
    negative: list

    def of_run(self, run: int) -> tuple[list, list]:
        return self.positives[run % len(self.positives)], self.negative

    @property
    def prompts(self) -> int:
        """How many there are; a batch has several."""
        return sum(len(positive[0][0]) for positive in self.positives)


def prompt_lines(text: str) -> list[str]:
    """One prompt per line, without empty ones."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def make_conditionings(clip, prompts: Sequence[str], positive: list | None, negative: list | None,
                       on_prompt: OnPrompt) -> Conditionings:
    """What is connected wins; what is not is encoded by `clip`: each of `prompts`, and nothing for the negative.

    Without a text encoder a negative that is not connected is the positive's with all values zero. `on_prompt` is told
    how many prompts are encoded, and of how many. Raises TpecError when neither says what to sample.
    """
    if positive is None and clip is None:
        raise TpecError("There is nothing to sample: connect clip, to sample with prompts, or positive and negative.")
    if negative is None:
        negative = _encoded(clip, "") if clip is not None else _zeros(positive)
    if positive is not None:
        return Conditionings([positive], negative)
    positives = []
    for at, prompt in enumerate(prompts):
        memory.throw_exception_if_processing_interrupted()
        on_prompt(at, len(prompts))
        positives.append(_encoded(clip, prompt))
    return Conditionings(positives, negative)


def _encoded(clip, text: str) -> list:
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def _zeros(conditioning: list) -> list:
    """The same with text embeddings of zero, which models know as no text."""
    found = []
    for embedding, options in conditioning:
        pooled = options.get("pooled_output")
        plain = options if pooled is None else {**options, "pooled_output": torch.zeros_like(pooled)}
        found.append([torch.zeros_like(embedding), plain])
    return found
