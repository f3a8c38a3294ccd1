import pytest

from storage.ledger import Ledger, content_key


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path)


def test_records_outlive_the_process_that_wrote_them(ledger):
    key = content_key(cell="mid/0/1/linear", num_images=300)
    assert ledger.get(key) is None
    ledger.put(key, {"val_accuracy": 0.5})
    assert Ledger(ledger.root).get(key) == {"val_accuracy": 0.5}


def test_keys_follow_content_not_order():
    assert content_key(a=1, b=[2, "x"]) == content_key(b=[2, "x"], a=1)
    assert content_key(a=1) != content_key(a=2)


def test_a_damaged_record_is_made_again(ledger):
    key = content_key(a=1)
    ledger.put(key, {"x": 1})
    next(ledger.root.rglob("*.json")).write_bytes(b'{"x": ')
    assert ledger.get(key) is None
    ledger.put(key, {"x": 2})
    assert ledger.get(key) == {"x": 2}
