"""No secret is left in a text, in any spelling, and what is none stays as it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.base.redaction import HIDDEN, holds_secret, learn, without_secrets
from pipeline.base.tables import print_json
from tests.helpers import ROOT

PLAIN = "abcdefghijklmnopqrstuvwxyz0123456789-._~"
users = st.text(PLAIN, min_size=1, max_size=8)
hosts = st.from_regex(r"[a-z][a-z0-9.-]{0,12}(:[1-9][0-9]{1,4})?", fullmatch=True)
rests = st.from_regex(r"(/[a-z0-9._~-]{1,8}){0,3}(\?[a-c]=[0-9]{1,3}(&[a-c]=x){0,2})?", fullmatch=True)
befores = st.sampled_from(
    ["", "API request to ", "train --tracking.uri=", "'", '{"uri": "', "(Caused by ProxyError(", "[1] "]
)
afters = st.sampled_from(["", " failed", "' --lr 0.1", '"}', " )) @ 12:30", "\nmail me@host"])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:secret@host:5000/x", "https://host:5000/x"),
        ("https://me:se@cret@host/x", "https://host/x"),
        ("https://ghp_0123@host/x", "https://host/x"),
        ("postgresql://u:pa/ss@h/db", "postgresql://h/db"),
        ("mysql+pymysql://u:12/ab@h/db?charset=x", "mysql+pymysql://h/db?charset=x"),
        ("http://u:pa/ss@h:80/x", "http://h:80/x"),
        ("//u:pw@h/x", "//h/x"),
        ("?next=http%3A%2F%2Fu%3Apass%40h%2Fx", "?next=http%3A%2F%2Fh%2Fx"),
        ("train --uri=http://me:pw@a 's3://key:pw@b/c' --name x@y", "train --uri=http://a 's3://b/c' --name x@y"),
        ("?odbc_connect=UID%3Du%3BPWD%3Ds3cr%2Fet%3BDATABASE%3Dx", "?odbc_connect=UID%3Du%3BPWD%3D***%3BDATABASE%3Dx"),
        ("?odbc_connect=PWD%3D%7Ba%3Bb%7D%3BDATABASE%3Dx&y=1", "?odbc_connect=PWD%3D***%3BDATABASE%3Dx&y=1"),
        ("DRIVER={ODBC};UID=u;PWD={a;b};DATABASE=x", "DRIVER={ODBC};UID=u;PWD=***;DATABASE=x"),
        ("https://h/x?password=a%26b&sslpassword=q&z=2", "https://h/x?password=***&sslpassword=***&z=2"),
        ("s3/x?X-Amz-Credential=AK%2F1&X-Amz-Signature=0f&n=1", "s3/x?X-Amz-Credential=***&X-Amz-Signature=***&n=1"),
        ("?sv=1&sig=a%2Fb&se=2", "?sv=1&sig=***&se=2"),
        ("AWS_SECRET_ACCESS_KEY=abc/d+x python a.py", "AWS_SECRET_ACCESS_KEY=*** python a.py"),
        ("run --api-token xyz --lr 1", "run --api-token *** --lr 1"),
        ("Authorization: Bearer abc.def rest", "Authorization: Bearer *** rest"),
        ("{'Authorization': 'Basic YWJj', 'x': 'y'}", "{'Authorization': '***', 'x': 'y'}"),
        ('{"password": "a\\"b", "n": 1}', '{"password": "***", "n": 1}'),
    ],
)
def test_secrets_by_their_form(text: str, shown: str) -> None:
    assert without_secrets(text) == shown
    assert without_secrets(shown) == shown
    assert holds_secret(text)


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:////me@work/mlflow.db",
        '["http://a","me@b"]',
        "http://host:5000/me@x",
        "http://[::1]:5000/me@x",
        "abfs://container@account.dfs.core.windows.net/x",
        "sftp://me@host/x",
        "git@github.com:x/y",
        "runs//me@here/a:b@c",
        "models:/net@champion",
        "TOKENIZERS_PARALLELISM=false PWD=/home/x TOKEN_FILE=/x",
        "the token is bad: give the password, or a secret",
        "/data/s3/passwords/token/a.jpg --lr 0.1",
        '{"loss": 1.0, "tokens": 5, "author": "me"}',
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert without_secrets(text) == text
    assert not holds_secret(text)


@settings(deadline=None, max_examples=50)
@given(befores, users, st.text(PLAIN + "ABC@:%+&=!$*,;()", min_size=1, max_size=20), hosts, rests, afters)
def test_a_login_in_the_address_of_a_server(
    before: str, user: str, password: str, host: str, rest: str, after: str
) -> None:
    shown = without_secrets(f"{before}https://{user}:{password}@{host}{rest}{after}")
    assert shown == f"{before}https://{host}{rest}{after}"


@settings(deadline=None, max_examples=50)
@given(
    befores,
    st.sampled_from(["postgresql", "mysql+pymysql", "mssql+pyodbc"]),
    users,
    st.text(PLAIN + "ABC@:%+&=!$*,;()/?#", min_size=1, max_size=20),
    hosts,
    rests,
    afters,
)
def test_a_login_in_the_address_of_a_database(
    before: str, scheme: str, user: str, password: str, host: str, rest: str, after: str
) -> None:
    assume("://" not in f":{password}")
    shown = without_secrets(f"{before}{scheme}://{user}:{password}@{host}{rest}{after}")
    assert shown == f"{before}{scheme}://{host}{rest}{after}"


NAMES = [
    "password",
    "PASSWORD",
    "token",
    "access_token",
    "sslpassword",
    "pwd",
    "X-Amz-Signature",
    "api_key",
    "client-secret",
]


@settings(deadline=None, max_examples=50)
@given(befores, hosts, st.sampled_from(NAMES), st.text(min_size=1, max_size=20), st.sampled_from(["", "&n=1"]), afters)
def test_a_parameter_of_an_address(before: str, host: str, name: str, value: str, behind: str, after: str) -> None:
    for spelt in {quote(value, safe=""), quote_plus(value)} - {""}:
        whole = f"{before}http://{host}/x?a=1&{name}={spelt}{behind}{after}"
        assert without_secrets(whole) == f"{before}http://{host}/x?a=1&{name}={HIDDEN}{behind}{after}"
        odbc = quote(f"UID=me;{name}={quote(value, safe='')};DATABASE=x", safe="")
        hidden = quote(f"UID=me;{name}={HIDDEN};DATABASE=x", safe="*")
        assert without_secrets(f"{before}?odbc_connect={odbc}{behind}{after}") == (
            f"{before}?odbc_connect={hidden}{behind}{after}"
        )


@settings(deadline=None, max_examples=50)
@given(st.text(min_size=8, max_size=20), st.text(PLAIN + " /", max_size=20), st.text(PLAIN + " /", max_size=20))
def test_a_value_that_the_environment_holds(value: str, before: str, after: str) -> None:
    secret = f"Z9{value}9Z"  # so that no other part of the text holds it
    assume("\0" not in secret and not any(0xD800 <= ord(sign) < 0xE000 for sign in secret))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_PASSWORD", "GROUPS_API_TOKEN", "aws_secret_access_key"):
            patch.setenv(name, secret)
            spellings = (
                secret,
                quote(secret),
                quote(secret, safe=""),
                quote_plus(secret),
                quote(quote(secret, safe=""), safe=""),
                json.dumps(secret)[1:-1],
                repr(secret)[1:-1],
            )
            for spelt in spellings:
                assert without_secrets(f"{before}{spelt}{after}") == f"{before}{HIDDEN}{after}"
            patch.delenv(name)


@settings(deadline=None, max_examples=50)
@given(users, st.text(min_size=8, max_size=20), hosts)
def test_a_value_from_an_address_that_was_given(user: str, value: str, host: str) -> None:
    """Also where the proxy that holds it is quoted by a library in a form of its own."""
    secret = f"Z9{value}9Z"
    assume("\0" not in secret and not any(0xD800 <= ord(sign) < 0xE000 for sign in secret))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HTTPS_PROXY", f"http://{user}:{quote(secret, safe='')}@{host}")
        assert without_secrets(f"proxy refused {secret}.") == f"proxy refused {HIDDEN}."
        assert without_secrets(f"proxy refused {quote(secret)}.") == f"proxy refused {HIDDEN}."


PIECES = [
    *("http://", "postgresql://", "//", "@", ":", "/", "?", "&", ";", "=", "%3D", "%3B", "%3A%2F%2F", "%40", "{", "}"),
    *(
        "password",
        "PWD",
        "token",
        "Authorization",
        "Bearer ",
        "--",
        '"',
        "'",
        " ",
        "a",
        "abcdefgh",
        "***",
        "5000",
        "\\",
    ),
]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=25).map("".join))
def test_twice_is_once(text: str) -> None:
    assert without_secrets(without_secrets(text)) == without_secrets(text)


def test_learn_names_an_address_alike_in_every_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "example")
    assert learn("http://me:hidden-word@mlflow.example.org/x") == "http://mlflow.example.org/x"
    assert learn("me:other-word@mlflow.example.org") == "mlflow.example.org"
    assert learn("sqlite:////runs/mlflow.db") == "sqlite:////runs/mlflow.db"
    assert without_secrets("hidden-word or other-word") == "*** or ***"


def test_a_token_in_a_setting_of_fsspec_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSSPEC_HTTPS", '{"client_kwargs": {"headers": {"Authorization": "Bearer canary-12"}}}')
    assert without_secrets("sent canary-12 on") == "sent *** on"


@pytest.mark.parametrize(
    "said",
    ["x --token abc", "x --api-token 'a b'", "password=", "token=\\", 'a "token": "b" c', "--secret -", "pass=a;b='c"],
)
def test_a_line_of_json_stays_one(said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As a stream prints it, and as `--json` does."""
    values = {"command": said, "next": 1, "list": [said, {"deep": said}]}
    assert json.loads(without_secrets(json.dumps(values)))["next"] == 1
    print_json(values)
    assert json.loads(without_secrets(capsys.readouterr().out)).keys() == values.keys()


