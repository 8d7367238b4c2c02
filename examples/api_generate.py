"""Make one video through a running page's API.

Try it:

    make run                            # in another terminal, until the page is there
    python examples/api_generate.py     # or with the page's address: ... http://other-host:7860
"""

import sys

from gradio_client import Client


def main() -> None:
    client = Client(sys.argv[1] if len(sys.argv) > 1 else "http://localhost:7860")
    video, report = client.predict(
        prompt="a red ball bounces over green hills at sunset",
        seed=7,
        sparsity=0.9375,
        api_name="/generate",
    )
    print(video)
    print(f"denoising took {report['seconds']['denoise']:.1f} s")
    print(f"each block attended to {report['blocks_kept']:g} of {report['blocks_total']}")


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # no server there, or what it says about the request, in one sentence
        sys.exit(f"error: {error}")
