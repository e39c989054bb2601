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
from flax_adapt.models.visual import rotary
from flax_adapt.models.visual.patches import check_image, patchify, sincos_position
from flax_adapt.models.visual.pooling import POOLING, check_pooling, pool


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

    Returns arrays [B, P + V, D], CLS first, then distillation token and registers if the
    model has any, then patches; P is `config.num_prefix`. There is one more than there are
    blocks: the state after every block, then the final state, after the last LayerNorm and
    any layers that `config.last_block` adds.
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
        if config.own.pre_norm:
            norm = layers.LayerNorm(config.layer_norm_eps, self.dtype, name="pre_norm")
            x_BLD = placement.place("embeddings", norm(x_BLD))
        stack = blocks.make_blocks(
            config, variant.kernel, self.dropout, self.drop_path, self.dtype
        )
        grid, head = (
            config.image_size // config.patch_size,
            config.width // config.heads,
        )
        turn_BLK = rotary.turns(config.own, grid, head, len(x_BLD), key_B, visible_BV)
        states = blocks.run(stack, x_BLD, key_B, turn_BLK, select=select)
        x_BLD = self.norm(states[-1] if states else residual.take(select, x_BLD))
        final_BLD = layers.finish(x_BLD, self.linear, config.last_block)
        return (*states, final_BLD)

    def _embed(self, image_BYXC: Array, visible_BV: Array | None) -> Array:
        """Returns x_BLD, the embeddings of CLS, registers and the visible patches.

        Visible pixels are gathered BEFORE the matmul: same maths, less work.
        """
        config, variant = self.config, self.variant
        image_BYXC = placement.place("inputs", check_image(image_BYXC, config))
        patches_BLP = patchify(image_BYXC, config.patch_size)
        position_1LD, batch = self._positions(), len(patches_BLP)
        # Rows of the table before those of the patches.
        first = config.own.num_positioned
        if visible_BV is not None:
            patches_BLP = jnp.take_along_axis(
                patches_BLP, visible_BV[..., None], axis=1
            )
            patches_BLP = placement.place("inputs", patches_BLP)
        embed = layers.Dense(
            config.width,
            config.own.patch_bias,
            variant.kernel,
            self.dtype,
            name="patch_embed",
        )
        x_BVD = embed(patches_BLP)
        if position_1LD is not None:
            rows_1PD = position_1LD[:, first:]
            x_BVD = x_BVD + self._take_rows(rows_1PD, batch, visible_BV)
            position_1LD = position_1LD[:, :first]
        return jnp.concatenate([*self._prefix(position_1LD, batch), x_BVD], axis=1)

    def _positions(self) -> Array | None:
        """Returns the table position_1LD; None where positions are rotary."""
        config, variant = self.config, self.variant
        if config.own.rotary_theta:
            return None
        shape = (1, config.own.num_positioned + config.num_patches, config.width)
        position_1LD = self.param("position", variant.position, shape, jnp.float32)
        if variant.fixed_position:
            position_1LD = jax.lax.stop_gradient(position_1LD)
        return position_1LD

    def _take_rows(
        self, rows_1PD: Array, batch: int, visible_BV: Array | None
    ) -> Array:
        """Returns the positions x_BVD of the visible patches; None: of all."""
        if visible_BV is None:
            return layers.spread(rows_1PD, (batch, *rows_1PD.shape[1:]), self.dtype)
        rows_BVD = jnp.take(rows_1PD[0], visible_BV, axis=0).astype(self.dtype)
        return placement.place("embeddings", rows_BVD)

    def _prefix(self, first_1PD: Array | None, batch: int) -> list[Array]:
        """Returns the embeddings of the tokens before the patches, in their order.

        first_1PD: the positions of those tokens that have one; registers have none.
        """
        own, width = self.config.own, self.config.width
        counts = dict(
            cls_token=1, distillation_token=own.distilled, register_token=own.registers
        )
        found = []
        for name, count in counts.items():
            if count:
                shape = (1, int(count), width)
                token = self.param(name, self.variant.token, shape, jnp.float32)
                found.append(layers.spread(token, (batch, *shape[1:]), self.dtype))
        if first_1PD is not None:
            for place in range(first_1PD.shape[1]):
                row_11D = first_1PD[:, place : place + 1]
                found[place] += layers.spread(row_11D, found[place].shape, self.dtype)
        return found


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
        check_pooling(self.config, pooling)
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
        """Returns the `Layout` of the token states: CLS, further tokens if any, patches."""
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
        return self.logits(self.read(x_BD, key_B, weight_B))
