"""Average pooling of square maps, such that coarse grids follow exactly from the finest stored one."""

from torch import Tensor
from torch.nn import functional


def stored_grid(size: int, pooling: int) -> int:
    """Choose the grid to store of a size x size map so that every grid up to `pooling` can be derived from it.

    Averages of averages are exact only if the windows nest; if they do not, the whole map is kept.
    """
    return pooling if size > pooling and size % pooling == 0 else size


def pool(features: Tensor, grid: int) -> Tensor:
    """Average-pool [N, C, S, S] to [N, C, grid, grid], adaptively if grid does not divide S."""
    size = features.shape[-1]
    if size == grid:
        return features
    if size % grid:
        return functional.adaptive_avg_pool2d(features, grid)
    return functional.avg_pool2d(features, size // grid)  # the same windows, faster
