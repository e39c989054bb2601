"""Models as they were published, restated: their names, layouts and maths.

`vision_transformer` (google-research, models_vit.py) with flax's own modules, and
Facebook's `models_mae.py` with timm's, each imported where it is used.
"""


def vision_transformer(sizes, num_classes):
    """The flax module of AugReg's models; classifier "token", no pre_logits.

    sizes: patch_size, width, depth, heads, mlp_dim.
    """
    import flax.linen as nn
    import jax.numpy as jnp

    class AddPositionEmbs(nn.Module):
        @nn.compact
        def __call__(self, x):
            shape = (1, *x.shape[1:])
            return x + self.param("pos_embedding", nn.initializers.normal(0.02), shape)

    class MlpBlock(nn.Module):
        @nn.compact
        def __call__(self, x):
            y = nn.gelu(nn.Dense(sizes["mlp_dim"])(x))
            return nn.Dense(x.shape[-1])(y)

    class Encoder1DBlock(nn.Module):
        @nn.compact
        def __call__(self, x):
            y = nn.LayerNorm(name="LayerNorm_0")(x)
            attention = nn.MultiHeadDotProductAttention(
                num_heads=sizes["heads"], name="MultiHeadDotProductAttention_1"
            )
            x = x + attention(y, y)
            y = nn.LayerNorm(name="LayerNorm_2")(x)
            return x + MlpBlock(name="MlpBlock_3")(y)

    class Encoder(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = AddPositionEmbs(name="posembed_input")(x)
            for number in range(sizes["depth"]):
                x = Encoder1DBlock(name=f"encoderblock_{number}")(x)
            return nn.LayerNorm(name="encoder_norm")(x)

    class VisionTransformer(nn.Module):
        @nn.compact
        def __call__(self, image):
            size, width = (sizes["patch_size"],) * 2, sizes["width"]
            x = nn.Conv(width, size, strides=size, padding="VALID", name="embedding")(
                image
            )
            x = x.reshape(len(x), -1, width)
            cls = self.param("cls", nn.initializers.zeros, (1, 1, width))
            x = jnp.concatenate([jnp.tile(cls, [len(x), 1, 1]), x], axis=1)
            x = Encoder(name="Transformer")(x)
            return x, nn.Dense(num_classes, name="head")(x[:, 0])

    return VisionTransformer()


def random_masking(x, noise, mask_ratio):
    """Returns the tokens that are kept, the mask (1 is removed) and the way back."""
    import torch

    length, width = x.shape[1:]
    keep = int(length * (1 - mask_ratio))
    shuffle = torch.argsort(noise, dim=1)
    restore = torch.argsort(shuffle, dim=1)
    index = shuffle[:, :keep].unsqueeze(-1).repeat(1, 1, width)
    mask = torch.ones(len(x), length)
    mask[:, :keep] = 0
    mask = torch.gather(mask, dim=1, index=restore)
    return torch.gather(x, dim=1, index=index), mask, restore


def _blocks(size, norm):
    from timm.models.vision_transformer import Block
    from torch import nn

    arguments = size["width"], size["heads"], size["mlp_dim"] / size["width"]
    options = dict(qkv_bias=True, norm_layer=norm)
    return nn.ModuleList([Block(*arguments, **options) for _ in range(size["depth"])])


def masked_autoencoder(sizes, decoder):
    """The torch module of models_mae.py; `forward` returns (prediction, mask).

    sizes: image_size, patch_size, channels, width, depth, heads, mlp_dim; decoder: the
    last four.
    """
    import functools

    import torch
    from timm.models.vision_transformer import PatchEmbed
    from torch import nn

    norm = functools.partial(nn.LayerNorm, eps=1e-6)

    class MaskedAutoencoderViT(nn.Module):
        def __init__(self):
            super().__init__()
            patch, channels = sizes["patch_size"], sizes["channels"]
            width, inner = sizes["width"], decoder["width"]
            self.patch_embed = PatchEmbed(sizes["image_size"], patch, channels, width)
            rows = self.patch_embed.num_patches + 1
            self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
            self.pos_embed = nn.Parameter(torch.zeros(1, rows, width))
            self.blocks = _blocks(sizes, norm)
            self.norm = norm(width)
            self.decoder_embed = nn.Linear(width, inner)
            self.mask_token = nn.Parameter(torch.zeros(1, 1, inner))
            self.decoder_pos_embed = nn.Parameter(torch.zeros(1, rows, inner))
            self.decoder_blocks = _blocks(decoder, norm)
            self.decoder_norm = norm(inner)
            self.decoder_pred = nn.Linear(inner, patch**2 * channels)

        def encode(self, images, noise, mask_ratio):
            x = self.patch_embed(images) + self.pos_embed[:, 1:]
            x, mask, restore = random_masking(x, noise, mask_ratio)
            cls = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
            x = torch.cat((cls, x), dim=1)
            for block in self.blocks:
                x = block(x)
            return self.norm(x), mask, restore

        def forward(self, images, noise, mask_ratio):
            x, mask, restore = self.encode(images, noise, mask_ratio)
            x = self.decoder_embed(x)
            missing = restore.shape[1] + 1 - x.shape[1]
            x_ = torch.cat(
                [x[:, 1:], self.mask_token.repeat(len(x), missing, 1)], dim=1
            )
            index = restore.unsqueeze(-1).repeat(1, 1, x.shape[2])
            x = torch.cat([x[:, :1], torch.gather(x_, dim=1, index=index)], dim=1)
            x = x + self.decoder_pos_embed
            for block in self.decoder_blocks:
                x = block(x)
            return self.decoder_pred(self.decoder_norm(x))[:, 1:], mask

    return MaskedAutoencoderViT()
