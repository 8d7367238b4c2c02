"""Make a long video through a running page's API and refine the whole of it, window by window, following its progress.

The page must run with a checkpoint that has an adapter for that, lora/refinement_lora.safetensors, as the included one
has; without it the server says so. Try it:

    make run                            # in another terminal, until the page is there
    python examples/api_refine_long.py  # or with the page's address: ... http://other-host:7860
"""

import sys
import time

from gradio_client import Client

STORY = ["a red ball rises over green hills at sunset", "a red ball falls over green hills at sunset"]


def main() -> None:
    client = Client(sys.argv[1] if len(sys.argv) > 1 else "http://localhost:7860")
    _, made = client.predict(prompts=STORY, seed=7, api_name="/long")
    job, told = client.submit(video=made["job_id"], seed=7, api_name="/refine_long"), ""
    while not job.done():
        news = job.status().progress_data
        if news and news[0].desc != told:
            told = news[0].desc
            print(told)
        time.sleep(0.2)
    video, report = job.result()
    asked = report["request"]
    frames, count = asked["num_frames"], len(report["windows"])
    print(f"{frames} frames of {asked['width']} x {asked['height']} in {count} windows: {video}")


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # no server there, or what it says about the request, in one sentence
        sys.exit(f"error: {error}")
