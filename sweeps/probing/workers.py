"""The workers of a command that searches nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sweeps import cli
from sweeps.cluster.pool import Pool
from sweeps.cluster.session import check_cluster, ray_session
from sweeps.flags import ModelAndData
from sweeps.probing.source import FeatureSource


@contextmanager
def open_pool(config: ModelAndData, source: FeatureSource, folder: Path) -> Iterator[Pool]:
    """A pool on a running cluster until the block ends; folder and store are made, and found to be writable, first."""
    check_cluster()
    cli.check_writable(folder, source.store)
    with ray_session(), Pool(source.settings.device, config.gpus_per_extractor) as pool:
        yield pool
