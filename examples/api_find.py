"""Find the fastest sparsity that keeps a prompt's video close to the dense one, through a running page's API.

Try it:

    make run                         # in another terminal, until the page is there
    python examples/api_find.py      # or with the page's address: ... http://other-host:7860
"""

import sys

from gradio_client import Client


def main() -> None:
    client = Client(sys.argv[1] if len(sys.argv) > 1 else "http://localhost:7860")
    report, table = client.predict(
        prompt="a red ball bounces over green hills at sunset",
        seed=7,
        selection="cells",
        quality="psnr",
        floor=32,
        api_name="/find",
    )
    found = report["search"]["found"]
    for cell in report["cells"]:
        mark = "*" if [cell["row"], cell["column"]] == found else " "
        print(f"{mark} sparsity {cell['sparsity']}: {cell['speedup']:.2f}x as fast, PSNR {cell['psnr']} dB")
    print(f"* found; all numbers: {table}" if found else "none is close enough and faster than dense")


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # no server there, or what it says about the request, in one sentence
        sys.exit(f"error: {error}")
