import pytest

from storage.checkpoints import StoredCheckpoint

KEY = "ab" * 16
STATE = bytes(range(256)) * 40


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def damaged(data, how):
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    return {"flip": bytes(flipped), "truncate": data[: len(data) // 2], "short": data[:7], "empty": b""}[how]


def test_what_was_saved_last_is_loaded(tmp_path):
    checkpoint = StoredCheckpoint(tmp_path, KEY)
    assert checkpoint.load() is None
    for state in (STATE, b"", STATE[:100]):
        checkpoint.save(state)
        assert StoredCheckpoint(str(tmp_path), KEY).load() == state
    assert StoredCheckpoint(tmp_path, "cd" * 16).load() is None
    assert len(files(tmp_path)) == 1


@pytest.mark.parametrize("how", ["flip", "truncate", "short", "empty"])
def test_a_damaged_checkpoint_is_named_and_none(tmp_path, how, caplog):
    checkpoint = StoredCheckpoint(tmp_path, KEY)
    checkpoint.save(STATE)
    [path] = files(tmp_path)
    path.write_bytes(damaged(path.read_bytes(), how))
    assert checkpoint.load() is None
    assert caplog.messages == [f"damaged checkpoint {path}; the trial begins again"]
    checkpoint.save(STATE)
    assert checkpoint.load() == STATE


def test_a_save_that_fails_leaves_the_one_before(tmp_path, monkeypatch):
    checkpoint = StoredCheckpoint(tmp_path, KEY)
    checkpoint.save(STATE)
    with monkeypatch.context() as patched:
        patched.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("No space left on device")))
        with pytest.raises(OSError, match="No space left"):
            checkpoint.save(b"newer")
    assert checkpoint.load() == STATE
    assert len(files(tmp_path)) == 1


def test_at_an_address_another_machine_goes_on_and_this_one_keeps_nothing(address, node, tmp_path):
    node("one")
    checkpoint = StoredCheckpoint(address, KEY)
    assert checkpoint.load() is None
    for state in (STATE, STATE[:100]):
        checkpoint.save(state)
        node("two")
        assert StoredCheckpoint(address, KEY).load() == state
    assert files(tmp_path / "one") == files(tmp_path / "two") == []


def test_damage_at_an_address_is_named_and_none(address, node, tmp_path, caplog):
    node("one")
    checkpoint = StoredCheckpoint(address, KEY)
    checkpoint.save(STATE)
    broken = tmp_path / "broken"
    broken.write_bytes(damaged(checkpoint.remote.read(checkpoint.name).to_pybytes(), "flip"))
    checkpoint.remote.put(checkpoint.name, broken)
    assert checkpoint.load() is None
    assert caplog.messages == [
        f"damaged checkpoint {checkpoint.name} of {checkpoint.remote.address}; the trial begins again"
    ]
