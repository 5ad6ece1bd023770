"""Whether files can be downloaded, found out in seconds.

TFDS alone retries for minutes before it says that there is no network.
"""

import os
import threading
import urllib.parse
from collections.abc import Callable
from typing import Any

SECONDS = 5.0
"""How long the one attempt may take to connect, and again to answer."""

DEADLINE = 8.0
"""How long it may take in all."""


class NoNetworkError(Exception):
    """The file at `url` would have to be downloaded; `outcome` says what came of it."""

    def __init__(self, url: str, outcome: str):
        super().__init__(f"{url}: the network {outcome}")
        self.url = url
        self.outcome = outcome


def is_offline() -> bool:
    """Returns whether the environment forbids the network (`DL_CORE_OFFLINE=1`)."""
    return os.environ.get("DL_CORE_OFFLINE", "0") not in ("", "0")


def why_unreachable(url: str) -> str | None:
    """Asks for a URL once, through the proxies that the environment names.

    Returns:
      None if it can be downloaded (or is no web address), otherwise what came of it.
    """
    if not url.startswith("http"):
        return None
    # In a thread, for nothing else bounds the time that resolving a host's name takes.
    answers: list[str | None] = []
    thread = threading.Thread(target=lambda: answers.append(_ask(url)), daemon=True)
    thread.start()
    thread.join(DEADLINE)
    host = urllib.parse.urlsplit(url).hostname
    return answers[0] if answers else f"{host} did not answer in {DEADLINE:g} s"


def _ask(url: str) -> str | None:
    import requests

    host = urllib.parse.urlsplit(url).hostname
    try:
        with requests.get(url, stream=True, timeout=SECONDS) as response:
            if response.ok:
                return None
            return f"{host} answered {response.status_code} {response.reason}"
    except requests.RequestException as error:
        return f"{host} could not be reached ({_cause(error)})"


def _cause(error: Exception) -> str:
    # requests hides what happened behind descriptions of its connection and retries.
    cause = getattr(error.args[0], "reason", error) if error.args else error
    return str(cause).rpartition("): ")[2][:160] or type(cause).__name__


def check_before_download(builder: Any, *, offline: bool) -> None:
    """Makes a TFDS builder ask `why_unreachable` of the first file that it downloads.

    Files that are there already (downloaded before, or in the folder of official files)
    need no network and are not asked for.

    Args:
      builder: changed in place; from then on it raises `NoNetworkError` instead of
        retrying.
      offline: refuse every download.
    """
    make_manager = builder._make_download_manager

    def make_checking_manager(**arguments: Any) -> Any:
        manager = make_manager(**arguments)
        manager._download = _checked(manager._download, offline)
        return manager

    builder._make_download_manager = make_checking_manager


def _checked(download: Callable, offline: bool) -> Callable:
    reached = False

    def checked(resource: Any) -> Any:
        nonlocal reached
        url = resource.url
        if offline:
            raise NoNetworkError(url, "was not tried, as offline is set")
        if not reached:
            reason = why_unreachable(url)
            if reason is not None:
                raise NoNetworkError(url, f"was tried: {reason}")
            reached = True
        return download(resource)

    return checked
