"""Surgery on trained models: another width of the last block, low-rank adaptors.

surgery.last_block.check(section, config.model)
resized = surgery.last_block.resize(leaves, init, config_model, section, key, parts)

params = surgery.lora.add(params, section, key)
params = surgery.lora.merge(params, section)
"""

from flax_adapt.surgery import last_block, lora, moments

__all__ = ["last_block", "lora", "moments"]
