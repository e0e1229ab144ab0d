"""Settings: what wins over what, what is refused, and that the printed file gives them back."""

import math
import os
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as checks
from hypothesis import strategies as st
from nats_server import CONF

from service.settings import BadSettings, read_settings
from service.settings.toml import as_toml

ODD_TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
PLAIN = st.booleans() | st.integers(-(2**63), 2**63 - 1) | ODD_TEXT
FREE_FIELDS = st.dictionaries(
    ODD_TEXT, PLAIN | st.lists(PLAIN, max_size=2) | st.dictionaries(ODD_TEXT, PLAIN, max_size=2), max_size=3
)
"""What a setting that is a dictionary may hold."""


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch, tmp_path):
    """No variable and no settings file of the person who runs the tests."""
    for name in [name for name in os.environ if name.startswith("MLBUS_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def written(text: str) -> Path:
    path = Path("written.toml")
    path.write_text(text, "utf-8", newline="")
    return path


def test_flags_win_over_variables_over_the_file(monkeypatch):
    path = written('device = "cuda"\ndtype = "bf16"\nthreads = 3\n')
    monkeypatch.setenv("MLBUS_DTYPE", "fp32")
    monkeypatch.setenv("MLBUS_THREADS", "2")
    settings = read_settings(path, threads=1, data_dir=None)
    assert (settings.device, settings.dtype, settings.threads) == ("cuda", "fp32", 1)
    assert settings.data_dir == Path("var")


def test_the_file_in_the_working_directory_is_read_without_being_named():
    Path("mlbus.toml").write_text("threads = 7\n")
    assert read_settings().threads == 7


def test_the_variable_that_names_the_file_is_heeded(monkeypatch):
    monkeypatch.setenv("MLBUS_CONFIG", str(written("threads = 7\n")))
    assert read_settings().threads == 7


def test_models_and_tables_come_from_variables(monkeypatch):
    monkeypatch.setenv("MLBUS_MODELS", "minilm, mine")
    monkeypatch.setenv("MLBUS_LIMITS__REQUESTS", "5")
    settings = read_settings()
    assert settings.models == ("minilm", "mine")
    assert settings.limits.requests == 5


def test_a_model_named_twice_is_taken_once(monkeypatch):
    assert read_settings(models=("b", "a", "b")).models == ("b", "a")
    monkeypatch.setenv("MLBUS_MODELS", "a,b, a")
    assert read_settings().models == ("a", "b")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('device = "gpu"', "device"),
        ("threads = 0", "threads"),
        ("models = []", "models"),
        ("[limits]\nrequests = 0", r"limits\.requests"),
        ("[limits]\ndefault_timeout_s = 901", r"limits\.default_timeout_s.* 900"),
        ("[limits]\ndefault_timeout_s = inf", r"limits\.default_timeout_s"),
        ("divice = 1", "unknown setting divice; did you mean device"),
        ("[limits]\nrequest = 1", r"unknown setting limits\.request; did you mean limits\.requests"),
        ("threads =", "written.toml is not a TOML file"),
        ("threads = 1\nthreads = 2", "written.toml is not a TOML file"),
    ],
)
def test_what_cannot_be_used_is_named(text, told):
    with pytest.raises(BadSettings, match=told):
        read_settings(written(text))


def test_a_file_that_is_not_there_or_not_text_is_named(tmp_path):
    with pytest.raises(BadSettings, match=r"nowhere\.toml"):
        read_settings(Path("nowhere.toml"))
    Path("binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(BadSettings, match=r"binary\.toml"):
        read_settings(Path("binary.toml"))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("MLBUS_MODEL", "unknown variable MLBUS_MODEL; did you mean MLBUS_MODELS"),
        ("MLBUS_QQQQQ", "unknown variable MLBUS_QQQQQ$"),
        ("MLBUS_THREADS", "threads"),
        ("MLBUS_LIMITS", "MLBUS_"),
    ],
)
def test_a_variable_that_cannot_be_used_is_named(monkeypatch, name, told):
    monkeypatch.setenv(name, "{")
    with pytest.raises(BadSettings, match=told):
        read_settings()


@pytest.mark.parametrize(
    ("file", "variables", "flags", "embedded", "url"),
    [
        ("embedded_nats = true", {}, {}, True, None),
        ("embedded_nats = true", {"NATS_URL": "a"}, {}, False, None),
        ("embedded_nats = true", {"MLBUS_NATS_URL": "b"}, {}, False, "b"),
        ("embedded_nats = true", {}, {"nats_url": "c"}, False, "c"),
        ('nats_url = "d"', {"MLBUS_EMBEDDED_NATS": "1"}, {}, False, "d"),
        ("", {"MLBUS_EMBEDDED_NATS": "1", "NATS_URL": "a"}, {}, False, None),
        ("", {"NATS_URL": "a"}, {"embedded_nats": True, "nats_port": 4333}, True, None),
        ('nats_url = "d"', {"MLBUS_NATS_URL": "b", "NATS_URL": "a"}, {"embedded_nats": True}, True, None),
        ("embedded_nats = true", {}, {"embedded_nats": False}, False, None),
        ("", {}, {"embedded_nats": False, "nats_url": "c"}, False, "c"),
    ],
)
def test_a_server_is_started_or_joined(monkeypatch, file, variables, flags, embedded, url):
    """`--embedded-nats` wins over every server named elsewhere; as a setting it gives way to each."""
    monkeypatch.delenv("NATS_URL", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    settings = read_settings(written(file), **flags)
    assert (settings.embedded_nats, settings.nats_url) == (embedded, url)


def test_what_the_server_reads_is_no_setting_and_no_mistake(monkeypatch):
    for name in re.findall(r"\$(MLBUS_\w+)", CONF.read_text("utf-8")):
        monkeypatch.setenv(name, "secret")
    assert "secret" not in as_toml(read_settings(data_dir=Path("var")))


def test_the_defaults_are_given_back():
    assert read_settings(written(as_toml(read_settings()))).model_dump() == read_settings().model_dump()


def test_options_of_the_nightly_training_are_given_back():
    options = {"epochs": 2, "lora": {"rank": 8}}
    settings = read_settings(finetune={"nightly": {"options": options}})
    printed = as_toml(settings)
    assert "\n[finetune.nightly.options]\nepochs = 2\nlora = { rank = 8 }\n" in printed
    assert read_settings(written(printed)).finetune.nightly.options == options


@checks(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    flags=st.fixed_dictionaries(
        {},
        optional={
            "nats_url": ODD_TEXT,
            "threads": st.integers(1, 1024),
            "data_dir": ODD_TEXT.filter(lambda text: "\0" not in text).map(Path),
            "models": st.lists(ODD_TEXT, min_size=1, max_size=3).map(tuple),
            "grace_s": st.floats(0, math.inf, allow_nan=False),
            "limits": st.fixed_dictionaries({"requests": st.integers(1, 10**9)}),
            "batch": st.fixed_dictionaries({"overhead_tokens": st.integers(0, 9)}),
            "catalogue": st.dictionaries(ODD_TEXT, FREE_FIELDS, max_size=2),
            "finetune": st.fixed_dictionaries({"nightly": st.fixed_dictionaries({"options": FREE_FIELDS})}),
        },
    )
)
def test_what_is_printed_gives_the_same_settings(flags):
    settings = read_settings(**flags)
    assert read_settings(written(as_toml(settings))).model_dump() == settings.model_dump()
