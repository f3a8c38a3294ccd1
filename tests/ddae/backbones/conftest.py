import pytest

from ddae.backbones import Backbone, load_backbone
from tests.ddae.backbones.tiny import TINY


@pytest.fixture(scope="session", params=TINY)
def tiny_name(request, tmp_path_factory, tiny_model) -> str:
    make = TINY[request.param]
    if isinstance(make, str):
        return request.getfixturevalue(make)
    return make(tmp_path_factory.mktemp(request.param), tiny_model)


@pytest.fixture(scope="session")
def tiny_backbone(tiny_name) -> Backbone:
    return load_backbone(tiny_name)
