"""The workdir that a command was given: a folder, or an address such as gs://bucket/run."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax

from flax_adapt.base.errors import UserError
from flax_adapt.base.paths import expand_user
from flax_adapt.base.remote import addresses, workdirs


@contextlib.contextmanager
def open_workdir(text: str, *, continues: bool) -> Iterator[Path]:
    """Yields the folder of a workdir; of an address a copy, which is written back.

    continues: a run goes on in it, from its checkpoints. Raises UserError for an address
    that cannot be read or written.
    """
    if not addresses.is_address(text):
        yield Path(expand_user(text))
        return
    address = addresses.parse(text)
    if (
        jax.process_count() > 1
        and not addresses.SCHEMES[address.scheme].has_checkpoints
    ):
        raise UserError(
            f"--workdir={address}: only one process can write checkpoints to "
            f"{address.scheme}://; several need a gs:// workdir, or a folder that all mount"
        )
    is_first = jax.process_index() == 0
    with workdirs.open_address(
        address, is_writer=is_first, reads_checkpoints=continues
    ) as folder:
        yield folder


def name_path(path: Path) -> str:
    """Returns a path as a user sees it: that of a copy as an address."""
    return addresses.restore(str(path))
