import json
import re

import pytest

from lrrt_stage import LRRTError, NoSuggestion
from lrrt_stage.errors import excerpt
from lrrt_stage.secrets import hide_passwords, is_hidden, masked, remember_secrets


@pytest.mark.parametrize(
    "key",
    [
        *("token", "hf_token", "HF-TOKEN", "hfToken", "token_2", "password", "PASSWD", "db_pwd"),
        *("secret", "client_secret", "api_key", "apikey", "API-KEY", "apiKey", "access_key"),
        *("aws_secret_access_key", "private_key", "credential", "credentials", "auth"),
        *("http_auth", "Authorization", "auth-header", "my password", "passwords"),
    ],
)
def test_keys_of_secrets(key):
    for value in ("x", 12, 1.5, ["x"], {"a": ["x"]}):
        shown = json.dumps(masked({"a": [{key: value}]}))
        assert "***" in shown
        assert "x" not in shown.replace(key, "")
    for value in (None, True, "", "env:NAME"):
        assert masked({key: value}) == {key: value}
    assert "s3cr" not in hide_passwords(json.dumps({key: "s3cr"}))


@pytest.mark.parametrize(
    "key",
    ["width", "author", "tokenizer", "max_tokens", "pad_token_id", "keys", "path", "authors"],
)
def test_keys_of_other_things(key):
    assert masked({key: "x", "a": [{key: 3}]}) == {key: "x", "a": [{key: 3}]}
    assert hide_passwords(json.dumps({key: "s3cr"})) == json.dumps({key: "s3cr"})


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("host=db password=s3cr user=me", "host=db password=*** user=me"),
        ("host=db password='s3 cr' user=me", "host=db password='***' user=me"),
        (r"password='s3\'c r' user=me", "password='***' user=me"),
        (r'{"dsn": "password=\"s3 cr\" user=me"}', r'{"dsn": "password=\"***\" user=me"}'),
        ("f(password='s3cr', width='3')", "f(password='***', width='3')"),
        ("password='s3cr and no end", "password='*** and no end"),
        ('{"api_key": "s3 cr", "width": 3}', '{"api_key": "***", "width": 3}'),
        ("{hf_token: s3cr}", "{hf_token: ***}"),
        ("{'hf_token': 's3cr', 'max_tokens': 5}", "{'hf_token': '***', 'max_tokens': 5}"),
        ('{"a": "{\\"pwd\\": \\"s3cr\\"}"}', '{"a": "{\\"pwd\\": \\"***\\"}"}'),
        ("x://h/?access_key=s3cr&size=3", "x://h/?access_key=***&size=3"),
        ("token='env:NAME'", "token='env:NAME'"),
        ("setup_args.token: type it again", "setup_args.token: type it again"),
    ],
)
def test_a_secret_beside_its_name_is_hidden_in_a_text(text, shown):
    assert hide_passwords(text) == shown


def test_a_value_that_was_met_is_hidden_wherever_it_stands():
    remember_secrets({"a": [{"my_token": "v4lue-of-a-test", "width": "wide"}], "pwd": "abc"})
    assert hide_passwords("no v4lue-of-a-test, so wide, abc") == "no ***, so wide, abc"
    remember_secrets({"address": "x://me:p4ss-of-a-test@host"})
    assert hide_passwords("user me, password p4ss-of-a-test") == "user me, password ***"
    remember_secrets("x://me:s3cr/w0rd9@l@st@host:5/base")
    for part in ("unknown host 'w0rd9@l@st@host'", "port 's3cr'", "no w0rd9"):
        assert hide_passwords(part) == re.sub("w0rd9@l@st|s3cr|w0rd9", "***", part)
    remember_secrets("x://me:p%40ss-with-a-sign@host")
    assert hide_passwords("no p@ss-with-a-sign") == "no ***"
    remember_secrets("x://me:s3cr with-a-space@host")
    assert hide_passwords("no x://me:s3cr with-a-space@host") == "no x://me:***@host"
    assert hide_passwords("v4lue-of-a-tester") == "v4lue-of-a-tester"


def test_no_error_has_a_secret_or_what_a_terminal_obeys():
    for error in (LRRTError, NoSuggestion):
        assert str(error("x://me:s3cr@host\x1b[2J")) == "x://me:***@host\ufffd[2J"
    # Cut in the middle, it would no longer be told from other text.
    assert "s3cr" not in excerpt("x" * 180 + " x://me:s3cr-and-much-more@host")


def test_what_was_hidden_is_told_from_other_stars():
    hidden = [masked("s3cr", "token"), masked("x://u:pw@h"), masked("host=h password=pw")]
    assert [is_hidden(each) for each in hidden] == [True] * 3
    assert [is_hidden(each) for each in ("a *** b", "****", 3, None)] == [False] * 4


def test_values_that_differ_in_secrets_alone_are_equal_once_masked():
    ours = {"token": "env:NAME", "width": 3}
    theirs = {"token": "***", "width": 3}
    assert masked(ours) == ours
    assert masked(ours, references=True) == masked(theirs, references=True) == theirs
