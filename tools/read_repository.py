#!/usr/bin/env python3
"""Reads a tintype repository, written from docs/format.md alone.

A second opinion for the tests, and a last resort for people: it lists
snapshots and extracts images and blobs, and verifies all ids on the way. It
is slow, writes nothing to the repository and needs only Python, libzstd and,
for sealed repositories, the `cryptography` package; for passphrases also
`argon2`, unless `cryptography` is as new as 44.

    read_repository.py [KEY] REPOSITORY list
    read_repository.py [KEY] REPOSITORY image SNAPSHOT NAME OUT
    read_repository.py [KEY] REPOSITORY blob SNAPSHOT NAME OUT
    read_repository.py [KEY] REPOSITORY digest [REPOSITORY...]
    read_repository.py [KEY] REPOSITORY operations

KEY is `--key-file FILE`, `--passphrase-file FILE` or `--age-identity FILE`,
which needs the program `age`. `digest` prints a line of
JSON for each repository: its records, and SHA-256 digests of all images and
blobs. That of an image is over its size and, in order, the offset and the
bytes of each block that is not zero; numbers have 8 bytes.
"""

import argparse
import ctypes
import ctypes.util
import functools
import hashlib
import json
import os
import struct
import subprocess
import sys

BLOCK = 4096
REGION = 16 * BLOCK
LEAF = 256 * REGION
NO_LABEL = {"name": None, "message": None, "tags": None, "pinned": False}

# --- BLAKE3 (the paper, section 2), one chunk at a time ---------------------

IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A,
      0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
PERMUTATION = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
CHUNK_START, CHUNK_END, PARENT, ROOT = 1, 2, 4, 8
KEYED_HASH, DERIVE_CONTEXT, DERIVE_MATERIAL = 16, 32, 64
MASK, MASK64 = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF


def compress(value, words, counter, length, flags):
    v = list(value) + list(IV[:4]) + [counter & MASK, counter >> 32, length, flags]
    m = list(words)

    def mix(a, b, c, d, x, y):
        va, vb, vc, vd = v[a], v[b], v[c], v[d]
        va = (va + vb + x) & MASK
        vd ^= va
        vd = (vd >> 16 | vd << 16) & MASK
        vc = (vc + vd) & MASK
        vb ^= vc
        vb = (vb >> 12 | vb << 20) & MASK
        va = (va + vb + y) & MASK
        vd ^= va
        vd = (vd >> 8 | vd << 24) & MASK
        vc = (vc + vd) & MASK
        vb ^= vc
        vb = (vb >> 7 | vb << 25) & MASK
        v[a], v[b], v[c], v[d] = va, vb, vc, vd

    for turn in range(7):
        mix(0, 4, 8, 12, m[0], m[1])
        mix(1, 5, 9, 13, m[2], m[3])
        mix(2, 6, 10, 14, m[4], m[5])
        mix(3, 7, 11, 15, m[6], m[7])
        mix(0, 5, 10, 15, m[8], m[9])
        mix(1, 6, 11, 12, m[10], m[11])
        mix(2, 7, 8, 13, m[12], m[13])
        mix(3, 4, 9, 14, m[14], m[15])
        if turn < 6:
            m = [m[i] for i in PERMUTATION]
    return [v[i] ^ v[i + 8] for i in range(8)]


