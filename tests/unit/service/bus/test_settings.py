"""The environment and the contexts of the nats command, and what they come to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from service.bus.errors import BadBusSettings
from service.bus.settings import NatsSettings


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / ".config" / "nats" / "context").mkdir(parents=True)
    return tmp_path


def read(home: Path, **environ: str) -> NatsSettings:
    return NatsSettings.from_env({"HOME": str(home), **environ})


def context(home: Path, name: str, content: Any, *, select: bool = False) -> None:
    root = home / ".config" / "nats"
    text = content if isinstance(content, str) else json.dumps(content)
    (root / "context" / f"{name}.json").write_text(text)
    if select:
        (root / "context.txt").write_text(f"{name}\n")


def secret(value: Any) -> str | None:
    return value and value.get_secret_value()


class TestVariables:
    def test_nothing_set_is_the_local_server_without_credentials(self, home: Path) -> None:
        assert read(home) == NatsSettings()
        assert NatsSettings().url == "nats://127.0.0.1:4222"

    def test_each_variable_has_its_field(self, home: Path) -> None:
        settings = read(
            home,
            NATS_URL="nats://a:1,b",
            NATS_USER="u",
            NATS_PASSWORD="p",
            NATS_CA="/ca.pem",
            NATS_CERT="~/cert.pem",
            NATS_KEY="key.pem",
            NATS_TLS_FIRST="true",
            NATS_INBOX_PREFIX="_INBOX_worker",
        )
        assert settings.servers == ["nats://a:1", "nats://b:4222"]
        assert (settings.user, secret(settings.password)) == ("u", "p")
        assert (settings.ca, settings.cert, settings.key) == (Path("/ca.pem"), home / "cert.pem", Path("key.pem"))
        assert settings.tls_first
        assert settings.inbox_prefix == "_INBOX_worker"

    def test_files_of_keys(self, home: Path) -> None:
        assert read(home, NATS_CREDS="~/u.creds").creds == home / "u.creds"
        assert read(home, NATS_NKEY="/u.nk").nkey == Path("/u.nk")
        assert secret(read(home, NATS_TOKEN="t").token) == "t"

    def test_a_user_without_a_password_is_a_token(self, home: Path) -> None:
        settings = read(home, NATS_USER="t")
        assert (settings.user, secret(settings.token)) == (None, "t")

    def test_an_empty_variable_is_none(self, home: Path) -> None:
        assert read(home, NATS_URL="", NATS_USER="", NATS_CONTEXT="") == NatsSettings()

    def test_what_the_caller_fixes_wins(self, home: Path) -> None:
        settings = NatsSettings.from_env({"HOME": str(home), "NATS_URL": "a"}, name="n", url="b")
        assert (settings.name, settings.url) == ("n", "nats://b:4222")

    @pytest.mark.parametrize(
        ("environ", "part"),
        [
            ({"NATS_URL": "ws://u:hunter2@h"}, "nats:// or tls://"),
            ({"NATS_URL": "nats://u:hunter2@h:99999"}, "ort"),
            ({"NATS_URL": "nats://u:hunter2@"}, "needs a host"),
            ({"NATS_URL": "nats://u:hunter2@h:x"}, "ort"),
            ({"NATS_URL": "nats://u:hunter2@h:0"}, "port 0"),
            ({"NATS_URL": "nats://u:hunter2@a,h:0"}, "port 0"),
            ({"NATS_URL": "nats://u:hunter2@a b"}, "white space"),
            ({"NATS_URL": "nats://u:hunter2@a\tb:1"}, "white space"),
            ({"NATS_URL": "a b"}, "white space"),
            ({"NATS_PASSWORD": "hunter2"}, "user and password go together"),
            ({"NATS_CERT": "c"}, "cert and key go together"),
            ({"NATS_INBOX_PREFIX": "a.>"}, "inbox_prefix"),
            ({"NATS_TLS_FIRST": "hunter2"}, "tls_first"),
        ],
    )
    def test_what_cannot_be_meant_is_named_and_no_secret_is(
        self, home: Path, environ: dict[str, str], part: str
    ) -> None:
        with pytest.raises(BadBusSettings) as raised:
            read(home, **environ)
        assert part in str(raised.value)
        assert "hunter2" not in str(raised.value)


class TestContexts:
    def test_a_named_context(self, home: Path) -> None:
        content = {
            "description": "ours",
            "url": "tls://h:1",
            "user": "u",
            "password": "p",
            "ca": "~/ca.pem",
            "jetstream_domain": "hub",
            "inbox_prefix": "_INBOX_u",
            "tls_first": True,
            "nsc": "",
            "token": "",
        }
        context(home, "ours", content)
        settings = read(home, NATS_CONTEXT="ours")
        assert (settings.context, settings.url, settings.user) == ("ours", "tls://h:1", "u")
        assert (settings.ca, settings.jetstream_domain) == (home / "ca.pem", "hub")
        assert (settings.inbox_prefix, settings.tls_first) == ("_INBOX_u", True)

    def test_the_selected_context_counts_if_none_is_named(self, home: Path) -> None:
        context(home, "selected", {"url": "a"}, select=True)
        context(home, "named", {"url": "b"})
        assert read(home).context == "selected"
        assert read(home, NATS_CONTEXT="named").url == "nats://b:4222"

    def test_the_folder_can_be_elsewhere(self, home: Path) -> None:
        context(home, "named", {"url": "b"})
        found = NatsSettings.from_env({"XDG_CONFIG_HOME": str(home / ".config"), "NATS_CONTEXT": "named"})
        assert found.context == "named"

    def test_variables_win_over_the_context(self, home: Path) -> None:
        context(home, "c", {"url": "a", "ca": "/a.pem"}, select=True)
        settings = read(home, NATS_URL="b")
        assert (settings.url, settings.ca) == ("nats://b:4222", Path("/a.pem"))

    @pytest.mark.parametrize(
        "environ",
        [{"NATS_TOKEN": "t"}, {"NATS_USER": "t"}, {"NATS_URL": "nats://t@a"}],
    )
    def test_an_identity_in_the_environment_replaces_that_of_the_context(
        self, home: Path, environ: dict[str, str]
    ) -> None:
        context(home, "c", {"url": "a", "user": "u", "password": "p", "creds": "/x.creds"}, select=True)
        settings = read(home, **environ)
        assert secret(settings.token) == "t"
        assert (settings.user, settings.password, settings.creds) == (None, None, None)

    @pytest.mark.parametrize(
        ("name", "content", "part"),
        [
            ("missing", None, "no context 'missing'"),
            ("../missing", None, "not the name of a context"),
            ("broken", '{"password": "hunter2"', "cannot be read"),
            ("list", ["hunter2"], "JSON object"),
            ("nsc", {"nsc": "nsc://hunter2"}, "'nsc' is not supported"),
            ("port", {"url": "nats://u:hunter2@h:x"}, "ort"),
        ],
    )
    def test_an_unusable_context_is_named(self, home: Path, name: str, content: Any, part: str) -> None:
        if content is not None:
            context(home, name, content)
        with pytest.raises(BadBusSettings) as raised:
            read(home, NATS_CONTEXT=name)
        assert part in str(raised.value)
        assert "hunter2" not in str(raised.value)

    def test_a_selection_that_cannot_be_read_is_named_and_matters_only_where_it_counts(self, home: Path) -> None:
        selected = home / ".config" / "nats" / "context.txt"
        context(home, "named", {"url": "b"})
        selected.write_bytes(b"\xff\xfe")
        with pytest.raises(BadBusSettings, match=r"context\.txt"):
            read(home, NATS_URL="a")
        assert read(home, NATS_CONTEXT="named").url == "nats://b:4222"
        selected.unlink()
        selected.mkdir()
        with pytest.raises(BadBusSettings, match=r"context\.txt"):
            read(home)
        assert read(home, NATS_CONTEXT="named").url == "nats://b:4222"

    def test_a_home_that_is_no_folder_selects_nothing(self) -> None:
        assert read(Path("/dev/null")) == NatsSettings()


class TestUrl:
    def test_secrets_leave_the_url(self) -> None:
        settings = NatsSettings(url="nats://u:p%40%2Fs@h:1, h2 ,tls://[::1]:3")
        assert settings.url == "nats://h:1,nats://h2:4222,tls://[::1]:3"
        assert (settings.user, secret(settings.password)) == ("u", "p@/s")

    def test_a_user_alone_is_a_token(self) -> None:
        settings = NatsSettings(url="t@h")
        assert (settings.url, secret(settings.token)) == ("nats://h:4222", "t")

    def test_what_is_said_apart_wins_over_the_url(self) -> None:
        settings = NatsSettings(url="nats://u:p@h", token="t")
        assert (settings.user, secret(settings.token)) == (None, "t")

    def test_no_text_form_shows_a_secret(self) -> None:
        settings = NatsSettings(url="nats://u:hunter2@h")
        assert "hunter2" not in repr(settings) + str(settings) + settings.model_dump_json() + settings.identity

    @given(st.text())
    def test_any_text_is_a_url_or_refused(self, text: str) -> None:
        try:
            settings = NatsSettings(url=text)
        except ValidationError:
            return
        assert "@" not in settings.url
        assert NatsSettings(url=settings.url).url == settings.url

    @pytest.mark.parametrize(
        ("fields", "wanted"),
        [
            ({}, False),
            ({"url": "tls://h"}, True),
            ({"ca": "/ca.pem"}, True),
            ({"cert": "/c", "key": "/k"}, True),
            ({"tls_first": True}, True),
        ],
    )
    def test_whatever_speaks_of_tls_demands_it(self, fields: dict[str, Any], wanted: bool) -> None:
        assert NatsSettings(**fields).wants_tls is wanted
