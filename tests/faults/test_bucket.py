"""A sweep whose store is a bucket of a real S3 server, which goes away in the middle."""

import pytest

from tests.commands import PATIENCE_SECONDS, ray_of_one_cpu, wait_for
from tests.faults.sweeps import SMALL, finish, table


@pytest.mark.slow
def test_a_sweep_from_a_bucket(bucket, begin, tiny_model, tmp_path):
    flags = "--backbone", tiny_model, *SMALL, "--store", bucket.address
    folder, one, two = (tmp_path / name for name in ("folder", "one", "two"))
    for node in (folder, one, two):
        node.mkdir()
    process = begin(cwd=folder)
    with ray_of_one_cpu(XDG_CACHE_HOME=str(one / "cache")) as start:
        finish(process)
        process = start("layer_noise", *flags, cwd=one)
        assert wait_for(lambda: bucket.asked("PUT", ".arrow"), process)
        bucket.close()
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == 2 and out == "" and "Traceback" not in err, err
        last = err.splitlines()[-1]
        assert last.startswith(f"error: store='{bucket.address}") and last.endswith("and the same command goes on")

        bucket.open()
        before = len(bucket.asked("PUT", ".arrow"))
        finish(start("layer_noise", *flags, cwd=one))
        assert len(bucket.asked("PUT", ".arrow")) > before
        assert table(one) == table(folder)

    bucket.seen.clear()
    with ray_of_one_cpu(XDG_CACHE_HOME=str(two / "cache")) as start:
        assert "all of it was in the store" in finish(start("layer_noise", *flags, cwd=two))
    assert table(two) == table(folder)
    assert bucket.asked("PUT", ".arrow") == []
    assert len(set(bucket.asked("GET", ".arrow"))) == len(bucket.asked("GET", ".arrow"))
