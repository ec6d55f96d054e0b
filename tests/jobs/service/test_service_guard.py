"""Who may ask: the token, TLS, addresses, web pages of other origins."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from batchloom.dataplane import SignalStore, open_plan
from batchloom.dataplane.errors import ParameterError, ServiceError
from batchloom.jobs.service.serving import Address, read_token
from batchloom.tests.jobs.service.running import (
    TOKEN,
    Served,
    ask,
    raw,
    refused,
    wait_ready,
    write_run,
)


@pytest.fixture(scope="module")
def served(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("guard") / "service"
    write_run(folder, "first", small)
    with Served(folder) as running:
        wait_ready(running.url, "first", 0)
        yield running


def test_pages_of_other_origins_and_names_are_refused(served: Served) -> None:
    url = f"{served.url}/v1/runs"
    refused(ask(url, Host="evil.example"), 421, "127.0.0.1")
    refused(ask(url, Host=""), 421)
    refused(ask(url, Origin="http://evil.example"), 403, "another origin")
    assert ask(url, Host=f"localhost:{served.port}")[0] == 200
    assert ask(url, Origin=served.url)[0] == 200


def test_a_token_is_asked_for(small: Path, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    file.chmod(0o600)
    write_run(tmp_path / "service", "first", small)
    with Served(tmp_path / "service", "--token-file", file) as served:
        url = f"{served.url}/v1/runs/first"
        for headers in (
            {},
            {"Authorization": "Bearer nonsense"},
            {"Authorization": f"Bearer {TOKEN}x"},
            {"Authorization": f"Basic {TOKEN}"},
            {"Authorization": "Bearer \xff"},
        ):
            answer = ask(url, **headers)
            refused(answer, 401, "A token is needed")
            assert answer[2]["www-authenticate"].startswith("Bearer")
        assert ask(url, Authorization=f"Bearer {TOKEN}")[0] == 200
        assert ask(f"{served.url}/healthz")[0] == 200
        assert ask(f"{served.url}/readyz")[0] in (200, 503)
        refused(ask(f"{served.url}/metrics"), 401)
        refused(ask(f"{served.url}/openapi.json"), 401)
        with pytest.raises(ServiceError, match=r"A token is needed.*status 401"):
            open_plan(f"{served.url}/runs/first")
        options = {"token_file": str(file)}
        plan = open_plan(f"{served.url}/runs/first", storage_options=options)
        with SignalStore.for_writing(plan.path, plan, storage_options=options) as store:
            store.append([1], epoch=0, step=0, loss=[0.5])
        text = ask(f"{served.url}/metrics", Authorization=f"Bearer {TOKEN}")[1].decode()
        assert "batchloom_unauthorized_total 8" in text
        assert served.process is not None
        shown = Path(f"/proc/{served.process.pid}/cmdline").read_bytes()
        assert TOKEN.encode() not in shown
    assert TOKEN not in served.log.read_text()


def test_what_must_protect_an_address(tmp_path: Path) -> None:
    for host in ("127.0.0.1", "localhost", "::1", "127.8.8.8"):
        Address(host).check()
    for host in ("0.0.0.0", "::", "10.0.0.7", "example.org"):
        with pytest.raises(ParameterError, match=r"a token .* and TLS .*--insecure"):
            Address(host).check()
        Address(host, insecure=True).check()
        with pytest.raises(ParameterError, match="needs TLS"):
            Address(host, token_file="x").check()
    with pytest.raises(ParameterError, match="a certificate and its key"):
        Address(tls_cert="x").check()
    with pytest.raises(ParameterError, match="--tls-cert: .* cannot be read"):
        Address(tls_cert=str(tmp_path / "no"), tls_key=str(tmp_path / "no")).check()


def test_tokens_that_are_no_secret(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    assert read_token(None) is None
    for mode in (0o644, 0o640, 0o604, 0o660):
        file.chmod(mode)
        with pytest.raises(ParameterError, match=f"mode {mode:04o}.*chmod 600"):
            read_token(str(file))
    file.chmod(0o600)
    assert read_token(str(file)) == TOKEN
    for text in ("short", "with a space in the middle of", "ünïcödé-tokens-are-refused", ""):
        file.write_text(text)
        with pytest.raises(ParameterError, match="token in"):
            read_token(str(file))
    with pytest.raises(ParameterError, match="cannot be read"):
        read_token(str(tmp_path / "none"))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", folder / "key.pem",
         "-out", folder / "cert.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    return folder / "cert.pem", folder / "key.pem"


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_tls(small: Path, tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    write_run(tmp_path / "service", "first", small)
    with Served(tmp_path / "service", "--tls-cert", cert, "--tls-key", key) as served:
        assert served.url.startswith("https://")
        plan = open_plan(f"{served.url}/runs/first", storage_options={"ca_file": str(cert)})
        assert plan.epochs == (0,)
        with pytest.raises(ServiceError, match="cannot be trusted.*ca_file"):
            open_plan(f"{served.url}/runs/first")
        plain = served.url.replace("https", "http")
        with pytest.raises(ServiceError, match="where it serves TLS, its address begins with"):
            open_plan(f"{plain}/runs/first", storage_options={"patience": 0.2})
        for newest, fine in ((ssl.TLSVersion.TLSv1_2, True), (ssl.TLSVersion.TLSv1_1, False)):
            context = ssl.create_default_context(cafile=str(cert))
            context.set_ciphers("DEFAULT:@SECLEVEL=0")  # an old client would not mind
            context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
            context.maximum_version = newest
            with contextlib.ExitStack() as stack:
                if not fine:
                    stack.enter_context(pytest.raises(ssl.SSLError))
                plain_socket = socket.create_connection(("127.0.0.1", served.port), 20)
                stack.enter_context(plain_socket)
                stack.enter_context(context.wrap_socket(plain_socket, server_hostname="127.0.0.1"))
        assert raw(served, "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n") == 0


def test_a_certificate_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "x.pem").write_text("no certificate")
    with pytest.raises(AssertionError, match="certificate or its key cannot be used"):
        Served(
            tmp_path / "service", "--tls-cert", tmp_path / "x.pem", "--tls-key", tmp_path / "x.pem"
        )
    with pytest.raises(AssertionError, match=r"Serving 0\.0\.0\.0.*needs a token"):
        Served(tmp_path / "service", "--host", "0.0.0.0")
