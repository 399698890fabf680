import pytest

from lrrt_stage.settings import hide_passwords


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:pw@host/db", "postgresql://me:***@host/db"),
        ("postgresql+psycopg://me:p@s/s@host/db", "postgresql+psycopg://me:***@host/db"),
        ("no postgresql://me:pw@host, sorry", "no postgresql://me:***@host, sorry"),
        ("mysql://host/db?user=me&password=pw&x=1", "mysql://host/db?user=me&password=***&x=1"),
        (
            "x://host/db?sslpassword=pw&access_token=t",
            "x://host/db?sslpassword=***&access_token=***",
        ),
        ("https://me:pw@host:5000/a", "https://me:***@host:5000/a"),
        ("https://token@host/a", "https://***@host/a"),
        # There is none in these.
        ("postgresql://me@host/db", "postgresql://me@host/db"),
        ("http://host:5000/#/models/digits@best", "http://host:5000/#/models/digits@best"),
        ("sqlite:///optuna.db", "sqlite:///optuna.db"),
    ],
)
def test_passwords_and_tokens_of_addresses_are_hidden(text, shown):
    assert hide_passwords(text) == shown
