"""Networks F(x, noise_label, labels, augment). The preconditioning makes a denoiser or consistency function of them.

x            (B, channels, size, size)
noise_label  (B,), c_noise of the preconditioning; EDM's is ln(σ)/4
labels       one-hot (B, num_classes), a `Prompt`, or None
augment      (B, augment_dim), or None
end_label    (B,), c_end of the preconditioning; the fifth argument of networks with `two_times`
result       (B, channels, size, size)
"""

from consistency_models.networks.adm import DhariwalUNet
from consistency_models.networks.diffusers import UNet
from consistency_models.networks.dit import DiT
from consistency_models.networks.edm2 import EDM2
from consistency_models.networks.mlp import MLP
from consistency_models.networks.openai_adm import OpenAIUNet
from consistency_models.networks.song import SongUNet

__all__ = ["EDM2", "MLP", "DhariwalUNet", "DiT", "OpenAIUNet", "SongUNet", "UNet"]
