"""Fetches official files once into a cache, checks them, unpacks them, and finds them in a folder."""

import hashlib
import http.client
import os
import ssl
import tempfile
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

from tqdm import tqdm

from data import UserError
from model import write_file, writing

NETWORK = urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError
WAYS_OUT = "connect to the network, name local files with --model DIR --data DIR, or use --model mini"


def cache():
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hut"


def fetch(url, path, sha256):
    """Downloads `url` to `path`, unless that exists. Raises UserError if that fails, also by its sha256."""

    def write(file):
        digest = hashlib.sha256()
        try:
            with urllib.request.urlopen(url, timeout=60) as reply:
                size = int(reply.headers.get("Content-Length") or 0)
                with tqdm(total=size or None, unit="B", unit_scale=True, desc=path.name) as bar:
                    while block := reply.read(1 << 20):
                        file.write(block)
                        digest.update(block)
                        bar.update(len(block))
        except NETWORK as error:
            reason = error.reason if type(error) is urllib.error.URLError else error
            raise UserError(f"{url} could not be reached ({reason}): {WAYS_OUT}") from None
        if size and file.tell() != size:
            raise UserError(f"{url} was cut off after {file.tell()} of {size} bytes: try again")
        if digest.hexdigest() != sha256:
            raise UserError(f"{url} has sha256 {digest.hexdigest()}: expected {sha256}; it was not kept")

    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, write)


def unpack(archive, folder):
    """Unpacks the only top folder of a zip as `folder`, all of it or nothing, or raises UserError."""
    with writing(folder), tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        try:
            with zipfile.ZipFile(archive) as content:
                content.extractall(temporary)  # a name that leads out of the folder is made to stay in it
        except (zipfile.BadZipFile, EOFError) as error:
            raise UserError(f"{archive}: not a whole zip file ({error}): delete it and try again") from None
        tops = [entry for entry in Path(temporary).iterdir() if entry.name != "__MACOSX"]
        if len(tops) != 1 or not tops[0].is_dir():
            raise UserError(f"{archive}: expected one folder, found {sorted(entry.name for entry in tops)}")
        try:
            os.replace(tops[0], folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster: torchrun starts several
                raise


def load_splits(read, layouts, source, data, train_file, dev_file, splits):
    """{split: read(path)}, with `train_file` and `dev_file` in the place of the folder's.

    layouts  tables {split: file name}: the first whose file exists is taken
    source   where the first layout's files are fetched from if `data` is None: (a folder of the cache, the
             address before their names, {file name: sha256})
    """
    given = {"train": train_file, "dev": dev_file}
    place, address, sha256 = source
    found = {}
    for split in splits:
        path = given.get(split)
        if not path:
            folder, name = Path(data or cache() / place), layouts[0][split]
            if not data:
                fetch(address + name, folder / name, sha256[name])
            paths = [folder / names[split] for names in layouts]
            path = next((path for path in paths if path.exists()), paths[0])
        found[split] = read(path)
    return found
