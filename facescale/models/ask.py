"""One HTTP request: an address comes in, an open answer goes out, or what kind of failure it was.

Redirects are followed within limits, proxies come from the environment, a user and password in the address go to its
server alone. Called by facescale.models.transfer.
"""

from __future__ import annotations

import base64
import http.client
import socket
import ssl
import urllib.error
import urllib.request
from typing import IO, Any
from urllib.parse import unquote, urlsplit, urlunsplit

from facescale.errors import DownloadError

MAX_REDIRECTS = 8
_TRANSIENT_CODES = frozenset({408, 425, 429, 500, 502, 503, 504})


def shown(url: str) -> str:
    """A URL for messages and records: without user, password and query, which may hold secrets."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


class AgainError(Exception):
    """Worth another attempt; `delay_s` None is the usual delay, 0 none."""

    def __init__(self, what: str, delay_s: float | None = None) -> None:
        super().__init__(what)
        self.delay_s = delay_s


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects, but never from https to http or out of HTTP."""

    max_redirections = MAX_REDIRECTS
    max_repeats = 2

    def redirect_request(
        self, req: Any, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        """The request that follows a redirect; raises DownloadError for one that is not followed."""
        before, after = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if after not in ("http", "https") or (before == "https" and after == "http"):
            fp.close()
            raise DownloadError(
                f"{shown(req.full_url)} redirects from {before} to {after} ({shown(newurl)}), which is not followed"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def open_url(url: str, headers: dict[str, str], timeout_s: float) -> http.client.HTTPResponse:
    """Send a request, through the proxies that the environment names; other schemes than HTTP have no handler.

    Args:
        url: http or https, perhaps with user and password.
        headers: to send.
        timeout_s: longest wait for a connection, and for each of the answer's bytes.

    Raises:
        AgainError: another attempt may get an answer.
        RangeError: the range in `headers` is not there.
        DownloadError: there is no use in asking again.
    """
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        Redirects(),
    ):
        opener.add_handler(handler)
    try:
        request = urllib.request.Request(_without_user(url), headers=headers)
        if authorization := _authorization(url):
            request.add_unredirected_header("Authorization", authorization)  # for this server, no other
        answer: http.client.HTTPResponse | None = opener.open(request, timeout=timeout_s)
    except urllib.error.HTTPError as error:
        with error:
            raise _http_error(url, error) from error
    except urllib.error.URLError as error:
        raise _url_error(url, error.reason) from error
    except (http.client.InvalidURL, ValueError) as error:
        raise DownloadError(f"{shown(url)}: not an address that can be asked: {error}") from error
    except (OSError, http.client.HTTPException) as error:
        raise AgainError(words_of(error)) from error
    if answer is None:
        raise DownloadError(f"{shown(url)}: only http and https addresses can be asked")
    return answer


def _without_user(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _authorization(url: str) -> str | None:
    """What a server wants to see of the user and password in its address, None where there are none."""
    user = urlsplit(url).netloc.rpartition("@")[0]
    return "Basic " + base64.b64encode(unquote(user).encode()).decode() if user else None


def _http_error(url: str, error: urllib.error.HTTPError) -> Exception:
    if error.code == 416:
        return RangeError("the server has no more of it")
    if error.code in _TRANSIENT_CODES:
        text = error.headers.get("Retry-After", "") if error.headers else ""
        return AgainError(f"HTTP {error.code}", float(text) if text.isdigit() and int(text) else None)
    if 300 <= error.code < 400:
        return DownloadError(
            f"{shown(url)}: redirects in circles, more than {MAX_REDIRECTS} times, or out of HTTP"
        )
    return DownloadError(f"{shown(url)}: HTTP {error.code} {error.reason}")


def _url_error(url: str, reason: Any) -> Exception:
    if isinstance(reason, ssl.SSLCertVerificationError):
        return DownloadError(f"{shown(url)}: its certificate is not valid: {reason.verify_message}")
    if isinstance(reason, socket.gaierror) and reason.errno == socket.EAI_NONAME:
        return DownloadError(f"{shown(url)}: there is no such host")
    if isinstance(reason, OSError):
        return AgainError(words_of(reason))
    return DownloadError(f"{shown(url)}: {reason}")


def words_of(error: BaseException) -> str:
    """What an error of the network says, or what it is."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error) or type(error).__name__


class RangeError(Exception):
    """The server cannot go on from where the partial file ends."""
