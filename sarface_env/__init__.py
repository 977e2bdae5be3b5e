"""SARFace: face-region selection as a Gymnasium environment. Importing registers `SARFace-v0`."""

import gymnasium as gym

from sarface_env.env import SARFaceEnv, SARFaceVectorEnv
from sarface_env.options import EnvOptions

__all__ = ["EnvOptions", "SARFaceEnv", "SARFaceVectorEnv"]

gym.register(
    id="SARFace-v0",
    entry_point="sarface_env.env:SARFaceEnv",
    vector_entry_point="sarface_env.env:SARFaceVectorEnv",
)
