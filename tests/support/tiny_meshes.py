"""One device and eight, for tests of what must not depend on their number."""

import jax
import numpy as np
from support.depth import long_except

from flax_adapt.train import sharding

MESHES = {
    "one": dict(data=1, fsdp=1, tensor=1),
    "eight": dict(data=2, fsdp=2, tensor=2),
}
# (mesh, parts of a batch) that must give what one device gives at once: both together,
# and each alone, which says where a fault lies.
BOTH = ("eight", 4)
WAYS = long_except([BOTH], [BOTH, ("eight", 1), ("one", 4)])


def mesh_of(name):
    sizes = MESHES[name]
    count = int(np.prod(list(sizes.values())))
    return sharding.make_mesh(sizes, jax.devices()[:count])
