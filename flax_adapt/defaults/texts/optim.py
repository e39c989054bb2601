"""The optimizers of texts (Gururangan et al. 2020)."""

from typing import Any

from flax_adapt.defaults import sections, shared


def text_optim(num_steps: int, **changes: Any) -> dict[str, Any]:
    """Returns `optim` of Gururangan et al. 2020: 1e-4 to 0, 6 % warm-up, RoBERTa's AdamW."""
    section = shared.pretrain_optim(
        lr=1e-4,
        warmup_steps=num_steps * 6 // 100,
        b2=0.98,
        eps=1e-6,
        clip_norm=1.0,
        freeze=(),
    )
    return sections.change(section, changes)


def text_finetune_optim(num_steps: int, **changes: Any) -> dict[str, Any]:
    """Returns `optim` of Gururangan et al. 2020: 2e-5 to 0, 6 % warm-up, no LayerNorm decay."""
    section = shared.finetune_optim(
        lr=2e-5, warmup_steps=num_steps * 6 // 100, decay="pretrain"
    )
    return sections.change(section, changes)
