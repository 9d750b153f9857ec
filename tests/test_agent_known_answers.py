# SPDX-License-Identifier: Apache-2.0
"""The agent computes what an independent implementation of the protocol computed."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from keys import b64, jwe, jwk
from keys.binding import report_data
from keys.errors import ProtocolError
from keys.tee import Tee

NONCE = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
PRIVATE = b64.from_url("B1TYCrb7BvvwlEE2tpaJdw2thY1Y6mVpgWI2njOi0m8", name="d", max_bytes=32)
KEY = ec.derive_private_key(int.from_bytes(PRIVATE, "big"), ec.SECP256R1())
SHA512 = (
    "586eadeaa5d1836740583268a768d2f2db475ebeaeb9866dfd3727aefbaa02d4"
    "2bd37e5594c46231759d79e4661b3ebcb90b05a45cb1e10b3a2b1369027d4011"
)
WRAPPED = {
    "protected": (
        "eyJhbGciOiJFQ0RILUVTK0EyNTZLVyIsImVuYyI6IkEyNTZHQ00iLCJlcGsiOnsiY3J2IjoiUC0yNTYiLCJrdHkiOiJFQyIsIngiOiJaUV8w"
        "cW1uUl9GOEktZlg1NnE4V0pEYVRCREdLcXI5Xy1PSUdsamxyMTE4IiwieSI6InNYZWF3bmxxa2VRU01WckR1NWNVS3pEeEJQZXZ6a05jYVZP"
        "QlJPajY3eGMifX0"
    ),
    "encrypted_key": "oQqzyUdvxycbOHJnGUlytAOYniwujB8TuKN_ffDwM8au3FLZu5AFvw",
    "iv": "AAECAwQFBgcICQoL",
    "ciphertext": "MCc21GdFip_PiaG0RwA7",
    "tag": "ah3nBZJzCbDls6xl1ZGoyg",
}


@pytest.mark.parametrize(
    ("tee", "additional", "digest"),
    [
        (
            Tee.TPM,
            "",
            "e88186b6a8295facd67cc90df89fa15a0cb7d2b274c733f98542ab6666322a69c1bcf3afa8ae44ef64445c03d68a8ec4",
        ),
        (
            Tee.TPM,
            '{"sampledevice":{"svn":"2","report_data":"AAAA"}}',
            "6d71301a1a2a721448c6207fabca1f12d5c2109c11ac8e5e68e99258e6c39cf48c764b1331beac7bd93fe91764c60ee3",
        ),
        (
            Tee.SE,
            "",
            SHA512,
        ),
    ],
)
def test_report_data_is_the_known_answer(tee: Tee, additional: str, digest: str) -> None:
    """Nonce and key hash to the published digests."""
    members = jwk.from_ec(KEY.public_key()).members
    assert report_data(tee, NONCE, members, additional).hex() == digest


def test_a_wrapped_key_of_another_implementation_opens() -> None:
    """The published JWE opens with its private key."""
    assert jwe.unseal(WRAPPED, KEY) == b"luks-passphrase"


def test_a_guest_with_activation_does_not_open_it() -> None:
    """The plain wrapping is refused where an activation secret was agreed."""
    with pytest.raises(ProtocolError, match="another way"):
        jwe.unseal(WRAPPED, KEY, activation=bytes(32))
