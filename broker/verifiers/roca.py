# SPDX-License-Identifier: Apache-2.0
"""The fingerprint of RSA keys made by the broken Infineon library (ROCA, CVE-2017-15361).

Such a key's primes have the form k * M + (65537^a mod M), M the product of the first primes, so the modulus is a power
of 65537 modulo each of those primes. A sound modulus is that for all of them with a chance of about 2^-27.
Source: Nemec et al., "The Return of Coppersmith's Attack", ACM CCS 2017, section 3.
"""

from __future__ import annotations

from math import prod

# M of every key size contains the first 39 primes. Modulo those left out, 65537 generates every residue.
_PRIMES = (11, 13, 17, 19, 37, 53, 61, 71, 73, 79, 97, 103, 107, 109, 127, 151, 157)
_POWERS = {prime: frozenset(pow(65537, power, prime) for power in range(prime)) for prime in _PRIMES}
_PRODUCT = prod(_PRIMES)


def has_roca_fingerprint(modulus: int) -> bool:
    """Whether `modulus` looks like one of the broken library's, whose factors can be found."""
    residue = modulus % _PRODUCT  # one long division instead of one a prime
    return all(residue % prime in powers for prime, powers in _POWERS.items())
