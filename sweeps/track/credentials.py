"""Passwords in addresses: taken out before anything shows or stores them."""

import os
import re
from urllib.parse import unquote, urlsplit, urlunsplit


def redact(text: str) -> str:
    """`text` without the passwords of the addresses in it."""
    text = re.sub(r"(?<=://)[^\s'\"<>]*@", "***@", text)
    return re.sub(r"(?i)(\w*(?:password|token|secret|key)\w*)=[^&\s'\"]+", r"\1=***", text)


def without_credentials(uri: str) -> str:
    """A server's address without its user and password, which the environment then has.

    So that no task, message, log or tag can hold them: MLflow finds them in its own variables
    MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, as do processes that this one starts.
    """
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or "@" not in parts.netloc:
        return uri
    user, _, host = parts.netloc.rpartition("@")
    name, _, password = user.partition(":")
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(name)
    os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(password)
    return urlunsplit(parts._replace(netloc=host))
