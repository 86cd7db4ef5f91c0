"""Memory: what lanes keep to is what estimates count, and neither grows with the model."""

from pathlib import Path

import pytest
import torch
from samples import save_flux

from tpec.files.checkpoint import open_checkpoint
from tpec.model.plan import make_plan
from tpec.run import memory
from tpec.run.memory import LaneSizes, compute_threads, describe_needs, estimate
from tpec.settings import Settings


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_estimate_does_not_depend_on_the_models_size(tmp_path: Path, device: str) -> None:
    plans = [make_plan(open_checkpoint(save_flux(tmp_path, f"{n}", single=n)), Settings()) for n in (1, 5)]
    first, second = (estimate(plan, torch.device(device)) for plan in plans)
    assert first == second
    assert (first.device > 0) == (device == "cuda")
    assert "whatever the model's size" in describe_needs(plans[0], torch.device(device))


def test_several_layers_at_a_time_need_more_and_are_told(tmp_path: Path) -> None:
    checkpoint, cuda = open_checkpoint(save_flux(tmp_path)), torch.device("cuda")
    plan, near = make_plan(checkpoint, Settings()), make_plan(checkpoint, Settings(method="nearest"))
    needs = [estimate(plan, cuda, None, threads) for threads in (1, 2, 3)]
    assert needs[0] == estimate(plan, cuda)
    assert needs[0].device < needs[1].device < needs[2].device <= 3 * needs[0].device
    assert needs[0].host < needs[1].host < needs[2].host
    assert describe_needs(plan, cuda).endswith(f"up to {needs[2].text()} where that is free")
    assert describe_needs(near, cuda).endswith("size") and "VRAM" in describe_needs(near, cuda)
    assert describe_needs(plan, torch.device("cpu")).endswith("size")


def test_lanes_on_one_card_share_its_free_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, cuda = make_plan(open_checkpoint(save_flux(tmp_path)), Settings()), torch.device("cuda", 0)
    one, two, three = (estimate(plan, cuda, None, threads).device for threads in (1, 2, 3))
    for name in ("memory_reserved", "memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda device: 0)
    for free, lanes, expected in ((three, 1, 3), (three, 3, 1), (2 * two, 2, 2), (3 * three, 3, 3), (one, 2, 1)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 1 << 40))
        assert compute_threads(plan, cuda, None, lanes) == expected


def test_a_lanes_sizes_hold_its_largest_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(open_checkpoint(save_flux(tmp_path)), Settings())
    layers = plan.of("quantize")
    largest = max(layer.info.nbytes for layer in layers)
    monkeypatch.setattr(memory, "PIECE", 512)
    for threads in (1, 3):
        sizes = LaneSizes.of(layers, threads)
        assert sizes.in_flight == (1 + threads) * largest and sizes.upload == largest and sizes.piece == 512
        # Codes, a bias of float64 and ten numbers, each at a multiple of 64 bytes.
        assert all(layer.info.items + 8 * layer.shape[0] + 40 + 3 * 64 <= sizes.download for layer in layers)
        # While each thread fills one, the writer is not out of work.
        assert sizes.downloads > threads and sizes.uploads == 2
    monkeypatch.setattr(memory, "PIECE", 1 << 30)
    assert LaneSizes.of(layers, 1).in_flight == 2 << 30


def test_a_lane_without_layers_only_copies() -> None:
    sizes = LaneSizes.of((), 1)
    assert sizes.in_flight == 2 * sizes.piece and sizes.upload == 0


def test_the_estimate_counts_what_a_lane_takes(tmp_path: Path) -> None:
    plan = make_plan(open_checkpoint(save_flux(tmp_path)), Settings())
    for threads in (1, 3):
        sizes = LaneSizes.of(plan.of("quantize"), threads)
        assert estimate(plan, torch.device("cuda"), None, threads).host == sizes.in_flight + sizes.pinned
        assert estimate(plan, torch.device("cpu"), None, threads).host > sizes.in_flight
