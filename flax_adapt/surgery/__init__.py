"""Surgery on trained models: another width of the last block, adaptors dropped.

surgery.last_block.check(section, config.model)
resized = surgery.last_block.resize(leaves, init, config_model, section, key, parts)
    backbone = surgery.adaptors.drop(params)
"""

from flax_adapt.surgery import adaptors, heads, last_block, matched, moments

__all__ = ["adaptors", "heads", "last_block", "matched", "moments"]
