"""Writes the files beside it with torch.save, in both formats; needs torch.

python tests/goldens_torch/make.py
"""

import argparse
import collections
from pathlib import Path

import torch

FOLDER = Path(__file__).parent


def state_dict():
    """Views, shared storages, every precision, a scalar and an empty tensor."""
    whole = torch.arange(24, dtype=torch.float32).reshape(4, 6) / 8
    return collections.OrderedDict(
        whole=whole,
        transposed=whole.T,
        column=whole[:, 2],
        block=whole[1:3, 1::2],
        half=whole.half(),
        bfloat16=whole.bfloat16(),
        double=whole.double(),
        ids=torch.arange(3),
        mask=torch.tensor([True, False]),
        scalar=torch.tensor(2.5),
        empty=torch.empty(0, 3),
        parameter=torch.nn.Parameter(whole[0].clone()),
    )


def main():
    module = torch.nn.Linear(2, 3)  # its state dict carries `_metadata`
    with torch.no_grad():
        module.weight.copy_(torch.arange(6.0).reshape(3, 2))
        module.bias.copy_(torch.tensor([1.0, -1.0, 0.5]))
    training = dict(
        model=module.state_dict(), epoch=3, args=argparse.Namespace(lr=0.1, name="x")
    )
    for name, is_zip in dict(zip=True, legacy=False).items():
        options = dict(_use_new_zipfile_serialization=is_zip)
        torch.save(state_dict(), FOLDER / f"tensors_{name}.pt", **options)
        torch.save(training, FOLDER / f"training_{name}.pt", **options)
    torch.save(module.state_dict(), FOLDER / "protocol_4.pt", pickle_protocol=4)


if __name__ == "__main__":
    main()
