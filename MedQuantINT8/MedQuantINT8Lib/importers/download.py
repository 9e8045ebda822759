"""Downloads of large files: progress, resume, checksums; through the system's proxy, and never without being asked."""

from __future__ import annotations

import hashlib
import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import MedQuantError
from ..files import read_json, storage_errors
from ..progress import Task

_CHUNK = 1 << 18
_TRIES = 6
_TIMEOUT = 30


class DownloadError(MedQuantError):
    """A file cannot be downloaded, or is not the expected one."""

    exit_code = 7


@dataclass(frozen=True)
class Checksum:
    """An expected digest: algorithm ("sha256" or "sha1") and hexadecimal value."""

    algorithm: str
    value: str

    def check(self, path: Path, what: str) -> None:
        """Compare the digest of a file; raises :class:`DownloadError` if it differs."""
        with open(path, "rb") as stream:
            digest = hashlib.new(self.algorithm, usedforsecurity=self.algorithm != "sha1")
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
        if digest.hexdigest() != self.value:
            raise DownloadError(
                f"{what} is not the file that the catalog names: its {self.algorithm.upper()} differs.",
                "Get it again; if that does not help, it was changed where it comes from.",
            )


class _WebRedirectHandler(urllib.request.HTTPRedirectHandler):
    """A handler that follows redirects to web addresses, and never from an encrypted one to one that is not."""

    def redirect_request(self, request: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        before, after = urllib.parse.urlsplit(request.full_url).scheme, urllib.parse.urlsplit(newurl).scheme
        if after not in ("http", "https") or (before == "https" and after != "https"):
            raise DownloadError(
                f"{request.full_url} redirects to {newurl}, which is not safe to follow.", "Download it by hand."
            )
        return super().redirect_request(request, fp, code, msg, headers, newurl)


def download(url: str, target: Path, task: Task, checksum: Checksum | None = None, wait: float = 1.0) -> None:
    """Fetch ``url`` into ``target``; a download that was interrupted or canceled is resumed.

    Beside ``target``, while it is not whole: ``NAME.part`` and ``NAME.part.json`` with the server's mark of the version,
    so that parts of two versions are never put together.

    Args:
        wait: seconds before the second try; doubled for each further one.

    Raises:
        Cancelled: within one chunk.
        DownloadError: no connection after several tries, a refusal, or a wrong checksum (the file is removed).
        StorageError: the disk is full or cannot be written.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise DownloadError(f"{url} is no web address.", "Check the catalog.")
    part, mark = target.with_name(target.name + ".part"), target.with_name(target.name + ".part.json")
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    failure: Exception | None = None
    with task.stage(f"downloading {target.name}"):
        for attempt in range(_TRIES):
            if attempt:
                _sleep(wait * 2 ** (attempt - 1), task)
            try:
                _fetch(url, part, mark, task)
                break
            except urllib.error.HTTPError as error:
                if error.code not in (408, 429, 500, 502, 503, 504):
                    raise DownloadError(
                        f"{url} answers {error.code} ({error.reason}).", "Download it by hand, and give it with --from."
                    ) from error
                failure = error
            except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
                failure = error
        else:
            raise DownloadError(
                f"{url} cannot be reached: {getattr(failure, 'reason', failure)}.",
                "Check the network and proxy (https_proxy); the next call goes on where this one ended. Or give the file with --from.",
            ) from failure
    if checksum is not None:
        try:
            checksum.check(part, url)
        except DownloadError:
            part.unlink()
            mark.unlink(missing_ok=True)
            raise
    with storage_errors(target):
        part.replace(target)
        mark.unlink(missing_ok=True)


def _sleep(seconds: float, task: Task) -> None:
    end = time.monotonic() + seconds
    while (remaining := end - time.monotonic()) > 0:
        task.check()
        time.sleep(min(0.1, remaining))


def _fetch(url: str, part: Path, mark: Path, task: Task) -> None:
    """Fetch over one connection, from where ``part`` ends if the server still has the same version."""
    present_bytes = part.stat().st_size if part.exists() else 0
    version = _version(mark) if present_bytes else None
    request = urllib.request.Request(url, headers={"User-Agent": "MedQuantINT8"})
    if present_bytes and version:
        request.add_header("Range", f"bytes={present_bytes}-")
        request.add_header("If-Range", version)
    try:
        response = urllib.request.build_opener(_WebRedirectHandler).open(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and present_bytes:
            # Nothing is left to send: the part may be whole, or another version's. Begin anew.
            part.unlink()
            mark.unlink(missing_ok=True)
            raise ConnectionError("the server has no more of this file") from error
        raise
    with response, storage_errors(part):
        resumed = response.status == 206
        length = response.headers.get("Content-Length")
        total = int(length) + (present_bytes if resumed else 0) if length else 0
        mark.write_text(json.dumps({"version": response.headers.get("ETag") or response.headers.get("Last-Modified")}))
        task.begin(total, present_bytes if resumed else 0)
        with open(part, "ab" if resumed else "wb") as stream:
            while chunk := _read(response):
                stream.write(chunk)
                task.step(len(chunk))
        if total and part.stat().st_size < total:
            raise http.client.HTTPException("the connection broke")


def _read(response: Any) -> bytes:
    # Errors of the connection are kept apart from those of the disk, which share the base class OSError.
    try:
        return bytes(response.read(_CHUNK))
    except http.client.IncompleteRead as error:
        return error.partial
    except OSError as error:
        raise http.client.HTTPException(str(error)) from error


def _version(mark: Path) -> str | None:
    try:
        value = read_json(mark).get("version")
    except (OSError, ValueError, AttributeError):
        return None
    # A weak mark does not promise the same bytes.
    return value if isinstance(value, str) and not value.startswith("W/") else None
