"""ResNets (He et al. 2016) of bottleneck blocks, and the heads on top.

As torchvision and timm build them ("v1.5"): a block of stride 2 has it in the 3x3
convolution. Only the last block can be resized (Bordes et al. 2023, METHODS S3).

A key means training: batch norm then goes by the batch, see `RunningBatchNorm`. Nothing
is drawn from it, since nothing is dropped. Parameters that `optim.freeze` names stay as
they are; running statistics move with every batch all the same.
"""

import functools
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

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
from flax_adapt.models.vit import check_image

# torchvision: kaiming_normal_(mode="fan_out", nonlinearity="relu"), deviation
# sqrt(2 / (outputs * pixels of the kernel)) (He et al. 2015); scales 1, biases 0.
KERNEL = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def global_mean(x_BYXC: Array) -> Array:
    """Returns x_BC: torch's global average pool."""
    return jnp.mean(x_BYXC, axis=(1, 2))


POOLING = {"mean": global_mean}


def check_rates(dropout: float, drop_path: float) -> None:
    """Neither the paper's nor torchvision's ResNet-50 drops anything."""
    for name, rate in (("dropout", dropout), ("drop_path", drop_path)):
        if rate:
            raise UserError(f"model.{name}={rate} must be 0: a resnet drops nothing")


def convolution(
    features: int, size: int, stride: int, dtype: Dtype, name: str
) -> nn.Conv:
    """Without bias; kernel [Y, X, in, out]; zeros around the image as torch puts them."""
    exact = dtype == jnp.float32
    return nn.Conv(
        features,
        (size, size),
        (stride, stride),
        padding=size // 2,
        use_bias=False,
        # In bfloat16 `convolve` casts: it wants the kernel as it is.
        dtype=dtype if exact else None,
        conv_general_dilated=None if exact else functools.partial(convolve, dtype),
        kernel_init=KERNEL,
        name=name,
    )


def convolve(
    dtype: Dtype, x_BYXC: Array, kernel: Array, *how: Any, **named: Any
) -> Array:
    """`jax.lax.conv_general_dilated` in `dtype`; a float32 gradient of the kernel.

    As `layers.matmul`: chips add up float32 numbers. `how` and `named` are what linen
    hands over.
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
    eps, momentum = config.batch_norm_eps, config.batch_norm_momentum
    return RunningBatchNorm(eps, momentum, True, dtype, name=name)


class ConvNorm(nn.Module):
    """A convolution and batch norm: the stem, or what is in the way of a shortcut."""

    config: ResNetConfig
    features: int
    size: int
    stride: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x_BYXC: Array, weight_B: Array | None) -> Array:
        shape = (self.features, self.size, self.stride)
        x_BYXC = convolution(*shape, self.dtype, "conv")(x_BYXC)
        return make_norm(self.config, self.dtype, "norm")(x_BYXC, weight_B)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut; ReLUs between and after the sum."""

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
        return nn.relu(x_BYXC + y_BYXC)


class Stage(nn.Module):
    """Blocks of the same planes: block_00, block_01, ..."""

    config: ResNetConfig
    plans: tuple[BottleneckPlan, ...]
    dtype: Dtype

    @nn.compact
    def __call__(self, x_BYXC: Array, weight_B: Array | None) -> list[Array]:
        states = []
        for plan in self.plans:
            name = f"block_{plan.number:02d}"
            block = Bottleneck(self.config, plan, self.dtype, name=name)
            x_BYXC = block(x_BYXC, weight_B)
            states.append(x_BYXC)
        return states


class Encoder(nn.Module):
    """Image -> the maps after every block; the last is what is pooled, not negative."""

    config: ResNetConfig
    dtype: Dtype

    @nn.compact
    def __call__(self, image_BYXC: Array, weight_B: Array | None) -> tuple[Array, ...]:
        """weight_B: see `RunningBatchNorm`."""
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
    """What every ResNet can do; `setup` of each makes `self.encoder`.

    `key_B`: None goes by the running statistics, a key by those of the batch, which are
    of the rows that `weight_B` (float32, 0: does not count) names, or of all.
    """

    config: ResNetConfig
    dtype: Dtype
    modality: ClassVar[str] = "image"
    keeps_statistics: ClassVar[bool] = True

    def encode(
        self, image_BYXC: Array, key_B: Key | None, weight_B: Array | None = None
    ) -> tuple[Array, ...]:
        """Returns the maps x_BYXC of `Encoder`."""
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
    """Returns the rows that batch norm goes by; None: by its running statistics."""
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

    A projector between the two is a part of training alone (Bordes et al. 2023). The
    head's kernel starts as torch's Linear, its bias at 0 (ours).
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
    """Encoder, pooling, and the heads that contrast compares representations behind."""

    pooling: str
    projector_config: ProjectorConfig

    def setup(self) -> None:
        self.encoder = Encoder(self.config, self.dtype)
        self.projector, self.predictor = heads.make_heads(self.projector_config)

    def __call__(self, image_BYXC: Array, key_B: Key | None, weight_B: Array) -> Array:
        """Returns query_BD, float32, not normalised; `weight_B` 0: does not count."""
        x_BD = self.embed(image_BYXC, self.pooling, key_B, weight_B)
        return self.predictor(self.projector(x_BD, weight_B), weight_B)

    def project(self, image_BYXC: Array, key_B: Key | None, weight_B: Array) -> Array:
        """Returns key_BD, float32: what comes out before the predictor.

        Always by the moments of the batch: a key encoder keeps no statistics.
        """
        del key_B
        x_BYXC = self.encoder(image_BYXC, weight_B)[-1]
        x_BD = POOLING[self.pooling](x_BYXC.astype(jnp.float32))
        return self.projector(x_BD, weight_B)
