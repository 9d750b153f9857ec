# SPDX-License-Identifier: Apache-2.0
"""`/v1/keys`: bytes go in, metadata comes out."""

from __future__ import annotations

from broker import keyring
from broker.http import types
from broker.http.call import Call
from broker.store.protocols import StoredKey
from keys import b64
from keys.envelope import MAX_ALSO_BYTES
from keys.jwe import MAX_PLAINTEXT_BYTES


def list_keys(call: Call, _: None) -> types.Keys:
    # The last one of a path stays. What waits for a volume's guest is told with the volume.
    newest = {key.path: key for key in call.services.store.keys(call.who.owner) if "~" not in key.tag}
    return types.Keys([_summary(key) for key in newest.values()])


def show_key(call: Call, _: None) -> types.Key:
    path = call.path
    call.services.store.key(*path)  # NotFound
    versions = [key for key in call.services.store.keys(path.owner) if key.path == str(path)]
    return types.Key(
        str(path), [types.KeyVersion(key.version, key.state, key.created_at, key.created_by) for key in versions]
    )


def put_key(call: Call, request: types.PutKey) -> types.KeySummary:
    plaintext = b64.from_std(request.key, name="key", max_bytes=MAX_PLAINTEXT_BYTES)
    return _summary(keyring.put(call.path, plaintext, call.services, call.who, why=request.why, now=call.now))


def generate_key(call: Call, request: types.GenerateKey) -> types.KeySummary:
    return _summary(keyring.generate(call.path, request.size, call.services, call.who, why=request.why, now=call.now))


def rotate_key(call: Call, request: types.RotateKey) -> types.Rotated:
    rotated = keyring.rotate(call.path, call.services, call.who, at_once=request.at_once, why=request.why, now=call.now)
    return types.Rotated(str(call.path), None if rotated is None else rotated.version)


def put_recovery(call: Call, request: types.PutRecovery) -> types.Rotated:
    passphrase = b64.from_std(request.passphrase, name="passphrase", max_bytes=MAX_ALSO_BYTES)
    keyring.put_recovery(call.path, passphrase, call.services, call.who, why=request.why, now=call.now)
    return types.Rotated(str(call.path), None)


def destroy_key(call: Call, request: types.Change) -> types.Destroyed:
    erased = keyring.destroy(call.path, call.services, call.who, why=request.why, now=call.now)
    return types.Destroyed(str(call.path), erased)


def _summary(key: StoredKey) -> types.KeySummary:
    return types.KeySummary(key.path, key.version, key.state, key.created_at, key.created_by)
