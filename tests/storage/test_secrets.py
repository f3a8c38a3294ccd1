import sys
from io import StringIO

import pytest

from storage.secrets import discreet, hidden


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:hush@host:5000/x", "http://host:5000/x"),
        (
            "request to https://me:hu@sh@host/api, then https://host/b",
            "request to https://host/api, then https://host/b",
        ),
        (
            "postgresql+psycopg://me:hush@host/db?sslpassword=hush&x=1",
            "postgresql+psycopg://host/db?sslpassword=***&x=1",
        ),
        ("s3://AKIA:hu/sh+x@bucket/folder", "s3://bucket/folder"),
        ("dsn 'host=h password=hush user=me'", "dsn 'host=h password=*** user=me'"),
        ("https://a.blob/x?sv=1&sig=hush", "https://a.blob/x?sv=1&sig=***"),
        ("http://127.0.0.1:5000/#/runs?viewStateShareKey=c51a79db", None),
        ("abfss://container@account.dfs.core.windows.net/x", None),
        ("sqlite:////home/me@corp/mlflow.db", None),
        ("owner/model@revision and http://host:5000/a@b", None),
        ("block=mid, key 'x' of ray://10.0.0.1:10001", None),
    ],
)
def test_addresses_show_no_password(text, shown):
    assert hidden(text) == (text if shown is None else shown)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("MLFLOW_TRACKING_PASSWORD", "hush", "wrong password hush"),
        ("AWS_SECRET_ACCESS_KEY", "hu/sh", "key hu%2Fsh"),
        ("HF_TOKEN", "hf_hush", "Bearer hf_hush"),
        ("MLFLOW_TRACKING_URI", "http://me:hush@host", "nonnumeric port: 'hush@host'"),
        ("MLFLOW_TRACKING_URI", "http://me:hu%40sh@host", "user me, hu@sh"),
        ("https_proxy", "http://me:hush@proxy:3128", "Proxy-Authorization: Basic bWU6aHVzaA=="),
        ("RAY_ADDRESS", "ray://me:hush@head:10001", "no hush at head"),
    ],
)
def test_what_the_environment_keeps_secret_stands_nowhere(name, value, said, monkeypatch):
    monkeypatch.setenv(name, value)
    assert hidden(said) != said and "***" in hidden(said)
    assert not {"hush", "hu%2Fsh", "hu@sh", "bWU6aHVzaA=="} & set(
        hidden(said).replace("'", " ").replace("@", " ").split()
    )


def test_a_flag_that_is_cut_in_two_shows_none(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["layer_noise.py", "--backbone", "http://me:hush@host/x"])
    assert hidden("backbone 'http://me:hush' at revision 'host/x'") == "backbone 'http://me:***' at revision 'host/x'"


def test_a_name_stays_in_paths_and_a_token_goes(monkeypatch):
    monkeypatch.setenv("SOME_URL", "ssh://root@host/x")
    assert hidden("/root/out") == "/root/out"
    monkeypatch.setenv("SOME_URL", "https://ghp_0123456789abcdef@host/x")
    assert hidden("token ghp_0123456789abcdef") == "token ***"


def test_nothing_that_is_printed_shows_one(monkeypatch):
    streams = StringIO(), StringIO()
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    with discreet():
        print("http://me:hush@host")
        sys.stderr.writelines(["a\n", "http://me:hush@host\n"])
    assert streams[0].getvalue() == "http://host\n" and streams[1].getvalue() == "a\nhttp://host\n"
