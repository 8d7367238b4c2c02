// |dense - sparse| of the frame on show, amplified. Pixels are kept by frame number and only equal numbers are
// compared, so that a clip that is presented a frame late does not show up as a difference. The number is the
// picture's own: in a busy browser a clip has moved on by the time that its callback is run.
function heatMap(canvas, clips, sync, told) {
  const WIDEST = 640;
  const KEPT = 4;
  const STOPS = [[0, 0, 0], [66, 10, 104], [147, 38, 103], [221, 81, 58], [252, 165, 10], [252, 255, 164]];
  const colours = Array.from({ length: 256 }, (_, value) => {
    const at = (value / 255) * (STOPS.length - 1);
    const low = Math.min(STOPS.length - 2, Math.floor(at));
    return STOPS[low].map((channel, i) => Math.round(channel + (at - low) * (STOPS[low + 1][i] - channel)));
  });
  const pixels = clips.map(() => new Map());
  const scratch = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  let on = false;
  let gain = 4;
  let painted = -1;

  function grab(i, frame) {
    const video = clips[i];
    if (!on || video.readyState < 2 || !video.videoWidth) return;
    const width = Math.min(WIDEST, video.videoWidth);
    const height = Math.max(1, Math.round((video.videoHeight * width) / video.videoWidth));
    if (scratch.canvas.width !== width || scratch.canvas.height !== height) Object.assign(scratch.canvas, { width, height });
    const picture = pictureOf(video);
    scratch.drawImage(picture || video, 0, 0, width, height);
    if (picture) {
      frame = sync.frameAt(picture.timestamp / 1e6 + 0.5 / sync.fps);
      picture.close();
    }
    pixels[i].delete(frame);
    pixels[i].set(frame, scratch.getImageData(0, 0, width, height));
    if (pixels[i].size > KEPT) pixels[i].delete(pixels[i].keys().next().value);
    paint(frame);
  }

  // null where the browser has no VideoFrame, or none of this clip yet
  function pictureOf(video) {
    try {
      return new VideoFrame(video);
    } catch {
      return null;
    }
  }

  function paint(frame) {
    const [dense, sparse] = pixels.map((frames) => frames.get(frame));
    if (!dense || !sparse || dense.data.length !== sparse.data.length) return;
    const { width, height } = dense;
    const image = new ImageData(width, height);
    let sum = 0;
    for (let i = 0; i < image.data.length; i += 4) {
      const [a, b] = [dense.data, sparse.data];
      const difference = (Math.abs(a[i] - b[i]) + Math.abs(a[i + 1] - b[i + 1]) + Math.abs(a[i + 2] - b[i + 2])) / 3;
      sum += difference;
      const colour = colours[Math.min(255, Math.round(gain * difference))];
      image.data[i] = colour[0];
      image.data[i + 1] = colour[1];
      image.data[i + 2] = colour[2];
      image.data[i + 3] = 255;
    }
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    canvas.getContext('2d').putImageData(image, 0, 0);
    canvas.dataset.frame = painted = frame;
    told(sum / (width * height), gain);
  }

  clips.forEach((video, i) => {
    const exact = 'requestVideoFrameCallback' in video;
    const next = (now, shown) => {
      if (exact) grab(i, sync.frameAt(shown.mediaTime + 0.5 / sync.fps));
      else if (!video.seeking) grab(i, sync.frameAt(video.currentTime));
      wait();
    };
    const wait = () => {
      if (exact) video.requestVideoFrameCallback(next);
      else if (video.isConnected) requestAnimationFrame(next);
    };
    wait();
  });

  // A paused clip presents no new frame, so what it shows is taken as it is.
  function refresh() {
    if (!sync.settling) clips.forEach((video, i) => grab(i, sync.frameAt(video.currentTime)));
  }

  return {
    refresh,
    turn(value) {
      on = value;
      if (on) refresh();
    },
    forget() {
      pixels.forEach((frames) => frames.clear());
      painted = -1;
      delete canvas.dataset.frame;
    },
    set gain(value) {
      gain = value;
      paint(painted);
    },
  };
}
