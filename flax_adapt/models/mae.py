"""Masked autoencoder (He et al. 2022): the encoder sees the visible patches only.

Matches Hugging Face's ViTMAEForPreTraining; initialisers from the official code.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from flax_adapt.base import placement
from flax_adapt.base.types import Array, Key
from flax_adapt.models import architecture, blocks, layers, masking, residual, vit
from flax_adapt.models.architecture import ViTConfig
from flax_adapt.models.layers import Dtype


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Size of the decoder; eps, qkv_bias and gelu are the encoder's."""

    width: int
    depth: int
    heads: int
    mlp_dim: int


class Decoder(nn.Module):
    """Predicts the pixels of patches from the states of the visible ones."""

    # The decoder's own width, depth, heads, mlp_dim.
    config: ViTConfig
    # The encoder's: of its tokens before the patches CLS alone is decoded.
    num_prefix: int
    dropout: float
    dtype: Dtype

    @nn.compact
    def __call__(
        self,
        latent_BVD: Array,
        order_BL: Array,
        key_B: Key | None,
        patches_BU: Array | None,
    ) -> Array:
        """Returns prediction_BUP, float32.

        latent_BVD: the encoder's last states: CLS, registers if any, visible patches.
        order_BL: see `masking.Hiding`. patches_BU: int32, the patches to predict; None:
        all, in image order.
        """
        config, variant = self.config, vit.MAE
        embed = layers.Dense(
            config.width, True, variant.kernel, self.dtype, name="embed"
        )
        x_BVD = placement.place("embeddings", embed(latent_BVD))
        x_BLD = placement.place("embeddings", self._fill(x_BVD, order_BL))
        stack = blocks.make_blocks(
            config, variant.kernel, self.dropout, 0.0, self.dtype
        )
        # CLS is no patch.
        at_BU = None if patches_BU is None else 1 + patches_BU
        select = None if at_BU is None else residual.at_places(at_BU)
        states = blocks.run(stack, x_BLD, key_B, None, select=select)
        x_BLD = states[-1] if states else residual.take(select, x_BLD)
        x_BLD = x_BLD[:, 1:] if select is None else x_BLD
        x_BLD = layers.LayerNorm(config.layer_norm_eps, self.dtype, name="norm")(x_BLD)
        predict = layers.Dense(
            config.patch_pixels, True, variant.kernel, self.dtype, name="predict"
        )
        prediction_BUP = placement.place("predictions", predict(x_BLD))
        return prediction_BUP.astype(jnp.float32)

    def _fill(self, x_BVD: Array, order_BL: Array) -> Array:
        """Returns x_BLD in image order, the mask token at hidden patches, plus positions."""
        (b, num_patches), width = order_BL.shape, self.config.width
        token = self.param("mask_token", vit.MAE.token, (1, 1, width), jnp.float32)
        shape = (1, 1 + num_patches, width)
        position_1LD = self.param("position", vit.MAE.position, shape, jnp.float32)
        num_hidden = self.num_prefix + num_patches - x_BVD.shape[1]
        token_BLD = layers.spread(token, (b, num_hidden, width), self.dtype)
        x_BLD = jnp.concatenate([x_BVD[:, self.num_prefix :], token_BLD], axis=1)
        x_BLD = jnp.take_along_axis(x_BLD, order_BL[..., None], axis=1)
        x_BLD = placement.place("embeddings", x_BLD)
        x_BLD = jnp.concatenate([x_BVD[:, :1], x_BLD], axis=1)
        return x_BLD + jax.lax.stop_gradient(position_1LD).astype(self.dtype)


class MAE(vit.ImageModel):
    """Encoder and decoder; the positions of both are constants (no gradient)."""

    decoder_config: DecoderConfig

    def setup(self) -> None:
        self.encoder = self.make_encoder(vit.MAE)
        config = dataclasses.replace(
            self.config,
            **dataclasses.asdict(self.decoder_config),
            last_block=None,
            adaptor=None,
            traits=None,
        )
        num_prefix = self.config.num_prefix
        self.decoder = Decoder(config, num_prefix, self.dropout, self.dtype)

    def __call__(
        self,
        image_BYXC: Array,
        noise_BL: Array,
        key_B: Key | None,
        hidden_ratio: float,
    ) -> tuple[Array, Array]:
        """Returns prediction_BLP (float32) of every patch and hidden_BL (bool).

        noise_BL: float32, from `masking.patch_noise`. key_B: keys of dropout; None: no
        dropout.
        """
        latent_BVD, hiding = self._encode_visible(
            image_BYXC, noise_BL, key_B, hidden_ratio
        )
        return self._decode(latent_BVD, hiding, key_B, None), hiding.hidden_BL

    def predict_hidden(
        self,
        image_BYXC: Array,
        noise_BL: Array,
        key_B: Key | None,
        hidden_ratio: float,
    ) -> tuple[Array, Array]:
        """Returns (prediction_BUP, hidden_BU): of the hidden patches, and their indices.

        Arguments as of `__call__`, whose numbers they are. The pixel head, and query and
        MLP of the decoder's last block, do no work for visible patches and CLS: of the
        published decoder 3 % is saved at a ratio of 0.75 (ours).
        """
        latent_BVD, hiding = self._encode_visible(
            image_BYXC, noise_BL, key_B, hidden_ratio
        )
        hidden_BU = hiding.hidden_BU
        return self._decode(latent_BVD, hiding, key_B, hidden_BU), hidden_BU

    def _encode_visible(
        self,
        image_BYXC: Array,
        noise_BL: Array,
        key_B: Key | None,
        hidden_ratio: float,
    ) -> tuple[Array, masking.Hiding]:
        num_visible = masking.num_visible(self.config.num_patches, hidden_ratio)
        hiding = masking.hide_patches(noise_BL, num_visible)
        hiding = placement.place("inputs", hiding)
        return self.encoder(image_BYXC, key_B, hiding.visible_BV)[-1], hiding

    def _decode(
        self,
        latent_BVD: Array,
        hiding: masking.Hiding,
        key_B: Key | None,
        patches_BU: Array | None,
    ) -> Array:
        # The decoder draws from other keys than any block of the encoder.
        number = 1 + architecture.num_blocks(self.config)
        key_B = layers.fold_or_none(key_B, number)
        return self.decoder(latent_BVD, hiding.order_BL, key_B, patches_BU)
