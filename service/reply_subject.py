"""Where a request may have us answer.

A server that grants replies per request (`allow_responses`) lets the requester name any reply subject, also one that it
may not publish to itself: without this check a client could have the empty message at the end of a stream sent to
`$JS.API.STREAM.DELETE.…`, and it would be obeyed.
"""

_OURS = "ml"


def may_answer(reply: str) -> bool:
    """Whether the subject is neither the server's (JetStream, buckets, $SYS, $SRV) nor a request to this service."""
    first = reply.partition(".")[0]
    return bool(first) and not first.startswith("$") and first != _OURS
