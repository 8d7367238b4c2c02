"""Ask a running page's API what a video will take on its machine, without making it.

Try it:

    make run                             # in another terminal, until the page is there
    python examples/api_estimate.py      # or with the page's address: ... http://other-host:7860
"""

import sys

from gradio_client import Client


def main() -> None:
    client = Client(sys.argv[1] if len(sys.argv) > 1 else "http://localhost:7860")
    estimate = client.predict(sparsity=0.875, api_name="/estimate")
    for arm in ("dense", "sparse"):
        seconds, memory = estimate[arm]["seconds"], estimate[arm]["memory"] / 2**30
        time = "unknown before the first video" if seconds is None else f"{seconds['total']:.1f} s"
        print(f"{arm:6}  {time}, {memory:.1f} GiB ({estimate[arm]['memory_of']})")
    print(f"from {estimate['sparse']['basis']}")


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # no server there, or what it says about the request, in one sentence
        sys.exit(f"error: {error}")
