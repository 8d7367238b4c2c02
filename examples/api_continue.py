"""Make a video and go on from its end, through a running page's API.

What is continued here is a finished video, by its job_id; an MP4 file of your own goes in its place as
gradio_client.handle_file("clip.mp4"). Try it:

    make run                            # in another terminal, until the page is there
    python examples/api_continue.py     # or with the page's address: ... http://other-host:7860
"""

import sys

from gradio_client import Client


def main() -> None:
    client = Client(sys.argv[1] if len(sys.argv) > 1 else "http://localhost:7860")
    prompt = "a red ball moves from left to right over the sea during the day"
    _, first = client.predict(prompt=prompt, seed=7, api_name="/generate")
    video, report = client.predict(clip=first["job_id"], prompt=prompt, seed=8, api_name="/continue")
    given = report["request"]["from_frames"]["cond_frames"]
    print(f"{report['request']['num_frames']} frames, of which the first {given} are the end of the other: {video}")


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # no server there, or what it says about the request, in one sentence
        sys.exit(f"error: {error}")
