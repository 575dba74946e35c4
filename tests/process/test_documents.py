"""The snippets of docs/data-loaders.md do what they say."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator

import pytest

from fs3.client.sync import shared
from tests.process import harness

pytestmark = [
    pytest.mark.process,
    pytest.mark.filterwarnings("ignore:This process:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torch", "ignore::UserWarning:torch"),
]
TEXT = (harness.REPOSITORY / "docs" / "data-loaders.md").read_text()
SNIPPETS = re.findall(r"^## ([^\n]+)|^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def snippets() -> Iterator[tuple[str, str]]:
    title = ""
    for heading, code in SNIPPETS:
        title = heading or title
        if code:
            yield title, code


@pytest.fixture(scope="module")
def place(shared_cluster: harness.Cluster) -> Iterator[str]:
    (address,) = shared_cluster.mgmtd()
    yield address.removeprefix("tcp://")
    fs = shared([address])
    for name in fs.listdir():
        if name in ("data", "train", "checkpoints"):
            fs.rmtree(f"/{name}")
    fs.close()


@pytest.mark.parametrize(("title", "code"), list(snippets()))
def test_snippet(place: str, title: str, code: str) -> None:
    if "import torch" in code:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            harness.needs_module("torch")
    exec(compile(code.replace("HOST:PORT", place), title, "exec"), {"__name__": "__main__"})