def blake3_node(data, key, counter, flags, is_root):
    """The chaining value of a subtree, `counter` chunks into the input."""
    if len(data) <= 1024:
        value = key
        blocks = max(1, -(-len(data) // 64))
        for i in range(blocks):
            block = data[64 * i:64 * i + 64]
            block_flags = flags
            if i == 0:
                block_flags |= CHUNK_START
            if i == blocks - 1:
                block_flags |= CHUNK_END | (ROOT if is_root else 0)
            words = struct.unpack("<16I", block.ljust(64, b"\0"))
            value = compress(value, words, counter, len(block), block_flags)
        return value
    chunks = (len(data) - 1) // 1024
    left = 1 << (chunks.bit_length() - 1)
    parts = (blake3_node(data[:1024 * left], key, counter, flags, False)
             + blake3_node(data[1024 * left:], key, counter + left, flags, False))
    return compress(key, parts, 0, 64, flags | PARENT | (ROOT if is_root else 0))


def own_blake3(data, key=None, context=None):
    if context is not None:
        words = blake3_node(context.encode(), IV, 0, DERIVE_CONTEXT, True)
        words = blake3_node(data, words, 0, DERIVE_MATERIAL, True)
    elif key is not None:
        words = blake3_node(data, struct.unpack("<8I", key), 0, KEYED_HASH, True)
    else:
        words = blake3_node(data, IV, 0, 0, True)
    return struct.pack("<8I", *words)


try:
    from blake3 import blake3 as fast_blake3

    def blake3(data, key=None, context=None):
        return fast_blake3(data, key=key, derive_key_context=context).digest()
except ImportError:
    blake3 = own_blake3

# --- zstd -------------------------------------------------------------------

ZSTD = ctypes.CDLL(ctypes.util.find_library("zstd") or "libzstd.so.1")
ZSTD.ZSTD_decompress.restype = ctypes.c_size_t
ZSTD.ZSTD_decompress.argtypes = [ctypes.c_void_p, ctypes.c_size_t,
                                 ctypes.c_char_p, ctypes.c_size_t]


def unzstd(data, length):
    out = ctypes.create_string_buffer(max(length, 1))
    got = ZSTD.ZSTD_decompress(out, length, data, len(data))
    check(got == length, "zstd cannot decode a frame")
    return out.raw[:length]


def check(condition, message):
    if not condition:
        raise SystemExit("error: " + message)


# --- the repository ---------------------------------------------------------


class Repository:
    def __init__(self, path, arguments):
        self.path = path
        self.key_file = arguments.key_file
        self.passphrase_file = arguments.passphrase_file
        self.age_identity = arguments.age_identity
        config = json.loads(self.get("config"))
        check(config["tintype"] == 1, "another format")
        check(set(config["features"]) <= {"aes-256-gcm"}, "an unknown feature")
        self.id = bytes.fromhex(config["repository"])
        self.sealed = "aes-256-gcm" in config["features"]
        commitment = bytes.fromhex(config["key_commitment"])
        for name in sorted(os.listdir(os.path.join(path, "keys"))):
            master = self.open_slot("keys/" + name)
            if master is None:
                continue
            self.master = master
            key = self.derive("tintype 1 master key commitment")
            if blake3(self.id + bytes([self.sealed]), key=key) == commitment:
                break
        else:
            check(False, "no key opens the repository")
        self.block_key = self.derive("tintype 1 block id")
        sums = self.derive("tintype 1 block sums")
        self.sum_keys = struct.unpack("<516Q", b"".join(
            blake3(struct.pack("<I", number), key=sums) for number in range(129)))
        self.frame_key = self.derive("tintype 1 frame id")
        self.node_key = self.derive("tintype 1 node id")
        self.record_key = self.derive("tintype 1 record tag")
        self.seal_key = self.derive("tintype 1 seal")

    def derive(self, context):
        return blake3(self.master, context=context)

    def get(self, key):
        with open(os.path.join(self.path, key), "rb") as file:
            return file.read()

    def keys_of(self, folder):
        folder = os.path.join(self.path, folder)
        return sorted(os.listdir(folder)) if os.path.isdir(folder) else []

    def open_slot(self, key):
        slot = json.loads(self.get(key))
        if slot["kind"] == "none":
            return bytes.fromhex(slot["key"])
        if slot["kind"] == "keyfile" and self.key_file:
            with open(self.key_file) as file:
                head, digits = file.read().split("\n")[:2]
            check(head == "tintype key 1", "not a key file")
            wrapping = blake3(bytes.fromhex(digits), context="tintype 1 key file")
        elif slot["kind"] == "passphrase" and self.passphrase_file:
            with open(self.passphrase_file, "rb") as file:
                wrapping = argon2id(file.read().rstrip(b"\n"), slot)
        elif slot["kind"] == "age" and self.age_identity:
            return unseal_age(self.age_identity, bytes.fromhex(slot["sealed"]))
        else:
            return None
        from cryptography.exceptions import InvalidTag
        sealed = bytes.fromhex(slot["sealed"])
        try:
            return unseal(wrapping, sealed[:12], sealed[12:], self.id + key.encode())
        except InvalidTag:
            return None

    def tag(self, key, text):
        bound = self.id + struct.pack("<Q", len(key)) + key.encode()
        return blake3(bound + text, key=self.record_key).hex().encode() + b"\n"

    def signed(self, key, kind):
        text = self.get(key)
        check(text[-65:] == self.tag(key, text[:-65]), key + " has a wrong tag")
        lines = text[:-65].decode().splitlines()
        check(lines[0] == f"tintype {kind} 1", key + " is something else")
        return lines[1:]

    def is_undone(self, end):
        try:
            return self.signed("gone/" + end, "gone") == ["undone"]
        except SystemExit:
            return True

    def deleted(self):
        names = self.keys_of("gone")
        for name in names:
            if name.endswith(".end"):
                continue
            end = name + ".end"
            if end not in names or not self.is_undone(end):
                yield name.split("-")[0]

    def hidden(self, key, kind):
        [line] = self.signed(key, kind)
        if not self.sealed:
            return json.loads(line)
        sealed = bytes.fromhex(line)
        sealer = blake3(b"record" + key.encode(), key=self.seal_key)
        return json.loads(unseal(sealer, sealed[:12], sealed[12:], self.id))

    def label(self, snapshot):
        """Returns what was said of a snapshot since it was taken, or None."""
        names = (name.split("-") for name in self.keys_of("label"))
        numbers = sorted(int(name[1]) for name in names if name[0] == snapshot)
        for number in reversed(numbers):
            try:
                label = self.hidden(f"label/{snapshot}-{number}", "label")
            except SystemExit:
                continue
            label["pinned"] = label["pinned"] or number != numbers[-1]
            return label
        return dict(NO_LABEL, pinned=True) if numbers else None

    def operations(self):
        """Yields the entries of the log of operations, the oldest first."""
        for name in self.keys_of("op"):
            yield int(name), self.hidden("op/" + name, "op")

    def snapshots(self):
        deleted = set(self.deleted())
        found, moves = {}, []
        for session in self.keys_of("outcome"):
            if session in deleted:
                continue
            key = "outcome/" + session
            text = self.get(key)
            check(text[-65:] == self.tag(key, text[:-65]), key + " has a wrong tag")
            head, content, _ = text.split(b"\n", 2)
            if head == b"tintype outcome 1 aborted":
                continue
            if self.sealed:
                content = bytes.fromhex(content.decode())
                sealer = blake3(b"record" + key.encode(), key=self.seal_key)
                content = unseal(sealer, content[:12], content[12:], self.id)
            if head == b"tintype outcome 1 moved":
                moves += [(moved["version"], session, moved) for moved in json.loads(content)]
                continue
            check(head == b"tintype outcome 1 committed", key + " is something else")
            found[session] = json.loads(content)
        for _, _, moved in sorted(moves, key=lambda m: m[:2]):
            if record := found.get(moved["snapshot"]):
                record.update(images=moved["images"], blobs=moved["blobs"])
        return sorted(found.values(), key=lambda r: (r["sequence"], r["created"], r["id"]))

    def frame(self, place, kind):
        session, segment, number, offset, length = place
        key = f"seg/{session.hex()[:2]}/{session.hex()}-{segment:08x}"
        with open(os.path.join(self.path, key), "rb") as file:
            head = file.read(64)
            file.seek(offset)
            frame = file.read(length)
        check(head[:8] == b"TINTYSEG" and head[8:10] == b"\1\0", key + " is no segment")
        check(head[12:48] == struct.pack("<I", segment) + session + self.id, key + " is another")
        magic, found_kind, codec, found, stored, raw, checksum = struct.unpack(
            "<4sBBHII8s", frame[:24])
        check((magic, found_kind, found) == (b"TFRM", kind, number), key + " has another frame")
        data = frame[24:]
        check(len(data) == stored and blake3(data)[:8] == checksum, key + " is damaged")
        if self.sealed:
            name = b"segment" + session + struct.pack("<I", segment)
            bound = struct.pack("<BBI", kind, codec, raw)
            nonce = struct.pack("<H", number).ljust(12, b"\0")
            data = unseal(blake3(name, key=self.seal_key), nonce, data, bound)
        data = unzstd(data, raw) if codec == 1 else data
        check(codec in (0, 1) and len(data) == raw, key + " has a wrong frame")
        return data

    @functools.lru_cache(maxsize=256)
    def node_bytes(self, place, node_id, kind):
        data = self.frame(place, kind)
        check(blake3(bytes([kind]) + data, key=self.node_key) == node_id, "a node is damaged")
        return data

    def block_id(self, block):
        words, keys, sums = struct.unpack("<512Q", block), self.sum_keys, b""
        for moved in (0, 2):
            total = sum((words[i] + keys[i + moved] & MASK64)
                        * (words[i + 1] + keys[i + 1 + moved] & MASK64)
                        for i in range(0, 512, 2))
            sums += (total & (1 << 128) - 1).to_bytes(16, "little")
        return blake3(sums, key=self.block_key)[:16]

    @functools.lru_cache(maxsize=256)
    def blocks(self, place, frame_id):
        data = self.frame(place, 1)
        ids = b"".join(self.block_id(data[at:at + BLOCK])
                       for at in range(0, len(data), BLOCK))
        check(blake3(ids, key=self.frame_key)[:20] == frame_id, "a frame is damaged")
        return data

    def image_leaves(self, root):
        """Yields each leaf's number and its regions: number to parts."""
        leaves = {}
        if root["base"]:
            for leaf, pointer in self.tree(parse_pointer(root["base"]), root["height"], 0):
                leaves[leaf] = self.leaf(pointer)
        for run in root["runs"]:
            for leaf, change in self.run(parse_pointer(run["root"]), run["height"]):
                if change is None:
                    leaves.pop(leaf, None)
                elif isinstance(change, tuple):
                    leaves[leaf] = self.leaf(change)
                else:
                    leaves.setdefault(leaf, {}).update(change)
        return leaves.items()

    def tree(self, pointer, level, index):
        if level == 0:
            yield index, pointer
            return
        reader, found_level = self.node(pointer, 2)
        check(found_level == level, "a node is not where it belongs")
        while not reader.at_end():
            child = reader.take("B")
            yield from self.tree(reader.pointer(), level - 1, index << 8 | child)

    def run(self, pointer, level):
        reader, found_level = self.node(pointer, 5 if level else 3)
        check(found_level == level, "a node is not where it belongs")
        while not reader.at_end():
            leaf = reader.take("Q")
            if level:
                yield from self.run(reader.pointer(), level - 1)
                continue
            tag = reader.take("B")
            if tag == 0:
                yield leaf, None
            elif tag == 1:
                yield leaf, reader.pointer()
            else:
                check(tag == 2, "an unknown change")
                yield leaf, dict(reader.region() for _ in range(reader.take("B") + 1))

    def node(self, pointer, kind):
        reader = Reader(self.node_bytes(*pointer, 2))
        found, level, count = reader.take("B"), reader.take("B"), reader.take("H")
        check(found == kind, "a node is not where it belongs")
        reader.segments = [(reader.bytes(16), reader.take("I")) for _ in range(count)]
        return reader, level

    def leaf(self, pointer):
        reader, level = self.node(pointer, 1)
        check(level == 0, "a node is not where it belongs")
        regions = {}
        while not reader.at_end():
            number, parts = reader.region()
            regions[number] = parts
        return regions

    def image_blocks(self, root):
        """Yields the offset and the bytes of each block that the map has."""
        size = root["size"]
        for leaf, regions in sorted(self.image_leaves(root)):
            for region, parts in sorted(regions.items()):
                for block in range(16):
                    offset = leaf * LEAF + region * REGION + block * BLOCK
                    for used, mask, first, place, frame_id in parts:
                        if used >> block & 1 and offset < size:
                            slot = first + bin(mask & ((1 << block) - 1)).count("1")
                            data = self.blocks(place, frame_id)
                            content = data[slot * BLOCK:(slot + 1) * BLOCK]
                            yield offset, content[:size - offset]

    def extract_image(self, root, out):
        out.truncate(root["size"])
        for offset, content in self.image_blocks(root):
            out.seek(offset)
            out.write(content)

    def digest_image(self, root):
        digest = hashlib.sha256(struct.pack("<Q", root["size"]))
        for offset, content in self.image_blocks(root):
            if content.strip(b"\0"):
                digest.update(struct.pack("<Q", offset) + content)
        return digest.hexdigest()

    def blob(self, blob):
        reader = Reader(self.node_bytes(*parse_pointer(blob["list"]), 2))
        check(reader.bytes(2) == b"\4\0" and reader.take("Q") == blob["len"], "not this blob")
        chunks = []
        while not reader.at_end():
            segment = (reader.bytes(16), reader.take("I"))
            place = segment + (reader.take("H"), reader.take("I"), reader.take("I"))
            chunks.append(self.node_bytes(place, reader.bytes(32), 3))
        content = b"".join(chunks)
        check(len(content) == blob["len"], "the blob has another length")
        return content

    def digests(self):
        return [{"record": record, "label": self.label(record["id"]),
                 "images": [self.digest_image(image["root"]) for image in record["images"]],
                 "blobs": [hashlib.sha256(self.blob(blob)).hexdigest()
                           for _, blob in record["blobs"]]}
                for record in self.snapshots()]


class Reader:
    """Takes fields off the front of a node."""

    def __init__(self, data):
        self.data, self.at, self.segments = data, 0, []

    def at_end(self):
        return self.at == len(self.data)

    def bytes(self, length):
        self.at += length
        check(self.at <= len(self.data), "a node ends early")
        return self.data[self.at - length:self.at]

    def take(self, form):
        return struct.unpack("<" + form, self.bytes(struct.calcsize("<" + form)))[0]

    def place(self):
        return self.segments[self.take("H")] + (self.take("H"), self.take("I"), self.take("I"))

    def pointer(self):
        return self.place(), self.bytes(32)

    def region(self):
        number, count = self.take("B"), self.take("B")
        parts = []
        for _ in range(count):
            used, mask, first, _blocks = (self.take(form) for form in "HHBB")
            parts.append((used, mask, first, self.place(), self.bytes(20)))
        return number, parts


def parse_pointer(text):
    head, number, offset, length, node_id = text.split(".")
    session, segment = head.split("-")
    place = (bytes.fromhex(session), int(segment, 16), int(number, 16),
             int(offset, 16), int(length, 16))
    return place, bytes.fromhex(node_id)


def unseal(key, nonce, sealed, bound):
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    return AESGCM(key).decrypt(nonce, sealed, bound)


def unseal_age(identity, sealed):
    command = ["age", "--decrypt", "--identity", identity]
    opened = subprocess.run(command, input=sealed, stdout=subprocess.PIPE, check=False)
    return opened.stdout if opened.returncode == 0 else None


def argon2id(words, slot):
    salt, cost = bytes.fromhex(slot["salt"]), slot["memory_kib"]
    passes, lanes = slot["passes"], slot["lanes"]
    try:
        from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
    except ImportError:
        from argon2.low_level import Type, hash_secret_raw
        return hash_secret_raw(words, salt, passes, cost, lanes, 32, Type.ID)
    return Argon2id(salt=salt, length=32, iterations=passes, lanes=lanes,
                    memory_cost=cost).derive(words)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--key-file")
    parser.add_argument("--passphrase-file")
    parser.add_argument("--age-identity")
    parser.add_argument("repository")
    parser.add_argument("action", choices=["list", "image", "blob", "digest", "operations"])
    parser.add_argument("rest", nargs="*")
    arguments = parser.parse_args()

    def opened(path):
        return Repository(path, arguments)

    if arguments.action == "digest":
        for path in [arguments.repository] + arguments.rest:
            print(json.dumps(opened(path).digests()))
        return
    repository = opened(arguments.repository)
    if arguments.action == "list":
        for record in repository.snapshots():
            label = repository.label(record["id"]) or NO_LABEL
            record["name"] = label["name"] or record["name"]
            for said in ("message", "tags"):
                if label[said] is not None:
                    record["details"][said] = label[said]
            print(json.dumps(dict(record, pinned=label["pinned"])))
        return
    if arguments.action == "operations":
        for number, entry in repository.operations():
            print(json.dumps([number, entry]))
        return
    snapshot, name, out = arguments.rest
    found = [r for r in repository.snapshots() if r["id"].startswith(snapshot)]
    check(len(found) == 1, f"{len(found)} snapshots are called {snapshot}")
    with open(out, "wb") as file:
        if arguments.action == "image":
            roots = {image["name"]: image["root"] for image in found[0]["images"]}
            repository.extract_image(roots[name], file)
        else:
            file.write(repository.blob(dict(found[0]["blobs"])[name]))


if __name__ == "__main__":
    sys.exit(main())
