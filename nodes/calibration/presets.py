"""How much to calibrate, in plain words."""

from typing import NamedTuple

from ...tpec.errors import TpecError

#: Whether a model that has no calibration makes one of its own before it is quantized.
AUTO, NEVER = "auto", "never"
CHOICES = [AUTO, NEVER]

#: The node's own values.
CUSTOM = "custom"


class Preset(NamedTuple):
    """Samplings, steps of each, and whether the model is run backwards, too."""

    runs: int
    steps: int
    sensitivity: bool

    @staticmethod
    def named(name: str, runs: int, steps: int, sensitivity: bool) -> "Preset":
        """The preset of this name, or the given values for `custom`. Raises TpecError for a name that is neither."""
        if name == CUSTOM:
            return Preset(runs, steps, sensitivity)
        if name not in PRESETS:
            raise TpecError(f"There is no preset '{name}': choose one of {', '.join(PRESET_NAMES)}.")
        return PRESETS[name]


PRESETS = {"quick": Preset(8, 10, False), "good": Preset(16, 20, False), "best": Preset(32, 20, True)}
PRESET_NAMES = [CUSTOM, *PRESETS]
