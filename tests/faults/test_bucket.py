"""A sweep whose store is a bucket of a real S3 server, which goes away in the middle."""

from tests.commands import start
from tests.faults.sweeps import SMALL, finish, table, wait_for


def test_a_sweep_from_a_bucket(bucket, begin, tiny_model, tmp_path):
    for node in ("folder", "one", "two"):
        (tmp_path / node).mkdir()

    def run(node):
        flags = "--backbone", tiny_model, *SMALL, "--store", bucket.address
        return start("layer_noise", *flags, cwd=tmp_path / node, XDG_CACHE_HOME=str(tmp_path / node / "cache"))

    folder, process = begin(cwd=tmp_path / "folder"), run("one")
    assert wait_for(lambda: bucket.asked("PUT", ".arrow"), process)
    bucket.close()
    out, err = process.communicate(timeout=200)
    assert process.returncode == 2 and out == "" and "Traceback" not in err, err
    finish(folder)
    last = err.splitlines()[-1]
    assert last.startswith(f"error: store='{bucket.address}") and last.endswith("and the same command goes on")

    bucket.open()
    before = len(bucket.asked("PUT", ".arrow"))
    finish(run("one"))
    written = bucket.asked("PUT", ".arrow")
    assert len(written) > before
    assert table(tmp_path / "one") == table(tmp_path / "folder")

    bucket.seen.clear()
    report = finish(run("two"))
    assert "all of it was in the store" in report
    assert table(tmp_path / "two") == table(tmp_path / "folder")
    assert bucket.asked("PUT", ".arrow") == []
    assert len(set(bucket.asked("GET", ".arrow"))) == len(bucket.asked("GET", ".arrow"))
