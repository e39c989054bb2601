"""Surgery on trained models: another width of the last block.

surgery.last_block.check(section, config.model)
resized = surgery.last_block.resize(leaves, init, config_model, section, key, parts)
"""

from flax_adapt.surgery import last_block, moments

__all__ = ["last_block", "moments"]
