"""Settings for every engine test: one thread, so that runs side by side do not slow each other down."""

import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
settings.register_profile("tpec", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
settings.load_profile("tpec")
