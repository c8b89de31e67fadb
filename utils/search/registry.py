"""What --search_backend may name. Light: the words are known before torch or faiss is imported."""

from __future__ import annotations

from collections import ChainMap
from dataclasses import dataclass, replace
from pkgutil import resolve_name
from typing import TYPE_CHECKING, cast

from utils.errors import UserError

if TYPE_CHECKING:
    from utils.search.base import Backend
    from utils.search.settings import SearchSettings


@dataclass(frozen=True)
class BackendWord:
    """A word of --search_backend. ``implementation`` is "module:name" of a `Backend`."""

    description: str
    implementation: str


BACKENDS = {  # "auto" prefers the first
    "faiss": BackendWord("faiss, and any index that its factory makes", "utils.search.faiss_backend:FaissBackend"),
    "torch": BackendWord("torch's own products, always exact", "utils.search.exact_torch:TorchBackend"),
}
AUTO = "auto"
# Of the flag: also what is registered later.
WORDS = ChainMap(BACKENDS, {AUTO: BackendWord("the first of the others that is installed and can use the device", "")})


def backend_of(word: str) -> Backend:
    return cast("Backend", resolve_name(BACKENDS[word].implementation)())


def choose_backend(settings: SearchSettings) -> SearchSettings:
    """The same with the word of a backend in the place of "auto".

    That is the first one that is installed, reads the options given and can use the device; where none can, the first.
    UserError where what is asked for is not there.
    """
    asked = list(BACKENDS) if settings.backend == AUTO else [settings.backend]
    able = [word for word in asked if not unread_options(settings, word)]
    if not able:
        name = unread_options(settings, asked[0])[0]
        readers = " or ".join(word for word in BACKENDS if name in backend_of(word).options)
        raise UserError(
            f"--{name} {getattr(settings, name)} needs {readers}, but --search_backend is {settings.backend}; "
            "omit one of the two"
        )
    installed = [word for word in able if backend_of(word).is_installed()]
    if not installed:
        package = backend_of(able[0]).package
        raise UserError(f"{package} is not installed, expected it for this search; pip install -r requirements.txt")
    on_device = (word for word in installed if backend_of(word).searches_on(settings.device))
    return replace(settings, backend=next(on_device, installed[0]))


def unread_options(settings: SearchSettings, word: str) -> list[str]:
    """The options given that this backend does not read."""
    return [name for name in settings.options_given() if name not in backend_of(word).options]
