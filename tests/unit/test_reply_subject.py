"""Which reply subjects are answered."""

import pytest

from service.reply_subject import may_answer


@pytest.mark.parametrize("reply", ["_INBOX.x", "_INBOX_client.x.y", "_R_.x", "watch.this", "mlx.y"])
def test_inboxes_and_subjects_of_the_requester_are(reply: str) -> None:
    assert may_answer(reply)


@pytest.mark.parametrize(
    "reply",
    ["", ".x", "$JS.API.STREAM.DELETE.ML_JOBS", "$KV.ml_jobs.j1", "$SYS.x", "$SRV.PING", "ml", "ml.models.unload"],
)
def test_subjects_of_the_server_and_of_this_service_are_not(reply: str) -> None:
    assert not may_answer(reply)
