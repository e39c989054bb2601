"""Model configs of the published sizes."""

from typing import Any

from flax_adapt.base.errors import choose

# Ti, S: Touvron et al. 2021; B, L, H: Dosovitskiy et al. 2021.
SIZES = {
    "Ti": dict(width=192, depth=12, heads=3, mlp_dim=768),
    "S": dict(width=384, depth=12, heads=6, mlp_dim=1536),
    "B": dict(width=768, depth=12, heads=12, mlp_dim=3072),
    "L": dict(width=1024, depth=24, heads=16, mlp_dim=4096),
    "H": dict(width=1280, depth=32, heads=16, mlp_dim=5120),
}

# The decoder of the paper's models (He et al. 2022, section 4).
PAPER_DECODER = dict(width=512, depth=8, heads=16, mlp_dim=2048)

# Blocks of each stage: He et al. 2016, table 1; 26 is timm's.
RESNET_DEPTHS = {
    "26": (2, 2, 2, 2),
    "50": (3, 4, 6, 3),
    "101": (3, 4, 23, 3),
    "152": (3, 8, 36, 3),
}

# bert-base-uncased and roberta-base; the large ones have the same.
TEXT_VALUES: dict[str, dict[str, Any]] = {
    "bert": dict(
        vocab_size=30_522,
        max_positions=512,
        token_types=2,
        layer_norm_eps=1e-12,
        pad_token_id=0,
    ),
    "roberta": dict(
        vocab_size=50_265,
        max_positions=514,
        token_types=1,
        layer_norm_eps=1e-5,
        pad_token_id=1,
    ),
}


def vit_config(
    size: str, *, image_size: int, patch_size: int, channels: int
) -> dict[str, Any]:
    """Returns the model config of a ViT without decoder, `size` one of SIZES.

    layer_norm_eps, qkv_bias and gelu as in Hugging Face's ViTConfig.
    """
    return dict(
        kind="vit",
        image_size=image_size,
        patch_size=patch_size,
        channels=channels,
        **choose("size", size, SIZES),
        layer_norm_eps=1e-12,
        qkv_bias=True,
        gelu="erf",
        pooler=False,
        last_block=None,
        adaptor=None,
        traits=None,
        decoder=None,
    )


def mae_config(
    size: str, *, image_size: int, patch_size: int, channels: int
) -> dict[str, Any]:
    """Returns `vit_config` with the decoder of the paper."""
    config = vit_config(
        size, image_size=image_size, patch_size=patch_size, channels=channels
    )
    return {**config, "decoder": dict(PAPER_DECODER)}


def resnet_config(depth: str, *, image_size: int, channels: int) -> dict[str, Any]:
    """Returns the model config of a ResNet, `depth` one of RESNET_DEPTHS.

    Batch norm as torchvision's: torch's defaults.
    """
    return dict(
        kind="resnet",
        image_size=image_size,
        channels=channels,
        stem_width=64,
        planes=(64, 128, 256, 512),
        depths=choose("depth", depth, RESNET_DEPTHS),
        batch_norm_eps=1e-5,
        batch_norm_momentum=0.1,
        last_block=None,
    )


def bert_config(kind: str, size: str) -> dict[str, Any]:
    """Returns the model config of "bert" or "roberta", `size` one of SIZES.

    "B" and "L" are the published sizes. No pooler: masked language modelling has none.
    """
    values = choose("kind", kind, TEXT_VALUES)
    sizes = choose("size", size, SIZES)
    return dict(
        kind=kind,
        **values,
        **sizes,
        gelu="erf",
        pooler=False,
        last_block=None,
        adaptor=None,
        traits=None,
    )
