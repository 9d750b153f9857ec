# SPDX-License-Identifier: Apache-2.0
"""One fixed exchange of the KBS attestation protocol: keys, nonce, digests and a wrapped key that peers open too."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric import ec

from keys import b64, jwk

X = "49Xs3HX0R8xwx9eSS3I_fHodrO9wlJWqu8kxQSjAgaQ"
Y = "IjPfZyLewtN2RlUWxRinbGoiyVpflBiKwTG0kRvQsJI"
TEE_PUBKEY = {"alg": "ECDH-ES+A256KW", "crv": "P-256", "kty": "EC", "x": X, "y": Y}
NONCE = b64.std(bytes(range(32)))
DEVICES = '{"sampledevice":{"svn":"2","report_data":"AAAA"}}'
DIGEST = "e88186b6a8295facd67cc90df89fa15a0cb7d2b274c733f98542ab6666322a69c1bcf3afa8ae44ef64445c03d68a8ec4"
DIGEST_SE = (
    "586eadeaa5d1836740583268a768d2f2db475ebeaeb9866dfd3727aefbaa02d4"
    "2bd37e5594c46231759d79e4661b3ebcb90b05a45cb1e10b3a2b1369027d4011"
)
DIGEST_WITH_DEVICES = "6d71301a1a2a721448c6207fabca1f12d5c2109c11ac8e5e68e99258e6c39cf48c764b1331beac7bd93fe91764c60ee3"
CEK, IV = bytes(range(0x20, 0x40)), bytes(range(12))
PLAINTEXT = b"luks-passphrase"
SHARED = bytes.fromhex("ac7633de9e1874901e73cac11d9a412ebdb18dffe2143c347774522ca896d057")
KEK = bytes.fromhex("b51b3188c6eec87bfd165abcaff3e6820e88819f39b449641766effc987167d0")
JWE = {
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


def private_key(d: str) -> ec.EllipticCurvePrivateKey:
    number = int.from_bytes(b64.from_url(d, name="d", max_bytes=32), "big")
    return ec.derive_private_key(number, ec.SECP256R1())


TEE_KEY = private_key("B1TYCrb7BvvwlEE2tpaJdw2thY1Y6mVpgWI2njOi0m8")
EPHEMERAL_KEY = private_key("TpAJz2sCZAUuqbtFIjBHy7pYEAmy3wUbUzKyhKNYfMg")
RECIPIENT = jwk.from_ec(TEE_KEY.public_key())
