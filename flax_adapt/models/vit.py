"""Vision transformer: patches, encoder, and the classifier on top.

Dosovitskiy et al. 2021, in the form of Hugging Face's ViT: pre-norm, CLS first, learned
positions, a final LayerNorm.
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flax_adapt.base import placement
from flax_adapt.base.errors import UserError, choose
from flax_adapt.base.types import Array, Key, Layout
from flax_adapt.models import architecture, blocks, heads, layers, residual
from flax_adapt.models.architecture import ViTConfig
from flax_adapt.models.layers import NORMAL, Dtype, Initialiser, Mix
from flax_adapt.models.residual import Select
from flax_adapt.models.visual.patches import patchify, sincos_position


@dataclasses.dataclass(frozen=True)
class Variant:
    """Differences between the encoders of ViT and of MAE in the reference implementations.

    kernel, token, position: initialisers. dropout_embedding: dropout also follows the sum
    of patch and position embeddings. fixed_position: the positions are constants, no
    gradient flows to them.
    """

    kernel: Initialiser
    token: Initialiser
    position: Initialiser
    fixed_position: bool
    dropout_embedding: bool


# Hugging Face ViT: trunc_normal 0.02 for kernels, CLS and positions.
VIT = Variant(NORMAL, NORMAL, NORMAL, fixed_position=False, dropout_embedding=True)
# He et al. 2022, official code: xavier_uniform for every Linear and for the patch
# embedding flattened to [P, D]; normal 0.02 for CLS and mask token; fixed positions.
MAE = Variant(
    nn.initializers.xavier_uniform(),
    NORMAL,
    sincos_position,
    fixed_position=True,
    dropout_embedding=False,
)


class Encoder(nn.Module):
    """Encodes the patches of an image to token states.

    Returns arrays [B, P + V, D], CLS first, then registers if the model has any, then
    patches; P is `config.num_prefix`. There is one more than there are blocks: the state
    after every block, then the final state, after the last LayerNorm and any layers that
    `config.last_block` adds.
    """

    config: ViTConfig
    variant: Variant
    dropout: float
    drop_path: float
    dtype: Dtype

    def setup(self) -> None:
        config = self.config
        resized = architecture.resized_block(config.last_block)
        norm_width = resized.norm_width if resized else 0
        self.norm = layers.LayerNorm(config.layer_norm_eps, self.dtype, norm_width)
        self.linear = layers.make_linear(
            config.last_block, self.variant.kernel, self.dtype
        )

    @nn.compact
    def __call__(
        self,
        image_BYXC: Array,
        key_B: Key | None,
        visible_BV: Array | None = None,
        mix: Mix | None = None,
        select: Select | None = None,
    ) -> tuple[Array, ...]:
        """Returns the token states. visible_BV: int32, the patches to encode; None: all.

        mix: changes the embeddings, CLS and positions included; None: no change. select:
        the tokens of the last two states, see `residual`; None: all.
        """
        config, variant = self.config, self.variant
        x_BLD = self._embed(image_BYXC, visible_BV)
        x_BLD = x_BLD if mix is None else mix(x_BLD)
        if variant.dropout_embedding:
            key_0 = layers.fold_or_none(key_B, 0)
            x_BLD = residual.dropout(x_BLD, self.dropout, key_0)
        x_BLD = placement.place("embeddings", x_BLD)
        stack = blocks.make_blocks(
            config, variant.kernel, self.dropout, self.drop_path, self.dtype
        )
        states = blocks.run(stack, x_BLD, key_B, select=select)
        x_BLD = self.norm(states[-1] if states else residual.take(select, x_BLD))
        final_BLD = layers.finish(x_BLD, self.linear, config.last_block)
        return (*states, final_BLD)

    def _embed(self, image_BYXC: Array, visible_BV: Array | None) -> Array:
        """Returns x_BLD, the embeddings of CLS, registers and the visible patches.

        Visible pixels are gathered BEFORE the matmul: same maths, less work.
        """
        config, variant = self.config, self.variant
        image_BYXC = placement.place(
            "inputs", architecture.check_image(image_BYXC, config)
        )
        patches_BLP = patchify(image_BYXC, config.patch_size)
        # Rows of the table before those of the patches.
        first = int(config.own.cls_position)
        shape = (1, first + config.num_patches, config.width)
        position_1LD = self.param("position", variant.position, shape, jnp.float32)
        if variant.fixed_position:
            position_1LD = jax.lax.stop_gradient(position_1LD)
        batch, width = len(patches_BLP), config.width
        if visible_BV is None:
            shape = (batch, config.num_patches, width)
            patch_position_BVD = layers.spread(
                position_1LD[:, first:], shape, self.dtype
            )
        else:
            patches_BLP = jnp.take_along_axis(
                patches_BLP, visible_BV[..., None], axis=1
            )
            patches_BLP = placement.place("inputs", patches_BLP)
            rows_BVD = jnp.take(position_1LD[0, first:], visible_BV, axis=0)
            rows_BVD = rows_BVD.astype(self.dtype)
            patch_position_BVD = placement.place("embeddings", rows_BVD)
        embed = layers.Dense(
            config.width, True, variant.kernel, self.dtype, name="patch_embed"
        )
        x_BVD = embed(patches_BLP) + patch_position_BVD
        prefix = self._prefix(position_1LD[:, :first], batch)
        return jnp.concatenate([*prefix, x_BVD], axis=1)

    def _prefix(self, first_1PD: Array, batch: int) -> list[Array]:
        """Returns the embeddings of CLS, then of the registers if the model has any.

        first_1PD: the position of CLS, if it has one. Registers have none.
        """
        registers, width = self.config.own.registers, self.config.width
        names = {"cls_token": 1} | ({"register_token": registers} if registers else {})
        found = []
        for name, count in names.items():
            token = self.param(name, self.variant.token, (1, count, width), jnp.float32)
            found.append(layers.spread(token, (batch, count, width), self.dtype))
        if first_1PD.shape[1]:
            found[0] += layers.spread(first_1PD, found[0].shape, self.dtype)
        return found


def pool(x_BLD: Array, pooling: str, num_prefix: int = 1) -> Array:
    """Returns x_BD: the CLS state, the mean of the patch states, or both side by side.

    num_prefix: the number of tokens before the patches. "cls_mean" has 2 D features.
    """
    return POOLING[pooling](x_BLD, num_prefix)


def _first(x_BLD: Array, num_prefix: int) -> Array:
    del num_prefix
    return x_BLD[:, 0]


def _mean_of_patches(x_BLD: Array, num_prefix: int) -> Array:
    return jnp.mean(x_BLD[:, num_prefix:], axis=1)


def _both(x_BLD: Array, num_prefix: int) -> Array:
    both = x_BLD[:, 0], _mean_of_patches(x_BLD, num_prefix)
    return jnp.concatenate(both, axis=-1)


# The states are those after the final LayerNorm, but for "mean_norm", where it follows
# the mean: Facebook's fine-tuned MAE and timm's global_pool="avg" (both: fc_norm).
# "cls_mean" is DINOv2's own (Oquab et al. 2023, its linear probe of one layer).
POOLING = {
    "cls": _first,
    "mean": _mean_of_patches,
    "mean_norm": _mean_of_patches,
    "cls_mean": _both,
}


class ImageModel(nn.Module):
    """Base class of all vision transformers; `setup` of a subclass creates `self.encoder`."""

    config: ViTConfig
    dtype: Dtype
    dropout: float
    drop_path: float
    modality: ClassVar[str] = "image"

    @property
    def keeps_statistics(self) -> bool:
        """Whether the model has running statistics (`batch_stats`) and takes `weight_B`."""
        return False

    def make_encoder(self, variant: Variant) -> Encoder:
        """Returns the encoder, which a subclass stores as `self.encoder`."""
        return Encoder(self.config, variant, self.dropout, self.drop_path, self.dtype)

    def encode(
        self,
        image_BYXC: Array,
        key_B: Key | None,
        mix: Mix | None = None,
        select: Select | None = None,
    ) -> tuple[Array, ...]:
        """Returns the token states of `Encoder`, of the full image."""
        return self.encoder(image_BYXC, key_B, mix=mix, select=select)

    def embed(
        self,
        image_BYXC: Array,
        pooling: str,
        key_B: Key | None = None,
        mix: Mix | None = None,
    ) -> Array:
        """Returns x_BD, float32: the final states, pooled; arguments as of `encode`."""
        choose("pooling", pooling, POOLING)
        select = residual.select_pooled(pooling)
        return self.pool(self.encode(image_BYXC, key_B, mix, select), pooling)

    def pool(self, states: tuple[Array, ...], pooling: str) -> Array:
        """Returns x_BD, float32, pooled from the states that `encode` returns; see POOLING.

        Raises UserError for "mean_norm" of a model with `last_block`.
        """
        if pooling == "mean_norm" and self.config.last_block is not None:
            raise UserError(
                "pooling 'mean_norm' is of models with an ordinary last block; with "
                "model.last_block pool by 'mean'"
            )
        if pooling != "mean_norm":
            x_BLD = states[-1].astype(jnp.float32)
            return pool(x_BLD, pooling, self.config.num_prefix)
        x_BLD = states[-2].astype(jnp.float32)
        x_B1D = pool(x_BLD, pooling, self.config.num_prefix)[:, None]
        return self.encoder.norm(x_B1D)[:, 0].astype(jnp.float32)

    def layout(self, image_BYXC: Array) -> Layout:
        """Returns the `Layout` of the token states: CLS, registers if any, then patches."""
        num_prefix = self.config.num_prefix
        shape = (len(image_BYXC), num_prefix + self.config.num_patches)
        place_BL = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
        ones_BL = jnp.ones(shape, jnp.int32)
        return Layout(ones_BL, place_BL == 0, place_BL >= num_prefix)


class ViT(ImageModel):
    """The encoder alone; with `config.pooler` also Hugging Face's tanh layer on CLS."""

    def setup(self) -> None:
        self.encoder = self.make_encoder(VIT)
        if self.config.pooler:
            self.pooler = layers.Dense(self.config.width, True, NORMAL, self.dtype)

    def __call__(
        self, image_BYXC: Array, key_B: Key | None
    ) -> tuple[Array, Array | None]:
        """Returns the final states x_BLD and the pooler's x_BD (None without one)."""
        x_BLD = self.encode(image_BYXC, key_B)[-1]
        pooled_BD = None
        if self.config.pooler:
            pooled_BD = jnp.tanh(self.pooler(x_BLD[:, 0]))
        return x_BLD, pooled_BD


class Classifier(heads.LinearClassifier, ImageModel):
    """Encoder, pooling (see POOLING), one linear head; see `heads.LinearClassifier`."""

    def setup(self) -> None:
        self.encoder = self.make_encoder(VIT)
        self.make_head()

    def __call__(
        self,
        image_BYXC: Array,
        key_B: Key | None,
        mix: Mix | None = None,
        weight_B: Array | None = None,
    ) -> Array:
        """Returns logits_BN, float32; `mix` as for `Encoder`, `weight_B` as for
        `heads.normalize`.
        """
        x_BD = self.embed(image_BYXC, self.pooling, key_B, mix)
        return self.head(self.read(x_BD, key_B, weight_B))
