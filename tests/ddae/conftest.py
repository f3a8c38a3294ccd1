import pytest
import torch


@pytest.fixture
def one_thread():
    """Numbers that do not depend on how many cores there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
