"""Secrets in the code that a model learns from: none reaches the pairs, and the report tells how many were left out."""

from pathlib import Path

from models.training.data.collect import build_dataset
from models.training.run import TrainingOptions

TOKEN = "ghp_" + "wWPw5k4aXcaT4fNP0UcnZwJUVFk6LO0pINUx"
PASSWORD = "Tr0ub4dor and three"
KEY = "MIIEowIBAAKCAQEAwJ8QxVbLwYqv7r3tKp0mZk3rPq8sVtYx"
BLOCK = "\n".join(["-----BEGIN RSA PRIVATE KEY-----", *[KEY] * 60, "-----END RSA PRIVATE KEY-----"])


def function(number: int, body: str = "return sorted(values)") -> str:
    return f'''
def order_{number}_of_things(values):
    """Put the things of kind {number} into an order that readers like."""
    total_{number} = sum(values) * {number}
    {body}
'''


def test_no_secret_reaches_the_training_data(tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    for place in range(12):
        (code / f"m{place}.py").write_text("".join(function(10 * place + number) for number in range(6)))
    (code / "client.py").write_text(
        function(901, f'return call("{TOKEN}")')
        + function(902, f'db_password = "{PASSWORD}"')
        + function(903, f'return """{BLOCK}"""')
        + function(904)
    )
    (code / "login.js").write_text(
        f"/** Logs in at the service with what stands here. */\nfunction login(user) {{\n  const token = '{TOKEN}';\n"
        "  return request(user, token);\n}\n"
    )
    (code / "deploy.sh").write_text(
        f"#!/bin/sh\n# Put the key of the server in its place.\ncat > key <<E\n{BLOCK}\nE\n"
    )
    dataset = build_dataset(code, TrainingOptions(hard_negatives=2))
    learned = dataset.lines().decode()
    assert not any(secret in learned for secret in (TOKEN, PASSWORD, KEY))
    assert "order_904_of_things" in learned
    manifest = dataset.manifest
    assert (manifest.secrets, manifest.files) == (5, 15)
