"""What tests need of Azurite that its users do by other tools: makes a container, or signs for one.

azure.py make PORT CONTAINER            makes it, if it is not there
azure.py sign PORT CONTAINER LETTERS    prints a shared access signature for it that allows what the letters say
"""

import base64
import datetime
import hashlib
import hmac
import sys
import urllib.error
import urllib.parse
import urllib.request

ACCOUNT = "devstoreaccount1"
# Azurite's own, which is written in its documentation.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
VERSION = "2021-12-02"


def signature(text):
    signed = hmac.new(base64.b64decode(KEY), text.encode(), hashlib.sha256)
    return base64.b64encode(signed.digest()).decode()


def make(port, container):
    path = f"/{ACCOUNT}/{container}"
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%a, %d %b %Y %H:%M:%S GMT")
    headers = f"x-ms-date:{now}\nx-ms-version:{VERSION}\n"
    text = "PUT" + "\n" * 12 + headers + f"/{ACCOUNT}{path}\nrestype:container"
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}?restype=container", method="PUT")
    request.add_header("x-ms-date", now)
    request.add_header("x-ms-version", VERSION)
    request.add_header("Authorization", f"SharedKey {ACCOUNT}:{signature(text)}")
    try:
        urllib.request.urlopen(request, timeout=20)
    except urllib.error.HTTPError as error:
        if error.code != 409:
            raise


def sign(container, letters):
    end = (datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    fields = [letters, "", end, f"/blob/{ACCOUNT}/{container}", "", "", "http,https", VERSION, "c"] + [""] * 7
    pairs = {"sp": letters, "se": end, "sv": VERSION, "sr": "c", "spr": "http,https", "sig": signature("\n".join(fields))}
    print(urllib.parse.urlencode(pairs, quote_via=urllib.parse.quote, safe=""))


if sys.argv[1] == "make":
    make(*sys.argv[2:])
else:
    sign(*sys.argv[3:])
