# SPDX-License-Identifier: Apache-2.0
"""Posted init-data: the TOML text whose digest the host passed at launch (KBS protocol, init-data 0.1.0).

    version = "0.1.0"
    algorithm = "sha384"            # sha256, sha384, sha512; sm3 is refused
    [data]
    "name" = "text"

The digest is over the exact bytes of the text, so one changed space changes it.
"""

from __future__ import annotations

import hashlib

from broker import tomltext
from keys import strictjson
from keys.errors import ProtocolError
from keys.messages import InitData

FORMAT = "toml"
VERSION = "0.1.0"
ALGORITHMS = ("sha256", "sha384", "sha512")

_MEMBERS = frozenset(("version", "algorithm", "data"))


def digest(init_data: InitData) -> bytes:
    """The digest of posted init-data by the algorithm that it names itself: 32, 48 or 64 bytes.

    Raises ProtocolError.
    """
    if init_data.format != FORMAT:
        raise ProtocolError("init-data has an unsupported format", expected=FORMAT, found=init_data.format)
    members = strictjson.members(tomltext.loads(init_data.body, name="init-data"), name="init-data", required=_MEMBERS)
    if members["version"] != VERSION:
        raise ProtocolError("init-data has an unsupported version", expected=VERSION)
    algorithm = members["algorithm"]
    if algorithm not in ALGORITHMS:
        raise ProtocolError("init-data has an unsupported algorithm", expected=", ".join(ALGORITHMS))
    if not isinstance(members["data"], dict) or not all(isinstance(text, str) for text in members["data"].values()):
        raise ProtocolError("init-data.data must be a table of strings")
    return hashlib.new(algorithm, init_data.body.encode("utf-8")).digest()