def test_a_number_is_hidden_by_its_form_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "600000")
    assert without_secrets("600000 iterations, token=600000") == "600000 iterations, token=***"


def test_a_variable_that_names_a_file_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(ROOT))
    assert without_secrets(f"in {ROOT}/x") == f"in {ROOT}/x"


PRINTS = """
import logging, sys, traceback, warnings
held = sys.stderr
logging.basicConfig()
from pipeline.base.output import prepare
prepare()
prepare()
from rich.console import Console
print("out", "Canary-1234")
print("err", "Canary-1234", file=held)
sys.stdout.writelines(["a Canary-1234\\n", "b http://u:p@h\\n"])
logging.error("log %s", "Canary-1234")
warnings.warn("warned Canary-1234")
Console(stderr=True).print("rich Canary-1234")
try:
    raise ValueError("caught Canary-1234")
except ValueError:
    traceback.print_exc()
print(sys.stdout.fileno(), sys.stdout.encoding)
raise RuntimeError("uncaught Canary-1234")
"""


def test_nothing_that_is_printed_shows_a_secret() -> None:
    environment = os.environ | {"MY_TOKEN": "Canary-1234", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", PRINTS], env=environment, capture_output=True, text=True)
    assert "Canary" not in done.stdout + done.stderr
    assert done.stdout.splitlines() == ["out ***", "a ***", "b http://h", "1 utf-8"]
    for said in (
        "err ***",
        "log ***",
        "warned ***",
        "rich ***",
        "ValueError: caught ***",
        "RuntimeError: uncaught ***",
    ):
        assert said in done.stderr
