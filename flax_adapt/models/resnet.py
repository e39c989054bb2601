"""ResNets (He et al. 2016) of bottleneck blocks, and the heads on top.

As torchvision and timm build them ("v1.5"): a block of stride 2 has it in the 3x3
convolution. Only the last block can be resized (Bordes et al. 2023, S3).

A `key_B` means training: batch norm then uses the moments of the batch, see
`RunningBatchNorm`. Nothing is drawn from it, since there is no dropout. Parameters that
`optim.freeze` names are not trained; running statistics move with every batch all the
same.
"""

import functools
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flax_adapt.base import memory, placement
from flax_adapt.base.errors import UserError, choose
from flax_adapt.base.types import Array, Key
from flax_adapt.models import heads, layers
from flax_adapt.models.batch_norm import RunningBatchNorm
from flax_adapt.models.heads import ProjectorConfig, make_projector, project
from flax_adapt.models.layers import Dtype
from flax_adapt.models.resnet_config import (
    BottleneckPlan,
    ResNetConfig,
    bottleneck_plans,
)
from flax_adapt.models.visual.patches import check_image

# torchvision: kaiming_normal_(mode="fan_out", nonlinearity="relu"), deviation
# sqrt(2 / (outputs * pixels of the kernel)) (He et al. 2015); scales 1, biases 0.
KERNEL = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def global_mean(x_BYXC: Array) -> Array:
    """Returns x_BC: torch's global average pool."""
    return jnp.mean(x_BYXC, axis=(1, 2))


POOLING = {"mean": global_mean}


def check_rates(dropout: float, drop_path: float) -> None:
    """Raises UserError unless both are 0, as in the paper's and torchvision's ResNet-50."""
    for name, rate in (("dropout", dropout), ("drop_path", drop_path)):
        if rate:
            raise UserError(f"model.{name}={rate} must be 0: a resnet drops nothing")


def convolution(
    features: int, size: int, stride: int, dtype: Dtype, name: str
) -> nn.Conv:
    """Returns a convolution without bias; kernel [Y, X, in, out], padding as torch's."""
    run: Any = functools.partial(convolve, dtype)
    if dtype == jnp.float32:
        run = jax.lax.conv_general_dilated
    return nn.Conv(
        features,
        (size, size),
        (stride, stride),
        padding=size // 2,
        use_bias=False,
        # In bfloat16 `convolve` does the cast: it needs the float32 kernel.
        dtype=jnp.float32,
        conv_general_dilated=placement.on_gathered(f"/{name}/kernel", run),
        kernel_init=KERNEL,
        name=name,
    )


def convolve(
    dtype: Dtype, x_BYXC: Array, kernel: Array, *how: Any, **named: Any
) -> Array:
    """Returns `jax.lax.conv_general_dilated` in `dtype`; the kernel's gradient is float32.

    As in `layers.matmul`, chips add up float32 numbers. `how` and `named` are the other
    arguments, as linen passes them.
    """

    def run(x_BYXC: Array, kernel: Array) -> Array:
        return jax.lax.conv_general_dilated(x_BYXC, kernel, *how, **named)

    @jax.custom_vjp
    def cast(x_BYXC: Array, kernel: Array) -> Array:
        return run(x_BYXC, kernel.astype(dtype))

    def forward(x_BYXC: Array, kernel: Array) -> tuple[Array, Any]:
        return cast(x_BYXC, kernel), (x_BYXC, kernel)

    def backward(kept: Any, slope_BYXC: Array) -> tuple[Array, Array]:
        x_BYXC, kernel = kept
        _, to_x = jax.vjp(lambda x: run(x, kernel.astype(dtype)), x_BYXC)
        _, to_kernel = jax.vjp(
            functools.partial(run, x_BYXC.astype(kernel.dtype)), kernel
        )
        return (*to_x(slope_BYXC), *to_kernel(slope_BYXC.astype(kernel.dtype)))

    cast.defvjp(forward, backward)
    return cast(x_BYXC.astype(dtype), kernel)


