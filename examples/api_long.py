"""Make a long video with a prompt for each segment, through a running page's API, and follow its progress.

Afterwards the last segment is made again with another prompt; the first one is kept. Try it:

    make run                        # in another terminal, until the page is there
    python examples/api_long.py     # or with the page's address: ... http://other-host:7860
"""

import sys
import time

from gradio_client import Client

STORY = ["a red ball rises over green hills at sunset", "a red ball falls over green hills at sunset"]


def main() -> None:
    client = Client(sys.argv[1] if len(sys.argv) > 1 else "http://localhost:7860")
    job, told = client.submit(prompts=STORY, seed=7, api_name="/long"), ""
    while not job.done():
        news = job.status().progress_data
        if news and news[0].desc != told:
            told = news[0].desc
            print(told)
        time.sleep(0.2)
    video, report = job.result()
    print(f"{report['request']['num_frames']} frames in {len(report['segments'])} segments: {video}")
    other = [STORY[0], "day turns to night over green hills"]
    video, _ = client.predict(prompts=other, seed=7, after=report["job_id"], keep=1, api_name="/long")
    print(f"with another end: {video}")


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # no server there, or what it says about the request, in one sentence
        sys.exit(f"error: {error}")
