"""Models of contrastive learning: an encoder, pooling, and the projector and predictor heads."""

from flax_adapt.base.types import Array, Key, Text
from flax_adapt.models import vit
from flax_adapt.models.bert import Mix
from flax_adapt.models.heads import ProjectorConfig, make_heads
from flax_adapt.models.text import TextModel


class Contrast(vit.ImageModel):
    """A ViT, pooling after the final LayerNorm, projector and predictor."""

    pooling: str
    projector_config: ProjectorConfig

    def setup(self) -> None:
        self.encoder = self.make_encoder(vit.VIT)
        self.projector, self.predictor = make_heads(self.projector_config)

    def __call__(self, image_BYXC: Array, key_B: Key | None, weight_B: Array) -> Array:
        """Returns query_BD, float32, not normalised; batch norm skips rows of `weight_B` 0."""
        return self.predictor(self.project(image_BYXC, key_B, weight_B), weight_B)

    def project(self, image_BYXC: Array, key_B: Key | None, weight_B: Array) -> Array:
        """Returns key_BD, float32: the output of the projector."""
        x_BD = self.embed(image_BYXC, self.pooling, key_B)
        return self.projector(x_BD, weight_B)


class TextContrast(TextModel):
    """A text encoder, pooling, projector and predictor; rows hold one document each."""

    pooling: str
    projector_config: ProjectorConfig

    def setup(self) -> None:
        self.encoder = self.make_encoder()
        self.projector, self.predictor = make_heads(self.projector_config)

    def __call__(
        self, text: Text, key_B: Key | None, weight_B: Array, mix: Mix | None = None
    ) -> Array:
        """Returns query_BD, float32, not normalised; batch norm skips rows of `weight_B` 0."""
        return self.predictor(self.project(text, key_B, weight_B, mix), weight_B)

    def project(
        self, text: Text, key_B: Key | None, weight_B: Array, mix: Mix | None = None
    ) -> Array:
        """Returns key_BD, float32: the output of the projector.

        mix: see `bert.Encoder`; the segments of the text must then be those of the
        mixture.
        """
        pooled_BD = self.embed(text, self.pooling, key_B, mix)
        return self.projector(pooled_BD, weight_B)