def make_norm(config: ResNetConfig, dtype: Dtype, name: str) -> RunningBatchNorm:
    """Returns a batch norm with scale and bias."""
    eps, momentum = config.batch_norm_eps, config.batch_norm_momentum
    return RunningBatchNorm(eps, momentum, True, dtype, name=name)


class ConvNorm(nn.Module):
    """A convolution and batch norm: the stem, or the projection of a shortcut."""

    config: ResNetConfig
    features: int
    size: int
    stride: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x_BYXC: Array, weight_B: Array | None) -> Array:
        shape = (self.features, self.size, self.stride)
        x_BYXC = convolution(*shape, self.dtype, "conv")(x_BYXC)
        x_BYXC = placement.place("maps", x_BYXC)
        return make_norm(self.config, self.dtype, "norm")(x_BYXC, weight_B)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions plus a shortcut; ReLUs between them and after the sum."""

    config: ResNetConfig
    plan: BottleneckPlan
    dtype: Dtype

    @nn.compact
    def __call__(self, x_BYXC: Array, weight_B: Array | None) -> Array:
        plan, dtype = self.plan, self.dtype
        conv = functools.partial(convolution, dtype=dtype)
        norm = functools.partial(make_norm, self.config, dtype)
        y_BYXC = conv(plan.planes, 1, 1, name="conv1")(x_BYXC)
        y_BYXC = nn.relu(norm("norm1")(y_BYXC, weight_B))
        y_BYXC = conv(plan.planes, 3, plan.stride, name="conv2")(y_BYXC)
        y_BYXC = nn.relu(norm("norm2")(y_BYXC, weight_B))
        y_BYXC = conv(plan.width, 1, 1, name="conv3")(y_BYXC)
        y_BYXC = norm("norm3")(y_BYXC, weight_B)
        if plan.projects:
            shape = (plan.width, 1, plan.stride)
            around = ConvNorm(self.config, *shape, dtype, name="shortcut")
            x_BYXC = around(x_BYXC, weight_B)
        return placement.place("maps", nn.relu(x_BYXC + y_BYXC))


class Stage(nn.Module):
    """A stage: blocks with the same `planes`, named block_00, block_01, ..."""

    config: ResNetConfig
    plans: tuple[BottleneckPlan, ...]
    dtype: Dtype

    @nn.compact
    def __call__(self, x_BYXC: Array, weight_B: Array | None) -> list[Array]:
        states = []
        for plan in self.plans:
            name = f"block_{plan.number:02d}"
            block = memory.remat_module(Bottleneck)(
                self.config, plan, self.dtype, name=name
            )
            x_BYXC = block(x_BYXC, weight_B)
            states.append(x_BYXC)
        return states


class Encoder(nn.Module):
    """Encodes images to the feature maps x_BYXC after every block.

    The last map is the one that is pooled; after its ReLU it is not negative.
    """

    config: ResNetConfig
    dtype: Dtype

    @nn.compact
    def __call__(self, image_BYXC: Array, weight_B: Array | None) -> tuple[Array, ...]:
        """Returns one map for each block; `weight_B` as of `RunningBatchNorm`."""
        config, dtype = self.config, self.dtype
        x_BYXC = check_image(image_BYXC, config).astype(dtype)
        stem = ConvNorm(config, config.stem_width, 7, 2, dtype, name="stem")
        x_BYXC = nn.relu(stem(x_BYXC, weight_B))
        x_BYXC = nn.max_pool(x_BYXC, (3, 3), (2, 2), ((1, 1), (1, 1)))
        plans, states = bottleneck_plans(config), [x_BYXC]
        for number in sorted({plan.stage for plan in plans}):
            of_stage = tuple(plan for plan in plans if plan.stage == number)
            stage = Stage(config, of_stage, dtype, name=f"stage_{number}")
            states += stage(states[-1], weight_B)
        return tuple(states[1:])


class ResNetModel(nn.Module):
    """Base class of all ResNet models; `setup` of a subclass creates `self.encoder`.

    key_B: None: batch norm uses the running statistics; a key: the moments of the rows
    that `weight_B` (float32, 0: does not count) names, or of all.
    """

    config: ResNetConfig
    dtype: Dtype
    modality: ClassVar[str] = "image"
    keeps_statistics: ClassVar[bool] = True

    def encode(
        self, image_BYXC: Array, key_B: Key | None, weight_B: Array | None = None
    ) -> tuple[Array, ...]:
        """Returns the maps x_BYXC of `Encoder`, one for each block."""
        return self.encoder(image_BYXC, _counting(image_BYXC, key_B, weight_B))

    def embed(
        self,
        image_BYXC: Array,
        pooling: str,
        key_B: Key | None = None,
        weight_B: Array | None = None,
    ) -> Array:
        """Returns x_BD, float32: the last map, pooled."""
        pool = choose("pooling of a resnet: pooling", pooling, POOLING)
        x_BYXC = self.encode(image_BYXC, key_B, weight_B)[-1]
        return pool(x_BYXC.astype(jnp.float32))


def _counting(
    image_BYXC: Array, key_B: Key | None, weight_B: Array | None
) -> Array | None:
    """Returns the weights of the rows in batch norm; None: it uses its running statistics."""
    if key_B is None:
        return None
    return jnp.ones(len(image_BYXC), jnp.float32) if weight_B is None else weight_B


class ResNet(ResNetModel):
    """The encoder alone."""

    def setup(self) -> None:
        self.encoder = Encoder(self.config, self.dtype)

    def __call__(self, image_BYXC: Array, key_B: Key | None) -> tuple[Array, Array]:
        """Returns the last map x_BYXC and, float32, its mean x_BD."""
        x_BYXC = self.encode(image_BYXC, key_B)[-1]
        return x_BYXC, global_mean(x_BYXC.astype(jnp.float32))


class ResNetClassifier(ResNetModel):
    """Encoder, pooling, one linear head in float32.

    A projector before the head serves training alone (Bordes et al. 2023). The
    head's kernel is initialised as torch's Linear, its bias at 0 (ours).
    """

    pooling: str
    num_classes: int
    projector_config: ProjectorConfig | None

    def setup(self) -> None:
        self.encoder = Encoder(self.config, self.dtype)
        self.projector = make_projector(self.projector_config)
        self.head = layers.Dense(self.num_classes, True, heads.KERNEL, jnp.float32)

    def __call__(
        self, image_BYXC: Array, key_B: Key | None, weight_B: Array | None = None
    ) -> Array:
        """Returns logits_BN, float32."""
        x_BD = self.embed(image_BYXC, self.pooling, key_B, weight_B)
        return self.head(project(self.projector, x_BD))


class ResNetContrast(ResNetModel):
    """Encoder, pooling, projector and predictor of contrastive learning."""

    pooling: str
    projector_config: ProjectorConfig

    def setup(self) -> None:
        self.encoder = Encoder(self.config, self.dtype)
        self.projector, self.predictor = heads.make_heads(self.projector_config)

    def __call__(self, image_BYXC: Array, key_B: Key | None, weight_B: Array) -> Array:
        """Returns query_BD, float32, not normalised; batch norm skips rows of `weight_B` 0."""
        x_BD = self.embed(image_BYXC, self.pooling, key_B, weight_B)
        return self.predictor(self.projector(x_BD, weight_B), weight_B)

    def project(self, image_BYXC: Array, key_B: Key | None, weight_B: Array) -> Array:
        """Returns key_BD, float32: the output of the projector.

        Batch norm always uses the moments of the batch: a key encoder has no running
        statistics.
        """
        del key_B
        x_BYXC = self.encoder(image_BYXC, weight_B)[-1]
        x_BD = POOLING[self.pooling](x_BYXC.astype(jnp.float32))
        return self.projector(x_BD, weight_B)
