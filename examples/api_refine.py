"""Make a video through a running page's API and refine it: larger, finer, twice as many frames.

The page must run with a checkpoint that has an adapter for that, lora/refinement_lora.safetensors, as the included one
has; without it the server says so. Try it:

    make run                            # in another terminal, until the page is there
    python examples/api_refine.py       # or with the page's address: ... http://other-host:7860
"""

import sys

from gradio_client import Client


def main() -> None:
    client = Client(sys.argv[1] if len(sys.argv) > 1 else "http://localhost:7860")
    _, first = client.predict(prompt="a yellow star spins over a city at night", seed=7, api_name="/generate")
    video, report = client.predict(clip=first["job_id"], seed=7, api_name="/refine")
    asked, seconds = report["request"], report["seconds"]["total"]
    print(f"{asked['num_frames']} frames of {asked['width']} x {asked['height']} in {seconds:.1f} s: {video}")


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # no server there, or what it says about the request, in one sentence
        sys.exit(f"error: {error}")
