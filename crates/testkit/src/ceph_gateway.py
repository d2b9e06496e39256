"""A real Ceph object gateway for tests: one monitor, one store in memory.

Keeps everything in the folder it is given, says its port, then obeys one
command a line until its input ends: `bucket NAME` makes a bucket.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid

import boto3

folder = sys.argv[1]
CONF = os.path.join(folder, "ceph.conf")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def die_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def run(*command):
    done = subprocess.run([*command, "-c", CONF], capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise SystemExit(f"{command}: {done.stderr}")


def start(*command):
    with open(os.path.join(folder, f"{command[0]}.out"), "wb") as out:
        return subprocess.Popen(
            [*command, "-f", "-c", CONF], stdout=out, stderr=out, preexec_fn=die_with_parent
        )


port, fsid = free_port(), str(uuid.uuid4())
monitor = f"[v2:127.0.0.1:{free_port()},v1:127.0.0.1:{free_port()}]"
# The gateway asks for encrypted connections to the monitor unless told otherwise,
# which there are none of without keys.
with open(CONF, "w") as conf:
    conf.write(f"""
[global]
fsid = {fsid}
mon host = {monitor}
auth cluster required = none
auth service required = none
auth client required = none
ms mon cluster mode = crc
ms mon service mode = crc
ms mon client mode = crc
run dir = {folder}
admin socket = {folder}/$name.$pid.asok
log file = {folder}/$name.log
pid file = {folder}/$name.pid
keyring = {folder}/keyring
mon data = {folder}/mon.$id
mon data avail crit = 0
mon data avail warn = 0
mon allow pool size one = true
osd data = {folder}/osd.$id
osd objectstore = memstore
memstore device bytes = 4294967296
osd crush chooseleaf type = 0
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pg autoscale mode = off
public addr = 127.0.0.1
rgw frontends = beast endpoint=127.0.0.1:{port}
""")
os.mkdir(os.path.join(folder, "mon.a"))
os.mkdir(os.path.join(folder, "osd.0"))
monmap = os.path.join(folder, "monmap")
run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", monitor, monmap)
run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap)
start("ceph-mon", "-i", "a")
osd = str(uuid.uuid4())
run("ceph", "osd", "new", osd)
run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
start("ceph-osd", "-i", "0")
run("radosgw-admin", "user", "create", "--uid=test", "--display-name=test",
    "--access-key=test", "--secret=test")
gateway = start("radosgw", "-n", "client.admin")
while True:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
        break
    except urllib.error.HTTPError:
        break
    except OSError:
        if gateway.poll() is not None:
            raise SystemExit("the gateway has ended") from None
        time.sleep(0.1)
client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1",
                      aws_access_key_id="test", aws_secret_access_key="test")
print(port, flush=True)
for line in sys.stdin:
    command, name = line.split()
    assert command == "bucket", line
    client.create_bucket(Bucket=name)
    print("done", flush=True)
