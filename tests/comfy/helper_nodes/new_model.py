"""A diffusion model that no table knows, added to ComfyUI's list as a node pack may do."""

import comfy.latent_formats
import comfy.model_base
import comfy.model_detection
import comfy.supported_models
import comfy.supported_models_base
import torch
from comfy.ldm.modules.diffusionmodules.util import timestep_embedding

_detect = comfy.model_detection.detect_unet_config


class Block(torch.nn.Module):
    def __init__(self, width: int, where: dict, operations) -> None:
        super().__init__()
        self.norm = operations.LayerNorm(width, **where)
        self.key = operations.Linear(width, width, **where)
        self.value = operations.Linear(width, width, **where)
        self.up = operations.Linear(width, 4 * width, **where)
        self.down = operations.Linear(4 * width, width, **where)
        self.table = torch.nn.Parameter(torch.empty(2, width, **where))

    def forward(self, x: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        scale, shift = comfy.ops.cast_to_input(self.table, x)
        inner = self.norm(x) * (1 + scale) + shift + told
        x = x + self.key(inner).softmax(-1) * self.value(inner)
        return x + self.down(torch.nn.functional.silu(self.up(self.norm(x))))


class Net(torch.nn.Module):
    """Every position of a 16-channel latent by itself, with the time and the mean of the text."""

    def __init__(self, width: int, layers: int, context: int, image_model=None, device=None, dtype=None,
                 operations=None) -> None:
        super().__init__()
        where = {"device": device, "dtype": dtype}
        self.dtype, self.width = dtype, width
        self.enter = operations.Linear(16, width, **where)
        self.told = operations.Linear(context, width, **where)
        self.tower = torch.nn.ModuleList(Block(width, where, operations) for _ in range(layers))
        self.leave = operations.Linear(width, 16, **where)

    def forward(self, x, timesteps, context=None, **_):
        time = timestep_embedding(timesteps, self.width).to(x.dtype)
        told = (time + self.told(context.mean(1)))[:, None, None]
        hidden = self.enter(x.movedim(1, -1))
        for block in self.tower:
            hidden = block(hidden, told)
        return self.leave(hidden).movedim(-1, 1)


class TestNewModel(comfy.supported_models_base.BASE):
    """Its files hold `fc_up` for `up`, and `kv` for `key` and `value` together."""

    unet_config = {"image_model": "test_new_model"}
    unet_extra_config = {}
    latent_format = comfy.latent_formats.Flux
    sampling_settings = {"shift": 1.0}

    def get_model(self, state_dict, prefix="", device=None):
        return comfy.model_base.BaseModel(self, comfy.model_base.ModelType.FLOW, device=device, unet_model=Net)

    def process_unet_state_dict(self, state_dict):
        out = {}
        for name, tensor in state_dict.items():
            if ".kv." in name:
                out[name.replace(".kv.", ".key.")], out[name.replace(".kv.", ".value.")] = tensor.chunk(2)
            else:
                out[name.replace(".fc_up.", ".up.")] = tensor
        return out


def detect(state_dict, key_prefix, metadata=None):
    told = state_dict.get(f"{key_prefix}told.weight")
    if told is None or f"{key_prefix}tower.0.fc_up.weight" not in state_dict:
        return _detect(state_dict, key_prefix, metadata=metadata)
    layers = sum(name.endswith(".fc_up.weight") for name in state_dict)
    return {"image_model": "test_new_model", "width": told.shape[0], "context": told.shape[1], "layers": layers}


comfy.model_detection.detect_unet_config = detect
comfy.supported_models.models.append(TestNewModel)
