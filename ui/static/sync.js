// Two clips of equal length that move as one. The first leads; the other is nudged by its playback rate while
// it is less than a frame away, and both are set to the same frame when it is not. Positions are frame numbers,
// and a seek goes to the middle of a frame, where rounding cannot show its neighbour.
function syncClips(clips, changed) {
  const [lead, other] = clips;
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
  let fps = 15;
  let frames = 1;
  let active = false;
  let playing = false;
  let ticking = false;
  let speed = 1;
  let loop = true;
  let goal = null; // the frame to go to next
  let target = 0; // the frame last gone to
  let settling = null;

  const frameAt = (time) => clamp(Math.floor(time * fps + 0.01), 0, frames - 1);

  function once(video, names, act) {
    const stop = new AbortController();
    const first = () => {
      stop.abort();
      act();
    };
    names.forEach((name) => video.addEventListener(name, first, { signal: stop.signal }));
  }

  function seek(video, time) {
    return new Promise((done) => {
      const go = () => {
        if (video.error || (!video.seeking && video.readyState >= 2 && Math.abs(video.currentTime - time) < 1e-4)) return done();
        once(video, ['seeked', 'error', 'loadedmetadata'], done);
        video.currentTime = time;
      };
      if (video.readyState >= 1 || video.error) go();
      else once(video, ['loadedmetadata', 'error'], go);
    });
  }

  // Requests that come while a seek is under way replace each other: a fast drag ends where it was let go.
  function goTo(frame) {
    goal = target = clamp(frame, 0, frames - 1);
    changed();
    settling = settling || settle();
    return settling;
  }

  async function settle() {
    clips.forEach((video) => video.pause());
    while (goal !== null) {
      const time = (goal + 0.5) / fps;
      goal = null;
      await Promise.all(clips.map((video) => seek(video, time)));
    }
    settling = null;
    changed();
    if (playing && active) start();
  }

  function start() {
    clips.forEach((video) => {
      video.playbackRate = speed;
      video.play().catch(() => {});
    });
    if (!ticking) requestAnimationFrame(tick);
    ticking = true;
  }

  function tick() {
    ticking = playing && active && lead.isConnected;
    if (!ticking) return;
    if (!settling) {
      const drift = (other.currentTime - lead.currentTime) * fps;
      if (lead.ended || other.ended) finish();
      else if (Math.abs(drift) > 0.8) goTo(frameAt(lead.currentTime));
      else {
        const rate = speed * (1 - 0.02 * Math.round(10 * drift));
        if (other.playbackRate !== rate) other.playbackRate = rate;
        // the browser pauses silent clips of a hidden tab
        clips.filter((video) => video.paused).forEach((video) => video.play().catch(() => {}));
      }
      changed();
    }
    requestAnimationFrame(tick);
  }

  function finish() {
    playing = loop;
    goTo(loop ? 0 : frames - 1);
  }

  const position = () => (playing && !settling ? frameAt(lead.currentTime) : target);

  return {
    position,
    frameAt,
    goTo,
    get frames() { return frames; },
    get fps() { return fps; },
    get playing() { return playing; },
    get settling() { return Boolean(settling); },
    get active() { return active; },
    set speed(value) {
      speed = value;
      clips.forEach((video) => (video.playbackRate = speed));
    },
    set loop(value) { loop = value; },
    open(clip, play) {
      ({ fps, frames } = clip);
      active = true;
      playing = play;
      goTo(0);
    },
    // Leaves the clips to their own controls, and takes them back where the first one then is.
    release() {
      target = position();
      active = playing = false;
      clips.forEach((video) => (video.playbackRate = 1));
    },
    retake() {
      active = true;
      playing = !lead.paused;
      goTo(frameAt(lead.currentTime));
    },
    play() {
      playing = true;
      if (settling) changed();
      else if (target >= frames - 1 || lead.ended) goTo(0);
      else start();
      changed();
    },
    pause() {
      const frame = position();
      playing = false;
      goTo(frame);
    },
  };
}
