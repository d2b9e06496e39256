"""A real S3 server for tests: moto, made exact or flawed.

Says its port, then obeys one command a line until its input ends:
`bucket NAME` makes a bucket, `flaw NAME` lets puts go wrong, `sound` ends that.
"""

import sys
import threading
import time
import urllib.request

from moto.s3.models import S3Backend
from moto.s3.responses import S3Response
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

flaw = None
answer_put = S3Response.put_object
store = S3Backend.put_object
one_at_a_time = threading.Lock()


def put_object(self):
    """Moto looks and stores in two steps; here they are one, unless flawed."""
    if flaw == "ignores-conditions":
        self.headers = {k: v for k, v in self.headers.items() if k.lower() != "if-none-match"}
    if flaw:
        return answer_put(self)
    with one_at_a_time:
        return answer_put(self)


def slow_store(self, *arguments, **named):
    if flaw == "looks-then-writes":
        time.sleep(0.2)
    return store(self, *arguments, **named)


S3Response.put_object = put_object
S3Backend.put_object = slow_store
server = make_server(
    "127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=True
)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.port, flush=True)
for line in sys.stdin:
    command, *names = line.split()
    if command == "bucket":
        url = f"http://127.0.0.1:{server.port}/{names[0]}"
        urllib.request.urlopen(urllib.request.Request(url, method="PUT")).close()
    else:
        flaw = names[0] if command == "flaw" else None
    print("done", flush=True)
