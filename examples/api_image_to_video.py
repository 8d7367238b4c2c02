"""Make a video that begins with a picture, through a running page's API.

The picture is uploaded; one of the example pictures, unless another is named. Try it:

    make run                                   # in another terminal, until the page is there
    python examples/api_image_to_video.py      # or: ... http://other-host:7860 photo.jpg
"""

import sys
from pathlib import Path

from gradio_client import Client, handle_file

EXAMPLE = Path(__file__).resolve().parents[1] / "assets" / "pictures" / "heart.png"


def main() -> None:
    client = Client(sys.argv[1] if len(sys.argv) > 1 else "http://localhost:7860")
    picture = sys.argv[2] if len(sys.argv) > 2 else EXAMPLE
    video, report = client.predict(
        image=handle_file(picture),
        prompt="a pink heart pulses over green hills during the day",
        seed=7,
        api_name="/image_to_video",
    )
    asked = report["request"]
    print(f"{asked['num_frames']} frames of {asked['width']} x {asked['height']}: {video}")
    print(report.get("note", "the model was trained for this"))


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # no server there, or what it says about the request, in one sentence
        sys.exit(f"error: {error}")
