import pytest


@pytest.fixture
def node(monkeypatch, tmp_path):
    """A function that makes this process one of another machine."""
    return lambda name: monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))


@pytest.fixture(params=["s3", "file", "local"])
def address(request, tmp_path):
    """S3, a folder through pyarrow, and one through fsspec."""
    if request.param == "s3":
        return request.getfixturevalue("bucket").address
    return f"{request.param}://{tmp_path}/a folder".replace(" ", "%20" if request.param == "file" else " ")
