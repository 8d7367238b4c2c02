"""Read memory and load of a running page's machine through its API.

Try it:

    make run                              # in another terminal, until the page is there
    python examples/api_resources.py      # or with the page's address: ... http://other-host:7860
"""

import sys

from gradio_client import Client


def main() -> None:
    client = Client(sys.argv[1] if len(sys.argv) > 1 else "http://localhost:7860")
    now = client.predict(api_name="/resources")
    print(now["worker"]["message"])
    for gpu in now["gpus"]:
        print(f"GPU {gpu['index']} {gpu['name']}: {gpu['used'] / 2**30:.1f} of {gpu['total'] / 2**30:.1f} GiB")
    print(now["note"] or "all GPUs were read")
    print(f"host: {now['host_used'] / 2**30:.1f} of {now['host_total'] / 2**30:.1f} GiB")


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # no server there, or what it says about the request, in one sentence
        sys.exit(f"error: {error}")
