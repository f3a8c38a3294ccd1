"""A sweep whose store is a bucket of a real S3 server, which goes away in the middle."""


def test_a_sweep_from_a_bucket(bucket, start, sweep, tmp_path):
    def run(node, *args):
        (tmp_path / node).mkdir(exist_ok=True)
        return start(*args, cwd=tmp_path / node, XDG_CACHE_HOME=str(tmp_path / node / "cache"))

    flags = "--store", bucket.address
    folder, process = run("folder"), run("one", *flags)
    assert sweep.wait_for(lambda: bucket.asked("PUT", ".arrow"), process)
    bucket.close()
    out, err = process.communicate(timeout=200)
    assert process.returncode == 2 and out == "" and "Traceback" not in err, err
    sweep.finish(folder)
    last = err.splitlines()[-1]
    assert last.startswith(f"error: store='{bucket.address}") and last.endswith("and the same command goes on")

    bucket.open()
    before = len(bucket.asked("PUT", ".arrow"))
    sweep.finish(run("one", *flags))
    written = bucket.asked("PUT", ".arrow")
    assert len(written) > before
    assert sweep.table(tmp_path / "one") == sweep.table(tmp_path / "folder")

    bucket.seen.clear()
    report = sweep.finish(run("two", *flags))
    assert "all of it was in the store" in report
    assert sweep.table(tmp_path / "two") == sweep.table(tmp_path / "folder")
    assert bucket.asked("PUT", ".arrow") == []
    assert len(set(bucket.asked("GET", ".arrow"))) == len(bucket.asked("GET", ".arrow"))
