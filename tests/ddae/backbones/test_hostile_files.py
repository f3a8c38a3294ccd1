"""Nothing in a file of weights runs, and none takes time or memory without end."""

import contextlib
import json
import os
import pickle
import sys
import zipfile
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file

from tests.ddae.backbones.weights import STATE, assert_refused, saved


class Calls:
    """Pickled as a call, as every object is whose unpickling runs code."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


HOSTILE = {
    "os.system": lambda ran: Calls(os.system, f"touch {ran}"),
    "eval": lambda ran: Calls(eval, f"open({str(ran)!r}, 'w')"),
    "exec": lambda ran: Calls(exec, f"open({str(ran)!r}, 'w')"),
    "open": lambda ran: Calls(open, str(ran), "w"),
    "in a list": lambda ran: [OrderedDict(a=Calls(os.system, f"touch {ran}"))],
    "in a storage": lambda ran: Calls(
        torch.storage._load_from_bytes, saved(Calls(os.system, f"touch {ran}"), _use_new_zipfile_serialization=False)
    ),
    "in a zipped storage": lambda ran: Calls(torch.storage._load_from_bytes, saved(Calls(os.system, f"touch {ran}"))),
    "as arguments of a module": lambda ran: Calls(torch.nn.ModuleDict, {"a": Calls(os.system, f"touch {ran}")}),
}


@pytest.mark.parametrize("attack", HOSTILE)
@pytest.mark.parametrize("suffix", [".pkl", ".pt"])
def test_nothing_in_a_hostile_file_runs(attack, suffix, tmp_path):
    ran = tmp_path / "ran"
    data = {"ema": {"stem.weight": STATE["stem.weight"], "stem.bias": HOSTILE[attack](ran)}}
    write = {".pkl": pickle.dumps, ".pt": saved}[suffix]
    (tmp_path / f"model{suffix}").write_bytes(write(data))
    assert_refused(tmp_path / f"model{suffix}", ran, "asks for .* state_dict")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_no_protocol_of_pickle_gets_around(protocol, tmp_path):
    ran = tmp_path / "ran"
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"ema": Calls(os.system, f"touch {ran}")}, protocol))
    assert_refused(tmp_path / "model.pkl", ran, r"asks for (posix|nt)\.system")


@pytest.mark.parametrize(
    ("opcodes", "match"),
    [
        (b"(S'touch {ran}'\nios\nsystem\n.", "asks for os.system"),
        (b"(cos\nsystem\nS'touch {ran}'\no.", "asks for os.system"),
        (b"ctorch\nhub.load\n.", "asks for torch.hub.load"),
        (b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.__init__\x93.", r"asks for collections.OrderedDict.__init__"),
        (b"Pnetwork\n.", "damaged"),
        (b"\x82\x01.", "damaged"),
    ],
    ids=["INST", "OBJ", "GLOBAL with a dot", "STACK_GLOBAL with a dot", "PERSID", "EXT1"],
)
def test_no_opcode_of_pickle_gets_around(opcodes, match, tmp_path):
    ran = tmp_path / "ran"
    (tmp_path / "model.pkl").write_bytes(opcodes.replace(b"{ran}", os.fsencode(ran)))
    assert_refused(tmp_path / "model.pkl", ran, match)


def test_an_inert_class_takes_arguments_and_does_nothing(tmp_path):
    ran = tmp_path / "ran"
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"ema": Calls(torch.nn.ModuleDict, [["a", "b"]])}))
    assert_refused(tmp_path / "model.pkl", ran)


def test_whole_modules_are_refused_with_what_to_do(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pt")
    assert_refused(
        tmp_path / "model.pt", tmp_path / "ran", r"asks for torch\.nn\.modules\.linear\.Linear.* save the state_dict"
    )


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".pkl"])
@pytest.mark.parametrize("damage", ["cut", "empty", "garbage"])
def test_damaged_files_are_refused(suffix, damage, tmp_path):
    path = tmp_path / f"model{suffix}"
    if suffix == ".safetensors":
        save_file(STATE, path)
    elif suffix == ".pkl":
        path.write_bytes(pickle.dumps({"ema": STATE}))
    else:
        torch.save({"ema": STATE}, path)
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "garbage": b"hello world" * 9}[damage])
    assert_refused(path, tmp_path / "ran", "damaged, cut short")


def bomb(kind):
    """Small files that would take memory or time without end."""
    if kind == "lists in lists":
        data = [STATE]
        for _ in range(40):
            data = [data, data]
        return data
    if kind == "dictionaries in dictionaries":
        data = {"ema": STATE}
        for _ in range(10_000):
            data = {"model": data}
        return data
    if kind == "a list that holds itself":
        data = [STATE]
        data.append(data)
        return data
    if kind == "a key of tuples":
        key = ()
        for _ in range(60):
            key = (key, key)
        return Raw({"ema": STATE, "x": key})
    if kind == "one number seen as many":
        return {"ema": {"stem.weight": torch.ones(1).expand(10**6, 10**7)}}
    if kind == "one storage a million times":
        big = torch.ones(10**5)
        return {"ema": {f"a{i}.weight": big for i in range(10**4)}}
    if kind == "sparse":
        return {
            "ema": {"stem.weight": torch.sparse_coo_tensor(torch.zeros(2, 1).long(), torch.ones(1), (10**9, 10**9))}
        }
    if kind == "bytes of a number":
        return {"ema": {"stem.weight": torch.ones(2), "x": Calls(bytearray, 10**11)}}
    raise ValueError(kind)


class Raw:
    """A dictionary {tuple: 1}, whose hash is taken where it is read and not where it is written."""

    def __init__(self, data):
        self.data = data

    def __reduce__(self):
        return OrderedDict, ([[self.data["x"], 1]],)


BOMBS = [
    "lists in lists", "dictionaries in dictionaries", "a list that holds itself", "a key of tuples",
    "one number seen as many", "one storage a million times", "sparse",
    "bytes of a number",
]  # fmt: skip


@pytest.mark.parametrize("kind", BOMBS)
@pytest.mark.parametrize("suffix", [".pt", ".pkl", "legacy.pt"])
def test_no_file_takes_time_or_memory_without_end(kind, suffix, tmp_path):
    path = tmp_path / f"model{suffix}"
    with deep_recursion():
        if suffix == ".pkl":
            path.write_bytes(pickle.dumps(bomb(kind)))
        else:
            torch.save(bomb(kind), path, _use_new_zipfile_serialization=suffix == ".pt")
    assert_refused(path, tmp_path / "ran", "damaged|asks for|holds no tensors")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_storage_inside_a_pickle_is_no_way_around(zipped, tmp_path):
    content = saved(Calls(bytearray, 10**11), _use_new_zipfile_serialization=zipped)
    data = {"ema": {"stem.weight": Calls(torch.storage._load_from_bytes, content)}}
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(data))
    assert_refused(tmp_path / "model.pkl", tmp_path / "ran", "damaged")


@contextlib.contextmanager
def deep_recursion():
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(200_000)
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


def test_a_place_far_out_in_a_pickles_table_costs_nothing(tmp_path):
    (tmp_path / "model.pkl").write_bytes(b"\x80\x02}r\xff\xff\xff\xff.")
    assert_refused(tmp_path / "model.pkl", tmp_path / "ran", "holds no tensors")


def test_a_zip_that_unpacks_to_more_is_refused(tmp_path):
    torch.save({"ema": {"stem.weight": torch.zeros(10**7)}}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "model.pt", "w") as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name), zipfile.ZIP_DEFLATED)
    assert_refused(tmp_path / "model.pt", tmp_path / "ran", "unpacks to 400.* bytes")


@pytest.mark.parametrize("storage", [[0, 10**12], [0, 8], [8, 0], [0, 2**63]])
@pytest.mark.parametrize("shape", [[10**9, 250], [2], [-2], [2**62, 2**62]])
def test_headers_of_safetensors_that_lie_are_refused(storage, shape, tmp_path):
    header = json.dumps({"stem.weight": {"dtype": "F32", "shape": shape, "data_offsets": storage}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    assert_refused(tmp_path / "model.safetensors", tmp_path / "ran", "damaged")


@pytest.mark.parametrize("length", [2**63 - 1, 10**12, 10**8])
def test_a_header_of_safetensors_cannot_be_longer_than_its_file(length, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(length.to_bytes(8, "little") + b"{}")
    assert_refused(tmp_path / "model.safetensors", tmp_path / "ran", "damaged")
