"""What counts as a secret in code, and what does not."""

import pytest

from models.training.data.secrets import REDACTED, redact_secrets

# In two halves each, so that no scanner takes this file for a leak.
SECRETS = {
    "aws": "AKIA" + "IOSFODNN7EXAMPLQ",
    "github": "ghp_" + "wWPw5k4aXcaT4fNP0UcnZwJUVFk6LO0pINUx",
    "github_new": "github_pat_" + "11ABCDEFG0abcdefghijkl_mnopqrst",
    "slack": "xoxb-" + "263594206564-2343594206574-FGqddMF8t08v8N7Oq4i57vs1",
    "stripe": "sk_live_" + "4eC39HqLyjWDarjtT1zdp7dc",
    "hugging_face": "hf_" + "abcdefghijklmnopqrstuvwxyzABCDEFGH",
    "google": "AIza" + "SyDaGmWKa4JsXZ-HjGw7ISLn_3namBGewQe",
    "language_model": "sk-" + "proj-abcdefghijklmnopqrstuvwx",
    "nats": "SUA" + "MLK2ZNL35WSMW37E7UD4VZ7ELPKW7DHC3BWBSD2GCZ7IUQQXZIORRBU",
    "web_token": "eyJhbGciOiJIUzI1NiJ9" + ".eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
}


@pytest.mark.parametrize("name", SECRETS)
def test_tokens_are_redacted_with_and_without_quotes(name: str) -> None:
    secret = SECRETS[name]
    text = f"def f():\n    return call('{secret}')  # {secret}\n"
    cleaned = redact_secrets(text)
    assert secret not in cleaned
    assert [REDACTED in part for part in cleaned.split("#")] == [True, True]


@pytest.mark.parametrize(
    ("line", "secret"),
    [
        ('    password = "{}"', "correct horse battery"),
        ("    const apiKey = '{}';", "Zx81-kestrel"),
        ('    url = "postgres://app:{}@db.example/main"', "hunter22"),
        ('    salt = "{}"', "q8Zr3Lk0Vx7TnB2yWc5JdF9sHm1PgAe4RtUi6OoK"),
    ],
)
def test_secrets_are_redacted_by_name_form_and_entropy(line: str, secret: str) -> None:
    assert redact_secrets(line.format(secret)) == line.format(REDACTED)


@pytest.mark.parametrize("begin", ["RSA PRIVATE KEY", "PRIVATE KEY", "ENCRYPTED PRIVATE KEY", "USER NKEY SEED"])
def test_private_keys_are_redacted_completely(begin: str) -> None:
    body = "\n".join("MIIEowIBAAKCAQEAwJ8QxVbLwYqv7r3tKp0m" + "d1f2" * 5 for _ in range(20))
    text = f'KEY = """\n-----BEGIN {begin}-----\n{body}\n-----END {begin}-----\n"""\n\ndef f():\n    return 1\n'
    cleaned = redact_secrets(text)
    assert "MII" not in cleaned
    assert cleaned.endswith('"""\n\ndef f():\n    return 1\n')
    assert cleaned.count("\n") == text.count("\n")
    open_ended = redact_secrets(text.replace("-----END", "----- END"))
    assert "MII" not in open_ended
    assert open_ended.endswith("def f():\n    return 1\n")


def test_ordinary_code_is_unchanged() -> None:
    text = '''def connect(password: str, token: str | None = None) -> "Client":
    """Log in. password: from the environment, as os.environ["DB_PASSWORD"]."""
    secret = settings.secret
    api_key = get_key("api")
    if key != "name" and "-----BEGIN PRIVATE KEY-----" not in text:
        raise ValueError(f"{user_id} may not: {an_identifier_that_is_quite_long_2}")
    return Client("123e4567-e89b-12d3-a456-426614174000", "https://example.com/a/b/c.html")
'''
    assert redact_secrets(text) == text.replace("-----BEGIN PRIVATE KEY-----", REDACTED)
