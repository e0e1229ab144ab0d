"""Which reply subjects are answered, and which may be set."""

import pytest
from nats.aio.msg import Msg
from pydantic import ValidationError

from service.endpoint.reply_subject import PREFIXES, ReplySubjects
from service.settings import Settings

OURS = ReplySubjects(PREFIXES)


@pytest.mark.parametrize(
    "reply", ["_INBOX.x", "_INBOX_ml.client.x.y", "_INBOX_ml.admin.x", "_INBOX_ml.worker.x", "_R_.x.1", "ml.watch.x"]
)
def test_inboxes_and_what_many_watch_are(reply: str) -> None:
    assert OURS.allow(reply)


@pytest.mark.parametrize(
    "reply",
    [
        *("", ".x", "_INBOX", "_INBOX.", "_INBOX.x.", "_INBOX.>", "_INBOX.*.x", "_INBOXES.x", "_INBOX_worker.x"),
        *("$JS.API.STREAM.DELETE.ML_JOBS", "$KV.ml_jobs.j1", "$SYS.x", "$SRV.PING"),
        *("ml", "ml.models.unload", "ml.watch", "ml.watching.x", "watch.this", "_INBOX.x\r\nPUB a 0"),
        "_INBOX." + "é" * 512,
    ],
)
def test_all_others_are_not(reply: str) -> None:
    assert not OURS.allow(reply)


def test_what_is_refused_is_told() -> None:
    told: list[bool] = []
    replies = ReplySubjects(["_INBOX_ml"], lambda: told.append(True))
    assert replies.admit(Msg(None, "ml.embed", "_INBOX_ml.x"))
    assert not replies.admit(Msg(None, "ml.embed", "_INBOX.x"))
    assert not replies.admit(Msg(None, "ml.embed", ""))
    assert told == [True, True]


@pytest.mark.parametrize(
    "prefixes",
    [
        *("", "_INBOX", "_INBOX_ml,$JS", "_INBOX_ml,ml", "_INBOX_ml,ml.models", "_INBOX_ml,_INBOX_worker"),
        *("_INBOX_ml,_INBOX.>", "_INBOX_ml,a b", "_INBOX_ml,a..b", "_INBOX_ml,*", "_INBOX_ml,_INBOX_worker.x"),
    ],
)
def test_prefixes_that_could_do_harm_cannot_be_set(prefixes: str) -> None:
    with pytest.raises(ValidationError, match="reply_prefixes"):
        Settings(reply_prefixes=prefixes)


def test_prefixes_of_ones_own() -> None:
    settings = Settings(reply_prefixes="_INBOX_ml, team.replies,ml.watch.us")
    assert ReplySubjects(settings.reply_prefixes).allow("team.replies.x")
    assert not ReplySubjects(settings.reply_prefixes).allow("_INBOX.x")


@pytest.mark.parametrize(
    ("reply", "caller"),
    [
        ("_INBOX.drawn.1", "_INBOX.drawn"),
        ("_INBOX.drawn", "_INBOX.drawn"),
        ("_INBOX_ml.team.a.1", "_INBOX_ml.team"),
        ("ml.watch.us.b", "ml.watch.us"),
    ],
)
def test_who_asks_is_told_by_the_prefix_and_the_token_behind_it(reply: str, caller: str) -> None:
    assert OURS.caller(reply) == caller
